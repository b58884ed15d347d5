//! The part in which one thing goes wrong in each of many moves and checkpointed pairs: a process is
//! killed, a connection spoiled, a disk full, at each step in turn.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Options;
use crate::figures;
use crate::process;
use crate::workspace::Workspace;

/// Runs of each kind in which the fault happened.
const RUNS: u64 = 100;
const RUNS_FULL: u64 = 1000;
/// How often the long variant hits each side at each step at least.
const HITS_FULL: u64 = 20;
const KINDS: [&str; 2] = ["checkpoint", "migrate"];

/// Both kinds, side by side.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let (runs, hits) = if options.full {
        (RUNS_FULL, HITS_FULL)
    } else {
        (RUNS, 1)
    };
    let mut command = workspace.cargo();
    command
        .args(["test", "--workspace", "--test", "faults"])
        .args(["--", "--nocapture"])
        .env("TIDEMARK_FAULT_RUNS", runs.to_string());
    let (text, status) = process::tee(&mut command)?;
    let found = text
        .lines()
        .filter_map(|line| Some(line.split_once("figures ")?.1));
    let all: Vec<Value> = found
        .map(serde_json::from_str)
        .collect::<serde_json::Result<_>>()
        .context("the figures of the runs are no JSON")?;
    figures::keep(workspace, "faults", &json!(all))?;
    ensure!(
        status.success(),
        "`{}` ended with {status}",
        process::shown(&command)
    );
    for kind in KINDS {
        let figures = all.iter().find(|figures| figures["kind"] == kind);
        let figures = figures.with_context(|| format!("no figures of {kind}"))?;
        good(figures, runs, hits).with_context(|| format!("{kind} under faults"))?;
    }
    Ok(format!(
        "{runs} moves and {runs} checkpointed pairs, each with a fault: nothing lost, nothing doubled"
    ))
}

fn good(figures: &Value, runs: u64, hits: u64) -> Result<()> {
    for (name, expected) in [("runs", runs), ("wrong_runs", 0), ("pages_lost", 0)] {
        let got = &figures[name];
        ensure!(*got == expected, "expected {expected} {name}, got {got}");
    }
    ensure!(
        figures["pages_compared"].as_u64() > Some(0),
        "no page was compared"
    );
    let least = figures["least_hits_of_a_step_and_side"].as_u64();
    ensure!(
        least >= Some(hits),
        "a step was hit {least:?} times at one side, expected {hits}: {}",
        figures["steps"]
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_counts() {
        let whole = json!({
            "runs": 100, "wrong_runs": 0, "pages_lost": 0, "pages_compared": 9,
            "least_hits_of_a_step_and_side": 3, "steps": {},
        });
        good(&whole, 100, 3).unwrap();
        assert!(good(&whole, 100, 4).is_err());
        for spoiled in [
            "runs",
            "wrong_runs",
            "pages_lost",
            "pages_compared",
            "least_hits_of_a_step_and_side",
        ] {
            let mut other = whole.clone();
            let figure = other[spoiled].as_u64();
            other[spoiled] = json!(if figure == Some(0) { 1 } else { 0 });
            assert!(good(&other, 100, 3).is_err(), "{spoiled}");
        }
    }
}

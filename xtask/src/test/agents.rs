//! The part in which agents are killed at random while a manager changes their devices, and the table
//! of every fault on a virtual clock.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Options;
use crate::figures;
use crate::process;
use crate::workspace::Workspace;

/// Changes of four agents, in most of which one is killed.
const RUNS: u64 = 100;
const RUNS_FULL: u64 = 1000;
/// Combinations of a first fault in each of four remotes.
const MULTISETS: u64 = 20_475;

/// The table, then the processes.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let runs = if options.full { RUNS_FULL } else { RUNS };
    let mut table = workspace.cargo();
    table.args(["test", "--workspace", "--lib"]);
    table.args(["lock::tests::faults", "--", "--nocapture"]);
    let table = read(&mut table)?;
    let mut killed = workspace.cargo();
    killed.args(["test", "--workspace", "--test", "agents"]);
    killed.args(["--", "--nocapture"]);
    let killed = read(killed.env("TIDEMARK_AGENT_RUNS", runs.to_string()))?;
    let all = json!({ "table": table, "killed": killed });
    figures::keep(workspace, "agents", &all)?;
    good(&table, &killed, runs)?;
    let kills = &killed[0]["killed"];
    Ok(format!(
        "{MULTISETS} fault tables twice and all pairs; {runs} changes of 4 agents, {kills} killed: all or none"
    ))
}

/// The figures that a test printed, each on a line of its own.
fn read(command: &mut std::process::Command) -> Result<Vec<Value>> {
    let (text, status) = process::tee(command)?;
    ensure!(
        status.success(),
        "`{}` ended with {status}",
        process::shown(command)
    );
    let found = text
        .lines()
        .filter_map(|line| Some(line.split_once("figures ")?.1));
    let all: serde_json::Result<Vec<Value>> = found.map(serde_json::from_str).collect();
    all.context("the figures of the runs are no JSON")
}

fn good(table: &[Value], killed: &[Value], runs: u64) -> Result<()> {
    let tables = table.iter().filter(|row| row["runs"] == MULTISETS);
    let tables = tables.count();
    ensure!(
        tables == 2,
        "expected 2 tables of {MULTISETS} runs, got {tables}"
    );
    let pairs = table.iter().any(|row| row["what"] == "pairs");
    ensure!(pairs, "expected the pairs of faults, got {table:?}");
    let [killed] = killed else {
        anyhow::bail!("expected the figures of one test, got {killed:?}");
    };
    ensure!(
        killed["runs"] == runs && killed["killed"].as_u64() >= Some(runs / 2),
        "expected {runs} runs, and a kill in half of them at least, got {killed}"
    );
    for outcome in ["applied", "undone"] {
        let count = killed[outcome].as_u64();
        ensure!(count > Some(0), "no run was {outcome}: {killed}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_counts() {
        let row = json!({ "what": "multisets", "runs": MULTISETS });
        let table = [
            row.clone(),
            row.clone(),
            json!({ "what": "pairs", "runs": 1 }),
        ];
        let killed = json!({ "runs": 100, "killed": 60, "applied": 30, "undone": 50 });
        good(&table, std::slice::from_ref(&killed), 100).unwrap();
        assert!(good(&table[1..], std::slice::from_ref(&killed), 100).is_err());
        assert!(good(&table[..2], std::slice::from_ref(&killed), 100).is_err());
        assert!(good(&table, &[], 100).is_err());
        for spoiled in ["runs", "killed", "applied", "undone"] {
            let mut other = killed.clone();
            other[spoiled] = json!(0);
            assert!(good(&table, &[other], 100).is_err(), "{spoiled}");
        }
    }
}

//! `cargo xtask bench`: runs the benchmarks, and with `--check` holds every line to its bound.
//!
//! The convention: a benchmark that is given `--check` prints one JSON object per claim on its
//! standard output, `{"line": "...", "bound": "<= 0.15", "figure": 0.11, "spread": [0.10, 0.12],
//! "ok": true}`, and whatever else it likes in lines that are no JSON objects.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::process;
use crate::workspace::Workspace;

const PACKAGE: &str = "benches";

/// One claim about speed, measured.
#[derive(Debug, Deserialize, PartialEq)]
struct Line {
    line: String,
    bound: String,
    figure: f64,
    spread: [f64; 2],
    ok: bool,
}

/// Runs every benchmark as it is, for a person to read.
pub fn run(workspace: &Workspace) -> Result<()> {
    process::stream(workspace.cargo().args(["bench", "--package", PACKAGE]))
}

/// Runs every benchmark with `--check`. Whether every line was within its bound.
pub fn check(workspace: &Workspace) -> Result<bool> {
    let targets = targets(workspace)?;
    ensure!(
        !targets.is_empty(),
        "the package {PACKAGE} has no bench target, so no bound was checked"
    );
    let mut rows = Vec::new();
    let mut troubles = Vec::new();
    for target in &targets {
        println!("=== bench {target}");
        let mut command = workspace.cargo();
        command.args([
            "bench",
            "--package",
            PACKAGE,
            "--bench",
            target,
            "--",
            "--check",
        ]);
        let (text, status) = process::tee(&mut command)?;
        let lines = lines(&text).with_context(|| format!("bench {target}"))?;
        // A target may exit with 1 because of a line out of bounds, which the table shows.
        if !status.success() && lines.iter().all(|line| line.ok) {
            troubles.push(format!("{target} ended with {status}"));
        }
        if lines.is_empty() {
            troubles.push(format!("{target} printed no line"));
        }
        rows.extend(lines.into_iter().map(|line| (target, line)));
    }

    println!(
        "\n{:<4} {:<12} {:<12} {:>10}  {:<20} line",
        "", "bench", "bound", "figure", "spread"
    );
    for (
        target,
        Line {
            line,
            bound,
            figure,
            spread: [low, high],
            ok,
        },
    ) in &rows
    {
        let verdict = if *ok { "ok" } else { "MISS" };
        let spread = format!("{low:.4} to {high:.4}");
        println!("{verdict:<4} {target:<12} {bound:<12} {figure:>10.4}  {spread:<20} {line}");
    }
    for trouble in &troubles {
        println!("MISS {trouble}");
    }
    let missed = rows.iter().filter(|(_, line)| !line.ok).count() + troubles.len();
    println!("{} lines, {missed} missed", rows.len());
    Ok(missed == 0)
}

/// The bench targets of the package, by name.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let text = process::capture(workspace.cargo().args([
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
    ]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata printed no JSON")?;
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let packages = list(&metadata, "packages");
    let package = packages.iter().find(|package| package["name"] == PACKAGE);
    let package = package.with_context(|| format!("the workspace has no package {PACKAGE}"))?;
    let targets = list(package, "targets")
        .into_iter()
        .filter(|target| target["kind"][0] == "bench");
    Ok(targets
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect())
}

/// The JSON objects among the lines of an output. One that is not a claim is a mistake, which must
/// not make a claim disappear.
fn lines(text: &str) -> Result<Vec<Line>> {
    let objects = text
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with('{'));
    objects
        .map(|object| {
            serde_json::from_str(object).with_context(|| format!("this is no claim: {object}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_read_and_other_text_is_not() {
        let text = "warming up\n\
            {\"line\":\"a\",\"bound\":\"<= 0.15\",\"figure\":0.11,\"spread\":[0.1,0.12],\"ok\":true}\n";
        let lines = lines(text).expect("one claim");
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].spread, [0.1, 0.12]);
    }

    #[test]
    fn an_object_that_is_no_claim_is_an_error() {
        assert!(lines("{\"line\":\"a\",\"ok\":true}").is_err());
    }
}

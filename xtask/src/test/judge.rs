//! The part that judges drivers which others wrote: Linux and the firmware drive the function that
//! watches them, under several plans, and what each did under all of them together counts.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Options;
use crate::conformance::matrix::side_by_side;
use crate::conformance::{Programs, failures};
use crate::figures;
use crate::testbed;
use crate::workspace::Workspace;

/// Clauses that each kernel exercises at least.
const AT_LEAST: usize = 60;

/// Judges every driver; each must fare as the matrix says.
pub fn run(workspace: &Workspace, _options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let programs = Programs::new(workspace, &bed)?;
    let mut columns = programs.columns();
    columns.retain(|column| column.is_driver());
    let judged = programs.judge(&columns)?;
    let (mut figures, mut least) = (json!({}), usize::MAX);
    for one in &judged {
        let id = one.value["id"].as_str().unwrap_or_default();
        let exercised = exercised(&one.value["report"]);
        figures[id] = json!({"exercised": exercised, "seconds": one.seconds});
        println!("{id}: {exercised} clauses exercised");
        let ours = columns.iter().any(|column| column.ours && column.id == id);
        let failed = failures(&one.value["report"]);
        ensure!(
            !ours || failed.is_empty(),
            "{id} does not keep\n{}",
            failed.join("\n")
        );
        if id.starts_with("linux") {
            least = least.min(exercised);
        }
    }
    ensure!(
        least >= AT_LEAST,
        "a kernel exercised {least} clauses; {AT_LEAST} were expected"
    );
    figures::keep(workspace, "judge", &figures)?;
    let made = side_by_side(workspace, &judged, false)?;
    ensure!(
        made.differences.is_empty(),
        "verdicts are others than in docs/matrix/matrix.json; if they are right, run `cargo xtask \
         matrix` and commit it:\n{}",
        made.differences.join("\n")
    );
    Ok(format!(
        "{} drivers judged, {least} clauses exercised by each kernel",
        judged.len()
    ))
}

/// How many clauses of a report arose.
fn exercised(report: &Value) -> usize {
    let entries = report["entries"].as_array().map_or(&[][..], Vec::as_slice);
    let arose = |entry: &&Value| entry["outcome"] != "not-exercised";
    let clauses = entries.iter().filter(arose).map(|entry| &entry["clause"]);
    let mut clauses: Vec<_> = clauses.filter_map(Value::as_str).collect();
    clauses.sort_unstable();
    clauses.dedup();
    clauses.len()
}

//! The part that judges implementations by the suite: ours must keep every clause, and each fares as
//! the committed matrix says.

use anyhow::{Result, ensure};
use serde_json::json;

use super::Options;
use crate::conformance::matrix::side_by_side;
use crate::conformance::{Programs, failures};
use crate::figures;
use crate::testbed;
use crate::workspace::Workspace;

/// Judges what can be judged on every change, or everything.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let programs = Programs::new(workspace, &bed)?;
    let mut columns = programs.columns();
    columns.retain(|column| !column.is_driver() && (options.full || column.quick));
    let judged = programs.judge(&columns)?;
    let mut seconds = json!({});
    for one in &judged {
        let id = one.value["id"].as_str().unwrap_or_default();
        seconds[id] = json!(one.seconds);
        let ours = columns.iter().any(|column| column.ours && column.id == id);
        let failed = failures(&one.value["report"]);
        ensure!(
            !ours || failed.is_empty(),
            "{id} does not keep\n{}",
            failed.join("\n")
        );
    }
    figures::keep(workspace, "conform", &seconds)?;
    let made = side_by_side(workspace, &judged, !options.full)?;
    ensure!(
        made.differences.is_empty(),
        "verdicts are others than in docs/matrix/matrix.json; if they are right, run `cargo xtask \
         matrix` and commit it:\n{}",
        made.differences.join("\n")
    );
    let foreign = columns.iter().filter(|column| !column.ours).count();
    Ok(format!(
        "{} implementations judged, {foreign} of them foreign; every verdict as committed",
        columns.len()
    ))
}

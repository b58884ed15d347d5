//! The part that holds the rules for names against stock git, on both formats of references.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Options;
use crate::figures;
use crate::process;
use crate::testbed;
use crate::workspace::Workspace;

const BATCHES: usize = 10_000;
const FULL: usize = 10 * BATCHES;

/// The differential test of `migration`, with the test bed's git and all its batches.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let git = bed.git()?;
    let words: Vec<_> = std::iter::once(git.get_program())
        .chain(git.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    let batches = if options.full { FULL } else { BATCHES };
    let mut command = workspace.cargo();
    command
        .args([
            "test",
            "--workspace",
            "--test",
            "names",
            "--",
            "--nocapture",
            "git::",
        ])
        .env("TIDEMARK_GIT", serde_json::to_string(&words)?)
        .env("TIDEMARK_BATCHES", batches.to_string());
    let (text, status) = process::tee(&mut command)?;
    ensure!(
        status.success(),
        "`{}` ended with {status}",
        process::shown(&command)
    );
    let rows: Vec<Value> = text
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| {
            serde_json::from_str(line).with_context(|| format!("this is no result: {line}"))
        })
        .collect::<Result<_>>()?;
    ensure!(
        rows.len() == 2,
        "expected a result of each of 2 formats, {} came",
        rows.len()
    );
    figures::keep(
        workspace,
        "names",
        &json!({"git": bed.git_version, "formats": rows}),
    )?;
    let refused = rows[0]["refused"]
        .as_u64()
        .context("no number of refusals")?;
    Ok(format!(
        "{batches} batches on each of 2 formats of git {}, {refused} refused, all alike",
        bed.git_version
    ))
}

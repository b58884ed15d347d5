//! The part that is the main job: a migration passes, and one without tracking is caught.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Options;
use crate::process::{self, Watched};
use crate::workspace::Workspace;

const WORKLOADS: [&str; 3] = ["random", "zipf", "sequential"];
const TRACKERS: [&str; 2] = ["bitmap", "bytes"];
const AT_MOST: Duration = Duration::from_secs(180);

/// A migration with the defaults, and the negative control under each workload. The long variant
/// adds every tracker under every workload.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let tidemark = workspace.tidemark()?;
    let mut runs = 1;
    migrate(&tidemark, &[], 0)?;
    for workload in WORKLOADS {
        migrate(&tidemark, &["--tracker", "off", "--workload", workload], 1)
            .context("the negative control: without tracking, pages must be found lost")?;
        runs += 1;
        for tracker in if options.full { &TRACKERS[..] } else { &[] } {
            migrate(
                &tidemark,
                &["--tracker", tracker, "--workload", workload],
                0,
            )?;
            runs += 1;
        }
    }
    Ok(format!("{runs} runs ended as they must"))
}

/// One run, which must end with the given code and a JSON object in its last line. A crash or
/// wrong usage is no proof of a lost page, so any other code fails.
fn migrate(tidemark: &Path, arguments: &[&str], expected: i32) -> Result<()> {
    let output = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(tidemark);
    command
        .args(["migrate", "--json"])
        .args(arguments)
        .stdout(output.reopen()?);
    let shown = process::shown(&command);
    let status = Watched::spawn(&mut command)?.wait(AT_MOST)?;
    let status = status.with_context(|| format!("`{shown}` ran for {} s", AT_MOST.as_secs()))?;
    let text = std::fs::read_to_string(output.path())?;
    ensure!(
        status.code() == Some(expected),
        "`{shown}` ended with {status}, expected code {expected}; it printed\n{}",
        process::tail(&text)
    );
    let last = text.lines().last().unwrap_or_default();
    let object: Value = serde_json::from_str(last)
        .with_context(|| format!("`{shown}` ended its output with {last:?}, not with JSON"))?;
    let lost = object["lost_pages"].as_u64();
    let as_it_must = match expected {
        0 => object["verified"] == true && lost == Some(0),
        _ => object["source_whole"] == true && lost.is_some_and(|pages| pages > 0),
    };
    ensure!(
        as_it_must,
        "`{shown}` ended with {expected}, but says {last}"
    );
    println!(
        "`{shown}` ended with {expected}: {} pages lost, {} s",
        object["lost_pages"], object["seconds"]
    );
    Ok(())
}

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

/// A way to move a guest, and the same with something missing that must show.
struct Way {
    proof: &'static str,
    control: &'static str,
    /// Under one workload only, but for the long variant.
    once: bool,
}

/// Storage for 16 records overflows in every round. A bitmap is gone with the first reset.
const RIVAL: [Way; 7] = [
    Way {
        proof: "--tracker records",
        control: "--tracker records-off",
        once: false,
    },
    Way {
        proof: "--state parts",
        control: "--state parts --tracker off",
        once: false,
    },
    Way {
        proof: "--state parts --tracker records",
        control: "--state parts --tracker records-off",
        once: true,
    },
    Way {
        proof: "--ring packed",
        control: "--ring packed --tracker off",
        once: true,
    },
    Way {
        proof: "--ring packed --state parts --tracker records --reset-every 1000",
        control: "--ring packed --state parts --tracker records-off --reset-every 1000",
        once: true,
    },
    Way {
        proof: "--tracker records --records 16",
        control: "--tracker records-off --records 16",
        once: true,
    },
    Way {
        proof: "--tracker records --reset-every 300",
        control: "--tracker bitmap --reset-every 300",
        once: true,
    },
];
/// A guest for which a run takes a second or two.
const SMALL: &str = "--memory 256M --disk-size 64M --plain-copies 0";

/// A migration with the defaults, the negative control under each workload, and the rival's ways. The
/// long variant adds every tracker and every way under every workload, with guests of full size.
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
        let here = |way: &&Way| options.full || !way.once || workload == "random";
        for way in RIVAL.iter().filter(here) {
            rival(&tidemark, way, workload, options.full)?;
            runs += 2;
        }
    }
    Ok(format!("{runs} runs ended as they must"))
}

fn rival(tidemark: &Path, way: &Way, workload: &str, full: bool) -> Result<()> {
    let size = if full { "" } else { SMALL };
    let run = |how: &str, code: i32| {
        let all = format!("{how} --workload {workload} {size}");
        migrate(tidemark, &all.split_whitespace().collect::<Vec<_>>(), code)
    };
    let proof = run(way.proof, 0)?;
    if way.proof.contains("--records 16") {
        let memory = proof["memory"]["compared"].as_u64();
        let last = proof["rounds"].as_array().and_then(|rounds| rounds.last());
        let last = last.and_then(|round| round["pages"].as_u64());
        ensure!(
            last.is_some() && last == memory,
            "with room for 16 records the last round sent {last:?} pages of {memory:?}"
        );
    }
    if way.proof.contains("--reset-every") {
        let resets = proof["resets"].as_u64().unwrap_or_default();
        ensure!(resets > 2, "only {resets} resets while pages were tracked");
    }
    run(way.control, 1).context("the negative control must lose pages")?;
    Ok(())
}

/// One run, which must end with the given code and a JSON object in its last line. A crash or
/// wrong usage is no proof of a lost page, so any other code fails.
fn migrate(tidemark: &Path, arguments: &[&str], expected: i32) -> Result<Value> {
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
    Ok(object)
}

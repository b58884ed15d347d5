//! `cargo xtask soak`: everything at once for as long as one likes, and nothing may be lost, doubled
//! or kept.
//!
//! One process moves, suspends, tracks, resets and unmaps devices in many lanes and counts what it
//! has between phases; beside it pairs are checkpointed and moves are made while processes are
//! killed, connections spoiled and disks filled. First each judge has to say no.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::figures;
use crate::process;
use crate::workspace::Workspace;

/// Seconds that a planted bug gets to be found.
const PLANTED: u64 = 10;
/// Runs under faults at a time.
const FAULTS: u64 = 20;
/// One heap, of which what is free at its end goes back to the system: what is in use then is what is kept,
/// but for the slack, in MiB.
const ALLOCATOR: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_TRIM_THRESHOLD_", "131072"),
    ("MALLOC_MMAP_THRESHOLD_", "65536"),
];
const SLACK: u64 = 16;

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How long, after the builds and the proof that planted bugs are found
    #[arg(long, default_value_t = 15)]
    minutes: u64,
    /// Guests and devices at once
    #[arg(long, default_value_t = 4)]
    lanes: u64,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    process::stream(workspace.cargo().args(["build", "--release"]))?;
    let faults = ["test", "--workspace", "--test", "faults"];
    process::stream(workspace.cargo().args(faults).arg("--no-run"))?;
    for plant in ["unmarked", "leak", "double"] {
        let (report, good) = soak(workspace, options, PLANTED, &["--plant", plant])?;
        let said = &report["objections"];
        ensure!(!good, "the planted bug `{plant}` was not found: {report}");
        println!("soak: planted {plant}: found ({})", first(said));
    }
    let seconds = options.minutes.saturating_mul(60);
    let until = Instant::now() + Duration::from_secs(seconds + seconds / 5);
    let mut soaking = command(workspace, options, seconds, &[])?
        .stdout(Stdio::piped())
        .spawn()
        .context("`tidemark soak` does not start")?;
    let mut under_faults = 0;
    let mut failed = None;
    while Instant::now() < until {
        let seed = options
            .seed
            .wrapping_mul(1_000_003)
            .wrapping_add(under_faults);
        let (text, status) = process::tee(
            workspace
                .cargo()
                .args(faults)
                .args(["--", "--nocapture"])
                .env("TIDEMARK_FAULT_RUNS", FAULTS.to_string())
                .env("TIDEMARK_FAULT_SEED", seed.to_string()),
        )?;
        under_faults += 2 * FAULTS;
        if !status.success() {
            failed = Some(format!(
                "under faults, seed {seed}: {}",
                process::tail(&text)
            ));
            break;
        }
    }
    if failed.is_some() {
        // The other half is of no use any more.
        let _ = soaking.kill();
    }
    let out = soaking
        .wait_with_output()
        .context("`tidemark soak` is lost")?;
    if let Some(failed) = failed {
        bail!("{failed}");
    }
    let report: Value =
        serde_json::from_slice(&out.stdout).context("`tidemark soak` says no figures")?;
    let all = json!({"minutes": options.minutes, "seed": options.seed, "soak": report, "runs_under_faults": under_faults});
    figures::keep(workspace, "soak", &all)?;
    println!("soak: {all}");
    ensure!(
        out.status.success(),
        "the soak found something: {}",
        first(&report["objections"])
    );
    for name in ["moves", "suspensions", "resets", "remaps"] {
        let count = report["figures"][name].as_u64();
        ensure!(
            count > Some(0),
            "no {name} in this soak: it proves nothing of them"
        );
    }
    Ok(())
}

fn first(objections: &Value) -> String {
    objections[0].as_str().unwrap_or("nothing").to_owned()
}

fn command(
    workspace: &Workspace,
    options: &Options,
    seconds: u64,
    more: &[&str],
) -> Result<Command> {
    let mut command = Command::new(workspace.tidemark()?);
    command
        .arg("soak")
        .args(["--seconds", &seconds.to_string()])
        .args(["--lanes", &options.lanes.to_string()])
        .args(["--seed", &options.seed.to_string()])
        .args(["--slack", &SLACK.to_string()])
        .envs(ALLOCATOR)
        .args(more);
    Ok(command)
}

fn soak(
    workspace: &Workspace,
    options: &Options,
    seconds: u64,
    more: &[&str],
) -> Result<(Value, bool)> {
    let out = command(workspace, options, seconds, more)?
        .stderr(Stdio::null())
        .output()
        .context("`tidemark soak` does not start")?;
    let report = serde_json::from_slice(&out.stdout).context("`tidemark soak` says no figures")?;
    Ok((report, out.status.success()))
}

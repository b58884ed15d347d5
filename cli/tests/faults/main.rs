//! Pairs of processes, to each of which one thing happens that a seed chooses: at a step of the
//! protocol one of them is killed, the connection between them is cut, garbled, repeated or slowed
//! down, or a disk refuses a write. Whatever happens, nothing of the guest is lost and nothing is
//! done twice.
//!
//! `TIDEMARK_FAULT_RUNS` says how many runs are to count, in which the fault did happen. Each
//! prints a line; the last line of each kind has the figures as one JSON object.

mod checkpoint;
mod migrate;
mod process;
mod script;
mod tally;

use process::Guarded;
use serde_json::Value;
use std::path::{Path, PathBuf};
use vm::MarkingMode;
use vm::Means;
use vm::evidence;
use vm::guest::{Pattern, Shape};

/// Runs of each kind without a word about it: one for each step and side.
const RUNS: u64 = 14;
/// Bytes of each disk.
const DISK: u64 = 4 << 20;

fn runs() -> u64 {
    let told = std::env::var("TIDEMARK_FAULT_RUNS").ok();
    told.map_or(RUNS, |told| told.parse().expect("a number of runs"))
}

/// As much of the guest as its judge needs to know.
fn shape() -> Shape {
    Shape {
        memory: 16 << 20,
        devices: 1,
        queues: 2,
        queue_size: 256,
        depth: 32,
        blocks: DISK / 4096,
        pattern: Pattern::Random,
        writes_percent: 30,
        seed: 1,
        marking: MarkingMode::Bits,
        means: Means::default(),
        reset_every: 0,
        packed: false,
    }
}

fn disk(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::File::create(&path)
        .and_then(|file| file.set_len(DISK))
        .expect("a disk");
    path
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Holds the guest's requests, over the sides that ran it one after the other, against the disk of
/// the last; in words, what is wrong.
fn requests(evidence: &Path, sides: &[&str], disk: &Path) -> Result<u64, String> {
    let judged = evidence::judge_requests(&shape(), evidence, sides);
    let (verdict, last) = judged.map_err(|error| error.to_string())?;
    if !verdict.clean() {
        return Err(format!("{verdict:?}"));
    }
    let disk = evidence::judge_disk(&[disk.to_owned()], &last).map_err(|e| e.to_string())?;
    if disk.wrong > 0 || disk.blocks == 0 {
        return Err(format!("{disk:?}"));
    }
    Ok(verdict.submitted)
}

/// The object on the last line of what a process printed.
fn object(printed: &str) -> Value {
    let last = printed.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or(Value::Null)
}

fn tidemark(arguments: &[String]) -> Guarded {
    Guarded::spawn(env!("CARGO_BIN_EXE_tidemark"), arguments)
}

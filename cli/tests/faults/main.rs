//! Pairs of processes, to each of which one thing happens that a seed chooses: at a step of the
//! protocol one of them is killed, the connection between them is cut, garbled, repeated or slowed
//! down, or a disk refuses a write. Whatever happens, nothing of the guest is lost and nothing is
//! done twice.
//!
//! `TIDEMARK_FAULT_RUNS` says how many runs are to count, in which the fault did happen. They take
//! the steps, sides and faults in turn, and a turn in which nothing happened is tried again: so each
//! step of each side is hit as often as any other, by construction. Each run prints a line; the last
//! line of each kind has the figures as one JSON object. `TIDEMARK_FAULT_SEED` makes other runs.

mod checkpoint;
mod migrate;
mod peer;
mod pipe;
mod process;
mod script;
mod tally;

use migration::faults::Random;
use process::Guarded;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tally::{Aim, Tally};
use vm::MarkingMode;
use vm::Means;
use vm::evidence;
use vm::guest::{Pattern, Shape};

/// Runs of each kind without a word about it: one for each step and side.
const RUNS: u64 = 14;
/// Bytes of each disk.
const DISK: u64 = 4 << 20;

/// How often a turn is tried in which nothing happens.
const ATTEMPTS: u64 = 10;

fn runs() -> u64 {
    let told = std::env::var("TIDEMARK_FAULT_RUNS").ok();
    told.map_or(RUNS, |told| told.parse().expect("a number of runs"))
}

/// Everything random of a try.
fn random(turn: u64, attempt: u64) -> Random {
    let told = std::env::var("TIDEMARK_FAULT_SEED").ok();
    let seed = told.map_or(0, |told| told.parse::<u64>().expect("a seed"));
    Random::new(seed.wrapping_mul(1 << 32) + turn * ATTEMPTS + attempt)
}

/// Takes all turns, and each until something has happened in it. The tries of a turn are made by
/// `run`, which gives what was to happen where, and what became of it.
fn all_turns(
    kind: &str,
    mut tally: Tally,
    run: impl Fn(u64, u64) -> (Aim, tally::Result),
) -> Value {
    for turn in 0..runs() {
        for attempt in 0..ATTEMPTS {
            let (aim, result) = run(turn, attempt);
            tally.add(kind, (turn, attempt), &aim, &result);
            if result.fired {
                break;
            }
        }
    }
    let figures = tally.figures(kind);
    assert_eq!(figures["runs"], runs(), "too few faults happened");
    assert_eq!(figures["wrong_runs"], 0);
    assert_eq!(figures["pages_lost"], 0);
    figures
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

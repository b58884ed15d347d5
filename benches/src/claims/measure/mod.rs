//! The measurements. Each returns what it saw; none of them judges.

mod atomics;
pub mod bed;
mod duplicates;
mod inflation;
mod mailbox;
pub mod markers;
mod members;
mod nesting;
pub mod patterns;
mod races;
mod resets;
mod scan;
mod sparse;
mod storage;
mod writers;

use super::crossing;
use super::figures::{Figures, REPETITIONS};
use std::time::{Duration, Instant};

/// What went wrong, in its own words: a benchmark has nobody to tell it apart for.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// Result of a measurement.
pub type Result<T> = std::result::Result<T, Error>;

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// All of it: some minutes.
    Full,
    /// Small guests and few of them: seconds. The figures are of no use.
    Quick,
}

impl Effort {
    /// One of two values.
    fn pick<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

/// Measures everything; `tell` hears what is being measured.
///
/// # Errors
/// What a device, its driver or the system refuses; a mechanism that lost pages where it must not.
pub fn all(effort: Effort, mut tell: impl FnMut(&str)) -> Result<Figures> {
    let mut figures = Figures::default();
    type Step = fn(Effort, &mut Figures) -> Result<()>;
    let steps: [(&str, Step); 13] = [
        ("inflation of byte marking", inflation::bytes),
        ("the price of a mark", inflation::marks),
        ("granularity", inflation::granularity),
        ("races of marks and harvests", races::matrix),
        ("an OR by compare and swap", atomics::retries),
        ("scans and records", scan::crossing),
        ("many writers", writers::writers),
        ("sparse guests", sparse::sparse),
        ("duplicates", duplicates::duplicates),
        ("storage", storage::storage),
        ("resets", resets::resets),
        ("members of one owner", members::members),
        ("nesting", nesting::nesting),
    ];
    for (name, step) in steps {
        tell(name);
        step(effort, &mut figures)?;
    }
    crossing::add(&mut figures);
    Ok(figures)
}

/// One value for each repetition, which is counted from 1.
fn repeat(mut once: impl FnMut(u64) -> Result<f64>) -> Result<Vec<f64>> {
    (1..).take(REPETITIONS).map(&mut once).collect()
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let start = Instant::now();
    let value = work()?;
    Ok((start.elapsed(), value))
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// An error that says what was expected.
fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(what().into()) }
}

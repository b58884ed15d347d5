//! A disk workload that knows what every sector must hold.
//!
//! It runs inside a guest, on a disk whose device is moved, killed or replaced meanwhile. Every
//! sector carries the number of the write that put it there ([`sector`]); what was acknowledged is
//! kept in memory, and held against every read and, at the end, against the whole span. Nothing
//! else can have written the disk, so whatever differs is the device's doing.
//!
//! (The emulated guest has a journal of another kind, of its requests:
//! [`guest::journal`](crate::guest::journal).)

mod arena;
mod disk;
mod driven;
mod ledger;
mod report;
pub mod sector;
#[cfg(test)]
mod tests;
mod verify;
mod workers;

pub use disk::{Disk, FileDisk};
pub use driven::DrivenDisk;
pub use report::{Counts, Report};
pub use verify::verify;

use crate::error::VmError;
use ledger::{Ledger, SECTORS_MAX};
use sector::SECTOR_BYTES;
use std::io::BufRead;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Requests in flight at once.
    pub depth: usize,
    /// Bytes of the disk to use, from its start; 0 for all of it.
    pub span: u64,
    /// Bytes of a request: a power of two from 512 to 64 KiB.
    pub block: u64,
    /// Seed of everything random, and mark of the run.
    pub seed: u64,
    /// Writes in a hundred reads and writes.
    pub writes_percent: u8,
    /// A flush after this many reads and writes; 0 for none.
    pub flush_every: u64,
    /// Bytes of memory that reads go to, page by page in random order; 0 for just as much as is
    /// needed.
    pub arena: u64,
    /// Ends after this many requests.
    pub requests: Option<u64>,
    /// Ends after this time.
    pub time: Option<Duration>,
    /// Requests between two calls of `progress`; 0 for none.
    pub progress: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            depth: 32,
            span: 0,
            block: 4096,
            seed: 1,
            writes_percent: 50,
            flush_every: 64,
            arena: 0,
            requests: None,
            time: None,
            progress: 0,
        }
    }
}

/// The numbers that follow from the options and the disk.
#[derive(Clone, Copy, Debug)]
struct Shape {
    block: usize,
    blocks: usize,
}

impl Shape {
    fn new(options: &Options, disk: &dyn Disk) -> Result<Self, VmError> {
        let least = SECTOR_BYTES as u64;
        let most = (SECTORS_MAX * SECTOR_BYTES) as u64;
        let block = options.block;
        if !block.is_power_of_two() || !(least..=most).contains(&block) {
            let expected = "a power of two from 512 to 64K";
            return Err(VmError::shape("bytes of a block", expected, block));
        }
        let span = match options.span {
            0 => disk.size() / block * block,
            span => span,
        };
        if span > disk.size() || !span.is_multiple_of(block) || span == 0 {
            let expected = format!("a multiple of {block} up to {}", disk.size());
            return Err(VmError::shape("bytes of the span", expected, span));
        }
        let native = |value: u64| {
            usize::try_from(value)
                .map_err(|_| VmError::shape("bytes of the span", "less than that", value))
        };
        Ok(Self {
            block: native(block)?,
            blocks: native(span / block)?,
        })
    }

    fn span(&self) -> u64 {
        (self.block * self.blocks) as u64
    }
}

/// Formats the span, works on it until the bound is reached or `stop` is set, reads all of it back
/// and judges it. `progress` is called with the number of requests answered so far.
///
/// Whatever the disk does wrong, errors included, is in the report.
///
/// # Errors
/// [`VmError::Shape`] if the options make no sense together or with the disk.
pub fn run(
    disk: &dyn Disk,
    options: &Options,
    stop: &AtomicBool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Report, VmError> {
    let shape = Shape::new(options, disk)?;
    if options.depth == 0 || options.depth > 1024 {
        let expected = "1 to 1024";
        return Err(VmError::shape(
            "requests in flight",
            expected,
            options.depth,
        ));
    }
    if shape.blocks < 4 * options.depth {
        let expected = format!("at least four blocks for each of {}", options.depth);
        return Err(VmError::shape("the span", expected, shape.blocks));
    }
    if options.writes_percent > 100 {
        let got = options.writes_percent;
        return Err(VmError::shape("share of writes", "at most 100", got));
    }
    let ledger = Mutex::new(Ledger::new(
        options.seed,
        shape.blocks,
        shape.block / SECTOR_BYTES,
    ));
    let formatting = verify::format(disk, shape, options);
    let mut report = workers::work(disk, options, shape, &ledger, stop, progress)?;
    report.failed += formatting;
    // A span that ends here has everything acknowledged: the workers have all returned.
    let mut ledger = ledger.into_inner().unwrap_or_else(PoisonError::into_inner);
    let read = verify::read_all(disk, shape, options.depth, |at, data| {
        ledger.judge(at, data)
    });
    report.counts = ledger.counts;
    report.failed += read.failed;
    report.sectors_verified = read.sectors;
    report.digest = read.digest;
    Ok(report)
}

/// Sets `stop` when a line `stop` arrives on `control`, or when it ends: whoever would have said it
/// is gone. Other lines mean nothing.
pub fn stop_on_line(control: impl BufRead + Send + 'static, stop: Arc<AtomicBool>) {
    thread::spawn(move || {
        for line in control.lines() {
            match line {
                Ok(line) if line.trim() != "stop" => {}
                Ok(_) | Err(_) => break,
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

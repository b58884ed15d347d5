//! The whole span at once: formatting it, reading it back, judging it without a ledger.

use super::arena::pages;
use super::report::{Counts, Report};
use super::sector::{Content, SECTOR_BYTES, Stamp, digest, read};
use super::{Disk, Options, Shape};
use crate::error::VmError;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use zerocopy::IntoBytes;

/// Bytes that are read or written with one request here: many blocks of any size.
const EXTENT: usize = 256 << 10;

/// What reading the span gave.
pub(super) struct All {
    /// Requests that failed.
    pub(super) failed: u64,
    /// Sectors that were read.
    pub(super) sectors: u64,
    /// Digest of the span; of what was read, if something failed.
    pub(super) digest: String,
}

/// Bytes of extent `number`, 0 beyond the last.
fn extent(shape: Shape, number: usize) -> usize {
    let start = number.saturating_mul(EXTENT);
    (shape.block * shape.blocks)
        .saturating_sub(start)
        .min(EXTENT)
}

/// Writes sequence 0 everywhere; gives the number of requests that failed.
pub(super) fn format(disk: &dyn Disk, shape: Shape, options: &Options) -> u64 {
    let (next, failed) = (AtomicUsize::new(0), AtomicU64::new(0));
    let worker = || {
        let mut buffer = pages(EXTENT);
        let buffer = buffer.as_mut_bytes();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let start = (number * EXTENT) as u64;
            let Some(data) = buffer.get_mut(..extent(shape, number)) else {
                return;
            };
            if data.is_empty() {
                return;
            }
            let first = start / SECTOR_BYTES as u64;
            for (sector, bytes) in (first..).zip(data.chunks_exact_mut(SECTOR_BYTES)) {
                Stamp {
                    seed: options.seed,
                    sector,
                    sequence: 0,
                }
                .fill(bytes);
            }
            if let Err(error) = disk.write(start, data) {
                failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, start, "the disk cannot be formatted");
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..options.depth.min(8) {
            scope.spawn(worker);
        }
    });
    if let Err(error) = disk.flush() {
        failed.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%error, "the disk cannot be flushed");
    }
    failed.into_inner()
}

/// Reads the whole span and gives each block with its number to `judge`, in any order.
pub(super) fn read_all(
    disk: &dyn Disk,
    shape: Shape,
    depth: usize,
    judge: impl FnMut(usize, &[u8]) + Send,
) -> All {
    let count = shape.span().div_ceil(EXTENT as u64);
    let digests = Mutex::new(vec![0; usize::try_from(count).unwrap_or(0)]);
    let judge = Mutex::new(judge);
    let (next, failed, sectors) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let worker = || {
        let mut buffer = pages(EXTENT);
        let buffer = buffer.as_mut_bytes();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let start = number * EXTENT;
            let Some(data) = buffer.get_mut(..extent(shape, number)) else {
                return;
            };
            if data.is_empty() {
                return;
            }
            if let Err(error) = disk.read(start as u64, data) {
                failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, start, "the disk cannot be read");
                continue;
            }
            let sum = digest(0, data);
            let mut digests = digests.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(place) = digests.get_mut(number) {
                *place = sum;
            }
            drop(digests);
            sectors.fetch_add((data.len() / SECTOR_BYTES) as u64, Ordering::Relaxed);
            let mut judge = judge.lock().unwrap_or_else(PoisonError::into_inner);
            for (block, bytes) in (start / shape.block..).zip(data.chunks_exact(shape.block)) {
                judge(block, bytes);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..depth.clamp(1, 8) {
            scope.spawn(worker);
        }
    });
    let digests = digests.into_inner().unwrap_or_else(PoisonError::into_inner);
    All {
        failed: failed.into_inner(),
        sectors: sectors.into_inner(),
        digest: format!("{:016x}", digest(0, digests.as_bytes())),
    }
}

/// Reads a span that a journal with the same seed, span and block has left, and judges what can be
/// judged without knowing what was acknowledged: every sector whole and in its place, every block of
/// one write. Whether it is the newest write only the digest tells.
///
/// # Errors
/// [`VmError::Shape`] if the options make no sense with the disk.
pub fn verify(disk: &dyn Disk, options: &Options) -> Result<Report, VmError> {
    let shape = Shape::new(options, disk)?;
    let mut counts = Counts::default();
    let all = read_all(disk, shape, options.depth, |block, data| {
        let first = (block * (shape.block / SECTOR_BYTES)) as u64;
        let mut whole = None;
        for (sector, bytes) in (first..).zip(data.chunks_exact(SECTOR_BYTES)) {
            match read(bytes) {
                Content::Broken => counts.torn += 1,
                Content::Blank => counts.lost += 1,
                Content::Whole(stamp) if stamp.seed != options.seed => counts.lost += 1,
                Content::Whole(stamp) if stamp.sector != sector => counts.misplaced += 1,
                Content::Whole(stamp) => {
                    if *whole.get_or_insert(stamp.sequence) != stamp.sequence {
                        counts.torn += 1;
                    }
                }
            }
        }
    });
    Ok(Report {
        counts,
        failed: all.failed,
        sectors_verified: all.sectors,
        digest: all.digest,
        ..Report::default()
    })
}

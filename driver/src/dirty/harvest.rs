//! The hot loop: taking marks out of a bitmap that a device goes on setting.
//!
//! The rule (invariant 2): words are looked at with relaxed loads, zero words are skipped, every
//! other word is taken with one AcqRel swap, and one SeqCst fence follows the pass before anybody
//! reads a page. Dropping the fence loses pages.

use super::scan::Scanner;
use super::{DirtySet, PAGE_SIZE};
use crate::memory::{DmaMemory, MemoryError};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

/// Bitmaps of at least this many bytes are taken by two threads, if many of their lines hold marks.
/// A clean scan is bound by memory, which one core saturates.
pub const PARALLEL_BYTES: usize = 4 << 20;

/// With what width marks are taken. It must be the width with which an in-process device sets them:
/// Rust's memory model says nothing of atomics that overlap. Across processes either will do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HarvestWidth {
    /// 64-bit words; a tail shorter than a word by bytes.
    #[default]
    Word,
    /// Bytes throughout: for devices in this process that mark whole bytes (draft 2023).
    Byte,
}

/// One unit of a bitmap, so that the protocol can be run with another library's atomics.
pub trait TakeWord: Sized {
    /// Looks, with relaxed order.
    fn load_relaxed(&self) -> u64;
    /// Takes, with AcqRel order.
    fn swap_acq_rel(&self, new: u64) -> u64;
    /// A SeqCst fence.
    fn fence();
    /// The first unit from `from` on that looks non-zero. Chooses only; may be replaced by
    /// something faster.
    fn next_nonzero(units: &[Self], from: usize) -> Option<usize> {
        let rest = units.get(from..)?;
        let found = rest.iter().position(|unit| unit.load_relaxed() != 0)?;
        Some(from + found)
    }
}

impl TakeWord for AtomicU64 {
    fn load_relaxed(&self) -> u64 {
        u64::from_le(self.load(Ordering::Relaxed))
    }
    fn swap_acq_rel(&self, new: u64) -> u64 {
        u64::from_le(self.swap(new.to_le(), Ordering::AcqRel))
    }
    fn fence() {
        fence(Ordering::SeqCst);
    }
    fn next_nonzero(units: &[Self], from: usize) -> Option<usize> {
        scan_nonzero(units, from)
    }
}

impl TakeWord for AtomicU8 {
    fn load_relaxed(&self) -> u64 {
        u64::from(self.load(Ordering::Relaxed))
    }
    fn swap_acq_rel(&self, new: u64) -> u64 {
        let [new, ..] = new.to_le_bytes();
        u64::from(self.swap(new, Ordering::AcqRel))
    }
    fn fence() {
        fence(Ordering::SeqCst);
    }
    fn next_nonzero(units: &[Self], from: usize) -> Option<usize> {
        Scanner::best().bytes(units, from)
    }
}

/// The first word from `from` on that is not zero: the scan alone, for benchmarks.
pub fn scan_nonzero(words: &[AtomicU64], from: usize) -> Option<usize> {
    Scanner::best().words(words, from)
}

/// Takes the marks of one unit; touches nothing if it looks zero. **No fence.**
pub fn take_word<W: TakeWord>(word: &W) -> u64 {
    match word.load_relaxed() {
        0 => 0,
        _ => word.swap_acq_rel(0),
    }
}

/// Units looked at before any of them is taken. A swap stops the processor from looking ahead, so a
/// pass that swaps as it goes pays a cache miss for each mark; one that has looked first does not.
const CHUNK: usize = 1024;

/// Units looked at one by one once the scan has found something: dense marks do not pay for it.
const STRIDE: usize = 32;

/// Takes all marks of `units` and hands each non-zero unit with its number to `sink`, in ascending
/// order; then fences. Pages may be read when this has returned.
pub fn take_words<W: TakeWord>(units: &[W], mut sink: impl FnMut(usize, u64)) {
    take_unfenced(units, &mut sink);
    W::fence();
}

fn take_unfenced<W: TakeWord>(units: &[W], sink: &mut impl FnMut(usize, u64)) {
    let mut marked = [0; CHUNK];
    for (number, chunk) in units.chunks(CHUNK).enumerate() {
        let mut count = 0;
        let mut from = 0;
        while let Some(found) = W::next_nonzero(chunk, from) {
            from = chunk.len().min(found + STRIDE);
            let near = chunk.get(found..from).unwrap_or_default();
            for (index, unit) in (found..).zip(near) {
                // Written whether it counts or not: a branch here would be mispredicted.
                if let Some(place) = marked.get_mut(count) {
                    *place = index;
                }
                count += usize::from(unit.load_relaxed() != 0);
            }
        }
        for &index in marked.iter().take(count) {
            let bits = chunk.get(index).map_or(0, |unit| unit.swap_acq_rel(0));
            if bits != 0 {
                sink(number * CHUNK + index, bits);
            }
        }
    }
}

/// Takes all marks of the first `length` bytes of `bitmap` and hands them to `sink` as words: bit
/// `b` of word `w` is bit `64 * w + b` of the bitmap. A word may come in several parts. Fences
/// before it returns.
///
/// # Errors
/// [`MemoryError`] if the bitmap is shorter than `length`, or (for words) not 8-aligned; nothing has
/// been taken then.
pub fn harvest(
    bitmap: &DmaMemory,
    length: u64,
    width: HarvestWidth,
    mut sink: impl FnMut(usize, u64),
) -> Result<(), MemoryError> {
    let bitmap = bitmap.slice(0, length)?;
    let tail_start = match width {
        HarvestWidth::Word => {
            let words = bitmap.words()?;
            take_unfenced(words, &mut sink);
            words.len() * 8
        }
        HarvestWidth::Byte => 0,
    };
    let tail = bitmap.bytes().get(tail_start..).unwrap_or_default();
    take_unfenced(tail, &mut |index, bits| {
        let byte = tail_start + index;
        sink(byte / 8, bits << (byte % 8 * 8));
    });
    AtomicU64::fence();
    Ok(())
}

/// [`harvest`] of a bitmap with one bit for each page into a set, from page 0 on; large bitmaps by
/// two threads. Marks of pages beyond the set are taken and dropped.
///
/// # Errors
/// As [`harvest`].
pub fn harvest_into(
    bitmap: &DmaMemory,
    length: u64,
    width: HarvestWidth,
    into: &mut DirtySet,
) -> Result<(), MemoryError> {
    harvest_within(bitmap, length, width, None, into)
}

/// [`harvest_into`] of the pages of `within` alone; the marks of others are taken and dropped.
pub(super) fn harvest_within(
    bitmap: &DmaMemory,
    length: u64,
    width: HarvestWidth,
    within: Option<&DirtySet>,
    into: &mut DirtySet,
) -> Result<(), MemoryError> {
    let only = |word: usize, bits: u64| match within {
        Some(set) => bits & set.word(word as u64),
        None => bits,
    };
    let half = length / 2 / PAGE_SIZE * PAGE_SIZE;
    let whole = bitmap.slice(0, length)?;
    let halves = (whole.slice(0, half)?, whole.slice(half, length - half)?);
    if usize::try_from(length).is_ok_and(|length| length >= PARALLEL_BYTES)
        && width == HarvestWidth::Word
        && looks_dense(whole.words()?)
    {
        let split = usize::try_from(half / 8).unwrap_or_default();
        let (low, high) = into.split_words(split);
        let (mine, theirs) = rayon::join(
            || {
                harvest(&halves.0, half, width, |word, bits| {
                    or(low, word, only(word, bits));
                })
            },
            || {
                harvest(&halves.1, length - half, width, |word, bits| {
                    or(high, word, only(split + word, bits));
                })
            },
        );
        mine.and(theirs)?;
        // Each thread fenced behind its own swaps; this one is for who reads pages here.
        AtomicU64::fence();
        into.trim();
        return Ok(());
    }
    harvest(&whole, length, width, |word, bits| {
        into.or_word(word as u64, only(word, bits));
    })
}

fn or(words: &mut [u64], index: usize, bits: u64) {
    if let Some(word) = words.get_mut(index) {
        *word |= bits;
    }
}

/// One line in 512 tells: below one non-zero word in 16 the locked operations do not outweigh the
/// scan, and a second thread gains nothing.
fn looks_dense(words: &[AtomicU64]) -> bool {
    let sample = words.iter().step_by(4096 + 8);
    let looked = sample.len();
    sample.filter(|word| word.load_relaxed() != 0).count() * 16 > looked
}

#[cfg(test)]
mod tests;

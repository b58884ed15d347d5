//! The marking half of the protocol between a device that marks and a driver that harvests.
//!
//! Data first, then the mark, then the used ring. A mark is a Release read-modify-write. A bit that
//! is seen set may be left alone only after one SeqCst fence that follows all data of the burst:
//! without it the data may still be in this CPU's store buffer when the harvester takes the bit and
//! reads the page, and the page is lost. The harvester's half is `driver::dirty`; the pair of them
//! is proved by loom in `vm/tests/loom.rs`, for which [`MarkWord`] stands between the protocol and
//! the atomic.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

/// A word of a dirty bitmap, as the marking side uses it.
pub trait MarkWord {
    /// Relaxed load.
    fn load(&self) -> u64;
    /// Atomic OR, Release.
    fn or(&self, mask: u64);
    /// A SeqCst fence.
    fn fence();
}

impl MarkWord for AtomicU64 {
    #[inline(always)]
    fn load(&self) -> u64 {
        u64::from_le(Self::load(self, Ordering::Relaxed))
    }

    #[inline(always)]
    fn or(&self, mask: u64) {
        self.fetch_or(mask.to_le(), Ordering::Release);
    }

    #[inline(always)]
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// Only the low eight bits exist: the tail of a bitmap whose length is no multiple of 8.
impl MarkWord for AtomicU8 {
    #[inline(always)]
    fn load(&self) -> u64 {
        Self::load(self, Ordering::Relaxed).into()
    }

    #[inline(always)]
    fn or(&self, mask: u64) {
        self.fetch_or(mask.to_le_bytes()[0], Ordering::Release);
    }

    #[inline(always)]
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// Proof that a SeqCst fence stands between the data of a burst and the marks that are set with it.
///
/// Only data stored before this value was made may be marked with it.
#[derive(Clone, Copy, Debug)]
pub struct Fenced(());

impl Fenced {
    /// Fences: all data of the burst has been stored.
    #[inline(always)]
    pub fn after_data<W: MarkWord>() -> Self {
        W::fence();
        Self(())
    }
}

/// What of `mask` is not set yet; 0 allows to leave the word alone.
#[inline(always)]
pub fn missing<W: MarkWord>(_: Fenced, word: &W, mask: u64) -> u64 {
    mask & !word.load()
}

/// Sets `mask`, skipping the locked operation if it is set already.
#[inline(always)]
pub fn mark_fenced<W: MarkWord>(fenced: Fenced, word: &W, mask: u64) {
    if missing(fenced, word, mask) != 0 {
        mark(word, mask);
    }
}

/// Sets `mask` by the locked operation, which needs no fence.
#[inline(always)]
pub fn mark<W: MarkWord>(word: &W, mask: u64) {
    word.or(mask);
}

/// Pages that a word of a recorder stands for: its lower half.
pub const RECORD_PAGES: u64 = 32;
/// The last number that a turn can have: it fits the upper half of a word. The first is 1.
pub const TURN_MAX: u64 = u64::MAX >> RECORD_PAGES;

/// A word of a recorder's memory. Its order is that of the door to guest memory: relaxed here.
pub trait RecordCell {
    /// Relaxed load.
    fn load(&self) -> u64;
    /// Relaxed store.
    fn store(&self, value: u64);
    /// Puts `value` in the place of `seen`, relaxed.
    ///
    /// # Errors
    ///
    /// What is there instead.
    fn replace(&self, seen: u64, value: u64) -> Result<(), u64>;
}

impl RecordCell for AtomicU64 {
    #[inline(always)]
    fn load(&self) -> u64 {
        Self::load(self, Ordering::Relaxed)
    }

    #[inline(always)]
    fn store(&self, value: u64) {
        Self::store(self, value, Ordering::Relaxed);
    }

    #[inline(always)]
    fn replace(&self, seen: u64, value: u64) -> Result<(), u64> {
        let relaxed = Ordering::Relaxed;
        self.compare_exchange(seen, value, relaxed, relaxed)?;
        Ok(())
    }
}

/// The pages of `mask` that are not recorded in turn `turn`, for all that `seen` says.
///
/// The upper half of a word is the turn that its lower half, the recorded pages, belongs to: those
/// of an older turn are none, so that no reader has to clear what it has read.
#[inline(always)]
pub fn unrecorded(seen: u64, turn: u64, mask: u64) -> u64 {
    // No branch, which would wait for what was loaded.
    let same = u64::from(seen >> RECORD_PAGES == turn).wrapping_neg();
    mask & !(seen & same)
}

/// Takes the pages of `mask` for turn `turn`: those that this caller, and no other, is to record.
///
/// `seen` is what was in the word at some time since the door to guest memory was opened for the
/// burst that wrote the pages; turns end while it is shut. That is all the order there is, and all
/// that is needed: `vm/tests/loom_records.rs` has the proof.
#[inline(always)]
pub fn first_in_turn<W: RecordCell>(word: &W, mut seen: u64, turn: u64, mask: u64) -> u64 {
    loop {
        let new = unrecorded(seen, turn, mask);
        if new == 0 {
            return 0;
        }
        let kept = if seen >> RECORD_PAGES == turn {
            seen
        } else {
            turn << RECORD_PAGES
        };
        // Whoever is in the way has set a bit, of which there are as many as pages.
        match word.replace(seen, kept | mask) {
            Ok(()) => return new,
            Err(now) => seen = now,
        }
    }
}

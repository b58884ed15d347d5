//! The pages of the recorded ranges, and which of them were recorded in this turn.

use super::super::protocol::{self, RECORD_PAGES, RecordCell};
use super::table::Table;
use super::{PAGES_MAX, RecordsConfig, TooMuch};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A part of the ranges.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Its pages.
    first: u64,
    end: u64,
    /// Where the word of its first page is.
    base: u64,
}

/// The bits of a word that stand for pages.
const PAGES: u64 = u64::MAX >> (64 - RECORD_PAGES);

#[derive(Debug)]
pub(super) struct Pages {
    shift: u32,
    /// In ascending order.
    parts: Vec<Part>,
    words: Table,
    /// The number of this turn, never 0.
    turn: AtomicU64,
}

impl Part {
    /// The note of pages that lie in one word, and in this part.
    #[inline(always)]
    fn note(&self, run: Run) -> u64 {
        let offset = run.first / RECORD_PAGES - self.first / RECORD_PAGES;
        ((self.base + offset) << RECORD_PAGES) | run.mask()
    }
}

/// Pages one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Run {
    /// Whether one word holds all of them.
    #[inline(always)]
    fn is_one_word(self) -> bool {
        self.first / RECORD_PAGES == self.last / RECORD_PAGES
    }

    /// The bits of pages that one word holds.
    #[inline(always)]
    fn mask(self) -> u64 {
        let (low, high) = (self.first % RECORD_PAGES, self.last % RECORD_PAGES);
        (PAGES << low) & (PAGES >> (RECORD_PAGES - 1 - high))
    }
}

impl Pages {
    pub(super) fn new(config: &RecordsConfig) -> Result<Self, TooMuch> {
        let mut ranges = config.ranges.clone();
        ranges.sort_by_key(|range| range.start);
        let mut parts = Vec::with_capacity(ranges.len());
        let mut pages = 0_u64;
        let mut words = 0;
        for range in ranges {
            let page = 1 << config.page_shift;
            let (first, end) = (range.start / page, range.end.div_ceil(page));
            pages = pages.saturating_add(end.saturating_sub(first));
            if pages > PAGES_MAX || end <= first {
                return Err(TooMuch { pages });
            }
            parts.push(Part {
                first,
                end,
                base: words,
            });
            words += (end - 1) / RECORD_PAGES - first / RECORD_PAGES + 1;
        }
        // Where a word is has half a word's bits in a note.
        let words = u32::try_from(words).map_err(|_| TooMuch { pages })?;
        let words = usize::try_from(words).map_err(|_| TooMuch { pages })?;
        Ok(Self {
            shift: config.page_shift,
            parts,
            words: Table::new(words).ok_or(TooMuch { pages })?,
            turn: AtomicU64::new(1),
        })
    }

    /// Pages of all parts.
    pub(super) fn count(&self) -> u64 {
        self.parts.iter().map(|part| part.end - part.first).sum()
    }

    pub(super) fn shift(&self) -> u32 {
        self.shift
    }

    /// This turn.
    #[inline(always)]
    pub(super) fn this_turn(&self) -> Turn<'_> {
        Turn {
            number: self.turn.load(Ordering::Relaxed),
            words: self.words.as_slice(),
            parts: &self.parts,
            shift: self.shift,
        }
    }

    /// Begins the next turn, in which no page is recorded yet. No marker is at work.
    pub(super) fn next_turn(&self) {
        let mut next = self.turn.load(Ordering::Relaxed) + 1;
        if next > protocol::TURN_MAX {
            // Once in four billion turns what is left of them all must not look like the new ones.
            for word in self.words.as_slice() {
                if RecordCell::load(word) != 0 {
                    RecordCell::store(word, 0);
                }
            }
            next = 1;
        }
        self.turn.store(next, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn set_turn(&self, turn: u64) {
        self.turn.store(turn, Ordering::Relaxed);
    }

    /// Whether all parts lie in `range`, in bytes.
    pub(super) fn within(&self, range: &Range<u64>) -> bool {
        let (Some(first), Some(last)) = (self.parts.first(), self.parts.last()) else {
            return true;
        };
        // The last byte, because the end of the address space is no number.
        range.start <= first.first << self.shift
            && range.end.wrapping_sub(1) >= (last.end << self.shift).wrapping_sub(1)
    }

    /// The note of a write of `len` bytes, if its pages lie in one word and in one part: nearly all
    /// do. Its upper half says where the word is, its lower which pages.
    #[inline(always)]
    pub(super) fn note(&self, iova: u64, len: u64) -> Option<u64> {
        let run = self.run(iova, len)?;
        let part = match self.parts.as_slice() {
            [part] => part,
            parts => parts.get(parts.partition_point(|part| part.end <= run.first))?,
        };
        let within = part.first <= run.first && run.last < part.end && run.is_one_word();
        within.then(|| part.note(run))
    }

    /// Has the word of a note fetched, until somebody takes its pages.
    #[inline(always)]
    pub(super) fn fetch(&self, note: u64) {
        self.words
            .fetch(usize::try_from(note >> RECORD_PAGES).unwrap_or(usize::MAX));
    }

    /// The notes of any write, as far as it is in the parts.
    pub(super) fn notes(&self, iova: u64, len: u64) -> impl Iterator<Item = u64> {
        let run = self.run(iova, len).into_iter();
        run.flat_map(|run| {
            let from = self.parts.partition_point(|part| part.end <= run.first);
            let parts = self.parts.get(from..).unwrap_or_default().iter();
            let parts = parts.take_while(move |part| part.first <= run.last);
            parts.flat_map(move |part| {
                let (low, high) = (run.first.max(part.first), run.last.min(part.end - 1));
                let words = low / RECORD_PAGES..=high / RECORD_PAGES;
                words.map(move |word| {
                    let first = word * RECORD_PAGES;
                    let (first, last) = (low.max(first), high.min(first + (RECORD_PAGES - 1)));
                    part.note(Run { first, last })
                })
            })
        })
    }

    #[inline(always)]
    fn run(&self, iova: u64, len: u64) -> Option<Run> {
        let more = len.checked_sub(1)?;
        Some(Run {
            first: iova >> self.shift,
            last: iova.saturating_add(more) >> self.shift,
        })
    }
}

/// A turn, for as long as it does not end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn<'a> {
    number: u64,
    words: &'a [AtomicU64],
    parts: &'a [Part],
    shift: u32,
}

impl<'a> Turn<'a> {
    #[inline(always)]
    fn word(self, note: u64) -> Option<&'a AtomicU64> {
        self.words.get(usize::try_from(note >> RECORD_PAGES).ok()?)
    }

    /// Not 0 if pages of a note are not recorded yet.
    #[inline(always)]
    pub(super) fn missing(self, note: u64) -> u64 {
        let seen = self.word(note).map_or(0, RecordCell::load);
        protocol::unrecorded(seen, self.number, note & PAGES)
    }

    /// The pages of a note that the caller, and no other, is to record: their addresses.
    #[inline(always)]
    pub(super) fn take(self, note: u64) -> impl Iterator<Item = u64> {
        let new = self.word(note).map_or(0, |word| {
            protocol::first_in_turn(word, RecordCell::load(word), self.number, note & PAGES)
        });
        let at = note >> RECORD_PAGES;
        let part = match self.parts {
            [part] => Some(part),
            parts => {
                let after = parts.partition_point(|part| part.base <= at);
                parts.get(after.wrapping_sub(1))
            }
        };
        let first = part.map_or(0, |part| part.first / RECORD_PAGES + at - part.base);
        Bits(new).map(move |bit| (first * RECORD_PAGES + bit) << self.shift)
    }
}

/// The numbers of the bits that are set.
struct Bits(u64);

impl Iterator for Bits {
    type Item = u64;

    #[inline(always)]
    fn next(&mut self) -> Option<u64> {
        let bit = (self.0 != 0).then(|| self.0.trailing_zeros().into());
        self.0 &= self.0.wrapping_sub(1);
        bit
    }
}

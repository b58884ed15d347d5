//! What a thread has for itself: notes of what it wrote, and slots for its records.
//!
//! One thread at a time is at a lane, while the door to guest memory is open for it; the reader
//! takes what is there while the door is shut. So a lane needs no locked operation and no order of
//! its own: `vm/tests/loom_records.rs` has the proof, and shows that it needs both conditions.

use super::super::protocol::RecordCell;
use std::ops::Range;

/// Room for `NOTES` notes, and a stretch of the slots that no other lane has.
#[derive(Debug)]
pub struct Lane<C, const NOTES: usize> {
    /// How many notes there are.
    noted: C,
    /// The next slot to be filled.
    at: C,
    /// Where the stretch ends; there is none, or it is full, if that is where it is filled to.
    end: C,
    /// Where it begins.
    start: C,
    notes: [C; NOTES],
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl<C: RecordCell, const NOTES: usize> Lane<C, NOTES> {
    /// An empty lane without a stretch, of cells that hold 0.
    pub fn new(cell: impl Fn() -> C) -> Self {
        Self {
            noted: cell(),
            at: cell(),
            end: cell(),
            start: cell(),
            notes: std::array::from_fn(|_| cell()),
        }
    }

    /// Adds a note; false if there is no room for it.
    #[inline(always)]
    pub fn note(&self, note: u64) -> bool {
        let noted = self.noted.load();
        let Some(place) = self.notes.get(index(noted)) else {
            return false;
        };
        place.store(note);
        self.noted.store(noted + 1);
        true
    }

    /// All notes.
    #[inline(always)]
    pub fn notes(&self) -> impl Iterator<Item = u64> + Clone {
        let notes = self.notes.get(..index(self.noted.load()));
        notes.unwrap_or_default().iter().map(RecordCell::load)
    }

    /// Strikes all notes out.
    #[inline(always)]
    pub fn strike_out(&self) {
        self.noted.store(0);
    }

    /// Appends a record; false if there is no slot for it.
    #[inline(always)]
    pub fn append(&self, slots: &[C], record: u64) -> bool {
        let at = self.at.load();
        if at == self.end.load() {
            return false;
        }
        let Some(slot) = slots.get(index(at)) else {
            return false;
        };
        slot.store(record);
        self.at.store(at + 1);
        true
    }

    /// Goes on in another stretch; returns what the one before was filled with.
    pub fn renew(&self, stretch: Range<u64>) -> Range<u64> {
        let filled = self.start.load()..self.at.load();
        self.start.store(stretch.start);
        self.at.store(stretch.start);
        self.end.store(stretch.end);
        filled
    }

    /// Slots of the stretch that are still empty.
    pub fn room(&self) -> u64 {
        self.end.load().saturating_sub(self.at.load())
    }
}

//! Page-write recording: the addresses of written pages, for a driver that reads them by command
//! (project rules throughout; see [`spec::records`]).
//!
//! A page is recorded once for each *turn*. Every page of the recorded ranges has a bit, and every
//! word of such bits the number of the turn that they belong to: older ones count for nothing, so
//! nobody ever clears them. A marker that finds its page's bit set is done after one load; one
//! that does not sets it by a compare-and-swap, and whoever was the one to set it appends the record to
//! a stretch of slots that no other thread writes to. That compare-and-swap is the one locked operation of a
//! new page; a mark in a bitmap has one, too.
//!
//! A turn ends while the door to guest memory is shut ([`Dma::quiet`](crate::dma::Dma::quiet)):
//! no burst is under way. What was recorded before belongs to the pages as they are then, and what a
//! marker left out, because its page was recorded already in that turn, was stored before the door
//! was shut. So neither marks nor records need an order of their own.

pub mod lane;
mod pages;
mod seats;
mod store;
mod table;

use pages::Pages;
use spec::Le64;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use store::{Store, ThreadLane};

/// Most pages of one recorder's ranges: 1 TiB of 4 KiB pages, for which there are 64 MiB of words.
pub const PAGES_MAX: u64 = 1 << 28;

/// What is recorded, and how much of it is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordsConfig {
    /// log2 of the page size in bytes, 12 to 30.
    pub page_shift: u32,
    /// Bytes (IOVA), multiples of the page size, without overlap. An end of `u64::MAX` stands for that of
    /// all addresses.
    pub ranges: Vec<Range<u64>>,
    /// Records that are surely held.
    pub capacity: u32,
}

/// There is no memory for what is to be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory to record {pages} pages: at most {PAGES_MAX}, and what the system has")]
pub struct TooMuch {
    /// Pages asked for.
    pub pages: u64,
}

/// What was read.
#[derive(Debug, Default)]
pub struct Taken {
    /// Addresses of pages.
    pub records: Vec<Le64>,
    /// There may be more.
    pub more: bool,
    /// Records were lost since the last time that this was said.
    pub overflow: bool,
}

/// The reader's side.
#[derive(Debug, Default)]
struct Waiting {
    /// Slots with records of former turns.
    runs: Vec<Range<u64>>,
    /// Records that came back, or that were in the way of others.
    aside: Vec<Vec<Le64>>,
    /// An empty list, for its memory.
    spare: Vec<Le64>,
    overflow: bool,
}

/// Records the pages that a function writes.
#[derive(Debug)]
pub struct Recorder {
    pages: Pages,
    store: Store,
    waiting: Mutex<Waiting>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    /// A recorder with nothing recorded. The ranges have been judged.
    ///
    /// # Errors
    ///
    /// [`TooMuch`].
    pub fn new(config: &RecordsConfig) -> Result<Self, TooMuch> {
        let pages = Pages::new(config)?;
        let store = Store::new(config.capacity).map_err(|_| TooMuch {
            pages: pages.count(),
        })?;
        Ok(Self {
            pages,
            store,
            waiting: Mutex::default(),
        })
    }

    /// log2 of the page size in bytes.
    pub fn page_shift(&self) -> u32 {
        self.pages.shift()
    }

    /// Records one write, of at least one byte.
    #[inline]
    pub(crate) fn mark_one(&self, iova: u64, len: u64) {
        self.mark(&[(iova, len)]);
    }

    /// Records writes, as address and bytes: all data has been stored, and the door is still open.
    pub fn mark(&self, writes: &[(u64, u64)]) {
        // All pages of a turn that has lost one will be taken for written.
        if self.store.lost() {
            return;
        }
        match self.store.mine() {
            Some(lane) => self.note(lane, writes),
            None => self.store.with_lane(|lane| self.note(lane, writes)),
        }
    }

    #[inline(always)]
    fn note(&self, lane: &ThreadLane, writes: &[(u64, u64)]) {
        for &(iova, len) in writes {
            match self.pages.note(iova, len) {
                Some(note) => self.keep(lane, note),
                None => self.note_each(lane, iova, len),
            }
        }
    }

    /// A write that is more than one note, or none.
    #[cold]
    fn note_each(&self, lane: &ThreadLane, iova: u64, len: u64) {
        let notes = self.pages.notes(iova, len);
        notes.for_each(|note| self.keep(lane, note));
    }

    #[inline(always)]
    fn keep(&self, lane: &ThreadLane, note: u64) {
        // It will be there when the notes are gone through.
        self.pages.fetch(note);
        while !lane.note(note) {
            self.settle(lane);
        }
    }

    /// Records what is noted in a lane.
    #[cold]
    fn settle(&self, lane: &ThreadLane) {
        let turn = self.pages.this_turn();
        let notes = lane.notes();
        // No load waits here for the locked operation that another page needs. That all of them
        // were recorded is what it often comes to.
        if notes.clone().fold(0, |any, note| any | turn.missing(note)) != 0 {
            for note in notes {
                for record in turn.take(note) {
                    self.store.append(lane, record);
                }
            }
        }
        lane.strike_out();
    }

    /// Ends a turn: what was recorded is ready to be read, and every page can be recorded again.
    ///
    /// No marker is at work.
    pub fn turn(&self) {
        let mut waiting = lock(&self.waiting);
        // Nearly always read by then. Stretches are not for keeping.
        self.set_aside(&mut waiting);
        self.store.each_lane(|lane| self.settle(lane));
        let lost = self.store.end_turn(&mut waiting.runs);
        waiting.overflow |= lost;
        self.pages.next_turn();
    }

    /// Empties all stretches that wait.
    fn set_aside(&self, waiting: &mut Waiting) {
        let mut list = Vec::new();
        for run in waiting.runs.drain(..) {
            self.store.take(run, usize::MAX, &mut list);
        }
        if !list.is_empty() {
            waiting.aside.push(list);
        }
    }

    /// Takes at most `most` records of pages within `range`. `turn` is called once at most, when
    /// nothing of former turns is left, and is to call [`Recorder::turn`] while no marker is at work.
    ///
    /// What was taken keeps its room until it is [`delivered`](Self::delivered) or
    /// [`put back`](Self::put_back).
    pub fn take(&self, range: &Range<u64>, most: usize, turn: impl FnOnce()) -> Taken {
        let mut taken = Taken {
            records: std::mem::take(&mut lock(&self.waiting).spare),
            ..Taken::default()
        };
        let mut turn = Some(turn);
        loop {
            taken.more = !self.take_waiting(range, most, &mut taken.records);
            if taken.more {
                break;
            }
            match turn.take() {
                Some(turn) if taken.records.len() < most => turn(),
                // Full, and nobody has looked for newer ones.
                Some(_) => {
                    taken.more = true;
                    break;
                }
                None => break,
            }
        }
        taken.overflow = std::mem::take(&mut lock(&self.waiting).overflow);
        taken
    }

    /// Moves what waits; true if nothing of the range is left.
    fn take_waiting(&self, range: &Range<u64>, most: usize, into: &mut Vec<Le64>) -> bool {
        let mut waiting = lock(&self.waiting);
        if !self.pages.within(range) {
            self.set_aside(&mut waiting);
            return take_aside(&mut waiting.aside, range, most, into);
        }
        if !take_aside(&mut waiting.aside, range, most, into) {
            return false;
        }
        while let Some(run) = waiting.runs.pop() {
            let left = self.store.take(run, most - into.len(), into);
            if !left.is_empty() {
                waiting.runs.push(left);
                return false;
            }
        }
        true
    }

    /// Records that were taken have reached the driver: their room is free again.
    pub fn delivered(&self, mut taken: Taken) {
        self.store.give_room(taken.records.len());
        taken.records.clear();
        lock(&self.waiting).spare = taken.records;
    }

    /// Records that were taken have not reached the driver: the next read finds them, and the
    /// overflow.
    pub fn put_back(&self, taken: Taken) {
        let mut waiting = lock(&self.waiting);
        waiting.overflow |= taken.overflow;
        if !taken.records.is_empty() {
            waiting.aside.push(taken.records);
        }
    }
}

/// Moves at most `most` records of the range; true if none of it is left.
fn take_aside(
    aside: &mut Vec<Vec<Le64>>,
    range: &Range<u64>,
    most: usize,
    into: &mut Vec<Le64>,
) -> bool {
    let mut done = true;
    for list in aside.iter_mut() {
        list.retain(|record| {
            let wanted = range.contains(&record.get());
            if wanted && into.len() < most {
                into.push(*record);
                return false;
            }
            done &= !wanted;
            true
        });
    }
    aside.retain(|list| !list.is_empty());
    done
}

#[cfg(test)]
mod tests;

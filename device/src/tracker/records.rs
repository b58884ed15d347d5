//! Page-write recording: the addresses of written pages, for a driver that reads them by command
//! (project rules throughout; see [`spec::records`]).
//!
//! A page is recorded once for each *turn*. Every page of the recorded ranges has a byte that holds
//! the number of the turn in which it was last recorded, so a turn forgets all of them by counting
//! on. A marker that finds the number of this turn is done after one load; one that does not swaps
//! it in, and whoever swapped out another number pushes the record: onto the list of its thread's
//! shard, so that queues that mark at the same time share nothing but the room that is left, of which
//! a shard claims a stretch at a time.
//!
//! A turn happens while the door to guest memory is shut ([`Dma::quiet`](crate::dma::Dma::quiet)):
//! no burst is under way. What was recorded before belongs to the pages as they are then, and what a
//! marker left out, because its page was recorded already in that turn, was stored before the door
//! was shut. So neither marks nor records need an order of their own.

use super::protocol::first_in_turn;
use crossbeam_utils::CachePadded;
use spec::Le64;
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use zerocopy::FromZeros;

/// Most pages of one recorder's ranges: 1 TiB of 4 KiB pages. Each takes a byte once it is written.
pub const PAGES_MAX: u64 = 1 << 28;
/// Lists to push onto. More threads than this share.
const SHARDS: usize = 16;
/// The number of no turn: of pages that were never recorded.
const NEVER: u8 = 0;

/// What is recorded, and how much of it is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordsConfig {
    /// log2 of the page size in bytes, 12 to 30.
    pub page_shift: u32,
    /// Bytes (IOVA), multiples of the page size, without overlap.
    pub ranges: Vec<Range<u64>>,
    /// Records that are surely held.
    pub capacity: u32,
}

/// There is no memory for what is to be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pages} pages to record, at most {PAGES_MAX} fit here")]
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

/// A part of the ranges.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Its pages.
    first: u64,
    end: u64,
    /// Where their bytes begin.
    base: usize,
}

#[derive(Debug, Default)]
struct Shard {
    records: Vec<Le64>,
    /// Records that may be pushed before room is claimed again.
    claimed: u64,
}

/// The reader's side.
#[derive(Debug, Default)]
struct Waiting {
    /// Records of former turns.
    lists: Vec<Vec<Le64>>,
    /// Empty lists, for their memory.
    spare: Vec<Vec<Le64>>,
    overflow: bool,
}

/// Records the pages that a function writes.
#[derive(Debug)]
pub struct Recorder {
    shift: u32,
    /// In ascending order.
    parts: Vec<Part>,
    turns: Vec<AtomicU8>,
    turn: AtomicU8,
    shards: Vec<CachePadded<Mutex<Shard>>>,
    /// Records that no shard has claimed.
    room: CachePadded<AtomicU64>,
    /// How much a shard claims at a time.
    stretch: u64,
    lost: AtomicBool,
    waiting: Mutex<Waiting>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The shard of this thread.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<Option<usize>> = const { Cell::new(None) };
    }
    MINE.with(|mine| {
        mine.get().unwrap_or_else(|| {
            let number = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
            mine.set(Some(number));
            number
        })
    })
}

impl Recorder {
    /// A recorder with nothing recorded. The ranges have been judged.
    ///
    /// # Errors
    ///
    /// [`TooMuch`].
    pub fn new(config: &RecordsConfig) -> Result<Self, TooMuch> {
        let mut ranges = config.ranges.clone();
        ranges.sort_by_key(|range| range.start);
        let mut parts = Vec::with_capacity(ranges.len());
        let mut pages = 0_u64;
        for range in ranges {
            let (first, end) = (
                range.start >> config.page_shift,
                range.end >> config.page_shift,
            );
            let base = usize::try_from(pages).map_err(|_| TooMuch { pages })?;
            parts.push(Part { first, end, base });
            pages = pages.saturating_add(end.saturating_sub(first));
        }
        let bytes = usize::try_from(pages)
            .ok()
            .filter(|_| pages <= PAGES_MAX)
            .ok_or(TooMuch { pages })?;
        // Zeroed by the system as it is touched.
        let turns = AtomicU8::new_vec_zeroed(bytes).map_err(|_| TooMuch { pages })?;
        let stretch = (u64::from(config.capacity) / 64).clamp(1, 4096);
        // Whatever the other shards keep claimed, the capacity can be recorded by one of them.
        let kept = (stretch - 1) * u64::try_from(SHARDS).unwrap_or(u64::MAX);
        Ok(Self {
            shift: config.page_shift,
            parts,
            turns,
            turn: AtomicU8::new(NEVER + 1),
            shards: (0..SHARDS).map(|_| CachePadded::default()).collect(),
            room: CachePadded::new(AtomicU64::new(u64::from(config.capacity) + kept)),
            stretch,
            lost: AtomicBool::new(false),
            waiting: Mutex::default(),
        })
    }

    /// log2 of the page size in bytes.
    pub fn page_shift(&self) -> u32 {
        self.shift
    }

    /// Records one write, of at least one byte.
    #[inline]
    pub(crate) fn mark_one(&self, iova: u64, len: u64) {
        self.mark(&[(iova, len)]);
    }

    /// Records writes, as address and bytes: all data has been stored, and the door is still open.
    pub fn mark(&self, writes: &[(u64, u64)]) {
        let turn = self.turn.load(Ordering::Relaxed);
        let mut list: Option<MutexGuard<'_, Shard>> = None;
        for &(iova, len) in writes {
            let Some(more) = len.checked_sub(1) else {
                continue;
            };
            let pages = (iova >> self.shift)..=(iova.saturating_add(more) >> self.shift);
            self.each(pages, |page, cell| {
                if !first_in_turn(cell, turn) {
                    return;
                }
                let list = list.get_or_insert_with(|| self.my_shard());
                if list.claimed == 0 {
                    list.claimed = self.claim();
                }
                match list.claimed.checked_sub(1) {
                    Some(left) => {
                        list.claimed = left;
                        list.records.push(Le64::new(page << self.shift));
                    }
                    None => self.lost.store(true, Ordering::Relaxed),
                }
            });
        }
    }

    /// The recorded pages among `pages`, with their bytes.
    #[inline]
    fn each(&self, pages: std::ops::RangeInclusive<u64>, mut visit: impl FnMut(u64, &AtomicU8)) {
        let (first, last) = pages.into_inner();
        let from = match self.parts.first() {
            Some(part) if part.end > first => 0,
            _ => self.parts.partition_point(|part| part.end <= first),
        };
        for part in self.parts.iter().skip(from) {
            if part.first > last {
                return;
            }
            let (low, high) = (first.max(part.first), last.min(part.end - 1));
            let Ok(offset) = usize::try_from(low - part.first) else {
                return;
            };
            let cells = self.turns.iter().skip(part.base + offset);
            for (page, cell) in (low..=high).zip(cells) {
                visit(page, cell);
            }
        }
    }

    fn my_shard(&self) -> MutexGuard<'_, Shard> {
        // There are SHARDS of them.
        lock(&self.shards[shard() % self.shards.len()])
    }

    #[cold]
    fn claim(&self) -> u64 {
        let take = |room: u64| Some(room - room.min(self.stretch));
        let before = self
            .room
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .unwrap_or(0);
        before.min(self.stretch)
    }

    /// Ends a turn: what was recorded is ready to be read, and every page can be recorded again.
    ///
    /// No marker is at work.
    pub fn turn(&self) {
        let mut waiting = lock(&self.waiting);
        for shard in &self.shards {
            let mut shard = lock(shard);
            if !shard.records.is_empty() {
                let spare = waiting.spare.pop().unwrap_or_default();
                let full = std::mem::replace(&mut shard.records, spare);
                waiting.lists.push(full);
            }
        }
        waiting.overflow |= self.lost.swap(false, Ordering::Relaxed);
        let next = self.turn.load(Ordering::Relaxed).wrapping_add(1);
        if next == NEVER {
            // The numbers begin anew: no page may hold one of the last time round.
            for cell in &self.turns {
                if cell.load(Ordering::Relaxed) != NEVER {
                    cell.store(NEVER, Ordering::Relaxed);
                }
            }
        }
        self.turn.store(next.max(NEVER + 1), Ordering::Relaxed);
    }

    /// Takes at most `most` records of pages within `range`. `turn` is called once at most, when
    /// nothing of former turns is left, and is to call [`Recorder::turn`] while no marker is at work.
    ///
    /// What was taken keeps its room until it is [`delivered`](Self::delivered) or
    /// [`put back`](Self::put_back).
    pub fn take(&self, range: &Range<u64>, most: usize, turn: impl FnOnce()) -> Taken {
        let mut taken = Taken::default();
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
        let all = self
            .parts
            .first()
            .is_none_or(|part| range.start <= part.first << self.shift)
            && self.parts.last().is_none_or(|part| {
                // The last byte, because the end of the address space is no number.
                range.end.wrapping_sub(1) >= ((part.end << self.shift).wrapping_sub(1))
            });
        let mut kept = Vec::new();
        let mut done = true;
        while let Some(mut list) = waiting.lists.pop() {
            let room = most - into.len();
            if all {
                let from = list.len().saturating_sub(room);
                into.extend_from_slice(&list[from..]);
                list.truncate(from);
                if !list.is_empty() {
                    waiting.lists.push(list);
                    return false;
                }
                waiting.spare.push(list);
                continue;
            }
            list.retain(|record| {
                let wanted = range.contains(&record.get());
                if wanted && into.len() < most {
                    into.push(*record);
                    return false;
                }
                done &= !wanted;
                true
            });
            if list.is_empty() {
                waiting.spare.push(list);
            } else {
                kept.push(list);
            }
        }
        waiting.lists.append(&mut kept);
        done
    }

    /// Records that were taken have reached the driver: their room is free again.
    pub fn delivered(&self, taken: &Taken) {
        let records = u64::try_from(taken.records.len()).unwrap_or(u64::MAX);
        self.room.fetch_add(records, Ordering::Relaxed);
    }

    /// Records that were taken have not reached the driver: the next read finds them, and the
    /// overflow.
    pub fn put_back(&self, taken: Taken) {
        let mut waiting = lock(&self.waiting);
        waiting.overflow |= taken.overflow;
        if !taken.records.is_empty() {
            waiting.lists.push(taken.records);
        }
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;

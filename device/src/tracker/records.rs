//! Page-write recording: the addresses of written pages, for a driver that reads them by command
//! (project rules throughout; see [`spec::records`]).
//!
//! A page is recorded once for each *turn*. Every page of the recorded ranges has a bit that says
//! that it was. A marker that finds it set is done after one load; one that does not sets it by a
//! locked OR, and whoever was the one to set it pushes the record: onto the list of its thread's
//! shard, so that queues that mark at the same time share nothing but the room that is left, of which
//! a shard claims a stretch at a time. There are two sets of bits: a turn ends by taking the other
//! one, and the reader then clears the one that was left.
//!
//! A turn ends while the door to guest memory is shut ([`Dma::quiet`](crate::dma::Dma::quiet)):
//! no burst is under way. What was recorded before belongs to the pages as they are then, and what a
//! marker left out, because its page was recorded already in that turn, was stored before the door
//! was shut. So neither marks nor records need an order of their own.

use super::protocol::first_in_turn;
use crossbeam_utils::CachePadded;
use spec::Le64;
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use zerocopy::FromZeros;

/// Most pages of one recorder's ranges: 1 TiB of 4 KiB pages, for which there are 64 MiB of bits.
pub const PAGES_MAX: u64 = 1 << 28;
/// Lists to push onto. More threads than this share.
const SHARDS: usize = 16;

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
    /// Where the word of its first page is.
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
    /// So many of the lists are of the turn that ended last, whose bits are still set.
    unswept: usize,
    /// In that turn bits were set for which there is no record.
    lost: bool,
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
    /// The bits of this turn and of the other, by turn.
    bits: [Vec<AtomicU64>; 2],
    /// 0 or 1.
    turn: AtomicUsize,
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

impl Part {
    /// Where word `word` of all pages is.
    #[inline(always)]
    fn index(&self, word: u64) -> Option<usize> {
        let offset = word.checked_sub(self.first / 64)?;
        self.base.checked_add(usize::try_from(offset).ok()?)
    }
}

/// Bits `first` to `last` of the word that both lie in.
#[inline(always)]
pub(super) fn mask(first: u64, last: u64) -> u64 {
    (u64::MAX << (first % 64)) & (u64::MAX >> (63 - last % 64))
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
        let mut words = 0;
        for range in ranges {
            let (first, end) = (
                range.start >> config.page_shift,
                range.end >> config.page_shift,
            );
            pages = pages.saturating_add(end.saturating_sub(first));
            if pages > PAGES_MAX || end <= first {
                return Err(TooMuch { pages });
            }
            parts.push(Part {
                first,
                end,
                base: words,
            });
            let here = (end - 1) / 64 - first / 64 + 1;
            words += usize::try_from(here).map_err(|_| TooMuch { pages })?;
        }
        // Zeroed by the system as they are touched.
        let bits = || AtomicU64::new_vec_zeroed(words).map_err(|_| TooMuch { pages });
        let stretch = (u64::from(config.capacity) / 64).clamp(1, 4096);
        // Whatever the other shards keep claimed, the capacity can be recorded by one of them.
        let kept = (stretch - 1) * u64::try_from(SHARDS).unwrap_or(u64::MAX);
        Ok(Self {
            shift: config.page_shift,
            parts,
            bits: [bits()?, bits()?],
            turn: AtomicUsize::new(0),
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
        let Some(bits) = self.bits.get(self.turn.load(Ordering::Relaxed)) else {
            return;
        };
        let mut list: Option<MutexGuard<'_, Shard>> = None;
        for &(iova, len) in writes {
            let Some(more) = len.checked_sub(1) else {
                continue;
            };
            let (first, last) = (iova >> self.shift, iova.saturating_add(more) >> self.shift);
            // What lies in one word of one part is nearly all there is.
            if first / 64 == last / 64
                && let Some(part) = self.part(first)
                && last < part.end
                && let Some(cell) = part.index(first / 64).and_then(|index| bits.get(index))
            {
                let new = first_in_turn(cell, mask(first, last));
                if new != 0 {
                    let list = list.get_or_insert_with(|| self.my_shard());
                    self.push(list, first / 64, new);
                }
                continue;
            }
            for part in self.overlapping(first, last) {
                let (low, high) = (first.max(part.first), last.min(part.end - 1));
                for word in low / 64..=high / 64 {
                    let Some(cell) = part.index(word).and_then(|index| bits.get(index)) else {
                        continue;
                    };
                    let mask = mask(low.max(word * 64), high.min(word * 64 + 63));
                    let new = first_in_turn(cell, mask);
                    if new != 0 {
                        let list = list.get_or_insert_with(|| self.my_shard());
                        self.push(list, word, new);
                    }
                }
            }
        }
    }

    /// The part that a page lies in.
    #[inline(always)]
    fn part(&self, page: u64) -> Option<&Part> {
        let part = match self.parts.as_slice() {
            [part] => part,
            parts => parts.get(parts.partition_point(|part| part.end <= page))?,
        };
        (part.first <= page && page < part.end).then_some(part)
    }

    /// Records the pages of a word.
    #[inline]
    fn push(&self, list: &mut Shard, word: u64, mut pages: u64) {
        while pages != 0 {
            let page = word * 64 + u64::from(pages.trailing_zeros());
            pages &= pages - 1;
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
        }
    }

    /// The parts that hold pages of these.
    #[inline]
    fn overlapping(&self, first: u64, last: u64) -> impl Iterator<Item = &Part> {
        let from = match self.parts.first() {
            Some(part) if part.end > first => 0,
            _ => self.parts.partition_point(|part| part.end <= first),
        };
        let parts = self.parts.get(from..).unwrap_or_default();
        parts.iter().take_while(move |part| part.first <= last)
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
        // Nearly always done before, by the read that the last turn was ended for.
        self.sweep(&mut waiting);
        for shard in &self.shards {
            let mut shard = lock(shard);
            if !shard.records.is_empty() {
                let spare = waiting.spare.pop().unwrap_or_default();
                let full = std::mem::replace(&mut shard.records, spare);
                waiting.lists.push(full);
                waiting.unswept += 1;
            }
        }
        waiting.lost = self.lost.swap(false, Ordering::Relaxed);
        waiting.overflow |= waiting.lost;
        self.turn.fetch_xor(1, Ordering::Relaxed);
    }

    /// Clears the bits of the turn that ended last, by its lists: before any of them is touched.
    fn sweep(&self, waiting: &mut Waiting) {
        let unswept = std::mem::take(&mut waiting.unswept);
        let lost = std::mem::take(&mut waiting.lost);
        // No marker is at these, and none will be before the door has been shut again.
        let Some(bits) = self.bits.get(1 - self.turn.load(Ordering::Relaxed)) else {
            return;
        };
        let from = waiting.lists.len().saturating_sub(unswept);
        let lists = waiting.lists.get(from..).unwrap_or_default();
        let records: usize = lists.iter().map(Vec::len).sum();
        // What was lost has left its bits and nothing else. Many records are cleared all at once.
        if lost || records > bits.len() {
            for word in bits {
                if word.load(Ordering::Relaxed) != 0 {
                    word.store(0, Ordering::Relaxed);
                }
            }
            return;
        }
        for record in lists.iter().flatten() {
            let page = record.get() >> self.shift;
            let part = self.part(page);
            let index = part.and_then(|part| part.index(page / 64));
            if let Some(word) = index.and_then(|index| bits.get(index)) {
                word.store(0, Ordering::Relaxed);
            }
        }
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
        self.sweep(&mut waiting);
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
            if all && into.is_empty() && list.len() <= room {
                *into = list;
                continue;
            }
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
    pub fn delivered(&self, mut taken: Taken) {
        let records = u64::try_from(taken.records.len()).unwrap_or(u64::MAX);
        self.room.fetch_add(records, Ordering::Relaxed);
        taken.records.clear();
        lock(&self.waiting).spare.push(taken.records);
    }

    /// Records that were taken have not reached the driver: the next read finds them, and the
    /// overflow.
    pub fn put_back(&self, taken: Taken) {
        let mut waiting = lock(&self.waiting);
        self.sweep(&mut waiting);
        waiting.overflow |= taken.overflow;
        if !taken.records.is_empty() {
            waiting.lists.push(taken.records);
        }
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;

//! Where records are until they are read: slots, of which each thread that records has a stretch.

use super::super::protocol::RecordCell;
use super::lane::Lane;
use super::{Le64, lock, seats};
use crossbeam_utils::CachePadded;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use zerocopy::FromZeros;

/// A lane for each seat, and one for those without.
const LANES: usize = seats::SEATS + 1;
/// Slots of a stretch, unless few records are to be held.
const STRETCH: u64 = 512;

/// Notes of a lane: as many misses of the caches as can be under way at once, and more.
const NOTES: usize = 64;

pub(super) type ThreadLane = Lane<AtomicU64, NOTES>;

/// Records are put here by many threads at once, and taken by one.
#[derive(Debug)]
pub(super) struct Store {
    slots: Vec<AtomicU64>,
    /// By seat.
    own: Vec<CachePadded<ThreadLane>>,
    /// Of those without a seat.
    common: Box<Mutex<ThreadLane>>,
    /// Slots of a stretch.
    stretch: u64,
    /// A record of this turn was lost.
    lost: CachePadded<AtomicBool>,
    stock: CachePadded<Mutex<Stock>>,
}

#[derive(Debug)]
struct Stock {
    /// Records that may be held beside those that are, or that a lane has claimed.
    room: u64,
    /// Where stretches begin that were given back. The last is the warmest.
    free: Vec<u64>,
    /// From here on no slot was ever used.
    fresh: u64,
    /// What was filled in this turn.
    filled: Vec<Range<u64>>,
}

/// Not enough memory.
#[derive(Debug)]
pub(super) struct NoMemory;

impl Store {
    /// A store that surely holds `capacity` records, whichever threads bring them.
    pub(super) fn new(capacity: u32) -> Result<Self, NoMemory> {
        let lanes = u64::try_from(LANES).unwrap_or(u64::MAX);
        let stretch = (u64::from(capacity) / 64).clamp(1, STRETCH);
        // All but one slot of a stretch may be of no use to any lane but one. Stretches that are
        // not full are those of this turn, those of the turn before, and one that is being read.
        let room = u64::from(capacity) + lanes * (stretch - 1);
        let slots = (room / stretch + 2 * lanes + 1) * stretch;
        let slots = usize::try_from(slots).map_err(|_| NoMemory)?;
        let lane = || Lane::new(AtomicU64::default);
        Ok(Self {
            // Zeroed by the system as they are touched.
            slots: AtomicU64::new_vec_zeroed(slots).map_err(|_| NoMemory)?,
            own: (0..seats::SEATS)
                .map(|_| CachePadded::new(lane()))
                .collect(),
            common: Box::new(Mutex::new(lane())),
            stretch,
            lost: CachePadded::default(),
            stock: CachePadded::new(Mutex::new(Stock {
                room,
                free: Vec::new(),
                fresh: 0,
                filled: Vec::new(),
            })),
        })
    }

    /// Whether a record of this turn was lost, so that no other record of it matters.
    #[inline(always)]
    pub(super) fn lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// The lane of this thread, if it has one and that is known.
    #[inline(always)]
    pub(super) fn mine(&self) -> Option<&ThreadLane> {
        self.own.get(seats::mine()).map(|lane| &**lane)
    }

    /// Finds the lane of this thread, or the one that it shares, and does `work` on it.
    #[cold]
    pub(super) fn with_lane(&self, work: impl FnOnce(&ThreadLane)) {
        match seats::ask().and_then(|seat| self.own.get(seat)) {
            Some(lane) => work(lane),
            None => work(&lock(&self.common)),
        }
    }

    /// Does `work` on all lanes.
    pub(super) fn each_lane(&self, mut work: impl FnMut(&ThreadLane)) {
        self.own.iter().for_each(|lane| work(lane));
        work(&lock(&self.common));
    }

    /// Appends a record, or remembers that it is lost.
    #[inline(always)]
    pub(super) fn append(&self, lane: &ThreadLane, record: u64) {
        if !lane.append(&self.slots, record) {
            self.append_to_another(lane, record);
        }
    }

    #[cold]
    fn append_to_another(&self, lane: &ThreadLane, record: u64) {
        let mut stock = lock(&self.stock);
        let filled = lane.renew(self.claim(&mut stock).unwrap_or(0..0));
        if !filled.is_empty() {
            stock.filled.push(filled);
        }
        if !lane.append(&self.slots, record) {
            self.lost.store(true, Ordering::Relaxed);
        }
    }

    /// An empty stretch.
    fn claim(&self, stock: &mut Stock) -> Option<Range<u64>> {
        let room = stock.room.checked_sub(self.stretch)?;
        let start = stock.free.pop().unwrap_or(stock.fresh);
        stock.fresh = stock.fresh.max(start + self.stretch);
        stock.room = room;
        Some(start..start + self.stretch)
    }

    /// Ends a turn: what was appended in it goes to `runs`. Returns whether any was lost. No marker
    /// is at work.
    pub(super) fn end_turn(&self, runs: &mut Vec<Range<u64>>) -> bool {
        let mut stock = lock(&self.stock);
        runs.append(&mut stock.filled);
        self.each_lane(|lane| {
            stock.room += lane.room();
            let run = lane.renew(0..0);
            if !run.is_empty() {
                runs.push(run);
            }
        });
        self.lost.swap(false, Ordering::Relaxed)
    }

    /// Moves the last `most` records of a run, or all of it; returns what is left of it. Their
    /// slots are free again; their room is not.
    pub(super) fn take(&self, run: Range<u64>, most: usize, into: &mut Vec<Le64>) -> Range<u64> {
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        let from = run.end.saturating_sub(most).max(run.start);
        let index = |slot| usize::try_from(slot).unwrap_or(usize::MAX);
        let slots = self.slots.get(index(from)..index(run.end));
        let records = slots.unwrap_or_default().iter();
        into.extend(records.map(|slot| Le64::new(RecordCell::load(slot))));
        if from == run.start {
            let start = run.start - run.start % self.stretch;
            lock(&self.stock).free.push(start);
        }
        run.start..from
    }

    /// Room for so many records is there again.
    pub(super) fn give_room(&self, records: usize) {
        lock(&self.stock).room += u64::try_from(records).unwrap_or(u64::MAX);
    }
}

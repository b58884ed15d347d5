//! The recorder's half of page-write recording against its reader, under every interleaving and
//! reordering that loom knows. The decision under test is the real one, and so are the lanes that
//! notes and records are kept in; the door and the atomics are loom's.
//!
//! As with the bitmap, each wrong variant must be shown to fail.

mod proof;

use device::tracker::protocol::{RecordCell, first_in_turn, unrecorded};
use device::tracker::records::lane::Lane;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, RwLock};
use loom::thread;
use proof::{fails, holds};

/// A cell; `LOCKED` is false for the mistake of two accesses in place of one.
struct Cell<const LOCKED: bool>(AtomicU64);

impl<const LOCKED: bool> Cell<LOCKED> {
    fn new() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl<const LOCKED: bool> RecordCell for Cell<LOCKED> {
    fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn store(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
    fn replace(&self, seen: u64, value: u64) -> Result<(), u64> {
        let relaxed = Ordering::Relaxed;
        if LOCKED {
            self.0.compare_exchange(seen, value, relaxed, relaxed)?;
            return Ok(());
        }
        match self.0.load(relaxed) {
            now if now == seen => {
                self.0.store(value, relaxed);
                Ok(())
            }
            now => Err(now),
        }
    }
}

/// Where markers and the reader stand to the door and to the lanes.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Data and mark in one opening, turns while it is shut; each queue has its lane.
    Rule,
    /// Turns whenever the reader likes.
    NeverShut,
    /// The mark in one opening, its data in a later one.
    MarkFirst,
    /// The data in one opening, its mark in a later one: allowed.
    MarkLater,
    /// A turn ends without a look at what is only noted.
    NotesLeft,
    /// A turn begins with the number of the one before.
    SameTurn,
    /// Two queues at one lane.
    OneLane,
}

/// Pages there are; the reader copies those that it has records of.
const PAGES: usize = 2;
/// Slots of a lane's stretch. More than one note, so that one may be left.
const STRETCH: u64 = 4;

/// Some pages, and what is known of them.
struct Guest<const LOCKED: bool> {
    way: Way,
    /// How often a write is noted: twice, and the lane has no room left for the second note.
    noted: u32,
    pages: [AtomicU64; PAGES],
    word: Cell<LOCKED>,
    turn: AtomicU64,
    lanes: [Lane<Cell<LOCKED>, 1>; 2],
    slots: Vec<Cell<LOCKED>>,
    door: RwLock<()>,
}

impl<const LOCKED: bool> Guest<LOCKED> {
    fn new(way: Way, noted: u32) -> Arc<Self> {
        let guest = Self {
            way,
            noted,
            pages: std::array::from_fn(|_| AtomicU64::new(0)),
            word: Cell::new(),
            turn: AtomicU64::new(1),
            lanes: std::array::from_fn(|_| Lane::new(Cell::new)),
            slots: (0..2 * STRETCH).map(|_| Cell::new()).collect(),
            door: RwLock::new(()),
        };
        guest.renew();
        Arc::new(guest)
    }

    /// Takes the records of all lanes, and gives them their stretches anew.
    fn renew(&self) -> Vec<u64> {
        let mut records = Vec::new();
        for (lane, start) in self.lanes.iter().zip([0, STRETCH]) {
            let filled = lane.renew(start..start + STRETCH);
            records.extend(filled.map(|slot| self.slots[usize::try_from(slot).unwrap()].load()));
        }
        records
    }

    /// As the recorder does it: a word of pages is a note.
    fn settle(&self, lane: &Lane<Cell<LOCKED>, 1>) {
        let turn = self.turn.load(Ordering::Relaxed);
        let missing = |note| unrecorded(self.word.load(), turn, note);
        if lane.notes().any(|note| missing(note) != 0) {
            for note in lane.notes() {
                let new = first_in_turn(&self.word, self.word.load(), turn, note);
                for page in (0..u64::try_from(PAGES).unwrap()).filter(|page| new & (1 << page) != 0)
                {
                    assert!(lane.append(&self.slots, page), "there is room for all");
                }
            }
        }
        lane.strike_out();
    }

    fn mark(&self, queue: usize, page: usize) {
        let own = if self.way == Way::OneLane { 0 } else { queue };
        let lane = &self.lanes[own];
        for _ in 0..self.noted {
            while !lane.note(1 << page) {
                self.settle(lane);
            }
        }
    }

    fn write(&self, queue: usize, page: usize, value: u64) {
        let store = || self.pages[page].store(value, Ordering::Relaxed);
        let open = || self.door.read().unwrap();
        match self.way {
            Way::MarkFirst => {
                {
                    let _open = open();
                    self.mark(queue, page);
                }
                let _open = open();
                store();
            }
            Way::MarkLater => {
                {
                    let _open = open();
                    store();
                }
                let _open = open();
                self.mark(queue, page);
            }
            _ => {
                let _open = open();
                store();
                self.mark(queue, page);
            }
        }
    }

    fn round(&self, copy: &mut [u64; PAGES]) {
        let end = || {
            if self.way != Way::NotesLeft {
                self.lanes.iter().for_each(|lane| self.settle(lane));
            } else {
                self.lanes.iter().for_each(Lane::strike_out);
            }
            let records = self.renew();
            if self.way != Way::SameTurn {
                let next = self.turn.load(Ordering::Relaxed) + 1;
                self.turn.store(next, Ordering::Relaxed);
            }
            records
        };
        let records = match self.way {
            Way::NeverShut => end(),
            _ => {
                let _shut = self.door.write().unwrap();
                end()
            }
        };
        // Where turns have no end there is no saying how often.
        if self.way != Way::NeverShut {
            let twice = (1..records.len()).any(|at| records[..at].contains(&records[at]));
            assert!(!twice, "recorded twice in a turn");
        }
        for page in records {
            let page = usize::try_from(page).unwrap();
            copy[page] = self.pages[page].load(Ordering::Relaxed);
        }
    }
}

/// Two writes by one queue or by two, to one page or to two, a reader of one round, and its last
/// round after the end.
fn moves<const LOCKED: bool>(
    way: Way,
    queues: usize,
    pages: usize,
    noted: u32,
) -> impl Fn() + Sync + Send {
    move || {
        let guest = Guest::<LOCKED>::new(way, noted);
        let writers: Vec<_> = (0..queues)
            .map(|queue| {
                let guest = Arc::clone(&guest);
                thread::spawn(move || {
                    if queues == 1 {
                        guest.write(queue, 0, 1);
                    }
                    guest.write(queue, (queue + 2 - queues) % pages, 2);
                })
            })
            .collect();
        let mut copy = [0; PAGES];
        guest.round(&mut copy);
        for writer in writers {
            writer.join().unwrap();
        }
        guest.round(&mut copy);
        let pages = guest.pages.each_ref();
        let pages = pages.map(|page| page.load(Ordering::Relaxed));
        assert_eq!(pages, copy, "lost page");
    }
}

#[test]
fn turns_behind_a_shut_door_lose_nothing() {
    let all = |name, queues, pages| {
        holds(name, None, moves::<true>(Way::Rule, queues, pages, 1));
    };
    all("records: one queue, one page", 1, 1);
    all("records: one queue, two pages", 1, 2);
    all("records: two queues, one page", 2, 1);
    all("records: two queues, two pages", 2, 2);
    // Both at the word at once. All interleavings take two minutes and pass, too; here those with
    // four changes of thread.
    let name = "records: two queues, one page, full lanes";
    holds(name, Some(4), moves::<true>(Way::Rule, 2, 1, 2));
}

#[test]
fn a_mark_may_come_with_a_later_burst() {
    let name = "records: a mark in a later burst";
    holds(name, None, moves::<true>(Way::MarkLater, 1, 1, 1));
}

#[test]
fn a_turn_while_the_door_is_open_loses() {
    let name = "records: a turn while the door is open";
    fails("lost page", name, moves::<true>(Way::NeverShut, 1, 1, 1));
}

#[test]
fn notes_that_outlive_no_turn_are_lost_with_it() {
    let name = "records: notes left behind";
    fails("lost page", name, moves::<true>(Way::NotesLeft, 1, 1, 1));
}

#[test]
fn a_turn_with_the_number_of_the_last_loses() {
    let name = "records: a turn with the last one's number";
    fails("lost page", name, moves::<true>(Way::SameTurn, 1, 1, 1));
}

#[test]
fn a_mark_before_its_data_loses() {
    let name = "records: a mark before its data";
    fails("lost page", name, moves::<true>(Way::MarkFirst, 1, 1, 1));
}

#[test]
fn two_queues_at_one_lane_lose() {
    let name = "records: two queues at one lane";
    fails("lost page", name, moves::<true>(Way::OneLane, 2, 2, 1));
}

#[test]
fn two_queues_without_a_locked_operation_record_twice() {
    let name = "records: no locked operation";
    fails("recorded twice", name, moves::<false>(Way::Rule, 2, 1, 2));
}

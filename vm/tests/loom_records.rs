//! The recorder's half of page-write recording against its reader, under every interleaving and
//! reordering that loom knows. The decision under test is the real one; the door, the list and the
//! atomics are loom's.
//!
//! As with the bitmap, each wrong variant must be shown to fail.

use device::tracker::protocol::{RecordWord, first_in_turn};
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex, RwLock};
use loom::thread;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A word of bits; `ORS` is false for the mistake of two accesses in place of one.
struct Bits<const ORS: bool>(AtomicU64);

impl<const ORS: bool> RecordWord for Bits<ORS> {
    fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn fetch_or(&self, mask: u64) -> u64 {
        if ORS {
            return self.0.fetch_or(mask, Ordering::Relaxed);
        }
        let old = self.0.load(Ordering::Relaxed);
        self.0.store(old | mask, Ordering::Relaxed);
        old
    }
}

/// Where a marker and the reader stand to the door.
#[derive(Clone, Copy)]
enum Door {
    /// Data and mark in one opening, turns while it is shut.
    Rule,
    /// Turns whenever the reader likes.
    NeverShut,
    /// The mark in one opening, its data in a later one.
    MarkFirst,
    /// The data in one opening, its mark in a later one: allowed.
    MarkLater,
    /// As the rule, but the bits of a turn are cleared when the next has begun with them.
    SweptLate,
}

/// One page, and the copy of it that a migration makes.
struct Guest<const ORS: bool> {
    page: AtomicU64,
    bits: [Bits<ORS>; 2],
    turn: AtomicUsize,
    /// How often the page is on the list.
    list: Mutex<u32>,
    door: RwLock<()>,
}

impl<const ORS: bool> Guest<ORS> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            page: AtomicU64::new(0),
            bits: [Bits(AtomicU64::new(0)), Bits(AtomicU64::new(0))],
            turn: AtomicUsize::new(0),
            list: Mutex::new(0),
            door: RwLock::new(()),
        })
    }

    fn mark(&self) {
        let turn = self.turn.load(Ordering::Relaxed);
        if first_in_turn(&self.bits[turn], 1) != 0 {
            *self.list.lock().unwrap() += 1;
        }
    }

    fn write(&self, door: Door, value: u64) {
        let store = || self.page.store(value, Ordering::Relaxed);
        let open = || self.door.read().unwrap();
        match door {
            Door::Rule | Door::NeverShut | Door::SweptLate => {
                let _open = open();
                store();
                self.mark();
            }
            Door::MarkFirst => {
                {
                    let _open = open();
                    self.mark();
                }
                let _open = open();
                store();
            }
            Door::MarkLater => {
                {
                    let _open = open();
                    store();
                }
                let _open = open();
                self.mark();
            }
        }
    }

    fn round(&self, door: Door, copy: &mut u64) {
        let late = matches!(door, Door::SweptLate);
        let end = || {
            let records = std::mem::take(&mut *self.list.lock().unwrap());
            let turn = self.turn.load(Ordering::Relaxed);
            self.turn.store(1 - turn, Ordering::Relaxed);
            (turn, records)
        };
        let (turn, records) = match door {
            Door::NeverShut => end(),
            _ => {
                let _shut = self.door.write().unwrap();
                end()
            }
        };
        let swept = if late { 1 - turn } else { turn };
        self.bits[swept].0.store(0, Ordering::Relaxed);
        // Where turns have no end there is no saying how often.
        let ended = !late && !matches!(door, Door::NeverShut);
        assert!(records <= 1 || !ended, "recorded twice in a turn");
        if records != 0 {
            *copy = self.page.load(Ordering::Relaxed);
        }
    }
}

/// Two writes by one queue or by two, a reader of two rounds, and its last round after the end.
fn moves<const ORS: bool>(door: Door, queues: u64) -> impl Fn() + Sync + Send {
    move || {
        let guest = Guest::<ORS>::new();
        let writers: Vec<_> = (0..queues)
            .map(|queue| {
                let guest = Arc::clone(&guest);
                thread::spawn(move || {
                    if queues == 1 {
                        guest.write(door, 1);
                    }
                    guest.write(door, queue + 2);
                })
            })
            .collect();
        let mut copy = 0;
        guest.round(door, &mut copy);
        if matches!(door, Door::SweptLate) {
            // The same bits again.
            guest.round(door, &mut copy);
        }
        for writer in writers {
            writer.join().unwrap();
        }
        guest.round(door, &mut copy);
        let page = guest.page.load(Ordering::Relaxed);
        assert_eq!(page, copy, "lost page");
    }
}

fn fails(says: &str, model: impl Fn() + Sync + Send + 'static) {
    let panic = catch_unwind(AssertUnwindSafe(|| loom::model(model))).expect_err(says);
    let said = panic.downcast_ref::<String>().cloned();
    let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    let said = said.unwrap_or_default();
    assert!(said.contains(says), "failed for another reason: {said}");
}

#[test]
fn turns_behind_a_shut_door_lose_nothing() {
    loom::model(moves::<true>(Door::Rule, 1));
    loom::model(moves::<true>(Door::Rule, 2));
}

#[test]
fn a_mark_may_come_with_a_later_burst() {
    loom::model(moves::<true>(Door::MarkLater, 1));
}

#[test]
fn a_turn_while_the_door_is_open_loses() {
    fails("lost page", moves::<true>(Door::NeverShut, 1));
}

/// Bits that are cleared while markers set them say too little, and those that are left too much.
#[test]
fn a_sweep_of_the_wrong_turn_loses() {
    fails("lost page", moves::<true>(Door::SweptLate, 1));
}

#[test]
fn a_mark_before_its_data_loses() {
    fails("lost page", moves::<true>(Door::MarkFirst, 1));
}

#[test]
fn two_queues_without_a_locked_or_record_twice() {
    fails("recorded twice", moves::<false>(Door::Rule, 2));
}

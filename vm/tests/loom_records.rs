//! The recorder's half of page-write recording against its reader, under every interleaving and
//! reordering that loom knows. The decision under test is the real one; the door, the list and the
//! atomics are loom's.
//!
//! As with the bitmap, each wrong variant must be shown to fail.

use device::tracker::protocol::{TurnCell, first_in_turn};
use loom::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use loom::sync::{Arc, Mutex, RwLock};
use loom::thread;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A page's byte; `SWAPS` is false for the mistake of two accesses in place of one.
struct Cell<const SWAPS: bool>(AtomicU8);

impl<const SWAPS: bool> TurnCell for Cell<SWAPS> {
    fn load(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
    fn swap(&self, turn: u8) -> u8 {
        if SWAPS {
            return self.0.swap(turn, Ordering::Relaxed);
        }
        let old = self.0.load(Ordering::Relaxed);
        self.0.store(turn, Ordering::Relaxed);
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
}

/// One page, and the copy of it that a migration makes.
struct Guest<const SWAPS: bool> {
    page: AtomicU64,
    cell: Cell<SWAPS>,
    turn: AtomicU8,
    /// How often the page is on the list.
    list: Mutex<u32>,
    door: RwLock<()>,
}

impl<const SWAPS: bool> Guest<SWAPS> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            page: AtomicU64::new(0),
            cell: Cell(AtomicU8::new(0)),
            turn: AtomicU8::new(1),
            list: Mutex::new(0),
            door: RwLock::new(()),
        })
    }

    fn mark(&self) {
        let turn = self.turn.load(Ordering::Relaxed);
        if first_in_turn(&self.cell, turn) {
            *self.list.lock().unwrap() += 1;
        }
    }

    fn write(&self, door: Door, value: u64) {
        let store = || self.page.store(value, Ordering::Relaxed);
        let open = || self.door.read().unwrap();
        match door {
            Door::Rule | Door::NeverShut => {
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
        let end = || {
            let records = std::mem::take(&mut *self.list.lock().unwrap());
            let turn = self.turn.load(Ordering::Relaxed);
            self.turn.store(turn + 1, Ordering::Relaxed);
            records
        };
        let records = match door {
            Door::NeverShut => end(),
            _ => {
                let _shut = self.door.write().unwrap();
                end()
            }
        };
        // Where turns have no end there is no saying how often.
        let ended = !matches!(door, Door::NeverShut);
        assert!(records <= 1 || !ended, "recorded twice in a turn");
        if records != 0 {
            *copy = self.page.load(Ordering::Relaxed);
        }
    }
}

/// Two writes by one queue or by two, a reader of two rounds, and its last round after the end.
fn moves<const SWAPS: bool>(door: Door, queues: u64) -> impl Fn() + Sync + Send {
    move || {
        let guest = Guest::<SWAPS>::new();
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

#[test]
fn a_mark_before_its_data_loses() {
    fails("lost page", moves::<true>(Door::MarkFirst, 1));
}

#[test]
fn two_queues_without_a_swap_record_twice() {
    fails("recorded twice", moves::<false>(Door::Rule, 2));
}

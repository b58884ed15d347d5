//! Packed rings, from the device's side.

use super::super::chain::{Chain, Element};
use super::super::function::{Inner, Once};
use super::super::ledger::{Ledger, rules};
use super::super::memory::Memory;
use super::View;
use crate::clause;
use crate::constants::{feature, ring};
use std::collections::VecDeque;

rules! {
    ALIGNED = clause!(packed "R1"), "aligns_packed_rings": "addresses of a packed queue when it is enabled: multiples of 16, 4 and 4";
    LEAVES = clause!(packed_table "R1"), "leaves_unused_descriptors": "descriptors are compared with what they were before each buffer is used";
    LEAVES_AVAILABLE = clause!(packed_table "R2"), "leaves_available_descriptors": "descriptors are compared with what they were before each buffer is used";
    PLACE = clause!(packed_table "R3"), "notifies_with_the_next_place": "offset and wrap counter in notifications, against the ring";
    ALLOWED = clause!(packed_lists "R1"), "lists_are_as_the_device_allows": "length of every list, against the device's limit";
    FITS = clause!(packed_lists "R2"), "lists_fit_the_queue": "length of every list, against the queue's size";
    FRAMED = clause!(packed_lists "R3"), "packed_writable_after_readable": "every list that has elements of both kinds";
    ONE_FOR_ALL = clause!(packed_lists "R4"), "one_descriptor_used_for_a_list": "each list is used by writing one descriptor; the driver must go on";
    ROOM = clause!(packed_lists "R5"), "lists_have_room": "descriptors of every list, against those that are not used yet";
    FIRST_LAST = clause!(packed_lists "R6"), "the_first_is_made_available_last": "every list of several descriptors when its first is available: all others must be";
    INDIRECT = clause!(packed_indirect "R1"), "packed_no_indirect_without_the_feature": "flags of every descriptor, INDIRECT_DESC not agreed";
    TABLE_FLAGS = clause!(packed_indirect "R2"), "packed_tables_have_write_only": "flags inside every indirect table";
    TABLE_ALLOWED = clause!(packed_indirect "R3"), "packed_tables_are_as_the_device_allows": "length of every indirect table, against the device's limit";
    TABLE_ALONE = clause!(packed_indirect "R4"), "packed_tables_stand_alone": "every descriptor that refers to a table, against NEXT in it and before it";
}

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// The driver wants no interrupts.
const DISABLED: u16 = 1;

/// A packed ring.
#[derive(Debug)]
pub(in crate::judge) struct Packed {
    desc: u64,
    driver: u64,
    size: u16,
    seen: u16,
    seen_wrap: bool,
    used: u16,
    used_wrap: bool,
    /// A descriptor was available where the next is looked for when SUSPEND was written.
    marked: bool,
    /// Places behind the last lists that no notification has named yet: a driver goes on while its
    /// notification is on the way.
    passed: VecDeque<u16>,
}

struct Desc {
    addr: u64,
    len: u32,
    id: u16,
    flags: u16,
}

fn desc(memory: &Memory, at: u64) -> Desc {
    let flags = memory.load(at + 14);
    let bytes: [u8; 16] = memory.bytes(at);
    let number = |bytes: &[u8]| {
        let fold = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        bytes.iter().rev().fold(0, fold)
    };
    Desc {
        addr: number(&bytes[..8]),
        len: u32::try_from(number(&bytes[8..12])).unwrap_or(0),
        id: u16::from_le_bytes([bytes[12], bytes[13]]),
        flags,
    }
}

/// Bytes of the three parts.
pub(in crate::judge) fn sizes(size: u16) -> [u64; 3] {
    [16 * u64::from(size), 4, 4]
}

fn available(flags: u16, wrap: bool) -> bool {
    (flags & AVAIL != 0) == wrap && (flags & USED != 0) != wrap
}

impl Packed {
    pub(super) fn new(
        [desc, driver, device]: [u64; 3],
        size: u16,
        state: Option<u16>,
        view: &mut View<'_>,
    ) -> Self {
        let parts = [
            desc.is_multiple_of(16),
            driver.is_multiple_of(4),
            device.is_multiple_of(4),
        ];
        view.book.check(&ALIGNED, parts == [true; 3], || {
            format!("descriptors at {desc:#x}, event suppression at {driver:#x} and {device:#x}")
        });
        let state = state.unwrap_or(1 << 15);
        let (at, wrap) = (state & 0x7fff, state >> 15 == 1);
        Self {
            desc,
            driver,
            size,
            seen: at,
            seen_wrap: wrap,
            used: at,
            used_wrap: wrap,
            marked: false,
            passed: VecDeque::new(),
        }
    }

    pub(super) fn state(&self) -> (u16, u16) {
        let word = |at: u16, wrap: bool| at | u16::from(wrap) << 15;
        (
            word(self.seen, self.seen_wrap),
            word(self.used, self.used_wrap),
        )
    }

    fn place(&self, at: u16) -> u64 {
        self.desc + 16 * u64::from(at)
    }

    fn next(&self, at: u16, wrap: bool) -> (u16, bool) {
        if at + 1 >= self.size {
            (0, !wrap)
        } else {
            (at + 1, wrap)
        }
    }

    /// Takes new lists. `told` if a notification came for them, with what it said.
    pub(super) fn poll(
        &mut self,
        view: &mut View<'_>,
        told: Option<Option<u16>>,
        mut outstanding: u16,
    ) -> Vec<Chain> {
        let mut chains: Vec<Chain> = Vec::new();
        // A ring has at most as many lists as descriptors.
        for _ in 0..self.size {
            if !available(view.memory.load(self.place(self.seen) + 14), self.seen_wrap) {
                break;
            }
            let Some(chain) = self.list(view) else {
                break;
            };
            outstanding = outstanding.saturating_add(chain.slots);
            view.book.check(&ROOM, outstanding <= self.size, || {
                format!(
                    "{outstanding} of {} descriptors are not used yet",
                    self.size
                )
            });
            chains.push(chain);
            self.passed.push_back(self.state().0);
        }
        if let Some(Some(said)) = told {
            let named = self.passed.iter().position(|place| *place == said);
            if !chains.is_empty() {
                let passed = &self.passed;
                view.book.check(&PLACE, named.is_some(), || {
                    format!("{said:#06x}; the next descriptors after each list are {passed:x?}")
                });
            }
            self.passed.drain(..named.map_or(0, |named| named + 1));
        }
        let kept = usize::from(self.size).min(self.passed.len());
        self.passed.drain(..self.passed.len() - kept);
        chains
    }

    fn list(&mut self, view: &mut View<'_>) -> Option<Chain> {
        let mut chain = Chain::default();
        let (mut at, mut wrap) = (self.seen, self.seen_wrap);
        let mut tables = 0;
        loop {
            let place = self.place(at);
            let found = desc(view.memory, place);
            if chain.slots > 0 {
                let ready = available(found.flags, wrap);
                view.book.check(&FIRST_LAST, ready, || {
                    format!(
                        "descriptor {at} of a list has flags {:#06x} while the first is available",
                        found.flags
                    )
                });
                if !ready {
                    return None;
                }
            }
            chain
                .exposed
                .push((place, view.memory.bytes::<16>(place).to_vec()));
            chain.slots += 1;
            chain.id = found.id;
            let more = found.flags & ring::NEXT != 0;
            if found.flags & ring::INDIRECT != 0 {
                tables += 1;
                let alone = !more && chain.slots == 1;
                view.book.check(&TABLE_ALONE, alone, || {
                    format!(
                        "flags {:#06x}, as number {} of its list",
                        found.flags, chain.slots
                    )
                });
                table(view, &found, &mut chain);
            } else {
                if !view.has(feature::INDIRECT_DESC) {
                    view.book.kept(&INDIRECT, "a descriptor without INDIRECT");
                }
                chain.elements.push(Element {
                    addr: found.addr,
                    len: found.len,
                    write: found.flags & ring::WRITE != 0,
                });
            }
            (at, wrap) = self.next(at, wrap);
            if !more {
                break;
            }
            if chain.slots == self.size {
                view.book
                    .broke(&FITS, "NEXT in as many descriptors as the queue has");
                return None;
            }
        }
        (self.seen, self.seen_wrap) = (at, wrap);
        view.book
            .check(&FITS, true, || format!("{} descriptors", chain.slots));
        if tables == 0 {
            let (count, limit) = (chain.elements.len(), view.limit);
            view.book.check(&ALLOWED, count <= limit, || {
                format!("{count} elements, {limit} are allowed")
            });
        }
        if let Some(framed) = chain.framed() {
            view.book
                .check(&FRAMED, framed, || format!("{:?}", chain.elements));
        }
        Some(chain)
    }

    /// The driver waits: are there lists of which it has not told?
    pub(super) fn idle(&mut self, view: &mut View<'_>) -> bool {
        available(view.memory.load(self.place(self.seen) + 14), self.seen_wrap)
    }

    /// Uses a list by writing one descriptor. True if the driver is to be interrupted.
    pub(super) fn push(&mut self, view: &mut View<'_>, chain: &Chain, written: u32) -> bool {
        let place = self.place(self.used);
        view.memory.write(place + 8, &written.to_le_bytes());
        view.memory.write(place + 12, &chain.id.to_le_bytes());
        let mut flags = if self.used_wrap { AVAIL | USED } else { 0 };
        if written > 0 {
            flags |= ring::WRITE;
        }
        view.memory.store(place + 14, flags);
        for _ in 0..chain.slots {
            (self.used, self.used_wrap) = self.next(self.used, self.used_wrap);
        }
        view.memory.load(self.driver + 2) & 3 != DISABLED
    }

    pub(super) fn mark(&mut self, memory: &Memory) {
        self.marked = self.waiting(memory);
    }

    pub(super) fn moved(&self, memory: &Memory) -> bool {
        !self.marked && self.waiting(memory)
    }

    pub(super) fn waiting(&self, memory: &Memory) -> bool {
        available(memory.load(self.place(self.seen) + 14), self.seen_wrap)
    }
}

fn table(view: &mut View<'_>, found: &Desc, chain: &mut Chain) {
    if !view.has(feature::INDIRECT_DESC) {
        view.book.broke(&INDIRECT, "a descriptor with INDIRECT");
        return;
    }
    let count = usize::try_from(found.len / 16).unwrap_or(usize::MAX);
    let limit = view.limit;
    view.book.check(&TABLE_ALLOWED, count <= limit, || {
        format!("{count} elements, {limit} are allowed")
    });
    let count = count.min(1024);
    let mut bytes = vec![0; 16 * count];
    view.memory.read(found.addr, &mut bytes);
    chain.exposed.push((found.addr, bytes));
    for at in 0..count {
        let inner = desc(view.memory, found.addr + 16 * at as u64);
        let others = inner.flags & !ring::WRITE;
        view.book.check(&TABLE_FLAGS, others == 0, || {
            format!("entry {at} has flags {:#06x}", inner.flags)
        });
        chain.elements.push(Element {
            addr: inner.addr,
            len: inner.len,
            write: inner.flags & ring::WRITE != 0,
        });
    }
}

/// What has become of an exposed list, just before lists are used.
pub(super) fn compared(book: &mut Ledger, left: Option<u64>) {
    for rule in [&LEAVES, &LEAVES_AVAILABLE] {
        book.check(rule, left.is_none(), || match left {
            Some(at) => format!("what is at {at:#x} has changed before it was used"),
            None => "nothing had changed".to_owned(),
        });
    }
}

/// A list of several descriptors was used by one.
pub(super) fn used_as_one(inner: &mut Inner) {
    if inner.provoked.one_for_all == Once::Before {
        inner.provoked.one_for_all = Once::Waiting;
    }
}

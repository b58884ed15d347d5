//! Split rings, from the device's side.

use super::super::chain::{Chain, Element};
use super::super::ledger::rules;
use super::super::memory::Memory;
use super::View;
use crate::clause;
use crate::constants::{feature, ring};
use std::sync::atomic::{Ordering, fence};

rules! {
    ALIGNED = clause!(split "R1"), "aligns_split_rings": "addresses of a split queue when it is enabled: multiples of 16, 2 and 4";
    FRAMED = clause!(framing "R1"), "writable_after_readable": "every chain that has descriptors of both kinds";
    BOUNDED = clause!(table "R1"), "chains_are_bounded": "length of every chain, in bytes and in descriptors";
    SEQUENCE = clause!(table "R2"), "chains_go_in_order": "next of every chained descriptor with IN_ORDER";
    INDIRECT = clause!(indirect "R1"), "no_indirect_without_the_feature": "flags of every descriptor, INDIRECT_DESC not agreed";
    NESTED = clause!(indirect "R2"), "no_nested_tables": "flags inside every indirect table";
    TABLE_SIZE = clause!(indirect "R3"), "tables_fit_the_queue": "length of every indirect table, against the queue's size";
    INDIRECT_NEXT = clause!(indirect "R4"), "no_next_with_indirect": "flags of every descriptor that refers to a table";
    TABLE_ORDER = clause!(indirect "R5"), "tables_go_in_order": "next inside every indirect table with IN_ORDER";
    FORWARD = clause!(available_ring "R1"), "available_index_goes_forward": "the available index, each time that it is looked at";
    FLAGS = clause!(used_suppression "R1"), "available_flags_are_0_or_1": "flags of the available ring without EVENT_IDX";
    FLAGS_0 = clause!(used_suppression "R3"), "available_flags_are_0": "flags of the available ring with EVENT_IDX";
    USED_FLAGS = clause!(avail_suppression "R1"), "used_flags_begin_at_0": "flags of the used ring when the queue is enabled";
    NO_EVENT = clause!(avail_suppression "R2"), "ignores_avail_event": "avail_event asks for a notification far away, EVENT_IDX is not agreed; notifications must come";
    NOTIFIES = clause!(avail_suppression "R4"), "notifies_when_flags_are_0": "new entries while the used ring's flags are 0: a notification must come";
    IGNORES_FLAG = clause!(avail_suppression "R5"), "ignores_used_flags": "the used ring's flags are 1 with EVENT_IDX; notifications must come";
    NOTIFIES_EVENT = clause!(avail_suppression "R6"), "notifies_at_avail_event": "the entry at avail_event is made available: a notification must come";
}

/// A split ring.
#[derive(Debug)]
pub(in crate::judge) struct Split {
    desc: u64,
    driver: u64,
    device: u64,
    size: u16,
    /// Next entry to be taken, and to be used.
    seen: u16,
    used: u16,
    lie: bool,
    /// The available index when SUSPEND was written.
    mark: u16,
}

struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn desc(memory: &Memory, at: u64) -> Desc {
    let bytes: [u8; 16] = memory.bytes(at);
    let (addr, rest) = bytes.split_at(8);
    let word = |at: usize| u16::from_le_bytes([rest[at], rest[at + 1]]);
    Desc {
        addr: addr
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        len: u32::from(word(0)) | u32::from(word(2)) << 16,
        flags: word(4),
        next: word(6),
    }
}

/// Bytes of the three parts.
pub(in crate::judge) fn sizes(size: u16) -> [u64; 3] {
    let size = u64::from(size);
    [16 * size, 6 + 2 * size, 6 + 8 * size]
}

impl Split {
    pub(super) fn new(
        [desc, driver, device]: [u64; 3],
        size: u16,
        state: Option<u16>,
        lie: bool,
        view: &mut View<'_>,
    ) -> Self {
        let aligned =
            desc.is_multiple_of(16) && driver.is_multiple_of(2) && device.is_multiple_of(4);
        view.book.check(&ALIGNED, aligned, || {
            format!(
                "descriptors at {desc:#x}, available ring at {driver:#x}, used ring at {device:#x}"
            )
        });
        let flags = view.memory.load(device);
        view.book
            .check(&USED_FLAGS, flags == 0, || format!("{flags:#06x}"));
        let this = Self {
            desc,
            driver,
            device,
            size,
            seen: state.unwrap_or(0),
            used: state.unwrap_or(0),
            lie,
            mark: 0,
        };
        this.ask(view);
        this
    }

    pub(super) fn state(&self) -> (u16, u16) {
        (self.seen, self.used)
    }

    fn entry(&self, index: u16) -> u64 {
        self.driver + 4 + 2 * u64::from(index % self.size.max(1))
    }

    fn index(&self, memory: &Memory) -> u16 {
        memory.load(self.driver + 2)
    }

    /// Asks to be notified of the next entry; says otherwise where the driver must not look.
    fn ask(&self, view: &View<'_>) {
        let event = self.device + 4 + 8 * u64::from(self.size);
        if view.has(feature::EVENT_IDX) {
            view.memory.store(event, self.seen);
            view.memory.store(self.device, u16::from(self.lie));
        } else if self.lie {
            view.memory.store(event, self.seen.wrapping_add(0x4000));
        }
        // What was asked is seen by a driver whose entry is not seen when the device looks again.
        fence(Ordering::SeqCst);
    }

    /// Takes new entries. `told` if a notification came for them, with what it said.
    pub(super) fn poll(&mut self, view: &mut View<'_>, told: Option<Option<u16>>) -> Vec<Chain> {
        let index = self.index(view.memory);
        let new = index.wrapping_sub(self.seen);
        if new == 0 {
            return Vec::new();
        }
        let seen = self.seen;
        view.book.check(&FORWARD, new <= self.size, || {
            format!("it was {seen} and is {index}, with {} entries", self.size)
        });
        if new > self.size {
            self.seen = index;
            return Vec::new();
        }
        self.flags(view);
        if told.is_some() {
            let saw = || format!("a notification came for entries {seen} to {index}");
            if view.has(feature::EVENT_IDX) {
                view.book.check(&NOTIFIES_EVENT, true, saw);
                if self.lie {
                    view.book.check(&IGNORES_FLAG, true, saw);
                }
            } else {
                view.book.check(&NOTIFIES, true, saw);
                if self.lie {
                    view.book.check(&NO_EVENT, true, saw);
                }
            }
        }
        let mut chains = Vec::new();
        for at in 0..new {
            let place = self.entry(seen.wrapping_add(at));
            let head = view.memory.load(place);
            if let Some(mut chain) = self.walk(view, head) {
                chain.exposed.push((place, head.to_le_bytes().to_vec()));
                chains.push(chain);
            }
        }
        self.seen = index;
        self.ask(view);
        chains
    }

    fn flags(&self, view: &mut View<'_>) {
        let flags = view.memory.load(self.driver);
        if view.has(feature::EVENT_IDX) {
            view.book
                .check(&FLAGS_0, flags == 0, || format!("{flags:#06x}"));
        } else {
            view.book
                .check(&FLAGS, flags <= 1, || format!("{flags:#06x}"));
        }
    }

    /// The driver waits: are there entries of which it has not told?
    pub(super) fn idle(&mut self, view: &mut View<'_>) -> bool {
        let index = self.index(view.memory);
        if index == self.seen {
            return false;
        }
        let new = index.wrapping_sub(self.seen);
        if new > self.size {
            return true;
        }
        let seen = self.seen;
        let saw = || {
            format!(
                "entries {seen} to {index} are available, no notification came, and the driver waits"
            )
        };
        if view.has(feature::EVENT_IDX) {
            let rule = if self.lie {
                &IGNORES_FLAG
            } else {
                &NOTIFIES_EVENT
            };
            view.book.check(rule, false, saw);
        } else {
            let rule = if self.lie { &NO_EVENT } else { &NOTIFIES };
            view.book.check(rule, false, saw);
        }
        true
    }

    fn walk(&self, view: &mut View<'_>, head: u16) -> Option<Chain> {
        let mut chain = Chain {
            id: head,
            slots: 1,
            ..Chain::default()
        };
        let mut at = head;
        let mut count = 0_u32;
        loop {
            if at >= self.size {
                return None;
            }
            let place = self.desc + 16 * u64::from(at);
            let found = desc(view.memory, place);
            chain
                .exposed
                .push((place, view.memory.bytes::<16>(place).to_vec()));
            count += 1;
            if count > u32::from(self.size) {
                view.book
                    .broke(&BOUNDED, format!("the chain from {head} goes in circles"));
                return None;
            }
            if found.flags & ring::INDIRECT != 0 {
                if !self.table(view, &found, &mut chain) {
                    return None;
                }
                if found.flags & ring::NEXT == 0 {
                    break;
                }
            } else {
                chain.elements.push(Element {
                    addr: found.addr,
                    len: found.len,
                    write: found.flags & ring::WRITE != 0,
                });
                if !view.has(feature::INDIRECT_DESC) {
                    view.book.kept(&INDIRECT, "a descriptor without INDIRECT");
                }
            }
            if found.flags & ring::NEXT == 0 {
                break;
            }
            if view.has(feature::IN_ORDER) {
                let follows = if at + 1 == self.size { 0 } else { at + 1 };
                view.book.check(&SEQUENCE, found.next == follows, || {
                    format!("descriptor {at} is chained to {}", found.next)
                });
            }
            at = found.next;
        }
        let bytes = chain.readable() + chain.writable();
        view.book.check(&BOUNDED, bytes <= 1 << 32, || {
            format!("{bytes} bytes in {} descriptors", chain.elements.len())
        });
        if let Some(framed) = chain.framed() {
            view.book
                .check(&FRAMED, framed, || format!("{:?}", chain.elements));
        }
        Some(chain)
    }

    fn table(&self, view: &mut View<'_>, found: &Desc, chain: &mut Chain) -> bool {
        if !view.has(feature::INDIRECT_DESC) {
            view.book.broke(&INDIRECT, "a descriptor with INDIRECT");
            return false;
        }
        let next = found.flags & ring::NEXT != 0;
        view.book.check(&INDIRECT_NEXT, !next, || {
            format!("flags {:#x}", found.flags)
        });
        let count = found.len / 16;
        let whole = chain.elements.len() as u64 + u64::from(count);
        view.book
            .check(&TABLE_SIZE, whole <= u64::from(self.size), || {
                format!("{whole} descriptors in a queue of {}", self.size)
            });
        if count == 0 || count > u32::from(self.size) {
            return false;
        }
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0) * 16];
        view.memory.read(found.addr, &mut bytes);
        chain.exposed.push((found.addr, bytes));
        let mut at = 0_u16;
        for _ in 0..count {
            let inner = desc(view.memory, found.addr + 16 * u64::from(at));
            let nested = inner.flags & ring::INDIRECT != 0;
            view.book.check(&NESTED, !nested, || {
                format!("entry {at} has flags {:#x}", inner.flags)
            });
            chain.elements.push(Element {
                addr: inner.addr,
                len: inner.len,
                write: inner.flags & ring::WRITE != 0,
            });
            if inner.flags & ring::NEXT == 0 {
                return !nested;
            }
            if view.has(feature::IN_ORDER) {
                view.book.check(&TABLE_ORDER, inner.next == at + 1, || {
                    format!("entry {at} is chained to {}", inner.next)
                });
            }
            if nested || u32::from(inner.next) >= count {
                return false;
            }
            at = inner.next;
        }
        view.book
            .broke(&BOUNDED, "an indirect table goes in circles");
        false
    }

    /// Uses a buffer. True if the driver is to be interrupted.
    pub(super) fn push(&mut self, view: &mut View<'_>, chain: &Chain, written: u32) -> bool {
        let place = self.device + 4 + 8 * u64::from(self.used % self.size.max(1));
        view.memory.write(place, &u32::from(chain.id).to_le_bytes());
        view.memory.write(place + 4, &written.to_le_bytes());
        let old = self.used;
        self.used = old.wrapping_add(1);
        view.memory.store(self.device + 2, self.used);
        if view.has(feature::EVENT_IDX) {
            let event = view.memory.load(self.entry(0) + 2 * u64::from(self.size));
            event == old
        } else {
            view.memory.load(self.driver) & ring::NO_INTERRUPT == 0
        }
    }

    pub(super) fn mark(&mut self, memory: &Memory) {
        self.mark = self.index(memory);
    }

    pub(super) fn moved(&self, memory: &Memory) -> bool {
        self.index(memory) != self.mark
    }

    pub(super) fn waiting(&self, memory: &Memory) -> bool {
        self.index(memory) != self.seen
    }
}

//! Rings of either layout, from the driver's side.

use crate::raw::{low16, low32};
use driver::bus::Bus;
use driver::memory::DmaMemory;
use spec_tests::constants::feature;
use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A ring. Its three parts lie in one window: descriptors at 0, the driver's area at 0x2000, the
/// device's at 0x3000, tables at 0x4000 and after.
#[derive(Debug)]
pub struct Ring {
    pub memory: DmaMemory,
    pub size: u16,
    pub packed: bool,
    /// Buffers of more than one piece go through a table.
    pub tables: bool,
    event: bool,
    /// Next descriptor; available index of a split ring.
    pub next: u16,
    pub wrap: bool,
    pub available: u16,
    used: u16,
    used_wrap: bool,
    /// Descriptors of each buffer that is exposed.
    held: HashMap<u16, u16>,
}

pub const DRIVER: u64 = 0x2000;
pub const DEVICE: u64 = 0x3000;
pub const TABLES: u64 = 0x4000;

impl Ring {
    pub fn new(bus: &dyn Bus, size: u16, features: u64) -> Self {
        let memory = bus.dma_alloc(0x1_0000).unwrap();
        let has = |bit: u64| features & bit != 0;
        Self {
            memory,
            size,
            packed: has(feature::RING_PACKED),
            tables: has(feature::INDIRECT_DESC),
            event: has(feature::EVENT_IDX),
            next: 0,
            wrap: true,
            available: 0,
            used: 0,
            used_wrap: true,
            held: HashMap::new(),
        }
    }

    pub fn addresses(&self) -> [u64; 3] {
        let base = self.memory.iova();
        [base, base + DRIVER, base + DEVICE]
    }

    pub fn store(&self, at: u64, value: u16) {
        self.memory.store_u16(at, value, SeqCst).unwrap();
    }

    pub fn load(&self, at: u64) -> u16 {
        self.memory.load_u16(at, SeqCst).unwrap()
    }

    /// Offset and wrap counter, or the available index.
    pub fn next_place(&self) -> u16 {
        if self.packed {
            self.next | u16::from(self.wrap) << 15
        } else {
            self.available
        }
    }

    /// Writes a descriptor of a split ring or table.
    pub fn desc(&self, at: u64, (addr, len, write): (u64, u32, bool), flags: u16, next: u16) {
        let flags = flags | if write { WRITE } else { 0 };
        self.memory.write(at, &addr.to_le_bytes()).unwrap();
        self.memory.write(at + 8, &len.to_le_bytes()).unwrap();
        self.memory.write(at + 12, &flags.to_le_bytes()).unwrap();
        self.memory.write(at + 14, &next.to_le_bytes()).unwrap();
    }

    /// Writes a descriptor of a packed ring; `flags` last.
    pub fn packed_desc(&self, at: u16, (addr, len, write): (u64, u32, bool), id: u16, flags: u16) {
        let place = 16 * u64::from(at);
        let flags = flags | if write { WRITE } else { 0 };
        self.memory.write(place, &addr.to_le_bytes()).unwrap();
        self.memory.write(place + 8, &len.to_le_bytes()).unwrap();
        self.memory.write(place + 12, &id.to_le_bytes()).unwrap();
        self.store(place + 14, flags);
    }

    pub fn available_flags(&self, wrap: bool) -> u16 {
        if wrap { AVAIL } else { USED }
    }

    /// Writes a table for `pieces`; its address. Each head has a place of its own.
    pub fn table(&self, head: u16, pieces: &[(u64, u32, bool)]) -> u64 {
        let at = TABLES + 512 * u64::from(head);
        for (index, piece) in (0..).zip(pieces) {
            let last = index + 1 == pieces.len() as u64;
            let flags = if last || self.packed { 0 } else { NEXT };
            let next = if last { 0 } else { low16(index) + 1 };
            if self.packed {
                let place = at + 16 * index;
                let flags = if piece.2 { WRITE } else { 0 };
                self.memory.write(place, &piece.0.to_le_bytes()).unwrap();
                self.memory
                    .write(place + 8, &piece.1.to_le_bytes())
                    .unwrap();
                self.memory
                    .write(place + 14, &u16::to_le_bytes(flags))
                    .unwrap();
            } else {
                self.desc(at + 16 * index, *piece, flags, next);
            }
        }
        self.memory.iova() + at
    }

    /// Writes the descriptors of a chain of a split ring; its head.
    pub fn chain(&mut self, pieces: &[(u64, u32, bool)]) -> u16 {
        let head = self.next;
        if self.tables && pieces.len() > 1 {
            let table = self.table(head, pieces);
            let len = 16 * low32(pieces.len());
            self.desc(16 * u64::from(head), (table, len, false), INDIRECT, 0);
            self.next = (head + 1) % self.size;
            return head;
        }
        for (index, piece) in (0..).zip(pieces) {
            let last = index + 1 == pieces.len();
            let at = self.next;
            self.next = (at + 1) % self.size;
            let flags = if last { 0 } else { NEXT };
            self.desc(16 * u64::from(at), *piece, flags, self.next);
        }
        head
    }

    /// Publishes a head of a split ring.
    pub fn publish(&mut self, head: u16) {
        self.store(DRIVER + 4 + 2 * u64::from(self.available % self.size), head);
        self.available = self.available.wrapping_add(1);
        if self.event {
            self.store(
                DRIVER + 4 + 2 * u64::from(self.size),
                self.available.wrapping_sub(1),
            );
        }
        self.store(DRIVER + 2, self.available);
        self.held.insert(head, 1);
    }

    pub fn step(&mut self) {
        self.next += 1;
        if self.next == self.size {
            self.next = 0;
            self.wrap = !self.wrap;
        }
    }

    /// Writes a list of a packed ring, its first descriptor last.
    pub fn list(&mut self, pieces: &[(u64, u32, bool)]) {
        let (head, wrap) = (self.next, self.wrap);
        if self.tables && pieces.len() > 1 {
            let table = self.table(head, pieces);
            let len = 16 * low32(pieces.len());
            let flags = self.available_flags(wrap) | INDIRECT;
            self.step();
            self.held.insert(head, 1);
            return self.packed_desc(head, (table, len, false), head, flags);
        }
        let mut first = 0;
        for (index, piece) in (0..).zip(pieces) {
            let last = index + 1 == pieces.len();
            let flags = self.available_flags(self.wrap) | if last { 0 } else { NEXT };
            if index == 0 {
                first = flags;
            } else {
                self.packed_desc(self.next, *piece, head, flags);
            }
            self.step();
        }
        self.held.insert(head, low16(pieces.len() as u64));
        self.packed_desc(head, pieces[0], head, first);
    }

    pub fn expose(&mut self, pieces: &[(u64, u32, bool)]) {
        if self.packed {
            self.list(pieces);
        } else {
            let head = self.chain(pieces);
            self.publish(head);
        }
    }

    pub fn pending(&self) -> usize {
        self.held.len()
    }

    /// Takes a used buffer; its used length.
    pub fn reap(&mut self) -> Option<u32> {
        let number = |at: u64| self.memory.load_u32(at, SeqCst).unwrap();
        if self.packed {
            let place = 16 * u64::from(self.used);
            let flags = self.load(place + 14);
            let done =
                (flags & AVAIL != 0) == self.used_wrap && (flags & USED != 0) == self.used_wrap;
            if !done {
                return None;
            }
            let (len, id) = (number(place + 8), self.load(place + 12));
            let slots = self.held.remove(&id).unwrap();
            self.used += slots;
            if self.used >= self.size {
                self.used -= self.size;
                self.used_wrap = !self.used_wrap;
            }
            return Some(len);
        }
        if self.load(DEVICE + 2) == self.used {
            return None;
        }
        let place = DEVICE + 4 + 8 * u64::from(self.used % self.size);
        let (id, len) = (number(place), number(place + 4));
        self.used = self.used.wrapping_add(1);
        if self.event {
            self.store(DRIVER + 4 + 2 * u64::from(self.size), self.used);
        }
        self.held.remove(&u16::try_from(id).unwrap()).unwrap();
        Some(len)
    }
}

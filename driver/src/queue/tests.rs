//! What holds of a queue in either format, and the devices that the formats' own tests use.

use super::*;
use crate::testing::memory;
use proptest::prelude::*;
use std::sync::atomic::Ordering;

/// What a device found: the name to use it by, readable and writable buffers.
pub(super) type Chain = (u16, Vec<Buffer>, Vec<Buffer>);

/// A device that reads the rings as the standard describes them. Offsets are its own arithmetic.
pub(super) trait Device {
    /// Takes the next chain; if there is none, it has asked to be told of the next.
    fn pop(&mut self) -> Option<Chain>;
    /// Whether there is a next chain.
    fn has_work(&self) -> bool;
    /// Uses the buffer with this name.
    fn push(&mut self, id: u32, len: u32);
}

/// Memory as a device sees it.
pub(super) struct Seen(pub(super) DmaMemory);

impl Seen {
    pub(super) fn bytes<const N: usize>(&self, iova: u64) -> [u8; N] {
        let mut data = [0; N];
        self.0.read(iova - self.0.iova(), &mut data).unwrap();
        data
    }

    pub(super) fn u16(&self, iova: u64) -> u16 {
        u16::from_le_bytes(self.bytes(iova))
    }

    pub(super) fn store(&self, iova: u64, value: u16) {
        let offset = iova - self.0.iova();
        self.0.store_u16(offset, value, Ordering::Release).unwrap();
    }

    fn write(&self, iova: u64, data: &[u8]) {
        self.0.write(iova - self.0.iova(), data).unwrap();
    }
}

pub(super) struct SplitDevice {
    pub(super) memory: Seen,
    pub(super) setup: QueueSetup,
    event_idx: bool,
    pub(super) next: u16,
    pub(super) used: u16,
}

impl SplitDevice {
    pub(super) fn new(memory: &DmaMemory, setup: QueueSetup, event_idx: bool) -> Self {
        Self {
            memory: Seen(memory.clone()),
            setup,
            event_idx,
            next: 0,
            used: 0,
        }
    }
}

impl Device for SplitDevice {
    fn has_work(&self) -> bool {
        self.memory.u16(self.setup.driver + 2) != self.next
    }

    fn pop(&mut self) -> Option<Chain> {
        if !self.has_work() {
            return None;
        }
        let entry = u64::from(self.next % self.setup.size);
        self.next = self.next.wrapping_add(1);
        if self.event_idx {
            let event = self.setup.device + 4 + 8 * u64::from(self.setup.size);
            self.memory.store(event, self.next);
        }
        let head = self.memory.u16(self.setup.driver + 4 + 2 * entry);
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let (mut table, mut index) = (self.setup.desc, head);
        loop {
            let at = table + 16 * u64::from(index);
            let addr = u64::from_le_bytes(self.memory.bytes(at));
            let len = u32::from_le_bytes(self.memory.bytes(at + 8));
            let (flags, next) = (self.memory.u16(at + 12), self.memory.u16(at + 14));
            if flags & 4 != 0 {
                assert_eq!((flags, table), (4, self.setup.desc));
                (table, index) = (addr, 0);
                assert!(len.is_multiple_of(16) && len > 16);
                continue;
            }
            if flags & 2 != 0 {
                &mut writable
            } else {
                assert!(writable.is_empty(), "readable buffers come first");
                &mut readable
            }
            .push((addr, len));
            if flags & 1 == 0 {
                return Some((head, readable, writable));
            }
            index = next;
        }
    }

    fn push(&mut self, id: u32, len: u32) {
        let entry = self.setup.device + 4 + 8 * u64::from(self.used % self.setup.size);
        self.memory.write(entry, &id.to_le_bytes());
        self.memory.write(entry + 4, &len.to_le_bytes());
        self.used = self.used.wrapping_add(1);
        self.memory.store(self.setup.device + 2, self.used);
    }
}

/// Counts entries since the beginning: the lap's parity is the wrap counter.
pub(super) struct PackedDevice {
    pub(super) memory: Seen,
    pub(super) setup: QueueSetup,
    event_idx: bool,
    pub(super) next: u64,
    pub(super) used: u64,
    /// Entries of each buffer that it holds.
    held: Vec<(u16, u64)>,
}

impl PackedDevice {
    /// A device that has gone `start` entries on.
    pub(super) fn new(memory: &DmaMemory, setup: QueueSetup, event_idx: bool, start: u64) -> Self {
        let device = Self {
            memory: Seen(memory.clone()),
            setup,
            event_idx,
            next: start,
            used: start,
            held: Vec::new(),
        };
        device.sleep();
        device
    }

    pub(super) fn bits(&self, count: u64) -> u16 {
        let size = u64::from(self.setup.size);
        let wrap = (count / size).is_multiple_of(2);
        u16::try_from(count % size).unwrap() | if wrap { 1 << 15 } else { 0 }
    }

    /// Address of the descriptor, and its wrap counter.
    fn at(&self, count: u64) -> (u64, bool) {
        let bits = self.bits(count);
        (
            self.setup.desc + 16 * u64::from(bits & 0x7fff),
            bits >> 15 == 1,
        )
    }

    fn is_available(&self, count: u64) -> bool {
        let (at, wrap) = self.at(count);
        let flags = self.memory.u16(at + 14);
        (flags >> 7 & 1 == 1) == wrap && (flags >> 15 == 1) != wrap
    }

    /// Asks to be told of the next chain.
    fn sleep(&self) {
        if self.event_idx {
            self.memory.store(self.setup.device, self.bits(self.next));
            self.memory.store(self.setup.device + 2, 2);
        }
    }

    /// Writes a used descriptor at the next place and goes on by `entries`.
    pub(super) fn push_raw(&mut self, id: u16, len: u32, flags: u16, entries: u64) {
        let (at, wrap) = self.at(self.used);
        self.memory.write(at + 8, &len.to_le_bytes());
        self.memory.store(at + 12, id);
        let owner = if wrap { 0x8080 } else { 0 };
        self.memory.store(at + 14, flags | owner);
        self.used += entries;
    }
}

impl Device for PackedDevice {
    fn has_work(&self) -> bool {
        self.is_available(self.next)
    }

    fn pop(&mut self) -> Option<Chain> {
        if !self.has_work() {
            self.sleep();
            return None;
        }
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let begin = self.next;
        loop {
            assert!(
                self.is_available(self.next),
                "a list is available as a whole"
            );
            let (at, _) = self.at(self.next);
            self.next += 1;
            let read = |at: u64| {
                let addr = u64::from_le_bytes(self.memory.bytes(at));
                let len = u32::from_le_bytes(self.memory.bytes(at + 8));
                (
                    addr,
                    len,
                    self.memory.u16(at + 12),
                    self.memory.u16(at + 14),
                )
            };
            let (addr, len, id, flags) = read(at);
            let mut buffers = vec![(addr, len, flags & 2)];
            if flags & 4 != 0 {
                assert_eq!(
                    (flags & 7, begin + 1),
                    (4, self.next),
                    "alone and not in a list"
                );
                assert!(len.is_multiple_of(16) && len > 16);
                let table = (0..u64::from(len / 16)).map(|n| read(addr + 16 * n));
                buffers = table
                    .map(|(addr, len, _, flags)| {
                        assert_eq!(flags & !2, 0, "WRITE is all that may be there");
                        (addr, len, flags)
                    })
                    .collect();
            }
            for (addr, len, write) in buffers {
                if write != 0 {
                    &mut writable
                } else {
                    assert!(writable.is_empty(), "readable buffers come first");
                    &mut readable
                }
                .push((addr, len));
            }
            if flags & 1 == 0 {
                assert!(
                    self.held.iter().all(|(held, _)| *held != id),
                    "id {id} twice"
                );
                self.held.push((id, self.next - begin));
                return Some((id, readable, writable));
            }
        }
    }

    fn push(&mut self, id: u32, len: u32) {
        let id = u16::try_from(id).unwrap();
        let held = self.held.iter().position(|(held, _)| *held == id);
        let (_, entries) = self.held.swap_remove(held.unwrap());
        self.push_raw(id, len, if len == 0 { 0 } else { 2 }, entries);
    }
}

pub(super) fn features(event_idx: bool, indirect: bool) -> Features {
    let mut features = Features::VERSION_1;
    features.set(Features::RING_EVENT_IDX, event_idx);
    features.set(Features::RING_INDIRECT_DESC, indirect);
    features
}

/// A device and a driver that have gone `start` entries on, with nothing in flight.
fn begin(features: Features, size: u16, start: u16) -> (Virtqueue, Box<dyn Device>, DmaMemory) {
    let bytes = Virtqueue::bytes_needed(size).next_multiple_of(4096);
    let memory = memory(bytes, 0x4000_0000);
    let setup = Virtqueue::new(memory.clone(), size, features)
        .unwrap()
        .setup(0);
    let event_idx = features.contains(Features::RING_EVENT_IDX);
    let (device, at): (Box<dyn Device>, u16) = if features.contains(Features::RING_PACKED) {
        let device = PackedDevice::new(&memory, setup, event_idx, start.into());
        let at = device.bits(start.into());
        // What the laps before have left in the ring.
        for index in 0..size {
            let laps = (start - index.min(start)).div_ceil(size);
            let owner = if index >= start || laps.is_multiple_of(2) {
                0
            } else {
                0x8080
            };
            device
                .memory
                .store(setup.desc + 16 * u64::from(index) + 14, owner);
        }
        (Box::new(device), at)
    } else {
        let mut device = SplitDevice::new(&memory, setup, event_idx);
        (device.next, device.used) = (start, start);
        device.memory.store(setup.driver + 2, start);
        device.memory.store(setup.device + 2, start);
        device
            .memory
            .store(setup.device + 4 + 8 * u64::from(size), start);
        (Box::new(device), start)
    };
    let state = RingState {
        size,
        next_avail: at,
        published: at,
        last_used: at,
        chains: Vec::new(),
    };
    let queue = Virtqueue::resume(memory.clone(), size, features, &state).unwrap();
    (queue, device, memory)
}

#[derive(Clone, Debug)]
enum Step {
    Add(usize, usize),
    Publish,
    /// Takes one and finishes the n-th of those it holds.
    Serve(usize),
    Reap,
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_usize, 0..4_usize).prop_map(|(r, w)| Step::Add(r, w)),
        3 => Just(Step::Publish),
        4 => any::<usize>().prop_map(Step::Serve),
        3 => Just(Step::Reap),
        1 => Just(Step::Move),
    ]
}

proptest! {
    /// Every request reaches the device as it was built and comes back once, out of order, across
    /// moves of the driver; a driver that was not told to notify never leaves the device waiting.
    #[test]
    fn requests_go_and_come_back(
        steps in prop::collection::vec(step(), 1..200),
        event_idx in any::<bool>(),
        indirect in any::<bool>(),
        packed in any::<bool>(),
        odd in prop_oneof![1..12_u16, Just(8)],
        // Near the wrap of the indices, and in any lap.
        start in prop_oneof![Just(0_u16), 0..40_u16, Just(0xfff0)],
    ) {
        let mut features = features(event_idx, indirect);
        features.set(Features::RING_PACKED, packed);
        let size = if packed { odd } else { 8 };
        let (mut queue, mut device, memory) = begin(features, size, start);
        let mut token = 0;
        let mut built = std::collections::HashMap::new();
        let mut held: Vec<Chain> = Vec::new();
        let mut done = std::collections::VecDeque::new();
        // The device sleeps when it has seen an empty ring, until it is notified.
        let mut awake = true;
        for step in steps {
            match step {
                Step::Add(reads, writes) => {
                    let base = token * 0x10_0000;
                    let part = |n: usize, from: u64| -> Vec<Buffer> {
                        (0..n as u64).map(|i| (base + from + i * 0x1000, 100 + u32::try_from(i).unwrap())).collect()
                    };
                    let (readable, writable) = (part(reads, 0), part(writes, 0x8000));
                    let needed = if indirect && reads + writes > 1 { 1 } else { reads + writes };
                    match queue.add(&readable, &writable, token) {
                        Ok(()) => { built.insert(token, (readable, writable)); token += 1; }
                        Err(DriverError::BadChain { buffers, .. }) => {
                            prop_assert!(buffers == 0 || buffers > usize::from(size));
                        }
                        Err(DriverError::QueueFull) => prop_assert!(queue.free_descriptors() < needed),
                        Err(other) => panic!("{other}"),
                    }
                }
                Step::Publish => awake |= queue.publish().unwrap(),
                Step::Serve(which) => {
                    while awake {
                        match device.pop() {
                            Some(chain) => held.push(chain),
                            None => awake = false,
                        }
                    }
                    prop_assert!(!device.has_work(), "asleep with work to do");
                    if !held.is_empty() {
                        let (head, readable, writable) = held.swap_remove(which % held.len());
                        let len = writable.iter().map(|(_, len)| *len).sum::<u32>() / 2;
                        device.push(u32::from(head), len);
                        done.push_back((readable, writable, len));
                    }
                }
                Step::Reap => {
                    let used = queue.reap().unwrap();
                    prop_assert_eq!(used.is_some(), !done.is_empty());
                    if let (Some(used), Some((readable, writable, len))) = (used, done.pop_front()) {
                        prop_assert_eq!(used.len, len);
                        prop_assert_eq!(built.remove(&used.token), Some((readable, writable)));
                    }
                }
                Step::Move => {
                    let state = queue.state();
                    queue = Virtqueue::resume(memory.clone(), size, features, &state).unwrap();
                    prop_assert_eq!(queue.state(), state);
                }
            }
            prop_assert_eq!(usize::from(queue.in_flight()), built.len());
            prop_assert_eq!(usize::from(queue.unused().unwrap()), built.len() - done.len());
        }
    }
}

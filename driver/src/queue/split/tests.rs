use super::*;
use crate::testing::memory;
use proptest::prelude::*;

/// A device that reads the rings as the standard describes them. Offsets are its own arithmetic.
struct Device {
    memory: DmaMemory,
    setup: QueueSetup,
    event_idx: bool,
    next: u16,
    used: u16,
}

/// What the device found: head, readable and writable buffers.
type Chain = (u16, Vec<Buffer>, Vec<Buffer>);

impl Device {
    fn new(memory: &DmaMemory, queue: &SplitQueue, event_idx: bool) -> Self {
        Self {
            memory: memory.clone(),
            setup: queue.setup(0),
            event_idx,
            next: 0,
            used: 0,
        }
    }

    fn bytes<const N: usize>(&self, iova: u64) -> [u8; N] {
        let mut data = [0; N];
        self.memory
            .read(iova - self.memory.iova(), &mut data)
            .unwrap();
        data
    }

    fn u16(&self, iova: u64) -> u16 {
        u16::from_le_bytes(self.bytes(iova))
    }

    fn store(&self, iova: u64, value: u16) {
        let offset = iova - self.memory.iova();
        self.memory
            .store_u16(offset, value, Ordering::Release)
            .unwrap();
    }

    fn available(&self) -> u16 {
        self.u16(self.setup.driver + 2).wrapping_sub(self.next)
    }

    fn pop(&mut self) -> Option<Chain> {
        if self.available() == 0 {
            return None;
        }
        let entry = u64::from(self.next % self.setup.size);
        self.next = self.next.wrapping_add(1);
        if self.event_idx {
            self.store(
                self.setup.device + 4 + 8 * u64::from(self.setup.size),
                self.next,
            );
        }
        let head = self.u16(self.setup.driver + 4 + 2 * entry);
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let (mut table, mut index) = (self.setup.desc, head);
        loop {
            let at = table + 16 * u64::from(index);
            let addr = u64::from_le_bytes(self.bytes(at));
            let len = u32::from_le_bytes(self.bytes(at + 8));
            let (flags, next) = (self.u16(at + 12), self.u16(at + 14));
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
        let offset = entry - self.memory.iova();
        self.memory.write(offset, &id.to_le_bytes()).unwrap();
        self.memory.write(offset + 4, &len.to_le_bytes()).unwrap();
        self.used = self.used.wrapping_add(1);
        self.store(self.setup.device + 2, self.used);
    }
}

fn features(event_idx: bool, indirect: bool) -> Features {
    let mut features = Features::VERSION_1;
    features.set(Features::RING_EVENT_IDX, event_idx);
    features.set(Features::RING_INDIRECT_DESC, indirect);
    features
}

fn queue(size: u16, features: Features) -> (SplitQueue, Device) {
    let memory = memory(
        SplitQueue::bytes_needed(size).next_multiple_of(4096),
        0x4000_0000,
    );
    let queue = SplitQueue::new(memory.clone(), size, features).unwrap();
    let device = Device::new(&memory, &queue, features.contains(Features::RING_EVENT_IDX));
    (queue, device)
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
        start in prop_oneof![Just(0_u16), Just(0xfff0)],
    ) {
        let features = features(event_idx, indirect);
        let (_, mut device) = queue(8, features);
        // Start near the wrap of the indices.
        let state = SplitQueueState {
            size: 8, next_avail: start, published: start, last_used: start, chains: Vec::new(),
        };
        let mut queue = SplitQueue::resume(device.memory.clone(), 8, features, &state).unwrap();
        (device.next, device.used) = (start, start);
        device.store(device.setup.driver + 2, start);
        device.store(device.setup.device + 2, start);
        device.store(device.setup.device + 4 + 64, start);

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
                        Err(DriverError::BadChain { buffers, .. }) => prop_assert_eq!(buffers, 0),
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
                    prop_assert_eq!(device.available(), 0, "asleep with work to do");
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
                    queue = SplitQueue::resume(device.memory.clone(), 8, features, &state).unwrap();
                    prop_assert_eq!(queue.state(), state);
                }
            }
            prop_assert_eq!(usize::from(queue.in_flight()), built.len());
        }
    }

    /// No used ring makes the driver panic or hand out a token that is not in flight.
    #[test]
    fn hostile_used_rings(idx in any::<u16>(), ring in prop::collection::vec((0..12_u32, 0..300_u32), 8)) {
        let (mut queue, mut device) = queue(8, features(false, false));
        let mut tokens: Vec<u64> = (0..4).collect();
        for token in &tokens {
            queue.add(&[], &[(0x1000, 100)], *token).unwrap();
        }
        queue.publish().unwrap();
        for (id, len) in ring {
            device.push(id, len);
        }
        device.store(device.setup.device + 2, idx);
        while let Ok(Some(used)) = queue.reap() {
            let at = tokens.iter().position(|token| *token == used.token);
            tokens.remove(at.unwrap());
            prop_assert!(used.len <= 100);
        }
        prop_assert_eq!(usize::from(queue.in_flight()), tokens.len());
    }
}

#[test]
fn what_the_device_breaks_is_named() {
    let (mut queue, mut device) = queue(8, features(false, false));
    queue
        .add(&[(0x1000, 8)], &[(0x2000, 8), (0x3000, 8)], 5)
        .unwrap();
    device.push(0, 0);
    let early = queue.reap().unwrap_err();
    assert!(
        matches!(
            early,
            DriverError::UsedIndex {
                used: 1,
                last: 0,
                in_flight: 1
            }
        ),
        "{early}"
    );
    assert!(queue.publish().unwrap());
    device.used = 0;
    let (head, ..) = device.pop().unwrap();
    device.push(u32::from(head) + 1, 0);
    assert!(matches!(queue.reap(), Err(DriverError::UsedId { .. })));
    device.used = 0;
    device.push(0x1_0000 + u32::from(head), 0);
    assert!(matches!(queue.reap(), Err(DriverError::UsedId { .. })));
    device.used = 0;
    device.push(u32::from(head), 17);
    let long = queue.reap().unwrap_err();
    assert!(matches!(
        long,
        DriverError::UsedLength {
            len: 17,
            writable: 16,
            ..
        }
    ));
    device.used = 0;
    device.push(u32::from(head), 16);
    assert_eq!(queue.reap().unwrap(), Some(Used { token: 5, len: 16 }));
    assert_eq!(queue.reap().unwrap(), None);
}

#[test]
fn impossible_chains_and_states_are_refused() {
    let (mut queue, _) = queue(4, features(false, false));
    let many = vec![(0x1000, 1); 5];
    for (readable, writable) in [
        (&[][..], &[][..]),
        (&[(0, 0)], &[]),
        (&many, &[]),
        (&[(0, u32::MAX)], &[(0, 1)]),
    ] {
        let error = queue.add(readable, writable, 0).unwrap_err();
        assert!(matches!(error, DriverError::BadChain { .. }));
    }
    queue.add(&many[..2], &[], 1).unwrap();
    queue.add(&many[..2], &[], 2).unwrap();
    assert!(matches!(
        queue.add(&many[..1], &[], 3),
        Err(DriverError::QueueFull)
    ));
    let good = queue.state();
    let check = |field: &str, spoil: fn(&mut SplitQueueState)| {
        let mut state = good.clone();
        spoil(&mut state);
        let memory = memory(SplitQueue::bytes_needed(4).next_multiple_of(4096), 0x1000);
        match SplitQueue::resume(memory, 4, Features::empty(), &state) {
            Err(DriverError::BadState { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
    };
    check("size", |state| state.size = 8);
    check("published", |state| state.published = 0xfff0);
    check("chains", |state| state.next_avail = 7);
    check("chains", |state| state.chains.truncate(1));
    check("chains", |state| state.chains[1].descriptors[1] = 4);
    check("chains", |state| {
        state.chains[1].descriptors = state.chains[0].descriptors.clone()
    });
    check("chains", |state| state.chains[1].descriptors.clear());
    let small = memory(0x1000, 0x1000).slice(0, 0x100).unwrap();
    assert!(matches!(
        SplitQueue::new(small, 256, Features::empty()),
        Err(DriverError::Memory(_))
    ));
    for size in [0, 3, 0xffff] {
        let made = SplitQueue::new(memory(0x1000, 0), size, Features::empty());
        assert!(matches!(made, Err(DriverError::QueueSize { .. })));
    }
}

#[test]
fn interrupts_can_be_switched() {
    for event_idx in [false, true] {
        let (mut queue, mut device) = queue(4, features(event_idx, false));
        let (flags, event) = (device.setup.driver, device.setup.driver + 4 + 8);
        queue.disable_interrupts().unwrap();
        queue.add(&[(0, 1)], &[], 0).unwrap();
        queue.publish().unwrap();
        let (head, ..) = device.pop().unwrap();
        device.push(u32::from(head), 0);
        let wanted = (device.u16(flags), device.u16(event));
        assert_eq!(wanted, if event_idx { (0, 0xffff) } else { (1, 0) });
        assert!(queue.enable_interrupts().unwrap(), "one is done already");
        queue.reap().unwrap().unwrap();
        assert_eq!(device.u16(flags), 0);
        assert_eq!(device.u16(event), u16::from(event_idx));
        assert!(!queue.enable_interrupts().unwrap());
    }
}

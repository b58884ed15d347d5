use super::*;
use crate::queue::ChainState;
use crate::queue::tests::{Device, PackedDevice, features};
use crate::testing::memory;
use proptest::prelude::*;

fn packed(event_idx: bool, indirect: bool) -> Features {
    features(event_idx, indirect) | Features::RING_PACKED
}

fn queue(size: u16, features: Features) -> (PackedQueue, PackedDevice) {
    let bytes = PackedQueue::bytes_needed(size).next_multiple_of(4096);
    let memory = memory(bytes, 0x4000_0000);
    let queue = PackedQueue::new(memory.clone(), size, features).unwrap();
    let event_idx = features.contains(Features::RING_EVENT_IDX);
    let device = PackedDevice::new(&memory, queue.setup(0), event_idx, 0);
    (queue, device)
}

proptest! {
    /// Nothing a device writes makes the driver panic or hand out a token that is not in flight.
    #[test]
    fn hostile_used_descriptors(
        size in 1..9_u16,
        used in prop::collection::vec((0..12_u16, 0..300_u32, any::<u16>(), 1..3_u64), 8),
    ) {
        let (mut queue, mut device) = queue(size, packed(false, false));
        let mut tokens: Vec<u64> = (0..4).collect();
        tokens.retain(|token| queue.add(&[], &[(0x1000, 100)], *token).is_ok());
        queue.publish().unwrap();
        for (id, len, flags, entries) in used {
            device.push_raw(id, len, flags, entries);
        }
        prop_assert!(usize::from(queue.unused().unwrap()) <= tokens.len());
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
    let (mut queue, mut device) = queue(8, packed(false, false));
    queue
        .add(&[(0x1000, 8)], &[(0x2000, 8), (0x3000, 8)], 5)
        .unwrap();
    // Not published, so not looked at.
    device.push_raw(0, 0, 0, 0);
    assert_eq!(queue.reap().unwrap(), None);
    assert!(queue.publish().unwrap());
    let (id, ..) = device.pop().unwrap();
    device.push_raw(id + 1, 0, 0, 0);
    assert!(matches!(queue.reap(), Err(DriverError::UsedId { .. })));
    device.push_raw(id + 8, 0, 0, 0);
    assert!(matches!(queue.reap(), Err(DriverError::UsedId { .. })));
    device.push_raw(id, 17, 2, 0);
    let long = queue.reap().unwrap_err();
    assert!(matches!(
        long,
        DriverError::UsedLength {
            len: 17,
            writable: 16,
            ..
        }
    ));
    device.push(id.into(), 16);
    assert_eq!(queue.reap().unwrap(), Some(Used { token: 5, len: 16 }));
    assert_eq!(queue.reap().unwrap(), None);
}

#[test]
fn a_length_without_write_counts_as_far_as_it_can_be_one() {
    for (len, counts) in [(8, 8), (9, 0), (u32::MAX, 0)] {
        let (mut queue, mut device) = queue(3, packed(false, false));
        queue.add(&[(0x1000, 8)], &[(0x2000, 8)], 1).unwrap();
        queue.publish().unwrap();
        let (id, ..) = device.pop().unwrap();
        device.push_raw(id, len, 0, 2);
        assert_eq!(queue.reap().unwrap().unwrap().len, counts);
    }
}

#[test]
fn a_buffer_longer_than_what_was_published_cannot_have_been_used() {
    let (mut queue, mut device) = queue(4, packed(false, false));
    queue.add(&[(0x1000, 8)], &[], 1).unwrap();
    queue.publish().unwrap();
    queue.add(&[(0x1000, 8), (0x2000, 8)], &[], 2).unwrap();
    device.push_raw(1, 0, 0, 1);
    assert!(matches!(queue.reap(), Err(DriverError::UsedId { id: 1 })));
}

#[test]
fn impossible_chains_and_states_are_refused() {
    // No power of two.
    let (mut queue, _) = queue(5, packed(false, false));
    let many = vec![(0x1000, 1); 6];
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
    queue.add(&many[..3], &[], 2).unwrap();
    assert!(matches!(
        queue.add(&many[..1], &[], 3),
        Err(DriverError::QueueFull)
    ));
    let good = queue.state();
    assert_eq!((good.published, good.next_avail), (0x8000, 0));
    let place = || memory(PackedQueue::bytes_needed(5).next_multiple_of(4096), 0x1000);
    let check = |field: &str, spoil: fn(&mut RingState)| {
        let mut state = good.clone();
        spoil(&mut state);
        match PackedQueue::resume(place(), 5, packed(false, false), &state) {
            Err(DriverError::BadState { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
    };
    check("size", |state| state.size = 8);
    check("next_avail", |state| state.next_avail = 5);
    check("published", |state| state.published = 0xffff);
    check("last_used", |state| state.last_used = 0x8005);
    // Beyond the next, and before the last used one.
    check("published", |state| state.published = 1);
    check("published", |state| state.published = 4);
    check("chains", |state| state.next_avail = 1);
    check("chains", |state| state.next_avail = 0x8004);
    check("chains", |state| state.chains.truncate(1));
    check("chains", |state| state.chains[1].descriptors[1] = 5);
    check("chains", |state| state.chains[1].descriptors[0] = 0);
    check("chains", |state| {
        let empty = ChainState {
            descriptors: Vec::new(),
            token: 9,
            writable: 0,
        };
        state.chains.push(empty);
    });
    let small = memory(0x1000, 0x1000).slice(0, 0x100).unwrap();
    assert!(matches!(
        PackedQueue::new(small, 256, packed(false, false)),
        Err(DriverError::Memory(_))
    ));
    for size in [0, 32769, 0xffff] {
        let made = PackedQueue::new(place(), size, packed(false, false));
        assert!(matches!(made, Err(DriverError::QueueSize { .. })));
    }
    let split = PackedQueue::new(place(), 5, features(false, false));
    assert!(matches!(split, Err(DriverError::NotNegotiated(_))));
}

#[test]
fn interrupts_can_be_switched() {
    for event_idx in [false, true] {
        let (mut queue, mut device) = queue(3, packed(event_idx, false));
        let at = device.setup.driver;
        queue.disable_interrupts().unwrap();
        queue.add(&[(0, 1)], &[], 0).unwrap();
        queue.publish().unwrap();
        let (id, ..) = device.pop().unwrap();
        device.push(id.into(), 0);
        assert_eq!((device.memory.u16(at), device.memory.u16(at + 2)), (0, 1));
        assert!(queue.enable_interrupts().unwrap(), "one is done already");
        queue.reap().unwrap().unwrap();
        let wanted = (device.memory.u16(at), device.memory.u16(at + 2));
        assert_eq!(wanted, if event_idx { (0x8001, 2) } else { (0, 0) });
        assert!(!queue.enable_interrupts().unwrap());
    }
}

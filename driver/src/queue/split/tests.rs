use super::*;
use crate::queue::tests::{Device, SplitDevice, features};
use crate::testing::memory;
use proptest::prelude::*;

fn queue(size: u16, features: Features) -> (SplitQueue, SplitDevice) {
    let memory = memory(
        SplitQueue::bytes_needed(size).next_multiple_of(4096),
        0x4000_0000,
    );
    let queue = SplitQueue::new(memory.clone(), size, features).unwrap();
    let event_idx = features.contains(Features::RING_EVENT_IDX);
    let device = SplitDevice::new(&memory, queue.setup(0), event_idx);
    (queue, device)
}

proptest! {
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
        device.memory.store(device.setup.device + 2, idx);
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
    let check = |field: &str, spoil: fn(&mut RingState)| {
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
        let wanted = (device.memory.u16(flags), device.memory.u16(event));
        assert_eq!(wanted, if event_idx { (0, 0xffff) } else { (1, 0) });
        assert!(queue.enable_interrupts().unwrap(), "one is done already");
        queue.reap().unwrap().unwrap();
        assert_eq!(device.memory.u16(flags), 0);
        assert_eq!(device.memory.u16(event), u16::from(event_idx));
        assert!(!queue.enable_interrupts().unwrap());
    }
}

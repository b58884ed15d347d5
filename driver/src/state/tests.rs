use super::*;
use crate::suspend;
use crate::testing::FakeBus;
use std::time::Duration;

const ALL: u64 = 1 << 32 | 1 << 43 | 1 << 44;
const LONG: Duration = Duration::from_secs(60);

fn saved() -> DeviceState {
    let bus = FakeBus::new(ALL);
    let transport = Transport::new(bus.clone()).unwrap();
    transport
        .initialise(Features::from_bits_retain(!0))
        .unwrap();
    let setup = QueueSetup {
        size: 8,
        vector: 3,
        desc: 0x1000,
        driver: 0x2000,
        device: 0x3000,
    };
    transport.setup_queue(1, &setup, None).unwrap();
    transport.set_config_msix_vector(2).unwrap();
    transport.driver_ok().unwrap();
    let running = save(&transport).unwrap_err();
    assert!(matches!(running, DriverError::WrongStatus { .. }));
    suspend::suspend(&transport, LONG).unwrap();
    // The device moved on, past the wrap of the index.
    bus.registers().queues[1][40..44].copy_from_slice(&[3, 0, 0xfe, 0xff]);
    save(&transport).unwrap()
}

#[test]
fn a_state_goes_into_another_device() {
    let state = saved();
    let other = Transport::new(FakeBus::new(ALL | 1 << 38)).unwrap();
    restore(&other, &state).unwrap();
    assert_eq!(other.features().bits(), ALL);
    assert_eq!(other.config_msix_vector().unwrap(), 2);
    let queue = other.queue(1).unwrap();
    assert_eq!(queue, state.queues[1]);
    assert_eq!((queue.avail, queue.used, queue.enabled), (3, 0xfffe, true));
    assert!(!other.queue(0).unwrap().enabled);
    other.driver_ok().unwrap();
    suspend::suspend(&other, LONG).unwrap();
    assert_eq!(save(&other).unwrap(), state);
    // Somebody who has not driven the device can read it as well.
    let third = Transport::new(other.bus().clone()).unwrap();
    third.adopt().unwrap();
    assert_eq!(save(&third).unwrap(), state);
}

#[test]
fn every_field_is_judged_and_named() {
    let check = |field: &str, spoil: fn(&mut DeviceState)| {
        let mut state = saved();
        spoil(&mut state);
        let bus = FakeBus::new(ALL);
        let transport = Transport::new(bus.clone()).unwrap();
        match restore(&transport, &state) {
            Err(DriverError::BadState { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
        let registers = bus.registers();
        assert!(
            registers.queues.iter().all(|queue| queue[4] == 0),
            "nothing is enabled"
        );
    };
    check("device_id", |state| state.device_id = 1);
    check("features", |state| state.features |= 1 << 38);
    check("features", |state| state.features &= !(1 << 44));
    check("queues", |state| state.queues.extend_from_within(..1));
    check("queue 2", |state| state.queues[1].index = 2);
    check("queue 0", |state| state.queues[1].index = 0);
    check("queue 1", |state| state.queues[1].size = 0);
    check("queue 1", |state| state.queues[1].size = 6);
    check("queue 1", |state| state.queues[1].size = 512);
    check("queue 1", |state| state.queues[1].desc = 0x1008);
    check("queue 1", |state| state.queues[1].device = u64::MAX - 3);
    check("queue 1 avail", |state| state.queues[1].avail = 7);
}

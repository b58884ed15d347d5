use super::*;
use crate::testing::{FakeBus, Manner, cap};
use crate::{suspend, transport};
use proptest::prelude::*;
use spec::queue_state::QueueState;

const ALL: u64 = 1 << 32 | 1 << 38 | 1 << 40 | 1 << 43 | 1 << 44 | 1 << 9;
const NOW: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);

fn started(bus: &Arc<FakeBus>) -> Transport {
    let transport = Transport::new(bus.clone()).unwrap();
    let all = Features::from_bits_retain(!0);
    assert_eq!(
        transport.initialise(all).unwrap().bits(),
        bus.registers().offered
    );
    transport
}

fn setup() -> QueueSetup {
    QueueSetup {
        size: 64,
        vector: 1,
        desc: 0x1_0000_0010,
        driver: 0x1_0000_1002,
        device: 0x1_0000_2004,
    }
}

#[test]
fn initialisation_goes_in_the_standards_order() {
    let bus = FakeBus::new(ALL);
    let transport = started(&bus);
    transport
        .setup_queue(0, &setup(), Some(QueueState { avail: 7, used: 7 }))
        .unwrap();
    transport.driver_ok().unwrap();
    let registers = bus.registers();
    assert_eq!(registers.accepted, ALL);
    assert_eq!(
        registers.config[4] & 6,
        6,
        "memory and bus mastering are on"
    );
    let status: Vec<u8> = registers
        .written
        .iter()
        .filter(|(offset, _)| *offset == 20)
        .map(|(_, data)| data[0])
        .collect();
    assert_eq!(status, [0, 1, 3, 0x0b, 0x0f]);
    let at = |offset: u64, data: &[u8]| {
        let found = registers
            .written
            .iter()
            .position(|(o, d)| *o == offset && d == data);
        found.unwrap_or_else(|| panic!("{data:?} was not written to {offset}"))
    };
    let features_ok = at(20, &[0x0b]);
    let enable = at(28, &[1, 0]);
    for state in [at(64, &[7, 0]), at(66, &[7, 0])] {
        assert!(features_ok < state && state < enable, "QS-3");
    }
    for address in [at(32, &[0x10, 0, 0, 0]), at(36, &[1, 0, 0, 0])] {
        assert!(address < enable);
    }
    assert!(enable < at(20, &[0x0f]));
}

#[test]
fn features_that_are_missing_or_refused_set_failed() {
    let bus = FakeBus::new(1 << 43);
    let transport = Transport::new(bus.clone()).unwrap();
    let error = transport.initialise(Features::SUSPEND).unwrap_err();
    assert!(matches!(
        error,
        DriverError::FeaturesMissing(Features::VERSION_1)
    ));
    assert_eq!(bus.registers().common[20], 0x83);
    let bus = FakeBus::new(ALL);
    bus.registers().keep_features_ok = false;
    let transport = Transport::new(bus.clone()).unwrap();
    let error = transport.initialise(Features::SUSPEND).unwrap_err();
    assert!(matches!(error, DriverError::FeaturesRefused(_)));
    assert_eq!(bus.registers().common[20], 0x83);
    assert!(transport.features().is_empty());
}

#[test]
fn queues_are_checked_before_they_are_enabled() {
    let bus = FakeBus::new(ALL);
    let transport = started(&bus);
    for (wrong, what) in [
        (QueueSetup { size: 0, ..setup() }, "size"),
        (
            QueueSetup {
                size: 48,
                ..setup()
            },
            "size",
        ),
        (
            QueueSetup {
                size: 512,
                ..setup()
            },
            "size",
        ),
        (QueueSetup { desc: 8, ..setup() }, "desc"),
        (
            QueueSetup {
                driver: 1,
                ..setup()
            },
            "driver",
        ),
        (
            QueueSetup {
                device: 2,
                ..setup()
            },
            "device",
        ),
        (
            QueueSetup {
                desc: !15,
                ..setup()
            },
            "desc",
        ),
    ] {
        match transport.setup_queue(1, &wrong, None).unwrap_err() {
            DriverError::QueueSize { queue: 1, .. } => assert_eq!(what, "size"),
            DriverError::QueueAddress { part, .. } => assert_eq!(what, part),
            other => panic!("{other}"),
        }
    }
    let missing = transport.setup_queue(2, &setup(), None).unwrap_err();
    assert!(matches!(missing, DriverError::NoSuchQueue(2)));
    transport.setup_queue(1, &setup(), None).unwrap();
    let again = transport.setup_queue(1, &setup(), None).unwrap_err();
    assert!(matches!(again, DriverError::QueueEnabled(1)));
    transport.reset_queue(1, LONG).unwrap();
    transport.setup_queue(1, &setup(), None).unwrap();
}

#[test]
fn notifications_carry_what_was_negotiated() {
    let bus = FakeBus::new(ALL);
    started(&bus).notify(1, 0x1234).unwrap();
    // Queue 1 has notify_off 5, times 4.
    assert_eq!(
        bus.registers().written.last().unwrap(),
        &(0x1014, vec![1, 0, 0x34, 0x12])
    );
    let bus = FakeBus::new(1 << 32);
    let transport = started(&bus);
    transport.notify(0, 9).unwrap();
    assert_eq!(
        bus.registers().written.last().unwrap(),
        &(0x1000, vec![0, 0])
    );
    bus.registers().queues[0][6..8].copy_from_slice(&[0x40, 0]);
    let error = transport.notify(0, 9).unwrap_err();
    assert!(matches!(
        error,
        DriverError::StructureTooShort { have: 0x100, .. }
    ));
}

#[test]
fn device_configuration_is_read_whole_or_not_at_all() {
    let bus = FakeBus::new(ALL);
    let transport = started(&bus);
    let mut capacity = [0; 8];
    transport.device_config_read(0, &mut capacity).unwrap();
    assert_eq!(capacity, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(transport.device_config_read(56, &mut capacity).is_err());
    assert!(
        transport
            .device_config_read(usize::MAX, &mut [0; 3])
            .is_err()
    );
    bus.registers().generation_moves = true;
    let error = transport.device_config_read(0, &mut capacity).unwrap_err();
    assert!(matches!(error, DriverError::ConfigUnstable));
}

#[test]
fn suspend_and_resume_wait_for_both_bits() {
    let bus = FakeBus::new(ALL);
    let transport = started(&bus);
    let early = suspend::suspend(&transport, LONG).unwrap_err();
    assert!(matches!(early, DriverError::WrongStatus { .. }));
    transport.driver_ok().unwrap();
    suspend::resume(&transport, LONG).unwrap();
    for _ in 0..2 {
        suspend::suspend(&transport, LONG).unwrap();
        assert_eq!(bus.registers().common[20], 0x1b);
    }
    suspend::resume(&transport, LONG).unwrap();
    assert_eq!(bus.registers().common[20], 0x0f);
    let requests = bus
        .registers()
        .written
        .iter()
        .filter(|(offset, data)| *offset == 20 && data[0] == 0x1f)
        .count();
    assert_eq!(requests, 2);
}

#[test]
fn a_device_that_does_not_suspend_is_told_apart_from_one_that_broke() {
    let bus = FakeBus::new(ALL);
    let transport = started(&bus);
    transport.driver_ok().unwrap();
    bus.registers().manner = Manner::Never;
    let error = suspend::suspend(&transport, NOW).unwrap_err();
    assert!(matches!(
        error,
        DriverError::Timeout {
            what: "suspended",
            ..
        }
    ));
    bus.registers().manner = Manner::NeedsReset;
    let error = suspend::suspend(&transport, LONG).unwrap_err();
    assert!(matches!(error, DriverError::NeedsReset { .. }));
    transport.reset(LONG).unwrap();
    assert!(transport.features().is_empty());
    let error = suspend::suspend(&transport, LONG).unwrap_err();
    assert!(matches!(
        error,
        DriverError::NotNegotiated(Features::SUSPEND)
    ));
}

#[test]
fn foreign_functions_and_missing_capabilities_are_named() {
    let bus = FakeBus::new(ALL);
    bus.registers().config[2..4].copy_from_slice(&[0x00, 0x10]);
    let error = Transport::new(bus.clone()).unwrap_err();
    assert!(matches!(
        error,
        DriverError::NotVirtio { device: 0x1000, .. }
    ));
    for (index, what) in ["common configuration", "notification", "ISR"]
        .into_iter()
        .enumerate()
    {
        let bus = FakeBus::new(ALL);
        // BAR 6 does not exist: reserved, so the capability is skipped.
        bus.registers().config[0x40 + index * 0x20 + 4] = 6;
        match Transport::new(bus).unwrap_err() {
            DriverError::NoCapability(named) => assert_eq!(named, what),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn the_walk_skips_what_it_does_not_know_and_takes_the_first_that_fits() {
    let bus = FakeBus::new(ALL);
    {
        let mut registers = bus.registers();
        registers.config[0x34] = 0xe3;
        // In front: another vendor's type, then (behind the pointer's low bits) a short one.
        let unknown = cap(0x40, 0x77, 0, 0..4);
        registers.config[0xe0..0xf4].copy_from_slice(&unknown);
    }
    let caps = Transport::new(bus).unwrap().capabilities().clone();
    assert_eq!((caps.device_id, caps.notify_multiplier), (2, 4));
    assert_eq!(
        (caps.common.length, caps.tracker.unwrap().offset),
        (68, 0x4000)
    );
}

#[test]
fn offsets_near_the_end_of_32_bits_do_not_wrap() {
    let bus = FakeBus::new(ALL);
    bus.registers().config[0x48..0x50].copy_from_slice(&[0xfc, 255, 255, 255, 255, 255, 255, 255]);
    let transport = Transport::new(bus).unwrap();
    assert_eq!(transport.capabilities().common.offset, 0xffff_fffc);
    let error = transport.initialise(Features::empty()).unwrap_err();
    assert!(matches!(error, DriverError::Bus(_)));
}

proptest! {
    /// Whatever the chain is, the walk ends and does not panic.
    #[test]
    fn hostile_configuration_space(
        bytes in prop::collection::vec(any::<u8>(), 192),
        links in prop::collection::vec((0x10..0x40_u8, 0x10..0x40_u8, 1..11_u8), 0..40),
    ) {
        let bus = FakeBus::new(ALL);
        {
            let config = &mut bus.registers().config;
            config[0x40..].copy_from_slice(&bytes);
            for (at, next, cfg_type) in links {
                let at = usize::from(at) * 4;
                for (byte, value) in config[at..].iter_mut().zip([9, next * 4, 16, cfg_type]) {
                    *byte = value;
                }
            }
        }
        if let Ok(transport) = transport::Transport::new(bus) {
            let _ = transport.initialise(Features::empty());
            let _ = transport.notify(0, 0);
        }
    }
}

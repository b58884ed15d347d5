//! The table against the specification, typed again.

use super::*;
use spec::status::DeviceStatus;

/// Offset, width, writable, register: VIRTIO 1.4, "Common configuration structure layout", then the
/// project's fields.
const EXPECTED: [(usize, usize, bool, Reg); 33] = [
    (0, 4, true, Reg::DeviceFeatureSelect),
    (4, 4, false, Reg::DeviceFeature),
    (8, 4, true, Reg::DriverFeatureSelect),
    (12, 4, true, Reg::DriverFeature),
    (16, 2, true, Reg::ConfigMsixVector),
    (18, 2, false, Reg::NumQueues),
    (20, 1, true, Reg::DeviceStatus),
    (21, 1, false, Reg::ConfigGeneration),
    (22, 2, true, Reg::QueueSelect),
    (24, 2, true, Reg::QueueSize),
    (26, 2, true, Reg::QueueMsixVector),
    (28, 2, true, Reg::QueueEnable),
    (30, 2, false, Reg::QueueNotifyOff),
    (32, 4, true, Reg::QueueDescLow),
    (36, 4, true, Reg::QueueDescHigh),
    (40, 4, true, Reg::QueueDriverLow),
    (44, 4, true, Reg::QueueDriverHigh),
    (48, 4, true, Reg::QueueDeviceLow),
    (52, 4, true, Reg::QueueDeviceHigh),
    (56, 2, false, Reg::QueueNotifConfigData),
    (58, 2, true, Reg::QueueReset),
    (60, 2, false, Reg::AdminQueueIndex),
    (62, 2, false, Reg::AdminQueueNum),
    (64, 2, true, Reg::QueueAvailState),
    (66, 2, true, Reg::QueueUsedState),
    (0x1000, 1, false, Reg::IsrStatus),
    (0x3800, 1, true, Reg::TrackerEnable),
    (0x3801, 1, true, Reg::TrackerGraPower),
    (0x3804, 4, true, Reg::TrackerPasid),
    (0x3808, 4, true, Reg::TrackerAddrLow),
    (0x380c, 4, true, Reg::TrackerAddrHigh),
    (0x3810, 4, true, Reg::TrackerLengthLow),
    (0x3814, 4, true, Reg::TrackerLengthHigh),
];

const READY: Facts = Facts {
    queue: true,
    queue_on: false,
    queue_state: true,
    ring_reset: true,
    tracker_on: false,
};

const CHANGED: bool = false;
const STATES: [State; 11] = [
    State::Reset,
    State::Acknowledged,
    State::Driver,
    State::FeaturesOk,
    State::Running,
    State::Suspending { changed: CHANGED },
    State::Suspended { changed: CHANGED },
    State::Resuming { changed: CHANGED },
    State::NeedsReset {
        shown: DeviceStatus::DEVICE_NEEDS_RESET,
    },
    State::Failed {
        shown: DeviceStatus::FAILED,
    },
    State::Resetting {
        shown: DeviceStatus::DRIVER,
        flr: false,
        clearing: false,
    },
];

fn row(reg: Reg) -> &'static Register {
    REGISTERS
        .iter()
        .find(|row| row.reg == reg)
        .expect("in the table")
}

/// The registers that a write reaches in `state`, given `facts`.
fn open(state: State, facts: Facts) -> Vec<Reg> {
    REGISTERS
        .iter()
        .filter(|row| row.accepts(state, facts))
        .map(|row| row.reg)
        .collect()
}

#[test]
fn places_and_widths() {
    for (row, (offset, width, writable, reg)) in REGISTERS.iter().zip(EXPECTED) {
        assert_eq!((row.reg, row.offset, row.width), (reg, offset, width));
        assert_eq!(row.access == Access::ReadWrite, writable, "{reg:?}");
        assert_eq!(!row.states.is_empty(), writable, "{reg:?}");
        assert!(!row.clause.is_empty());
    }
    assert_eq!(
        (COMMON.length, TRACKER.length, NOTIFY_MULTIPLIER),
        (68, 32, 4)
    );
}

#[test]
fn read_only_registers_are_never_written() {
    for state in STATES {
        for (.., writable, reg) in EXPECTED {
            assert!(
                writable || !row(reg).accepts(state, READY),
                "{reg:?} in {state:?}"
            );
        }
    }
}

#[test]
fn while_suspended_only_status_select_and_tracker() {
    for state in [
        State::Suspending { changed: false },
        State::Suspended { changed: true },
        State::Resuming { changed: false },
    ] {
        assert_eq!(
            open(state, READY),
            [
                Reg::DeviceStatus,
                Reg::QueueSelect,
                Reg::TrackerEnable,
                Reg::TrackerGraPower,
                Reg::TrackerPasid,
                Reg::TrackerAddrLow,
                Reg::TrackerAddrHigh,
                Reg::TrackerLengthLow,
                Reg::TrackerLengthHigh,
            ]
        );
    }
}

#[test]
fn while_resetting_only_status() {
    let state = State::Resetting {
        shown: DeviceStatus::DRIVER,
        flr: true,
        clearing: true,
    };
    assert_eq!(open(state, READY), [Reg::DeviceStatus]);
}

#[test]
fn a_queue_is_configured_after_features_ok_and_before_it_is_enabled() {
    let fields = [
        Reg::QueueSize,
        Reg::QueueEnable,
        Reg::QueueDescLow,
        Reg::QueueDescHigh,
        Reg::QueueDriverLow,
        Reg::QueueDriverHigh,
        Reg::QueueDeviceLow,
        Reg::QueueDeviceHigh,
        Reg::QueueAvailState,
        Reg::QueueUsedState,
    ];
    for reg in fields {
        for state in STATES {
            let set_up = matches!(state, State::FeaturesOk | State::Running);
            assert_eq!(
                row(reg).accepts(state, READY),
                set_up,
                "{reg:?} in {state:?}"
            );
            let on = Facts {
                queue_on: true,
                ..READY
            };
            assert!(!row(reg).accepts(state, on), "{reg:?} of an enabled queue");
            let none = Facts {
                queue: false,
                ..READY
            };
            assert!(!row(reg).accepts(state, none), "{reg:?} of no queue");
        }
    }
    let plain = Facts {
        queue_state: false,
        ..READY
    };
    assert!(
        !row(Reg::QueueAvailState).accepts(State::FeaturesOk, plain),
        "QS-2"
    );
    assert!(
        !row(Reg::QueueUsedState).accepts(State::FeaturesOk, plain),
        "QS-2"
    );
    assert!(row(Reg::QueueSize).accepts(State::FeaturesOk, plain));
}

#[test]
fn a_queue_is_reset_only_if_negotiated() {
    let on = Facts {
        queue_on: true,
        ..READY
    };
    assert!(row(Reg::QueueReset).accepts(State::Running, on));
    let plain = Facts {
        ring_reset: false,
        ..on
    };
    assert!(!row(Reg::QueueReset).accepts(State::Running, plain));
}

#[test]
fn features_close_with_features_ok() {
    for state in STATES {
        let negotiating = matches!(state, State::Acknowledged | State::Driver);
        assert_eq!(
            row(Reg::DriverFeature).accepts(state, READY),
            negotiating,
            "{state:?}"
        );
    }
}

#[test]
fn a_running_tracker_is_locked_but_for_its_switch() {
    let on = Facts {
        tracker_on: true,
        ..READY
    };
    let open = open(State::Running, on);
    assert!(open.contains(&Reg::TrackerEnable));
    for reg in [
        Reg::TrackerGraPower,
        Reg::TrackerPasid,
        Reg::TrackerAddrLow,
        Reg::TrackerLengthHigh,
    ] {
        assert!(!open.contains(&reg), "{reg:?}");
    }
}

#[test]
fn widths_decide_what_an_access_is() {
    assert_eq!(exact(0x14, 1).map(|row| row.reg), Some(Reg::DeviceStatus));
    for (offset, len) in [
        (0x14, 2),
        (0x14, 4),
        (32, 8),
        (33, 4),
        (22, 1),
        (0, 2),
        (0, 0),
    ] {
        assert!(exact(offset, len).is_none(), "{len} bytes at {offset}");
    }
    let covered: Vec<Reg> = touched(0x14, 4).map(|row| row.reg).collect();
    assert_eq!(
        covered,
        [Reg::DeviceStatus, Reg::ConfigGeneration, Reg::QueueSelect]
    );
    assert_eq!(touched(35, 2).count(), 2, "across two halves");
    assert_eq!(touched(usize::MAX, usize::MAX).count(), 0);
    assert_eq!(touched(0, usize::MAX).count(), REGISTERS.len());
    assert_eq!(touched(0x3802, 2).count(), 0, "reserved bytes");
}

#[test]
fn positions_in_a_region() {
    assert_eq!(NOTIFY.position(0x3004, 4), Some(4));
    assert_eq!(NOTIFY.position(0x30fe, 4), None, "runs out of it");
    assert_eq!(NOTIFY.position(0x2fff, 2), None);
    assert_eq!(NOTIFY.position(usize::MAX, 2), None);
}

#[test]
fn halves_and_overlays() {
    use crate::transport::{half, number, overlay, set_half};
    let mut field = 0x1122_3344_5566_7788;
    set_half(&mut field, false, 0xaabb_ccdd);
    assert_eq!(field, 0x1122_3344_aabb_ccdd);
    set_half(&mut field, true, 0);
    assert_eq!(field, 0xaabb_ccdd);
    assert_eq!(
        (half(1 << 40 | 7, true), half(1 << 40 | 7, false)),
        (1 << 8, 7)
    );
    let mut data = [0; 4];
    overlay(&mut data, 10, &[1, 2, 3, 4], 8);
    assert_eq!(data, [3, 4, 0, 0]);
    overlay(&mut data, 10, &[9, 9], 13);
    assert_eq!(data, [3, 4, 0, 9]);
    assert_eq!(number(&[1, 2]), Some(0x201));
    assert_eq!(number(&[0; 5]), None);
}

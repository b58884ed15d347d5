//! Every pair of state and event, and the walks that drivers take.
//!
//! The byte values are typed again from the specification, not taken from `spec`.

use super::*;

const ACK: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const SUSPEND: u8 = 16;
const NEEDS_RESET: u8 = 64;
const FAILED: u8 = 128;

const GOOD: Negotiation = Negotiation {
    acceptable: true,
    suspend: true,
};

fn every_state() -> Vec<State> {
    let mut states = vec![
        State::Reset,
        State::Acknowledged,
        State::Driver,
        State::FeaturesOk,
        State::Running,
    ];
    for changed in [false, true] {
        states.push(State::Suspending { changed });
        states.push(State::Suspended { changed });
        states.push(State::Resuming { changed });
    }
    for base in [0x00, 0x01, 0x03, 0x0b, 0x0f, 0x1b] {
        let shown = |bits: u8| DeviceStatus::from_bits(bits).expect("a status");
        if base != 0 {
            states.push(State::NeedsReset {
                shown: shown(base | NEEDS_RESET),
            });
        }
        states.push(State::Failed {
            shown: shown(base | FAILED),
        });
        states.push(State::Failed {
            shown: shown(base | FAILED | NEEDS_RESET),
        });
        for bits in [
            base,
            base | NEEDS_RESET,
            base | FAILED,
            base | NEEDS_RESET | FAILED,
        ] {
            if bits == 0 {
                continue;
            }
            for (flr, clearing) in [(false, false), (false, true), (true, false), (true, true)] {
                states.push(State::Resetting {
                    shown: shown(bits),
                    flr,
                    clearing,
                });
            }
        }
    }
    states
}

fn every_event() -> Vec<Event> {
    let mut events = vec![
        Event::Drained,
        Event::DrainFailed,
        Event::Resumed,
        Event::ResumeFailed,
        Event::DeviceError,
        Event::ResetDone,
        Event::Flr,
        Event::ConfigChanged,
    ];
    for value in 0..=u8::MAX {
        for (acceptable, suspend) in [(false, false), (false, true), (true, false), (true, true)] {
            events.push(Event::Write(
                value,
                Negotiation {
                    acceptable,
                    suspend,
                },
            ));
        }
    }
    events
}

/// Every pair, and what was before, for a property over all of them.
fn for_all(mut property: impl FnMut(State, Event, Result<(State, Effects), Violation>)) {
    for state in every_state() {
        for event in every_event() {
            property(state, event, transition(state, event));
        }
    }
}

fn is_reset(event: Event) -> bool {
    matches!(event, Event::Flr | Event::Write(0, _))
}

#[test]
fn every_state_that_can_be_reached_is_in_the_enumeration() {
    let states = every_state();
    for_all(|state, event, result| {
        if let Ok((next, _)) = result {
            assert!(
                states.contains(&next),
                "{state:?} {event:?} leads to {next:?}"
            );
        }
    });
}

#[test]
fn presented_bytes() {
    let changed = false;
    let table = [
        (State::Reset, 0x00),
        (State::Acknowledged, 0x01),
        (State::Driver, 0x03),
        (State::FeaturesOk, 0x0b),
        (State::Running, 0x0f),
        (State::Suspending { changed }, 0x0f),
        (State::Suspended { changed }, 0x1b),
        (State::Resuming { changed }, 0x1b),
    ];
    for (state, byte) in table {
        assert_eq!(state.status().bits(), byte, "{state:?}");
    }
}

#[test]
fn a_bit_is_cleared_only_by_reset_suspend_and_resume() {
    for_all(|state, event, result| {
        let Ok((next, _)) = result else { return };
        let (before, after) = (state.status().bits(), next.status().bits());
        let cleared = before & !after;
        match (state, event) {
            (State::Suspending { .. }, Event::Drained) => {
                assert_eq!((cleared, after & !before), (DRIVER_OK, SUSPEND));
            }
            (State::Resuming { .. }, Event::Resumed) => {
                assert_eq!((cleared, after & !before), (SUSPEND, DRIVER_OK));
            }
            (State::Resetting { .. }, Event::ResetDone) => assert_eq!(after, 0),
            _ => assert_eq!(cleared, 0, "{state:?} {event:?} {next:?}"),
        }
    });
}

#[test]
fn a_write_presents_no_bit_that_was_not_written() {
    for_all(|state, event, result| {
        let (Event::Write(value, _), Ok((next, _))) = (event, result) else {
            return;
        };
        let set = next.status().bits() & !state.status().bits();
        assert_eq!(set & !value, 0, "{state:?} {event:?} {next:?}");
        assert_eq!(
            set & (NEEDS_RESET | SUSPEND),
            0,
            "the device's own to set: {state:?}"
        );
    });
}

#[test]
fn features_ok_only_for_acceptable_features() {
    for_all(|state, event, result| {
        let Ok((next, effects)) = result else { return };
        let set = next.status().bits() & !state.status().bits();
        if set & FEATURES_OK != 0 {
            let Event::Write(_, negotiation) = event else {
                panic!("{event:?}")
            };
            assert!(negotiation.acceptable);
            assert_eq!(next, State::FeaturesOk);
        }
        assert_eq!(
            set & FEATURES_OK != 0,
            effects.contains(Effects::NEGOTIATED)
        );
    });
}

#[test]
fn reset_always_wins_and_status_stays_nonzero_until_it_is_done() {
    for_all(|state, event, result| {
        if !is_reset(event) {
            return;
        }
        let (next, effects) = result.expect("a reset is never refused");
        match (state, next) {
            (State::Reset, State::Reset) => assert!(effects.contains(Effects::CLEAR)),
            (State::Resetting { .. }, State::Resetting { .. }) => {
                assert_eq!(next.status(), state.status());
            }
            (
                _,
                State::Resetting {
                    shown,
                    clearing,
                    flr,
                },
            ) => {
                assert!(!shown.is_empty());
                assert!(!clearing);
                assert_eq!(flr, event == Event::Flr);
                assert_eq!(effects, Effects::STOP_QUEUES);
            }
            _ => panic!("{state:?} {event:?} {next:?}"),
        }
    });
}

#[test]
fn while_resetting_nothing_but_a_reset_is_heard() {
    for_all(|state, event, result| {
        if !matches!(state, State::Resetting { .. }) || is_reset(event) {
            return;
        }
        match event {
            Event::Write(written, _) => {
                assert_eq!(result, Err(Violation::DuringReset { written }));
            }
            Event::Drained | Event::ResetDone | Event::ConfigChanged => {}
            _ => assert_eq!(result, Err(Violation::NotAwaited { state, event })),
        }
    });
}

#[test]
fn a_reset_clears_after_the_queues_have_stopped() {
    let (resetting, effects) = transition(State::Running, Event::Write(0, GOOD)).unwrap();
    assert_eq!(
        (resetting.status().bits(), effects),
        (0x0f, Effects::STOP_QUEUES)
    );
    assert!(
        transition(resetting, Event::ResetDone).is_err(),
        "queues still run"
    );
    let (clearing, effects) = transition(resetting, Event::Drained).unwrap();
    assert_eq!((clearing.status().bits(), effects), (0x0f, Effects::CLEAR));
    let done = transition(clearing, Event::ResetDone).unwrap();
    assert_eq!(done, (State::Reset, Effects::empty()));

    let (flr, _) = transition(resetting, Event::Flr).unwrap();
    let (_, effects) = transition(flr, Event::Drained).unwrap();
    assert_eq!(
        effects,
        Effects::CLEAR | Effects::CLEAR_PCI,
        "an FLR joins a reset"
    );
    let (over, effects) = transition(clearing, Event::Flr).unwrap();
    assert_eq!(effects, Effects::STOP_QUEUES);
    assert!(
        transition(over, Event::ResetDone).is_err(),
        "clearing starts over"
    );
}

#[test]
fn effects_fit_the_state_they_lead_to() {
    for_all(|state, event, result| {
        let Ok((next, effects)) = result else { return };
        if effects.contains(Effects::START_QUEUES) {
            assert!(
                matches!(next, State::Running | State::Resuming { .. }),
                "{state:?} {event:?}"
            );
        }
        if effects.contains(Effects::STOP_QUEUES) {
            let failed_resume =
                matches!(state, State::Resuming { .. }) && event == Event::ResumeFailed;
            assert!(
                failed_resume
                    || matches!(
                        next,
                        State::Suspending { .. } | State::Resetting { .. } | State::Failed { .. }
                    )
            );
        }
        // ST-5, SUS-13: never before DRIVER_OK, never while suspended.
        if effects.contains(Effects::NOTIFY_CONFIG) {
            assert_ne!(next.status().bits() & DRIVER_OK, 0, "{state:?} {event:?}");
        }
        if effects.contains(Effects::CLEAR) {
            assert!(matches!(
                next,
                State::Reset | State::Resetting { clearing: true, .. }
            ));
        }
        if effects.contains(Effects::CLEAR_PCI) {
            assert!(effects.contains(Effects::CLEAR));
        }
    });
}

#[test]
fn needs_reset_is_announced_exactly_when_driver_ok_is_presented() {
    for_all(|state, event, result| {
        let Ok((next @ State::NeedsReset { .. }, effects)) = result else {
            return;
        };
        if matches!(state, State::NeedsReset { .. }) {
            assert_eq!((next, effects), (state, Effects::empty()));
            return;
        }
        let ok = state.status().bits() & DRIVER_OK != 0;
        assert_eq!(
            effects.contains(Effects::NOTIFY_CONFIG),
            ok,
            "{state:?} {event:?}"
        );
        assert_eq!(next.status().bits(), state.status().bits() | NEEDS_RESET);
    });
    let changed = false;
    let drain = transition(State::Suspending { changed }, Event::DrainFailed).unwrap();
    assert_eq!(
        (drain.0.status().bits(), drain.1),
        (0x4f, Effects::NOTIFY_CONFIG)
    );
    let resume = transition(State::Resuming { changed }, Event::ResumeFailed).unwrap();
    assert_eq!(
        (resume.0.status().bits(), resume.1),
        (0x5b, Effects::STOP_QUEUES)
    );
}

#[test]
fn after_an_error_only_reset_and_failed_count() {
    for_all(|state, event, result| {
        let Event::Write(value @ 1.., _) = event else {
            return;
        };
        if !matches!(state, State::NeedsReset { .. } | State::Failed { .. }) {
            return;
        }
        if value & FAILED == 0 {
            assert_eq!(result, Err(Violation::AfterError { written: value }));
        } else {
            let (next, _) = result.expect("FAILED is always heard");
            assert_eq!(next.status().bits(), state.status().bits() | FAILED);
        }
    });
}

#[test]
fn suspend_needs_driver_ok_and_the_feature() {
    for_all(|state, event, result| {
        let Ok((next @ State::Suspending { .. }, effects)) = result else {
            return;
        };
        if matches!(state, State::Suspending { .. }) {
            assert_eq!(effects, Effects::empty(), "idempotent");
            return;
        }
        assert_eq!(next, State::Suspending { changed: false });
        assert_eq!(state, State::Running);
        let Event::Write(value, negotiation) = event else {
            panic!("{event:?}")
        };
        assert!(negotiation.suspend);
        assert_eq!(value & (SUSPEND | 0x0f | FAILED), 0x1f);
    });
    let without = Negotiation {
        acceptable: true,
        suspend: false,
    };
    assert_eq!(
        transition(State::Running, Event::Write(0x1f, without)),
        Err(Violation::SuspendNotNegotiated)
    );
    assert_eq!(
        transition(State::FeaturesOk, Event::Write(0x1b, GOOD)),
        Err(Violation::SuspendTooEarly)
    );
    let both = transition(State::FeaturesOk, Event::Write(0x1f, GOOD)).unwrap();
    assert_eq!(both, (State::Running, Effects::START_QUEUES));
}

#[test]
fn clearing_a_bit_is_ignored() {
    for_all(|state, event, result| {
        let Event::Write(value @ 1.., _) = event else {
            return;
        };
        let settled = matches!(
            state,
            State::NeedsReset { .. } | State::Failed { .. } | State::Resetting { .. }
        );
        let shown = state.status().bits();
        if settled || value & FAILED != 0 || value & shown == shown {
            return;
        }
        assert_eq!(
            result,
            Err(Violation::ClearsBits {
                written: value,
                shown
            })
        );
    });
}

/// Writes the bytes one after the other and returns what is presented after each.
fn walk(writes: &[u8]) -> Vec<u8> {
    let mut state = State::Reset;
    writes
        .iter()
        .map(|&value| {
            if let Ok((next, _)) = transition(state, Event::Write(value, GOOD)) {
                state = next;
            }
            state.status().bits()
        })
        .collect()
}

#[test]
fn how_drivers_initialise() {
    assert_eq!(walk(&[0, 1, 3, 0x0b, 0x0f]), [0, 1, 3, 0x0b, 0x0f], "Linux");
    assert_eq!(walk(&[0, 3, 0x0b, 0x0f]), [0, 3, 0x0b, 0x0f], "SeaBIOS");
    assert_eq!(
        walk(&[0x0f, 0x0f]),
        [0x0b, 0x0f],
        "FEATURES_OK is read before DRIVER_OK counts"
    );
    assert_eq!(
        walk(&[ACK | DRIVER | DRIVER_OK]),
        [3],
        "DRIVER_OK before FEATURES_OK"
    );
    assert_eq!(
        walk(&[DRIVER, FEATURES_OK, ACK, 0x09]),
        [0, 0, 1, 1],
        "gaps"
    );
    assert_eq!(
        walk(&[0x20, 0x40, 0x61]),
        [0, 0, 1],
        "reserved bits say nothing"
    );
    assert_eq!(walk(&[1, 0x83, 0x0b]), [1, 0x81, 0x81], "FAILED");
}

#[test]
fn features_refused_leave_features_ok_clear() {
    let bad = Negotiation {
        acceptable: false,
        suspend: true,
    };
    assert_eq!(
        transition(State::Driver, Event::Write(0x0b, bad)),
        Err(Violation::FeaturesRefused)
    );
    let (next, effects) = transition(State::Reset, Event::Write(0x0b, bad)).unwrap();
    assert_eq!((next, effects), (State::Driver, Effects::empty()));
}

#[test]
fn suspend_and_resume() {
    let mut state = State::Running;
    let mut step = |event| {
        let (next, effects) = transition(state, event).expect("a legal step");
        state = next;
        (next.status().bits(), effects)
    };
    let none = Effects::empty();
    assert_eq!(step(Event::Write(0x1f, GOOD)), (0x0f, Effects::STOP_QUEUES));
    assert_eq!(
        step(Event::Write(0x1f, GOOD)),
        (0x0f, none),
        "again, while draining"
    );
    assert_eq!(step(Event::Drained), (0x1b, none));
    assert_eq!(step(Event::Write(0x1b, GOOD)), (0x1b, none));
    assert_eq!(step(Event::ConfigChanged), (0x1b, none), "SUS-13");
    assert_eq!(
        step(Event::Write(0x1f, GOOD)),
        (0x1b, Effects::START_QUEUES)
    );
    assert_eq!(
        step(Event::Write(0x1f, GOOD)),
        (0x1b, none),
        "again, while resuming"
    );
    assert_eq!(
        step(Event::Resumed),
        (0x0f, Effects::NOTIFY_CONFIG),
        "SUS-14"
    );
    assert_eq!(step(Event::Write(0x1f, GOOD)), (0x0f, Effects::STOP_QUEUES));
    assert_eq!(
        step(Event::ConfigChanged),
        (0x0f, none),
        "announced after the resume"
    );
    assert_eq!(step(Event::Drained), (0x1b, none));
    assert_eq!(
        step(Event::Write(0x1f, GOOD)),
        (0x1b, Effects::START_QUEUES)
    );
    assert_eq!(step(Event::Resumed), (0x0f, Effects::NOTIFY_CONFIG));
    assert_eq!(
        step(Event::ConfigChanged),
        (0x0f, Effects::NOTIFY_CONFIG),
        "running: at once"
    );
}

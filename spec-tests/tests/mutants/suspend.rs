//! Mutants of SUSPEND and of queue state.

use super::frame::{Access, Defect, Function, Mutant, SOUND};
use super::split::crooked;
use driver::bus::BusError;
use spec_tests::constants::{cfg_type, feature, reg, status};

/// Remembers whether a suspend was asked for and neither resumed from nor reset.
fn remember_asked(function: &Function, access: Access, value: u64) -> bool {
    let asks =
        function.is(access, reg::DEVICE_STATUS) && value == u64::from(status::SUSPEND_OR_RESUME);
    if function.is(access, reg::DEVICE_STATUS) {
        let before = function.recall("asked") == Some(1);
        function.remember("asked", u64::from(asks && !before));
    }
    asks
}

/// What becomes of a read.
type Read = fn(&Function, Access, &mut [u8]) -> Result<(), BusError>;

fn remember_kicks(function: &Function, access: Access, _value: u64) -> Result<(), BusError> {
    if function.kicked(access) {
        function.remember("kicked", 1);
    }
    Ok(())
}

fn in_status(function: &Function, access: Access) -> bool {
    function.is(access, reg::DEVICE_STATUS)
}

fn is_state(function: &Function, access: Access) -> bool {
    function.is(access, reg::QUEUE_AVAIL_STATE) || function.is(access, reg::QUEUE_USED_STATE)
}

/// The state of the queue is what it was before, where the sound function has the default.
fn keep_state(function: &Function, access: Access, data: &mut [u8]) -> Result<(), BusError> {
    if function.is(access, reg::QUEUE_AVAIL_STATE) {
        if data[0] != 0 {
            function.remember("state", u64::from(data[0]));
        } else if let Some(old) = function.recall("state") {
            data[0] = u8::try_from(old).unwrap();
        }
    }
    Ok(())
}

/// Presents SUSPEND after a write that asks for it where that is not to be heeded, until the next.
fn shows_suspend(function: &Function, access: Access, value: u64, heeds: bool) {
    if in_status(function, access) {
        let asks = value & u64::from(status::SUSPEND) != 0;
        function.remember("shows", u64::from(asks && heeds));
    }
}

const SHOWING: Defect = Defect {
    read: |at, access, data| {
        if in_status(at, access) && at.recall("shows") == Some(1) {
            data[0] |= status::SUSPEND;
        }
        Ok(())
    },
    ..SOUND
};

fn remember_high_features(function: &Function, access: Access, value: u64) -> Result<(), BusError> {
    if function.is(access, reg::DRIVER_FEATURE) && function.get(reg::DRIVER_FEATURE_SELECT)? == 1 {
        function.remember("high", value);
    }
    Ok(())
}

fn agreed_on(function: &Function, feature: u64) -> bool {
    function.recall("high").unwrap_or(0) & (feature >> 32) != 0
}

/// Presents another status from the third resume on, until the next write of status.
const fn after_resumes(read: Read) -> Defect {
    Defect {
        write: |at, access, value| {
            if in_status(at, access) {
                let asks = value == u64::from(status::SUSPEND_OR_RESUME);
                let resumes = asks && at.suspended()?;
                let count = at.recall("resumes").unwrap_or(0) + u64::from(resumes);
                at.remember("resumes", count);
                at.remember("late", u64::from(resumes && count > 2));
            }
            Ok(true)
        },
        read,
        ..SOUND
    }
}

pub const MUTANTS: &[Mutant] = &[
    // Both only as long as no queue was ever notified: else all that needs a suspend went with it.
    Mutant {
        name: "hides_suspend_when_idle",
        clauses: &["SUS-15"],
        defect: Defect {
            wrote: remember_kicks,
            read: |at, access, data| {
                if in_status(at, access) && at.recall("kicked").is_none() {
                    data[0] &= !status::SUSPEND;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "keeps_driver_ok_when_idle",
        clauses: &["SUS-15"],
        defect: Defect {
            wrote: remember_kicks,
            read: |at, access, data| {
                let idle = at.recall("kicked").is_none();
                if in_status(at, access) && idle && data[0] == status::SUSPENDED {
                    data[0] |= status::DRIVER_OK;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    // It is never asked to suspend, so it goes on behind a status that says otherwise.
    Mutant {
        name: "hasty_suspend",
        clauses: &["SUS-12", "SUS-13", "SUS-11"],
        defect: Defect {
            write: |at, access, value| Ok(!remember_asked(at, access, value)),
            read: |at, access, data| {
                if in_status(at, access) && at.recall("asked") == Some(1) {
                    data[0] = status::SUSPENDED;
                }
                Ok(())
            },
            was_reset: |at| {
                at.remember("asked", 0);
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "touches_while_suspended",
        clauses: &["SUS-12"],
        defect: Defect {
            wrote: |at, access, _| {
                if at.kicked(access) && at.suspended()? {
                    at.scribble(at.wide(reg::QUEUE_DEVICE)? + 4, 0x77);
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "state_off_by_one",
        clauses: &["QS-5"],
        defect: Defect {
            read: |at, access, data| {
                if at.is(access, reg::QUEUE_AVAIL_STATE) && at.suspended()? {
                    data[0] = data[0].wrapping_add(1);
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "drops_state",
        clauses: &["QS-3"],
        defect: Defect {
            write: |at, access, _| Ok(!is_state(at, access)),
            ..SOUND
        },
    },
    Mutant {
        name: "keeps_state",
        clauses: &["QS-6", "QS-7"],
        defect: Defect {
            read: keep_state,
            ..SOUND
        },
    },
    Mutant {
        name: "suspends_before_driver_ok",
        clauses: &["SUS-10"],
        defect: Defect {
            write: |at, access, value| {
                let status = at.get(reg::DEVICE_STATUS)?;
                shows_suspend(at, access, value, status == u64::from(status::AGREED));
                Ok(true)
            },
            ..SHOWING
        },
    },
    Mutant {
        name: "suspends_before_features_ok",
        clauses: &["S23-4"],
        defect: Defect {
            write: |at, access, value| {
                let status = at.get(reg::DEVICE_STATUS)?;
                shows_suspend(at, access, value, status < u64::from(status::FEATURES_OK));
                Ok(true)
            },
            ..SHOWING
        },
    },
    Mutant {
        name: "suspends_unasked_for",
        clauses: &["S23-5"],
        defect: Defect {
            write: |at, access, value| {
                remember_high_features(at, access, value)?;
                let running = at.get(reg::DEVICE_STATUS)? == u64::from(status::RUNNING);
                shows_suspend(
                    at,
                    access,
                    value,
                    running && !agreed_on(at, feature::SUSPEND),
                );
                Ok(true)
            },
            ..SHOWING
        },
    },
    Mutant {
        name: "never_tells_what_changed",
        clauses: &["SUS-14"],
        defect: Defect {
            write: |at, access, value| {
                if in_status(at, access) {
                    let resumes =
                        value == u64::from(status::SUSPEND_OR_RESUME) && at.suspended()?;
                    at.remember("resumed", u64::from(resumes));
                }
                Ok(true)
            },
            interrupt: |at, _, real| {
                crooked(at, real, |mind, fired| {
                    fired && mind.recall("resumed") != Some(1)
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "resumes_once_only",
        clauses: &["SUS-16"],
        defect: Defect {
            write: |at, access, value| {
                let resumes = in_status(at, access)
                    && value == u64::from(status::SUSPEND_OR_RESUME)
                    && at.suspended()?;
                let before = at.recall("resumed").unwrap_or(0);
                at.remember("resumed", before + u64::from(resumes));
                Ok(!(resumes && before > 0))
            },
            was_reset: |at| {
                at.remember("resumed", 0);
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_the_same_byte_for_a_resume",
        clauses: &["D-15"],
        defect: Defect {
            write: |at, access, value| {
                if in_status(at, access) {
                    let asks = value == u64::from(status::SUSPEND_OR_RESUME);
                    let running = at.get(reg::DEVICE_STATUS)? == u64::from(status::RUNNING);
                    let before = at.recall("asked").unwrap_or(0);
                    at.remember("asked", if asks && running { before + 1 } else { 0 });
                }
                Ok(true)
            },
            read: |at, access, data| {
                if in_status(at, access) && at.recall("asked") == Some(2) {
                    data[0] = status::RUNNING;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "locks_queue_select",
        clauses: &["D-16"],
        defect: Defect {
            write: |at, access, _| Ok(!(at.is(access, reg::QUEUE_SELECT) && at.suspended()?)),
            ..SOUND
        },
    },
    Mutant {
        name: "keeps_a_state_that_nobody_agreed_on",
        clauses: &["QS-2"],
        defect: Defect {
            write: |at, access, value| {
                remember_high_features(at, access, value)?;
                if is_state(at, access) {
                    at.remember("written", value);
                }
                Ok(true)
            },
            read: |at, access, data| {
                if is_state(at, access)
                    && !agreed_on(at, feature::QUEUE_STATE)
                    && let Some(state) = at.recall("written")
                {
                    data.copy_from_slice(&state.to_le_bytes()[..data.len()]);
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_a_state_while_suspended",
        clauses: &["QS-8"],
        defect: Defect {
            write: |at, access, value| {
                if is_state(at, access) && at.suspended()? {
                    at.remember("written", value);
                }
                Ok(true)
            },
            read: |at, access, data| {
                if is_state(at, access)
                    && at.suspended()?
                    && let Some(state) = at.recall("written")
                {
                    data.copy_from_slice(&state.to_le_bytes()[..data.len()]);
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "fails_in_silence",
        clauses: &["ST-7"],
        defect: Defect {
            read: |at, access, data| {
                if in_status(at, access) {
                    at.remember("status", u64::from(data[0]));
                }
                Ok(())
            },
            interrupt: |at, _, real| {
                crooked(at, real, |mind, fired| {
                    let status = mind.recall("status").unwrap_or(0);
                    fired && status & u64::from(status::NEEDS_RESET) == 0
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "drops_driver_ok_before_it_is_suspended",
        clauses: &["SUS-2"],
        defect: Defect {
            write: |at, access, value| {
                remember_asked(at, access, value);
                Ok(true)
            },
            read: |at, access, data| {
                let asked = at.recall("asked") == Some(1);
                if in_status(at, access) && asked && data[0] == status::RUNNING {
                    data[0] = status::AGREED;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "keeps_suspend_after_a_resume",
        clauses: &["SUS-3"],
        defect: after_resumes(|at, access, data| {
            if in_status(at, access) && at.recall("late") == Some(1) {
                data[0] |= status::SUSPEND;
            }
            Ok(())
        }),
    },
    Mutant {
        name: "runs_behind_a_suspended_status",
        clauses: &["S23-7"],
        defect: after_resumes(|at, access, data| {
            if in_status(at, access) && at.recall("late") == Some(1) {
                data[0] = status::SUSPENDED;
            }
            Ok(())
        }),
    },
    Mutant {
        name: "deaf_to_a_driver_that_fails_while_suspended",
        clauses: &["S23-6"],
        defect: Defect {
            write: |at, access, value| {
                let fails = value & u64::from(status::FAILED) != 0;
                Ok(!(in_status(at, access) && fails && at.suspended()?))
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_configuration_while_suspended",
        clauses: &["SUS-11"],
        defect: Defect {
            write: |at, access, value| {
                if at.within(access, cfg_type::DEVICE) && at.suspended()? {
                    at.remember("place", access.offset);
                    at.remember("taken", value);
                }
                Ok(true)
            },
            read: |at, access, data| {
                if at.recall("place") == Some(access.offset)
                    && at.within(access, cfg_type::DEVICE)
                    && at.suspended()?
                {
                    let taken = at.recall("taken").unwrap_or(0).to_le_bytes();
                    data.copy_from_slice(&taken[..data.len()]);
                }
                Ok(())
            },
            ..SOUND
        },
    },
];

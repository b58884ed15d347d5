//! Mutants of SUSPEND and of queue state.

use super::frame::{Access, Defect, Function, Mutant, SOUND};
use driver::bus::BusError;
use spec_tests::constants::{reg, status};

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
];

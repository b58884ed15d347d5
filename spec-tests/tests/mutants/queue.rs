//! Mutants of the reset of one queue and of its re-enabling.

use super::frame::{Access, Defect, Function, Mutant, SOUND};
use driver::bus::BusError;
use spec_tests::clause;
use spec_tests::constants::{reg, status};
use std::time::Duration;

/// How often a queue that goes on after its reset writes, and how long it rests in between.
const WRITES: u8 = 60;
const REST: Duration = Duration::from_millis(2);

/// Remembers that the selected queue was reset, and what of it was set before.
fn remember_reset(at: &Function, access: Access, value: u64) -> Result<(), BusError> {
    if at.is(access, reg::QUEUE_RESET) && value == 1 {
        at.remember("reset", 1);
        at.remember("size", at.get(reg::QUEUE_SIZE)?);
        at.remember("used", at.wide(reg::QUEUE_DEVICE)?);
    }
    if at.is(access, reg::QUEUE_ENABLE) {
        at.remember("reset", 0);
    }
    Ok(())
}

fn was_reset(at: &Function) -> bool {
    at.recall("reset") == Some(1)
}

fn forget(at: &Function) -> Result<(), BusError> {
    at.remember("reset", 0);
    Ok(())
}

/// What remembers queue resets and lets all through.
const REMEMBERING: Defect = Defect {
    write: |at, access, value| remember_reset(at, access, value).map(|()| true),
    was_reset: forget,
    ..SOUND
};

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "keeps_queue_reset_over_a_reset",
        clauses: &[clause!(common "D9")],
        defect: Defect {
            read: |at, access, data| {
                let early = at.get(reg::DEVICE_STATUS)? != u64::from(status::RUNNING);
                if at.is(access, reg::QUEUE_RESET) && early && was_reset(at) {
                    data[0] = 1;
                }
                Ok(())
            },
            was_reset: |_| Ok(()),
            ..REMEMBERING
        },
    },
    Mutant {
        name: "shows_queue_reset_after_enable",
        clauses: &[clause!(common "D10")],
        defect: Defect {
            read: |at, access, data| {
                if at.is(access, reg::QUEUE_RESET) && at.get(reg::QUEUE_ENABLE)? == 1 {
                    data[0] = u8::from(at.get(reg::DEVICE_STATUS)? == u64::from(status::AGREED));
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "ignores_queue_reset",
        clauses: &[clause!(common "D11")],
        defect: Defect {
            write: |at, access, _| Ok(!at.is(access, reg::QUEUE_RESET)),
            ..SOUND
        },
    },
    Mutant {
        name: "goes_on_after_the_queue_reset",
        clauses: &[clause!(common "D12")],
        defect: Defect {
            wrote: |at, access, value| {
                if at.is(access, reg::QUEUE_RESET) && value == 1 {
                    let (mind, used) = (at.mind.clone(), at.recall("used").unwrap_or(0));
                    std::thread::spawn(move || {
                        for byte in 1..=WRITES {
                            std::thread::sleep(REST);
                            mind.scribble(used + 4, byte);
                        }
                    });
                }
                Ok(())
            },
            ..REMEMBERING
        },
    },
    Mutant {
        name: "stays_enabled_after_the_queue_reset",
        clauses: &[clause!(common "D13")],
        defect: Defect {
            read: |at, access, data| {
                if at.is(access, reg::QUEUE_ENABLE) && was_reset(at) {
                    data[0] = 1;
                }
                Ok(())
            },
            ..REMEMBERING
        },
    },
    Mutant {
        name: "keeps_its_size_over_a_queue_reset",
        clauses: &["VR-2"],
        defect: Defect {
            read: |at, access, data| {
                if at.is(access, reg::QUEUE_SIZE) && was_reset(at) {
                    let size = at.recall("size").unwrap_or(0).to_le_bytes();
                    data.copy_from_slice(&size[..data.len()]);
                }
                Ok(())
            },
            write: |at, access, value| {
                remember_reset(at, access, value)?;
                if at.is(access, reg::QUEUE_SIZE) {
                    at.remember("size", value);
                }
                Ok(true)
            },
            ..REMEMBERING
        },
    },
    Mutant {
        name: "has_its_old_size_again",
        clauses: &["VR-3"],
        defect: Defect {
            write: |at, access, value| {
                remember_reset(at, access, value)?;
                let sizes = at.is(access, reg::QUEUE_SIZE) && was_reset(at);
                if sizes {
                    at.put(reg::QUEUE_SIZE, at.recall("size").unwrap_or(0))?;
                }
                Ok(!sizes)
            },
            ..REMEMBERING
        },
    },
];

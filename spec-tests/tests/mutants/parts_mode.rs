//! Mutants of members' modes.

use super::commands::{Command, after, before, watch};
use super::frame::{Access, Defect, Function, Mind, Mutant, SOUND};
use driver::bus::{BusError, Interrupt};
use spec_tests::clause;
use spec_tests::constants::admin::{opcode, qualifier, status};
use spec_tests::constants::parts::{RUN, STOPPED};
use spec_tests::constants::{pci, reg, status as device};
use std::sync::Arc;
use std::time::Duration;

fn sets_mode(command: &Command<'_>, mode: u8) -> bool {
    command.opcode() == opcode::MODE_SET && command.data(0) == mode
}

/// Whether the member is stopped, as far as its owner's commands say. Both have the same notes.
fn stopped(at: &Function) -> bool {
    at.recall("stopped") == Some(1)
}

/// Remembers the mode; returns whether the command asked for the one that there was already.
fn follow(at: &Function, command: &Command<'_>) -> bool {
    let before = stopped(at);
    if command.opcode() != opcode::MODE_SET || !command.succeeded() {
        return false;
    }
    at.remember("stopped", u64::from(command.data(0) & STOPPED));
    stopped(at) == before
}

fn follow_all(at: &Function, access: Access, _: u64) -> Result<(), BusError> {
    after(at, access, |command| {
        follow(at, command);
    })
}

/// A defect of a member while it is stopped.
const fn while_stopped(member: &'static Defect) -> Defect {
    Defect {
        write: watch,
        wrote: follow_all,
        member: Some(member),
        ..SOUND
    }
}

/// A command for a mode that there is already is refused.
fn refuse_again(at: &Function, access: Access, mode: u8) -> Result<(), BusError> {
    after(at, access, |command| {
        if follow(at, command) && sets_mode(command, mode) {
            command.ends_in(status::EBUSY, qualifier::INVALID_COMMAND);
        }
    })
}

/// Whether member 1 has requests that it has not used, and where its used index is.
fn at_work(at: &Function) -> Option<u64> {
    let member = at.members.first()?;
    let driver = member.wide(reg::QUEUE_DRIVER).ok()?;
    let device = member.wide(reg::QUEUE_DEVICE).ok()?;
    let index = |ring: u64| u16::from_le_bytes(member.mind.peek(ring + 2));
    (driver != 0 && index(driver) != index(device)).then_some(device + 2)
}

/// An interrupt that fires for a notification that came while the member was stopped.
#[derive(Debug)]
struct Restless(Arc<dyn Interrupt>, Mind);

impl Interrupt for Restless {
    fn wait(&self, timeout: Duration) -> bool {
        if self.1.recall("rung") == Some(1) {
            self.1.remember("rung", 0);
            return true;
        }
        self.0.wait(timeout)
    }
}

fn lay(data: &mut [u8], offset: u16, bytes: &[u8], at: u16) {
    for (place, byte) in (offset..).zip(data) {
        let inside = place.checked_sub(at).map(usize::from);
        if let Some(other) = inside.and_then(|inside| bytes.get(inside)) {
            *byte = *other;
        }
    }
}

/// Behind the last capability of the sound function.
const POWER: u16 = 0xf4;
/// Where its first one is.
const FIRST: u8 = 0x40;

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "marks_a_page_while_stopped",
        clauses: &[clause!(parts "D8")],
        defect: while_stopped(&Defect {
            wrote: |at, access, _| {
                if at.kicked(access) && stopped(at) && at.get(reg::TRACKER_ENABLE)? == 1 {
                    at.scribble(at.wide(reg::TRACKER_ADDR)?, 1);
                }
                Ok(())
            },
            ..SOUND
        }),
    },
    Mutant {
        name: "writes_its_ring_while_stopped",
        clauses: &[clause!(parts "D15")],
        defect: while_stopped(&Defect {
            wrote: |at, access, _| {
                if at.kicked(access) && stopped(at) {
                    at.scribble(at.wide(reg::QUEUE_DEVICE)? + 4, 0x77);
                }
                Ok(())
            },
            ..SOUND
        }),
    },
    // A member at work is said to be stopped and goes on.
    Mutant {
        name: "answers_a_stop_before_it",
        clauses: &[clause!(parts "D9")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if sets_mode(command, STOPPED) && at_work(at).is_some() {
                        at.remember("held", 1);
                        command.stops();
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if at.recall("held") == Some(1) {
                        at.remember("held", 0);
                        command.ends_in(status::OK, qualifier::OK);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_the_last_element_back",
        clauses: &[clause!(parts "D10")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if sets_mode(command, STOPPED)
                        && let Some(used) = at_work(at)
                    {
                        let [low] = at.members[0].mind.peek(used);
                        at.remember("used index", used);
                        at.remember("used", u64::from(low));
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    let place = at.recall("used index").unwrap_or(0);
                    if sets_mode(command, STOPPED) && place != 0 {
                        at.remember("used index", 0);
                        let [low] = at.members[0].mind.peek(place);
                        if at.recall("used") != Some(u64::from(low)) {
                            at.members[0].scribble(place, low.wrapping_sub(1));
                        }
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_a_notification_for_an_error",
        clauses: &[clause!(parts "D11")],
        defect: while_stopped(&Defect {
            wrote: |at, access, _| {
                if at.kicked(access) {
                    at.remember("offended", u64::from(stopped(at)));
                }
                Ok(())
            },
            read: |at, access, data| {
                let offended = stopped(at) && at.recall("offended") == Some(1);
                if offended && at.is(access, reg::DEVICE_STATUS) {
                    data[0] |= device::NEEDS_RESET;
                }
                Ok(())
            },
            ..SOUND
        }),
    },
    Mutant {
        name: "reads_as_nothing_while_stopped",
        clauses: &[clause!(parts "D12")],
        defect: while_stopped(&Defect {
            read: |at, access, data| {
                if stopped(at) && at.is(access, reg::NUM_QUEUES) {
                    data.fill(0xff);
                }
                Ok(())
            },
            ..SOUND
        }),
    },
    Mutant {
        name: "has_no_subsystem_while_stopped",
        clauses: &[clause!(parts "D13")],
        defect: while_stopped(&Defect {
            config_read: |at, offset, data| {
                if stopped(at) {
                    lay(data, offset, &[0xff; 2], pci::SUBSYSTEM);
                }
            },
            ..SOUND
        }),
    },
    // A capability in front of the others, and PME_Status in it.
    Mutant {
        name: "signals_pme_while_stopped",
        clauses: &[clause!(parts "D14")],
        defect: while_stopped(&Defect {
            config_read: |at, offset, data| {
                let status = if stopped(at) { 0x80 } else { 0 };
                lay(data, offset, &[pci::ID_POWER, FIRST], POWER);
                lay(data, offset, &[0, status], POWER + pci::POWER_CONTROL);
                let power = u8::try_from(POWER).unwrap();
                lay(data, offset, &[power], pci::CAPABILITIES);
            },
            ..SOUND
        }),
    },
    Mutant {
        name: "notifies_while_stopped",
        clauses: &[clause!(parts "D16")],
        defect: while_stopped(&Defect {
            wrote: |at, access, _| {
                if at.kicked(access) && stopped(at) {
                    at.remember("rung", 1);
                }
                Ok(())
            },
            interrupt: |at, _, real| Arc::new(Restless(real, at.mind.clone())),
            ..SOUND
        }),
    },
    // To go on is nothing to a member that was never stopped, unless a reset goes on.
    Mutant {
        name: "waits_for_no_reset",
        clauses: &[clause!(parts "D17"), clause!(parts "D18")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if sets_mode(command, RUN) && !stopped(at) {
                        at.remember("held", 1);
                        command.stops();
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if at.recall("held") == Some(1) {
                        at.remember("held", 0);
                        command.ends_in(status::OK, qualifier::OK);
                    }
                    // What was held has another opcode now.
                    follow(at, command);
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "stops_once",
        clauses: &[clause!(parts "D20")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| refuse_again(at, access, STOPPED),
            ..SOUND
        },
    },
    Mutant {
        name: "goes_on_once",
        clauses: &[clause!(parts "D21")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| refuse_again(at, access, RUN),
            ..SOUND
        },
    },
];

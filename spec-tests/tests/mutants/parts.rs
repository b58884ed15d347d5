//! Mutants of device parts.

use super::commands::{Command, RESULT, after, before, watch};
use super::frame::{Access, Defect, Function, Mutant, SOUND};
use driver::bus::BusError;
use spec_tests::clause;
use spec_tests::constants::admin::{COMMAND, opcode, qualifier, status};
use spec_tests::constants::parts::{
    ALL, COMMON_CFG, DEV_CFG, DEV_FEATURES, DEVICE_STATUS, DRV_FEATURES, HEADER, LIST, SELECTED,
    SIZE, VQ_CFG,
};
use spec_tests::constants::reg;

/// Where a command of parts says what it wants, after the object.
const WHAT: usize = 8;
/// More than one part.
const SEVERAL: u64 = 250;

fn asks(command: &Command<'_>, opcode: u16, what: u8) -> bool {
    command.opcode() == opcode && command.data(WHAT) == what
}

/// The type of the first part of a PARTS_SET.
fn first_kind(command: &Command<'_>) -> u16 {
    u16::from_le_bytes([command.data(WHAT), command.data(WHAT + 1)])
}

/// Whether it sets one part of this type, of a value of so many bytes.
fn sets_one(command: &Command<'_>, kind: u16, length: usize) -> bool {
    let len = u64::try_from(COMMAND + WHAT + HEADER + length).unwrap();
    command.opcode() == opcode::PARTS_SET && first_kind(command) == kind && command.len() == len
}

/// The parts of an answer from byte `from` on, as they stand there; of a list the headers alone.
fn parts(command: &Command<'_>, from: u64, values: bool) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut at = from;
    let header = u64::try_from(HEADER).unwrap();
    while at + header <= command.room() {
        let byte = |offset| command.answered(at + offset);
        let kind = u16::from_le_bytes([byte(0), byte(1)]);
        if !(DEV_FEATURES..0x600).contains(&kind) {
            break;
        }
        let length = u32::from_le_bytes([byte(12), byte(13), byte(14), byte(15)]);
        let end = header + if values { u64::from(length) } else { 0 };
        all.push((0..end).map(byte).collect());
        at += end;
    }
    all
}

fn kind(part: &[u8]) -> u16 {
    u16::from_le_bytes([part[0], part[1]])
}

/// Gives the parts of an answer another order.
fn reorder(command: &Command<'_>, from: u64, values: bool, how: fn(&mut Vec<Vec<u8>>)) {
    let mut all = parts(command, from, values);
    how(&mut all);
    command.answers(from, &all.concat());
}

/// Puts the parts of a type in front of all others, or behind them.
fn move_to(all: &mut [Vec<u8>], what: u16, front: bool) {
    all.sort_by_key(|part| (kind(part) == what) != front);
}

/// A member's list of parts in another order, where all are listed.
const fn listed(write: Wrote) -> Defect {
    Defect {
        write: watch,
        wrote: write,
        ..SOUND
    }
}

type Wrote = fn(&Function, Access, u64) -> Result<(), BusError>;

fn list(at: &Function, access: Access, how: fn(&mut Vec<Vec<u8>>)) -> Result<(), BusError> {
    after(at, access, |command| {
        if asks(command, opcode::PARTS_METADATA_GET, LIST) && command.succeeded() {
            reorder(command, RESULT + 8, false, how);
        }
    })
}

fn count(at: &Function, name: &'static str) -> u64 {
    let count = at.recall(name).unwrap_or(0) + 1;
    at.remember(name, count);
    count
}

/// Ends a command that was held back as if it had been carried out.
fn pretend(at: &Function, access: Access) -> Result<(), BusError> {
    after(at, access, |command| {
        if at.recall("held") == Some(1) {
            at.remember("held", 0);
            command.ends_in(status::OK, qualifier::OK);
        }
    })
}

fn hold(at: &Function, command: &Command<'_>) {
    at.remember("held", 1);
    command.stops();
}

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "lists_a_command_of_parts_and_lacks_it",
        clauses: &[clause!(parts "D1")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if asks(command, opcode::PARTS_METADATA_GET, SIZE) {
                        command.stops();
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "gives_parts_eight_times",
        clauses: &[clause!(parts "D2")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if asks(command, opcode::PARTS_GET, ALL) && count(at, "gets") > 8 {
                        command.stops();
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "gives_selected_parts_in_the_order_of_asking",
        clauses: &[clause!(parts "D3")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if asks(command, opcode::PARTS_GET, SELECTED) && command.succeeded() {
                        reorder(command, RESULT, true, |all| all.reverse());
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_parts_of_a_running_member",
        clauses: &[clause!(parts "D4")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if command.opcode() == opcode::PARTS_SET && command.codes().0 == status::EBUSY {
                        command.ends_in(status::OK, qualifier::OK);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "sets_parts_twice",
        clauses: &[clause!(parts "D5")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    let whole = command.opcode() == opcode::PARTS_SET && command.len() > SEVERAL;
                    if whole && count(at, "sets") > 2 {
                        hold(at, command);
                    }
                })
            },
            wrote: |at, access, _| pretend(at, access),
            ..SOUND
        },
    },
    Mutant {
        name: "takes_a_status_of_no_bytes",
        clauses: &[clause!(parts "D6")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if sets_one(command, DEVICE_STATUS, 0) {
                        hold(at, command);
                    }
                })
            },
            wrote: |at, access, _| pretend(at, access),
            ..SOUND
        },
    },
    Mutant {
        name: "sets_features_of_the_device",
        clauses: &[clause!(parts "D7")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if sets_one(command, DEV_FEATURES, 8) {
                        let bytes = [0, 1, 2, 3, 4, 5, 6, 7];
                        let bytes = bytes.map(|at| command.data(WHAT + HEADER + at));
                        at.remember("features", u64::from_le_bytes(bytes));
                        hold(at, command);
                    }
                })
            },
            wrote: |at, access, _| pretend(at, access),
            member: Some(&Defect {
                read: |at, access, data| {
                    if at.is(access, reg::DEVICE_FEATURE)
                        && let Some(bits) = at.recall("features")
                    {
                        let half = bits >> (32 * at.get(reg::DEVICE_FEATURE_SELECT)?);
                        data.copy_from_slice(&half.to_le_bytes()[..data.len()]);
                    }
                    Ok(())
                },
                ..SOUND
            }),
            ..SOUND
        },
    },
    // The queue stays where it was.
    Mutant {
        name: "keeps_a_queue_over_a_reset",
        clauses: &[clause!(parts "D22")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    let Some(place) = at.recall("queue").filter(|place| *place != 0) else {
                        return;
                    };
                    if !asks(command, opcode::PARTS_GET, ALL) || !command.succeeded() {
                        return;
                    }
                    let mut all = parts(command, RESULT, true);
                    let queue = all.iter_mut().find(|part| kind(part) == VQ_CFG);
                    queue.expect("a queue")[HEADER + 8..][..8]
                        .copy_from_slice(&place.to_le_bytes());
                    command.answers(RESULT, &all.concat());
                })
            },
            member: Some(&Defect {
                resetting: |at| {
                    at.put(reg::QUEUE_SELECT, 0)?;
                    at.remember("queue", at.wide(reg::QUEUE_DESC)?);
                    Ok(())
                },
                ..SOUND
            }),
            ..SOUND
        },
    },
    Mutant {
        name: "lists_features_of_the_driver_first",
        clauses: &[clause!(parts "D24")],
        defect: listed(|at, access, _| list(at, access, |all| move_to(all, DRV_FEATURES, true))),
    },
    Mutant {
        name: "lists_features_of_the_device_last",
        clauses: &[
            clause!(parts "D24"),
            clause!(parts "D25"),
            clause!(parts "D26"),
        ],
        defect: listed(|at, access, _| list(at, access, |all| move_to(all, DEV_FEATURES, false))),
    },
    Mutant {
        name: "lists_features_of_the_driver_last",
        clauses: &[clause!(parts "D26")],
        defect: listed(|at, access, _| list(at, access, |all| move_to(all, DRV_FEATURES, false))),
    },
    Mutant {
        name: "lists_the_configuration_first",
        clauses: &[clause!(parts "D27")],
        defect: listed(|at, access, _| list(at, access, |all| move_to(all, DEV_CFG, true))),
    },
    Mutant {
        name: "sets_the_number_of_queues",
        clauses: &[clause!(parts "D28")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    let offset = u64::from(command.data(WHAT + 4));
                    if sets_one(command, COMMON_CFG, 2) && offset == reg::NUM_QUEUES.offset {
                        let number = command.data(WHAT + HEADER);
                        at.remember("number", u64::from(number));
                    }
                })
            },
            member: Some(&Defect {
                read: |at, access, data| {
                    if at.is(access, reg::NUM_QUEUES)
                        && let Some(number) = at.recall("number")
                    {
                        data.copy_from_slice(&number.to_le_bytes()[..data.len()]);
                    }
                    Ok(())
                },
                ..SOUND
            }),
            ..SOUND
        },
    },
];

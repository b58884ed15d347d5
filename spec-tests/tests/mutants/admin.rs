//! Mutants of administration commands, and of the queues that carry them.

use super::commands::{Command, RESULT, after, batch, before, watch};
use super::frame::{Defect, Function, Mutant, SOUND};
use spec_tests::clause;
use spec_tests::constants::admin::{group, opcode, qualifier, status};
use spec_tests::constants::{reg, status as device};

/// A list of the two commands of lists alone.
const LISTS: u64 = 3;
const REFUSED: (u16, u16) = (status::EINVAL, qualifier::INVALID_OPCODE);

/// LIST_USE of the two commands of lists alone, for a group.
fn gives_up(command: &Command<'_>, group: u16) -> bool {
    command.opcode() == opcode::LIST_USE && command.group() == group && command.list() == LISTS
}

fn queries(command: &Command<'_>) -> bool {
    command.opcode() == opcode::LIST_QUERY && command.group() == group::SELF
}

/// A note for each of the two groups.
fn of_group(command: &Command<'_>, notes: [&'static str; 2]) -> &'static str {
    notes[usize::from(command.group() != group::SELF)]
}

fn lives(at: &Function) -> u64 {
    at.recall("lives").unwrap_or(0)
}

fn forget(at: &Function, notes: &[&'static str]) {
    at.remember("lives", lives(at) + 1);
    for note in notes {
        at.remember(note, 0);
    }
}

const USED: [&str; 2] = ["own list", "members' list"];
const QUERIED: [&str; 2] = ["own query", "members' query"];

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "has_more_admin_queues_than_numbers",
        clauses: &["PC-9"],
        defect: Defect {
            read: |at, access, data| {
                if at.is(access, reg::ADMIN_QUEUE_NUM) && data != [0, 0] {
                    data.fill(0xff);
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_any_group_for_its_own",
        clauses: &[clause!(admin "D1")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if command.group() >= group::RESERVED {
                        command.moves_to(group::SELF);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "calls_unknown_opcodes_invalid_commands",
        clauses: &[clause!(admin "D2"), clause!(admin "D12")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if command.opcode() > opcode::MODE_SET && command.codes() == REFUSED {
                        command.ends_in(status::EINVAL, qualifier::INVALID_COMMAND);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_absent_members_for_the_first",
        clauses: &[clause!(admin "D3"), clause!(admin "D16")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    let of_members = command.group() == group::SR_IOV;
                    if of_members && command.opcode() > opcode::LIST_USE && command.member() > 2 {
                        command.rewrite(16, &1_u64.to_le_bytes());
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "misses_members_rather_than_their_group",
        clauses: &[clause!(admin "D16")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    let no_group = (status::EINVAL, qualifier::INVALID_GROUP);
                    if command.group() == group::SR_IOV && command.codes() == no_group {
                        command.ends_in(status::EINVAL, qualifier::INVALID_MEMBER);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "says_again_where_it_is_done",
        clauses: &[clause!(admin "D4")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if gives_up(command, command.group()) && command.succeeded() {
                        command.ends_in(status::EAGAIN, qualifier::OK);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "says_ok_to_what_it_does_not_know",
        clauses: &[clause!(admin "D5")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if command.opcode() > opcode::MODE_SET && command.codes() == REFUSED {
                        command.ends_in(status::OK, qualifier::OK);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "adopts_the_list_of_a_group_that_is_none",
        clauses: &[clause!(admin "D6")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    let group = command.group();
                    let strange = command.opcode() == opcode::LIST_USE && group >= group::RESERVED;
                    at.remember("strange", u64::from(strange));
                    if strange {
                        command.moves_to(group::SELF);
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if at.recall("strange") == Some(1) {
                        command.ends_in(status::EINVAL, qualifier::INVALID_GROUP);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "breaks_by_an_invalid_command",
        clauses: &[clause!(admin "D6")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if command.codes().0 == status::EINVAL {
                        at.remember("broken", 1);
                    }
                })
            },
            read: |at, access, data| {
                if at.is(access, reg::DEVICE_STATUS) && at.recall("broken") == Some(1) {
                    data[0] |= device::NEEDS_RESET;
                }
                Ok(())
            },
            was_reset: |at| {
                at.remember("broken", 0);
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "one_list_for_all_groups",
        clauses: &[clause!(admin "D9")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if command.opcode() == opcode::LIST_USE {
                        at.remember("narrow", u64::from(gives_up(command, group::SELF)));
                    }
                    let of_members = command.group() == group::SR_IOV;
                    let more = command.opcode() > opcode::LIST_USE;
                    if of_members && more && at.recall("narrow") == Some(1) {
                        command.stops();
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "keeps_its_list_over_a_reset",
        clauses: &[clause!(admin "D10")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    let note = of_group(command, USED);
                    match command.opcode() {
                        opcode::LIST_QUERY => {}
                        opcode::LIST_USE => at.remember(note, lives(at)),
                        // It was in use in an earlier life only.
                        _ if (1..lives(at)).contains(&at.recall(note).unwrap_or(0)) => {
                            command.becomes(opcode::LIST_QUERY);
                        }
                        _ => {}
                    }
                })
            },
            was_reset: |at| {
                forget(at, &[]);
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "forgets_the_third_of_a_list",
        clauses: &[clause!(admin "D11")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    let list = command.list();
                    let three = list & LISTS == LISTS && list.count_ones() == 3;
                    if command.opcode() == opcode::LIST_USE && three {
                        command.rewrite(24, &LISTS.to_le_bytes());
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "allows_what_was_not_listed",
        clauses: &[clause!(admin "D12")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if gives_up(command, group::SELF) {
                        command.rewrite(24, &0x383_u64.to_le_bytes());
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "reports_less_than_before",
        clauses: &[clause!(admin "D13")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if gives_up(command, group::SR_IOV) {
                        at.remember("given up", 1);
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    let query = command.opcode() == opcode::LIST_QUERY;
                    let of_members = command.group() == group::SR_IOV;
                    if query && of_members && at.recall("given up") == Some(1) {
                        // MODE_SET is bit 17.
                        let byte = command.answered(RESULT + 2) & !2;
                        command.answers(RESULT + 2, &[byte]);
                    }
                })
            },
            was_reset: |at| {
                forget(at, &["given up"]);
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "wants_to_be_asked_before_it_takes_a_list",
        clauses: &[clause!(admin "D14")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    let note = of_group(command, QUERIED);
                    let queried = at.recall(note).unwrap_or(0) == 1;
                    at.remember("unasked", 0);
                    match command.opcode() {
                        opcode::LIST_QUERY => at.remember(note, 1),
                        opcode::LIST_USE if !queried => {
                            at.remember("unasked", 1);
                            command.stops();
                        }
                        _ => {}
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if at.recall("unasked") == Some(1) {
                        command.ends_in(status::EINVAL, qualifier::INVALID_FIELD);
                    }
                })
            },
            was_reset: |at| {
                forget(at, &QUERIED);
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "wants_all_of_a_command",
        clauses: &[clause!(adminq "D1"), clause!(adminq "D4")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if command.len() < 24 {
                        command.ends_in(status::EINVAL, qualifier::INVALID_COMMAND);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "writes_behind_a_short_buffer",
        clauses: &[clause!(adminq "D1")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if queries(command) && command.room() < 24 {
                        command.spills();
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "wants_nothing_behind_a_command",
        clauses: &[clause!(adminq "D2"), clause!(adminq "D4")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if command.opcode() == opcode::LIST_QUERY && command.len() > 24 {
                        command.ends_in(status::EINVAL, qualifier::INVALID_COMMAND);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "says_it_has_filled_a_long_buffer",
        clauses: &[clause!(adminq "D2")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if queries(command) && command.room() >= 4096 {
                        command.says_written(u32::try_from(command.room()).unwrap_or(0));
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "leaves_the_end_of_an_answer_out",
        clauses: &[clause!(adminq "D3")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if queries(command) && command.room() == 16 {
                        command.leaves(8, 16);
                        command.says_written(8);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "answers_in_bytes",
        clauses: &[clause!(adminq "D5")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if command.opcode() == opcode::DEVICE_CAP_GET && command.succeeded() {
                        command.leaves(10, 16);
                        command.says_written(10);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "leaves_a_qualifier_as_it_was",
        clauses: &[clause!(adminq "D6")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if command.codes().0 == status::ENXIO {
                        command.leaves(2, 4);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "lets_queries_overtake",
        clauses: &[clause!(adminq "D7")],
        defect: Defect {
            write: |at, access, _| {
                batch(at, access, |commands| {
                    for pair in commands.chunks_exact(2) {
                        if pair[1].opcode() == opcode::OBJ_QUERY_OR_MODIFY {
                            pair[0].swaps_with(&pair[1]);
                        }
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "loses_an_object_for_want_of_room",
        clauses: &[clause!(adminq "D9")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    let metadata = command.opcode() == opcode::PARTS_METADATA_GET;
                    let short = metadata && command.room() == 16;
                    at.remember("short", u64::from(short));
                    if short {
                        command.becomes(opcode::OBJ_DESTROY);
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if at.recall("short") == Some(1) {
                        command.ends_in(status::ENOMEM, 6);
                    }
                })
            },
            ..SOUND
        },
    },
];

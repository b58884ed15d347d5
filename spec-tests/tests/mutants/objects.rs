//! Mutants of capabilities and of resource objects.

use super::commands::{Command, RESULT, after, before, watch};
use super::frame::{Defect, Function, Mutant, SOUND};
use spec_tests::clause;
use spec_tests::constants::admin::{TO_SET, group, opcode, qualifier, status};

// MODIFY and QUERY are as in the prose here.
const MODIFY: u16 = opcode::OBJ_MODIFY_OR_QUERY;
const QUERY: u16 = opcode::OBJ_QUERY_OR_MODIFY;

fn note(at: &Function, name: &'static str) -> u64 {
    at.recall(name).unwrap_or(0)
}

/// The bit of an object in a number.
fn bit(command: &Command<'_>) -> u64 {
    1_u64.checked_shl(command.object()).unwrap_or(0)
}

/// Remembers which of the objects below number 64 exist, and how many there are of all.
fn follow(at: &Function, command: &Command<'_>) {
    if !command.succeeded() {
        return;
    }
    let (all, count) = (note(at, "objects"), note(at, "count"));
    match command.opcode() {
        opcode::OBJ_CREATE => {
            at.remember("objects", all | bit(command));
            at.remember("count", count + 1);
        }
        opcode::OBJ_DESTROY => {
            at.remember("objects", all & !bit(command));
            at.remember("count", count.saturating_sub(1));
        }
        _ => {}
    }
}

/// Keeps a command from being carried out, as one that [`ends`] gives other codes.
fn hold(at: &Function, command: &Command<'_>, (status, qualifier): (u16, u16)) {
    at.remember(
        "held",
        u64::from(status) << 16 | u64::from(qualifier) | 1 << 32,
    );
    command.stops();
}

/// Gives the command that was held its codes, if there is one.
fn ends(at: &Function, command: &Command<'_>) {
    let held = note(at, "held");
    at.remember("held", 0);
    if held != 0 {
        let half = |bits: u64| u16::try_from(bits & 0xffff).unwrap_or(0);
        command.ends_in(half(held >> 16), half(held));
    }
}

fn forget(at: &Function) {
    at.remember("kept", note(at, "kept") | note(at, "objects"));
    for name in ["objects", "count", "held", "destroyed"] {
        at.remember(name, 0);
    }
    at.remember("lives", note(at, "lives") + 1);
}

fn is_limit(command: &Command<'_>) -> bool {
    command.opcode() == opcode::DRIVER_CAP_SET && command.group() == group::SELF
}

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "failed_creation_destroys",
        clauses: &[clause!(admin "D7")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    let create = command.opcode() == opcode::OBJ_CREATE;
                    let doomed = create && note(at, "objects") & bit(command) != 0;
                    at.remember("doomed", u64::from(doomed));
                    if doomed {
                        command.becomes(opcode::OBJ_DESTROY);
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    follow(at, command);
                    if note(at, "doomed") == 1 {
                        command.ends_in(status::EEXIST, qualifier::INVALID_FIELD);
                    }
                })
            },
            was_reset: |at| {
                forget(at);
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "has_no_device_cap_get",
        clauses: &[clause!(capabilities "D1")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if command.opcode() == opcode::DEVICE_CAP_GET {
                        command.stops();
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    let query = command.opcode() == opcode::LIST_QUERY;
                    if query && command.group() == group::SELF {
                        let byte = command.answered(RESULT + 1) & !1;
                        command.answers(RESULT + 1, &[byte]);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "wants_both_limits_or_none",
        clauses: &[clause!(capabilities "D2")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if is_limit(command) && (command.data(8) == 0) != (command.data(9) == 0) {
                        hold(at, command, (status::EINVAL, qualifier::INVALID_FIELD));
                    }
                })
            },
            wrote: |at, access, _| after(at, access, |command| ends(at, command)),
            ..SOUND
        },
    },
    Mutant {
        name: "tells_capabilities_of_members",
        clauses: &[clause!(capabilities "D5"), clause!(capabilities "D6")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    let list = command.opcode() == opcode::CAP_ID_LIST_QUERY;
                    if list && command.group() == group::SR_IOV {
                        command.moves_to(group::SELF);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "says_it_disables_what_is_in_use",
        clauses: &[clause!(capabilities "D7")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if is_limit(command) && command.codes().0 == status::EBUSY {
                        command.ends_in(status::OK, qualifier::OK);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "calls_unknown_capabilities_invalid",
        clauses: &[clause!(capabilities "D8")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    let set = is_limit(command) || command.opcode() == opcode::DEVICE_CAP_GET;
                    if set && command.codes().0 == status::ENXIO {
                        command.ends_in(status::EINVAL, qualifier::INVALID_FIELD);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "keeps_limits_over_a_reset",
        clauses: &[clause!(capabilities "D9")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if is_limit(command) {
                        at.remember("set", note(at, "lives"));
                    }
                    let before = (1..note(at, "lives")).contains(&note(at, "set"));
                    if command.opcode() == opcode::OBJ_CREATE && before {
                        hold(at, command, (status::OK, qualifier::OK));
                    }
                })
            },
            wrote: |at, access, _| after(at, access, |command| ends(at, command)),
            was_reset: |at| {
                forget(at);
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "has_limits_that_nobody_set",
        clauses: &[clause!(capabilities "D10")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if is_limit(command) {
                        at.remember("set", 1);
                    }
                    let own = command.object() == 0 && command.member() == 1;
                    if command.opcode() == opcode::OBJ_CREATE && own && note(at, "set") == 0 {
                        hold(at, command, (status::OK, qualifier::OK));
                    }
                })
            },
            wrote: |at, access, _| after(at, access, |command| ends(at, command)),
            ..SOUND
        },
    },
    Mutant {
        name: "makes_objects_twice",
        clauses: &[clause!(objects "D1")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if command.codes().0 == status::EEXIST {
                        command.ends_in(status::OK, qualifier::OK);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "calls_unknown_objects_invalid",
        clauses: &[clause!(objects "D2")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    let about = [MODIFY, QUERY, opcode::OBJ_DESTROY].contains(&command.opcode());
                    if about && command.codes().0 == status::ENXIO {
                        command.ends_in(status::EINVAL, qualifier::INVALID_FIELD);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "has_no_memory_where_it_has_no_space",
        clauses: &[clause!(objects "D3")],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if command.codes().0 == status::ENOSPC {
                        command.ends_in(status::ENOMEM, 6);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "wears_out",
        clauses: &[clause!(objects "D5")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    let create = command.opcode() == opcode::OBJ_CREATE;
                    if create && note(at, "destroyed") > 4 {
                        hold(at, command, (status::ENOSPC, 6));
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    ends(at, command);
                    if command.opcode() == opcode::OBJ_DESTROY && command.succeeded() {
                        at.remember("destroyed", note(at, "destroyed") + 1);
                    }
                })
            },
            was_reset: |at| {
                forget(at);
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "wants_ids_in_their_order",
        clauses: &[clause!(objects "D6")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    let ahead = u64::from(command.object()) > note(at, "count") + 8;
                    if command.opcode() == opcode::OBJ_CREATE && ahead && command.object() < 64 {
                        hold(at, command, (status::EINVAL, qualifier::INVALID_FIELD));
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    ends(at, command);
                    follow(at, command);
                })
            },
            was_reset: |at| {
                forget(at);
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "has_half_of_what_it_says",
        clauses: &[clause!(objects "D8")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if command.opcode() == opcode::OBJ_CREATE && note(at, "count") >= 250 {
                        hold(at, command, (status::ENOSPC, 6));
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    ends(at, command);
                    follow(at, command);
                })
            },
            was_reset: |at| {
                forget(at);
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "loses_what_it_refuses_to_modify",
        clauses: &[clause!(objects "D9")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    let wrong = command.opcode() == MODIFY && command.data(16) > TO_SET;
                    at.remember("wrong", u64::from(wrong));
                    if wrong {
                        command.becomes(opcode::OBJ_DESTROY);
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if note(at, "wrong") == 1 {
                        command.ends_in(status::EINVAL, qualifier::INVALID_FIELD);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "answers_with_what_was_created",
        clauses: &[clause!(objects "D10")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if command.opcode() == MODIFY && command.object() == 2 {
                        hold(at, command, (status::OK, qualifier::OK));
                    }
                })
            },
            wrote: |at, access, _| after(at, access, |command| ends(at, command)),
            ..SOUND
        },
    },
    Mutant {
        name: "keeps_objects_over_a_reset",
        clauses: &[clause!(objects "D11")],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    let kept = note(at, "kept") & bit(command) != 0;
                    if command.opcode() == opcode::OBJ_CREATE && kept {
                        hold(at, command, (status::EEXIST, qualifier::INVALID_FIELD));
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    ends(at, command);
                    follow(at, command);
                })
            },
            was_reset: |at| {
                forget(at);
                Ok(())
            },
            ..SOUND
        },
    },
];

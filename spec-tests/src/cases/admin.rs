//! Group administration commands: their validation, their lists, their groups.

use super::{Case, special};
use crate::clause;
use crate::constants::admin::{group, opcode, qualifier, status};
use crate::constants::status as device;
use crate::harness::{Absent, Admin, Bench, Command, Judged, Stop, arose, demand, words};
use crate::target::Variant;
use std::collections::BTreeSet;

const GROUP: &str = clause!(admin "D1");
const OPCODE: &str = clause!(admin "D2");
const MEMBER: &str = clause!(admin "D3");
const SUCCESS: &str = clause!(admin "D4");
const FAILURE: &str = clause!(admin "D5");
const HARMLESS: &str = clause!(admin "D6");
const APART: &str = clause!(admin "D9");
const BEFORE: &str = clause!(admin "D10");
const ADOPTED: &str = clause!(admin "D11");
const OUTSIDE: &str = clause!(admin "D12");
const SHRINK: &str = clause!(admin "D13");
const AGAIN: &str = clause!(admin "D14");
const SR_IOV: &str = clause!(admin "D16");

pub(super) const CASES: &[Case] = &[
    special(
        "admin_groups_without_a_meaning_are_refused",
        &[GROUP, FAILURE],
        Variant::Owner,
        unknown_groups,
    ),
    special(
        "admin_opcodes_without_a_meaning_are_refused",
        &[OPCODE, OUTSIDE, FAILURE],
        Variant::Owner,
        unknown_opcodes,
    ),
    special(
        "admin_members_that_are_not_there_are_refused",
        &[MEMBER, SR_IOV, FAILURE],
        Variant::Owner,
        absent_members,
    ),
    special(
        "admin_commands_that_succeed_say_ok",
        &[SUCCESS],
        Variant::Owner,
        success,
    ),
    special(
        "admin_commands_that_are_invalid_change_nothing",
        &[HARMLESS],
        Variant::Owner,
        no_side_effects,
    ),
    special(
        "admin_groups_have_lists_of_their_own",
        &[APART],
        Variant::Owner,
        groups_apart,
    ),
    special(
        "admin_knows_only_lists_after_a_reset",
        &[BEFORE, OUTSIDE],
        Variant::Owner,
        only_lists,
    ),
    special(
        "admin_commands_in_use_are_those_that_were_given",
        &[ADOPTED, OUTSIDE],
        Variant::Owner,
        given_list,
    ),
    special(
        "admin_commands_do_not_become_fewer",
        &[SHRINK],
        Variant::Owner,
        no_shrinking,
    ),
    special(
        "admin_lists_are_taken_again_after_a_reset",
        &[AGAIN],
        Variant::Owner,
        list_again,
    ),
    special(
        "admin_has_no_members_without_virtual_functions",
        &[SR_IOV],
        Variant::Owner,
        no_functions,
    ),
    special(
        "admin_has_no_members_without_the_capability",
        &[SR_IOV],
        Variant::Admin,
        no_capability,
    ),
];

const NO_OPCODE: (u16, u16) = (status::EINVAL, qualifier::INVALID_OPCODE);
const NO_GROUP: (u16, u16) = (status::EINVAL, qualifier::INVALID_GROUP);
const NO_MEMBER: (u16, u16) = (status::EINVAL, qualifier::INVALID_MEMBER);
/// What every group has, and all that it has before a list is in use.
const LISTS: [u16; 2] = [opcode::LIST_QUERY, opcode::LIST_USE];

fn lists() -> BTreeSet<u16> {
    BTreeSet::from(LISTS)
}

/// Whether a group's command is in use: anything but "invalid opcode" is the answer. Without data
/// it asks for nothing.
fn legal(admin: &Admin<'_>, opcode: u16, group: u16) -> Result<bool, Stop> {
    let member = u64::from(group == group::SR_IOV);
    let answer = admin.run(&Command::new(opcode, group).about(member))?;
    Ok(answer.codes() != NO_OPCODE)
}

/// A command of a group beyond the lists that changes nothing where it has no data.
fn other(list: &BTreeSet<u16>) -> Result<u16, Stop> {
    let preferred = [opcode::CAP_ID_LIST_QUERY, opcode::PARTS_METADATA_GET];
    let preferred = preferred.into_iter().find(|opcode| list.contains(opcode));
    let any = list.iter().copied().find(|opcode| !LISTS.contains(opcode));
    let absent = Stop::NotApplicable(Absent::Command(opcode::CAP_ID_LIST_QUERY));
    preferred.or(any).ok_or(absent)
}

fn refused(
    admin: &Admin<'_>,
    clauses: &[&'static str],
    command: &Command,
    expected: (u16, u16),
    wants: &str,
) -> Result<(), Stop> {
    let codes = admin.run(command)?.codes();
    demand(clauses, codes == expected, wants, || {
        format!("status and qualifier {codes:?} for {command:x?}")
    })?;
    Ok(())
}

fn unknown_groups(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    admin.own(1, &[])?;
    for group in [group::RESERVED, 3, 0x7fff, 0xffff] {
        // What else is wrong with it says less.
        for (opcode, member) in [
            (opcode::LIST_QUERY, 0),
            (opcode::LIST_USE, 1),
            (opcode::UNASSIGNED, u64::MAX),
        ] {
            let command = Command::new(opcode, group).about(member);
            let wants = "EINVAL (22) and Q_INVALID_GROUP (4)";
            refused(&admin, &[GROUP, FAILURE], &command, NO_GROUP, wants)?;
        }
    }
    Ok(String::new())
}

fn unknown_opcodes(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    admin.own(1, &[])?;
    let mut tried = 0;
    for group in [group::SELF, group::SR_IOV] {
        let list = admin.supported(group)?;
        arose(legal(&admin, other(&list)?, group)?, || {
            "a command in use is none".to_owned()
        })?;
        for opcode in [0x12, opcode::UNASSIGNED, 0x7fff] {
            if list.contains(&opcode) {
                continue;
            }
            for member in [u64::from(group), u64::MAX] {
                let command = Command::new(opcode, group).about(member);
                let wants = "EINVAL (22) and Q_INVALID_OPCODE (2)";
                let clauses = [OPCODE, OUTSIDE, FAILURE];
                refused(&admin, &clauses, &command, NO_OPCODE, wants)?;
                tried += 1;
            }
        }
    }
    arose(tried > 0, || "every opcode has a meaning".to_owned())?;
    Ok(String::new())
}

fn absent_members(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    let total = bench.total_members()?;
    admin.own(total, &[])?;
    let uses = other(&admin.supported(group::SR_IOV)?)?;
    let command = |member| Command::new(uses, group::SR_IOV).about(member);
    for there in [total, 1] {
        bench.enable_members(there)?;
        // What is in use may have gone with the functions.
        admin.own(there, &[])?;
        for member in 1..=u64::from(there) {
            let codes = admin.run(&command(member))?.codes();
            demand(
                SR_IOV,
                codes != NO_MEMBER && codes != NO_GROUP,
                "members from 1 to NumVFs exist",
                || format!("{codes:?} for member {member} of {there}"),
            )?;
        }
        for member in [0, u64::from(there) + 1, 0x1_0000, 0x1_0000_0001, u64::MAX] {
            let wants = "EINVAL (22) and Q_INVALID_MEMBER (5)";
            let clauses = [MEMBER, SR_IOV, FAILURE];
            refused(&admin, &clauses, &command(member), NO_MEMBER, wants)?;
        }
    }
    Ok(format!("command {uses:#x}, {total} members at most"))
}

fn success(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    bench.enable_members(1)?;
    for group in [group::SELF, group::SR_IOV] {
        // It succeeded if it did what it is for.
        let query = admin.listed(Command::new(opcode::LIST_QUERY, group))?;
        let list = query.list();
        arose(list.is_superset(&lists()), || {
            format!("LIST_QUERY: {list:x?}")
        })?;
        let wants = "status OK (0) for what was carried out";
        demand(SUCCESS, query.is_ok(), wants, || {
            format!("LIST_QUERY of group {group} ends in {:?}", query.codes())
        })?;
        let adopt = Command::new(opcode::LIST_USE, group).with(words(&list));
        let used = admin.listed(adopt)?;
        let carried_out = legal(&admin, other(&list)?, group)?;
        arose(carried_out, || {
            format!("LIST_USE has no effect, {:?}", used.codes())
        })?;
        demand(SUCCESS, used.is_ok(), wants, || {
            format!("LIST_USE of group {group} ends in {:?}", used.codes())
        })?;
        let adopt = Command::new(opcode::LIST_USE, group).with(words(&lists()));
        let used = admin.listed(adopt)?;
        let carried_out = !legal(&admin, other(&list)?, group)?;
        arose(carried_out, || {
            format!("LIST_USE has no effect, {:?}", used.codes())
        })?;
        demand(SUCCESS, used.is_ok(), wants, || {
            let codes = used.codes();
            format!("LIST_USE of group {group} for lists alone ends in {codes:?}")
        })?;
    }
    Ok(String::new())
}

fn no_side_effects(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    admin.own(1, &[])?;
    let list = admin.supported(group::SELF)?;
    let probe = other(&list)?;
    let nothing = words(&lists());
    let mut unknown = lists();
    unknown.insert(opcode::UNASSIGNED);
    let invalid = [
        // Each would leave nothing but the lists in use, if it were carried out.
        Command::new(opcode::LIST_USE, group::RESERVED).with(nothing.clone()),
        Command::new(opcode::LIST_USE, 0x100).with(nothing.clone()),
        Command::new(opcode::UNASSIGNED, group::SELF).with(nothing.clone()),
        Command::new(opcode::UNASSIGNED | 1, group::SELF).with(nothing),
        Command::new(opcode::LIST_USE, group::SELF).with(words(&unknown)),
    ];
    for command in invalid {
        let codes = admin.run(&command)?.codes();
        arose(codes.0 == status::EINVAL, || {
            format!("{codes:?} for {command:x?}")
        })?;
        let same = admin.supported(group::SELF)? == list && legal(&admin, probe, group::SELF)?;
        demand(
            HARMLESS,
            same,
            "the same commands in use as before a command that ended in EINVAL",
            || format!("opcode {probe:#x} is not in use any more after {command:x?}"),
        )?;
        let shown = bench.status()?;
        demand(
            HARMLESS,
            shown == device::RUNNING,
            "no error state after a command that ended in EINVAL",
            || format!("device status {shown:#04x} after {command:x?}"),
        )?;
    }
    Ok(String::new())
}

fn groups_apart(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    bench.enable_members(1)?;
    let groups = [group::SELF, group::SR_IOV];
    let [own, of_members] = groups.map(|group| admin.supported(group));
    let all = [own?, of_members?];
    let probes = [other(&all[0])?, other(&all[1])?];
    // Every combination, by one change at a time.
    for (changed, full) in [(0, true), (1, true), (0, false), (1, false)] {
        let mut before = [false; 2];
        for (at, known) in before.iter_mut().enumerate() {
            *known = legal(&admin, probes[at], groups[at])?;
        }
        let list = if full { all[changed].clone() } else { lists() };
        admin.adopt(groups[changed], &list)?;
        for at in 0..2 {
            let now = legal(&admin, probes[at], groups[at])?;
            let expected = if at == changed { full } else { before[at] };
            demand(
                APART,
                now == expected,
                "LIST_USE of one group changes what is legal for that group alone",
                || {
                    let (used, group) = (groups[changed], groups[at]);
                    format!(
                        "after LIST_USE for group {used}, a command of group {group} is legal: {now}"
                    )
                },
            )?;
        }
    }
    Ok(String::new())
}

/// Nothing but the lists is legal.
fn nothing_else(admin: &Admin<'_>, when: &str) -> Result<(), Stop> {
    for group in [group::SELF, group::SR_IOV] {
        let query = admin.listed(Command::new(opcode::LIST_QUERY, group))?;
        demand(BEFORE, query.is_ok(), "LIST_QUERY is legal", || {
            format!("it ends in {:?} {when}", query.codes())
        })?;
        let list = query.list();
        arose(list.len() > 2, || format!("there is {list:x?} only"))?;
        for opcode in list.into_iter().filter(|opcode| !LISTS.contains(opcode)) {
            let member = u64::from(group == group::SR_IOV);
            let command = Command::new(opcode, group).about(member);
            let wants = "EINVAL (22) and Q_INVALID_OPCODE (2) before LIST_USE";
            refused(admin, &[BEFORE, OUTSIDE], &command, NO_OPCODE, wants)?;
        }
    }
    Ok(())
}

fn only_lists(bench: &Bench) -> Judged {
    for when in ["at first", "after a reset"] {
        let admin = bench.administer(0)?;
        bench.enable_members(1)?;
        nothing_else(&admin, when)?;
        for group in [group::SELF, group::SR_IOV] {
            let list = admin.adopt_all(group, &[])?;
            let legal = legal(&admin, other(&list)?, group)?;
            demand(BEFORE, legal, "LIST_USE is legal", || {
                format!("it makes nothing else legal {when}")
            })?;
        }
    }
    Ok(String::new())
}

fn given_list(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    bench.enable_members(1)?;
    let mut finer = 0;
    for group in [group::SELF, group::SR_IOV] {
        let all = admin.supported(group)?;
        let probe = other(&all)?;
        let rest = || all.iter().copied().filter(|opcode| !LISTS.contains(opcode));
        let mut given = vec![lists(), all.clone(), lists()];
        // Some of the commands without the others: what depends on another a device may refuse.
        given.extend(rest().map(|opcode| {
            let mut list = lists();
            list.insert(opcode);
            list
        }));
        given.push(BTreeSet::from([opcode::LIST_USE, probe]));
        for list in given {
            let words = words(&list);
            let answer = admin.listed(Command::new(opcode::LIST_USE, group).with(words))?;
            if answer.codes() == (status::EINVAL, qualifier::INVALID_FIELD)
                && list.len() < all.len()
            {
                continue;
            }
            arose(answer.is_ok(), || {
                format!("LIST_USE of {list:x?} ends in {:?}", answer.codes())
            })?;
            finer += usize::from(list.len() == 3);
            for opcode in all
                .iter()
                .copied()
                .filter(|opcode| *opcode != opcode::LIST_USE)
            {
                let member = u64::from(group == group::SR_IOV);
                let codes = admin
                    .run(&Command::new(opcode, group).about(member))?
                    .codes();
                let named = list.contains(&opcode);
                demand(
                    if named { ADOPTED } else { OUTSIDE },
                    (codes != NO_OPCODE) == named,
                    "what LIST_USE named is legal, all else ends in EINVAL and Q_INVALID_OPCODE",
                    || format!("{codes:?} for opcode {opcode:#x} with {list:x?} in use"),
                )?;
            }
        }
    }
    Ok(format!(
        "{finer} lists of one command beside the two of lists"
    ))
}

fn no_shrinking(bench: &Bench) -> Judged {
    let mut known: [BTreeSet<u16>; 2] = Default::default();
    let mut grown = false;
    for when in ["at first", "after a reset", "after a function level reset"] {
        if when == "after a function level reset" {
            bench.function_reset()?;
        }
        let admin = bench.administer(0)?;
        bench.enable_members(1)?;
        for (group, known) in [group::SELF, group::SR_IOV].into_iter().zip(&mut known) {
            for list in [None, Some(lists()), None] {
                if let Some(list) = list {
                    admin.adopt(group, &list)?;
                }
                let now = admin.supported(group)?;
                arose(now.len() > 2, || format!("there is {now:x?} only"))?;
                demand(
                    SHRINK,
                    known.is_subset(&now),
                    "all that was ever reported as supported",
                    || format!("{now:x?} {when} for group {group}, {known:x?} before"),
                )?;
                grown |= !known.is_empty() && known.len() < now.len();
                known.extend(now);
            }
        }
    }
    Ok(format!("it expands: {grown}"))
}

fn list_again(bench: &Bench) -> Judged {
    let mut used: [Option<BTreeSet<u16>>; 2] = Default::default();
    for when in ["at first", "after a reset", "after a function level reset"] {
        if when == "after a function level reset" {
            bench.function_reset()?;
        }
        let admin = bench.administer(0)?;
        bench.enable_members(1)?;
        for (group, used) in [group::SELF, group::SR_IOV].into_iter().zip(&mut used) {
            let Some(list) = used else {
                *used = Some(admin.adopt_all(group, &[])?);
                continue;
            };
            let words = words(list);
            let answer = admin.listed(Command::new(opcode::LIST_USE, group).with(words))?;
            let codes = answer.codes();
            demand(AGAIN, answer.is_ok(), "the same list is taken", || {
                format!("{codes:?} for {list:x?} {when}")
            })?;
        }
    }
    Ok(String::new())
}

fn no_functions(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    bench.enable_members(1)?;
    let list = admin.adopt_all(group::SR_IOV, &[])?;
    bench.enable_members(0)?;
    for opcode in list {
        let command = Command::new(opcode, group::SR_IOV).about(1);
        let wants = "EINVAL (22) and Q_INVALID_GROUP (4) while VF Enable is clear";
        refused(&admin, &[SR_IOV], &command, NO_GROUP, wants)?;
    }
    bench.enable_members(1)?;
    let back = admin.listed(Command::new(opcode::LIST_QUERY, group::SR_IOV))?;
    arose(back.is_ok(), || {
        format!("{:?} with VF Enable set again", back.codes())
    })?;
    Ok(String::new())
}

fn no_capability(bench: &Bench) -> Judged {
    if bench.caps.sr_iov.is_some() {
        return Err(Stop::NotApplicable(Absent::Variant(Variant::Admin)));
    }
    let admin = bench.administer(0)?;
    let list = admin.adopt_all(group::SELF, &[])?;
    for opcode in list {
        let command = Command::new(opcode, group::SR_IOV).about(1);
        let wants = "EINVAL (22) and Q_INVALID_GROUP (4) without an SR-IOV capability";
        refused(&admin, &[SR_IOV], &command, NO_GROUP, wants)?;
    }
    Ok(String::new())
}

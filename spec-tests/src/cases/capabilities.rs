//! Capabilities: what the device reports, and what the driver sets of it.

use super::objects::{objects, purpose, status_of};
use super::{Case, special};
use crate::clause;
use crate::constants::admin::{DEV_PARTS, TO_GET, TO_SET, group, opcode, status};
use crate::harness::objects::{create, destroy, limit, selector};
use crate::harness::{Absent, Admin, Bench, Command, Judged, Stop, arose, demand};
use crate::target::Variant;
use std::collections::BTreeSet;

const COMMANDS: &str = clause!(capabilities "D1");
const LIMITS: &str = clause!(capabilities "D2");
const SELF: &str = clause!(capabilities "D5");
const SELF_TOO: &str = clause!(capabilities "D6");
const BUSY: &str = clause!(capabilities "D7");
const UNKNOWN: &str = clause!(capabilities "D8");
const RESET: &str = clause!(capabilities "D9");
const UNSET: &str = clause!(capabilities "D10");
const UNAFFECTED: &str = clause!(admin "D7");

pub(super) const CASES: &[Case] = &[
    special(
        "capabilities_come_with_three_commands",
        &[COMMANDS],
        Variant::Owner,
        three_commands,
    ),
    special(
        "capabilities_may_be_used_in_part",
        &[LIMITS],
        Variant::Owner,
        in_part,
    ),
    special(
        "capabilities_are_of_the_self_group",
        &[SELF, SELF_TOO],
        Variant::Owner,
        self_group,
    ),
    special(
        "capabilities_with_objects_are_busy",
        &[BUSY, UNAFFECTED],
        Variant::Owner,
        busy,
    ),
    special(
        "capabilities_that_are_not_reported_are_unknown",
        &[UNKNOWN],
        Variant::Owner,
        unknown_capability,
    ),
    special(
        "capabilities_are_unset_by_a_reset",
        &[RESET, UNSET],
        Variant::Owner,
        unset_by_reset,
    ),
];

const THREE: [u16; 3] = [
    opcode::CAP_ID_LIST_QUERY,
    opcode::DEVICE_CAP_GET,
    opcode::DRIVER_CAP_SET,
];

fn get(id: u16) -> Command {
    Command::new(opcode::DEVICE_CAP_GET, group::SELF).with(selector(id))
}

/// Most objects of each purpose that the device allows.
pub(super) fn limits(admin: &Admin<'_>) -> Result<[u8; 2], Stop> {
    let answer = admin.must(&get(DEV_PARTS))?;
    let byte = |at: usize| answer.result().get(at).copied().unwrap_or(0);
    Ok([byte(0), byte(1)])
}

/// Ids of all capabilities that the device reports.
fn reported(admin: &Admin<'_>) -> Result<BTreeSet<u16>, Stop> {
    let answer = admin.must(&Command::new(opcode::CAP_ID_LIST_QUERY, group::SELF))?;
    if answer.result().is_empty() {
        // By the letter the list of id 0 alone has no words.
        return Ok(BTreeSet::from([DEV_PARTS]));
    }
    Ok(answer.list())
}

fn three_commands(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    admin.own(1, &[])?;
    let list = admin.supported(group::SELF)?;
    let there: Vec<u16> = THREE
        .into_iter()
        .filter(|code| list.contains(code))
        .collect();
    if there.is_empty() {
        return Err(Stop::NotApplicable(Absent::Command(THREE[0])));
    }
    demand(
        COMMANDS,
        there.len() == 3,
        "CAP_ID_LIST_QUERY, DEVICE_CAP_GET and DRIVER_CAP_SET are supported",
        || format!("of these three only {there:x?}"),
    )?;
    let ids = reported(&admin)?;
    for id in &ids {
        let has = admin.run(&get(*id))?;
        demand(
            COMMANDS,
            has.is_ok(),
            "DEVICE_CAP_GET is carried out",
            || format!("it ends in {:?} for capability {id:#x}", has.codes()),
        )?;
        let mut data = selector(*id);
        data.extend(has.result());
        let set = Command::new(opcode::DRIVER_CAP_SET, group::SELF).with(data);
        let codes = admin.run(&set)?.codes();
        demand(
            COMMANDS,
            codes.0 == status::OK,
            "DRIVER_CAP_SET takes what DEVICE_CAP_GET has said",
            || format!("it ends in {codes:?} for capability {id:#x}"),
        )?;
    }
    Ok(format!("capabilities {ids:x?}"))
}

fn in_part(bench: &Bench) -> Judged {
    let admin = objects(bench, 0, 0)?;
    let [most_get, most_set] = limits(&admin)?;
    arose(most_get > 0 && most_set > 0, || {
        format!("the device allows {most_get} and {most_set} objects")
    })?;
    let less_get = u8::try_from(bench.random(u64::from(most_get))).unwrap_or(0);
    for (gets, sets) in [
        (most_get, most_set),
        (less_get, most_set),
        (most_get, 0),
        (0, most_set),
        (1, 1),
        (0, 0),
    ] {
        let codes = admin.run(&limit(gets, sets))?.codes();
        demand(
            LIMITS,
            codes.0 == status::OK,
            "limits up to the device's are taken",
            || format!("{codes:?} for {gets} and {sets} of {most_get} and {most_set}"),
        )?;
        // They are in force.
        let made = status_of(&admin, &create(1, 0, TO_GET))?;
        demand(
            LIMITS,
            (made == status::OK) == (gets > 0),
            "the limit that was set is in force",
            || format!("with {gets} objects allowed, making one ends in {made}"),
        )?;
        if made == status::OK {
            admin.must(&destroy(1, 0))?;
        }
    }
    Ok(format!("limits {most_get} and {most_set}"))
}

fn self_group(bench: &Bench) -> Judged {
    let admin = objects(bench, 1, 1)?;
    let commands = [
        Command::new(opcode::CAP_ID_LIST_QUERY, group::SELF),
        get(DEV_PARTS),
        limit(1, 1),
    ];
    for command in commands {
        admin.must(&command)?;
        for group in [group::SR_IOV, group::RESERVED] {
            let elsewhere = Command {
                group,
                ..command.clone()
            };
            let codes = admin.run(&elsewhere.about(1))?.codes();
            demand(
                [SELF, SELF_TOO],
                codes.0 == status::EINVAL,
                "EINVAL (22) for capabilities of another group than the function itself",
                || {
                    format!(
                        "{codes:?} for command {:#x} to group {group}",
                        command.opcode
                    )
                },
            )?;
        }
    }
    Ok(String::new())
}

fn busy(bench: &Bench) -> Judged {
    let admin = objects(bench, 2, 2)?;
    let reading = admin.reading(0)?;
    admin.must(&create(1, 0, TO_GET))?;
    admin.must(&create(1, 1, TO_SET))?;
    let codes = admin.run(&limit(0, 0))?.codes();
    demand(
        BUSY,
        codes.0 == status::EBUSY,
        "EBUSY (16) while objects of the capability exist",
        || format!("{codes:?}"),
    )?;
    for id in 0..2 {
        let there = purpose(&admin, reading, id)?;
        demand(
            UNAFFECTED,
            there.is_some(),
            "the objects are there still",
            || format!("object {id} is not"),
        )?;
    }
    let more = status_of(&admin, &create(1, 2, TO_GET))?;
    demand(
        UNAFFECTED,
        more == status::OK,
        "the limits are those of before",
        || format!("another object within them ends in {more}"),
    )?;
    for id in 0..3 {
        admin.must(&destroy(1, id))?;
    }
    let codes = admin.run(&limit(0, 0))?.codes();
    demand(
        BUSY,
        codes.0 == status::OK,
        "OK (0) when no objects are left",
        || format!("{codes:?}"),
    )?;
    Ok(String::new())
}

fn unknown_capability(bench: &Bench) -> Judged {
    let admin = objects(bench, 1, 1)?;
    let ids = reported(&admin)?;
    let candidates = [1, 0x3f, 0x40, 0x7ff, 0x800, 0xfff, 0xffff];
    let mut unknown = candidates
        .into_iter()
        .filter(|id| !ids.contains(id))
        .peekable();
    arose(unknown.peek().is_some(), || {
        "every capability is reported".to_owned()
    })?;
    for id in unknown {
        let mut data = selector(id);
        data.extend([0; 8]);
        let set = Command::new(opcode::DRIVER_CAP_SET, group::SELF).with(data);
        for command in [get(id), set] {
            let codes = admin.run(&command)?.codes();
            demand(
                UNKNOWN,
                codes.0 == status::ENXIO,
                "ENXIO (6) for a capability that is not reported",
                || {
                    format!(
                        "{codes:?} for command {:#x}, capability {id:#x}",
                        command.opcode
                    )
                },
            )?;
        }
    }
    Ok(String::new())
}

fn unset_by_reset(bench: &Bench) -> Judged {
    // A fresh function has never been told.
    for (when, clauses) in [
        ("before it is set", &[UNSET] as &[_]),
        ("after a reset", &[RESET, UNSET]),
    ] {
        let admin = bench.administer(0)?;
        admin.own(1, &[opcode::OBJ_CREATE, opcode::OBJ_DESTROY])?;
        for purpose in [TO_GET, TO_SET] {
            let codes = admin.run(&create(1, 0, purpose))?.codes();
            demand(
                clauses,
                codes.0 != status::OK,
                "a limit of 0 where none was set",
                || format!("an object of purpose {purpose} is made {when}"),
            )?;
        }
        admin.must(&limit(2, 2))?;
        admin.must(&create(1, 0, TO_GET))?;
        admin.must(&destroy(1, 0))?;
    }
    Ok(String::new())
}

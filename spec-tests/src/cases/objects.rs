//! Capabilities, and the resource objects that they allow.

use super::{Case, special};
use crate::clause;
use crate::constants::admin::{DEV_PARTS, TO_GET, TO_SET, group, opcode, status};
use crate::harness::objects::{Reading, create, destroy, limit, selector};
use crate::harness::{Absent, Admin, Bench, Command, Judged, Stop, arose, demand};
use crate::target::Variant;
use std::collections::BTreeSet;

const CAP_COMMANDS: &str = clause!(capabilities "D1");
const CAP_LIMITS: &str = clause!(capabilities "D2");
const CAP_SELF: &str = clause!(capabilities "D5");
const CAP_SELF_TOO: &str = clause!(capabilities "D6");
const CAP_BUSY: &str = clause!(capabilities "D7");
const CAP_UNKNOWN: &str = clause!(capabilities "D8");
const CAP_RESET: &str = clause!(capabilities "D9");
const CAP_UNSET: &str = clause!(capabilities "D10");
const EXISTS: &str = clause!(objects "D1");
const ABSENT: &str = clause!(objects "D2");
const FULL: &str = clause!(objects "D3");
const ANEW: &str = clause!(objects "D5");
const ANY_ID: &str = clause!(objects "D6");
const AS_MANY: &str = clause!(objects "D8");
const UNCHANGED: &str = clause!(objects "D9");
const ANSWERED: &str = clause!(objects "D10");
const DESTROYED: &str = clause!(objects "D11");
const UNAFFECTED: &str = clause!(admin "D7");
const HARMLESS: &str = clause!(admin "D6");

pub(super) const CASES: &[Case] = &[
    special(
        "capabilities_come_with_three_commands",
        &[CAP_COMMANDS],
        Variant::Owner,
        three_commands,
    ),
    special(
        "capabilities_may_be_used_in_part",
        &[CAP_LIMITS],
        Variant::Owner,
        in_part,
    ),
    special(
        "capabilities_are_of_the_self_group",
        &[CAP_SELF, CAP_SELF_TOO],
        Variant::Owner,
        self_group,
    ),
    special(
        "capabilities_with_objects_are_busy",
        &[CAP_BUSY, UNAFFECTED],
        Variant::Owner,
        busy,
    ),
    special(
        "capabilities_that_are_not_reported_are_unknown",
        &[CAP_UNKNOWN],
        Variant::Owner,
        unknown_capability,
    ),
    special(
        "capabilities_are_unset_by_a_reset",
        &[CAP_RESET, CAP_UNSET],
        Variant::Owner,
        unset_by_reset,
    ),
    special(
        "objects_cannot_be_made_twice",
        &[EXISTS, UNAFFECTED],
        Variant::Owner,
        twice,
    ),
    special(
        "objects_that_do_not_exist_are_unknown",
        &[ABSENT, UNAFFECTED],
        Variant::Owner,
        unknown_object,
    ),
    special(
        "objects_beyond_the_limit_find_no_space",
        &[FULL, UNAFFECTED],
        Variant::Owner,
        no_space,
    ),
    special(
        "objects_can_be_made_anew",
        &[ANEW],
        Variant::Owner,
        made_anew,
    ),
    special(
        "objects_take_any_free_id",
        &[ANY_ID],
        Variant::Owner,
        any_id,
    ),
    special(
        "objects_are_as_many_as_the_capability_says",
        &[AS_MANY],
        Variant::Owner,
        as_many,
    ),
    special(
        "objects_are_left_alone_by_what_fails",
        &[UNCHANGED, HARMLESS],
        Variant::Owner,
        left_alone,
    ),
    special(
        "objects_are_what_was_written_last",
        &[ANSWERED],
        Variant::Owner,
        written_last,
    ),
    special(
        "objects_are_destroyed_by_a_reset",
        &[DESTROYED],
        Variant::Owner,
        destroyed_by_reset,
    ),
];

const THREE: [u16; 3] = [
    opcode::CAP_ID_LIST_QUERY,
    opcode::DEVICE_CAP_GET,
    opcode::DRIVER_CAP_SET,
];

/// A device with one member and with objects; so many of each purpose are allowed.
fn objects(bench: &Bench, get: u8, set: u8) -> Result<Admin<'_>, Stop> {
    let admin = bench.administer(0)?;
    admin.with_objects(1, get, set)?;
    Ok(admin)
}

fn status_of(admin: &Admin<'_>, command: &Command) -> Result<u16, Stop> {
    Ok(admin.run(command)?.codes().0)
}

/// The purpose of an object of member 1, if it exists.
fn purpose(admin: &Admin<'_>, reading: Reading, id: u32) -> Result<Option<u8>, Stop> {
    let answer = admin.run(&reading.query(1, id))?;
    Ok(answer.is_ok().then(|| Reading::purpose(&answer)).flatten())
}

fn get(id: u16) -> Command {
    Command::new(opcode::DEVICE_CAP_GET, group::SELF).with(selector(id))
}

/// Most objects of each purpose that the device allows.
fn limits(admin: &Admin<'_>) -> Result<[u8; 2], Stop> {
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
        CAP_COMMANDS,
        there.len() == 3,
        "CAP_ID_LIST_QUERY, DEVICE_CAP_GET and DRIVER_CAP_SET are supported",
        || format!("of these three only {there:x?}"),
    )?;
    let ids = reported(&admin)?;
    for id in &ids {
        let has = admin.run(&get(*id))?;
        demand(
            CAP_COMMANDS,
            has.is_ok(),
            "DEVICE_CAP_GET is carried out",
            || format!("it ends in {:?} for capability {id:#x}", has.codes()),
        )?;
        let mut data = selector(*id);
        data.extend(has.result());
        let set = Command::new(opcode::DRIVER_CAP_SET, group::SELF).with(data);
        let codes = admin.run(&set)?.codes();
        demand(
            CAP_COMMANDS,
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
            CAP_LIMITS,
            codes.0 == status::OK,
            "limits up to the device's are taken",
            || format!("{codes:?} for {gets} and {sets} of {most_get} and {most_set}"),
        )?;
        // They are in force.
        let made = status_of(&admin, &create(1, 0, TO_GET))?;
        demand(
            CAP_LIMITS,
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
                [CAP_SELF, CAP_SELF_TOO],
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
        CAP_BUSY,
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
        CAP_BUSY,
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
                CAP_UNKNOWN,
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
        ("before it is set", &[CAP_UNSET] as &[_]),
        ("after a reset", &[CAP_RESET, CAP_UNSET]),
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

fn twice(bench: &Bench) -> Judged {
    let admin = objects(bench, 4, 4)?;
    let reading = admin.reading(0)?;
    admin.must(&create(1, 2, TO_GET))?;
    for other in [TO_GET, TO_SET] {
        let codes = admin.run(&create(1, 2, other))?.codes();
        demand(
            EXISTS,
            codes.0 == status::EEXIST,
            "EEXIST (17) for an id that exists",
            || format!("{codes:?}"),
        )?;
        let now = purpose(&admin, reading, 2)?;
        demand(
            UNAFFECTED,
            now == Some(TO_GET),
            "the object is what it was",
            || format!("its purpose is {now:?}"),
        )?;
    }
    Ok(String::new())
}

fn unknown_object(bench: &Bench) -> Judged {
    let admin = objects(bench, 4, 4)?;
    let reading = admin.reading(0)?;
    admin.must(&create(1, 1, TO_GET))?;
    admin.must(&create(1, 3, TO_GET))?;
    admin.must(&destroy(1, 3))?;
    // Never made, and made and destroyed.
    for id in [0, 3] {
        for command in [
            reading.modify(1, id, TO_GET),
            reading.query(1, id),
            destroy(1, id),
        ] {
            let codes = admin.run(&command)?.codes();
            demand(
                ABSENT,
                codes.0 == status::ENXIO,
                "ENXIO (6) for an object that does not exist",
                || format!("{codes:?} for command {:#x}, object {id}", command.opcode),
            )?;
        }
    }
    let now = purpose(&admin, reading, 1)?;
    demand(
        UNAFFECTED,
        now == Some(TO_GET),
        "the other object is what it was",
        || format!("its purpose is {now:?}"),
    )?;
    Ok(reading.name().to_owned())
}

fn no_space(bench: &Bench) -> Judged {
    let admin = objects(bench, 2, 2)?;
    let reading = admin.reading(0)?;
    for id in 0..2 {
        admin.must(&create(1, id, TO_GET))?;
    }
    let codes = admin.run(&create(1, 2, TO_GET))?.codes();
    demand(
        FULL,
        codes.0 == status::ENOSPC,
        "ENOSPC (28) for one object more than may be",
        || format!("{codes:?}"),
    )?;
    for (id, expected) in [(0, Some(TO_GET)), (1, Some(TO_GET)), (2, None)] {
        let now = purpose(&admin, reading, id)?;
        demand(
            UNAFFECTED,
            now == expected,
            "those that exist stay, and no other comes",
            || format!("the purpose of object {id} is {now:?}"),
        )?;
    }
    // Another purpose has a limit of its own.
    let other = status_of(&admin, &create(1, 2, TO_SET))?;
    arose(other == status::OK, || {
        format!("an object within its limit ends in {other}")
    })?;
    Ok(String::new())
}

fn made_anew(bench: &Bench) -> Judged {
    let admin = objects(bench, 1, 1)?;
    for round in 0..8 {
        let purpose = [TO_GET, TO_SET][round % 2];
        let codes = admin.run(&create(1, 0, purpose))?.codes();
        if round == 0 {
            arose(codes.0 == status::OK, || format!("{codes:?} at first"))?;
        }
        demand(
            ANEW,
            codes.0 == status::OK,
            "an object that was destroyed is made again",
            || format!("{codes:?} for time {}", round + 1),
        )?;
        admin.must(&destroy(1, 0))?;
    }
    Ok(String::new())
}

fn any_id(bench: &Bench) -> Judged {
    let admin = objects(bench, 8, 8)?;
    let mut free: Vec<u32> = (0..16).collect();
    // In an order of chance, half of each purpose.
    let mut made = 0;
    while !free.is_empty() {
        let chosen = bench.random(u64::try_from(free.len()).unwrap_or(1));
        let id = free.swap_remove(usize::try_from(chosen).unwrap_or(0));
        let purpose = if made < 8 { TO_GET } else { TO_SET };
        let codes = admin.run(&create(1, id, purpose))?.codes();
        demand(
            ANY_ID,
            codes.0 == status::OK,
            "any id below the limit that is not in use",
            || format!("{codes:?} for id {id}, {made} in use"),
        )?;
        made += 1;
    }
    Ok(String::new())
}

fn as_many(bench: &Bench) -> Judged {
    let admin = objects(bench, 0, 0)?;
    let [gets, sets] = limits(&admin)?;
    admin.must(&limit(gets, sets))?;
    let mut id = 0;
    for (purpose, count) in [(TO_GET, gets), (TO_SET, sets)] {
        for made in 0..count {
            let codes = admin.run(&create(1, id, purpose))?.codes();
            demand(
                AS_MANY,
                codes.0 == status::OK,
                "as many objects as the driver capability says",
                || format!("{codes:?} after {made} of {count} of purpose {purpose}"),
            )?;
            id += 1;
        }
    }
    arose(id > 1, || format!("{id} objects are allowed"))?;
    Ok(format!("{id} objects"))
}

fn left_alone(bench: &Bench) -> Judged {
    let admin = objects(bench, 2, 1)?;
    let reading = admin.reading(0)?;
    admin.must(&create(1, 0, TO_GET))?;
    admin.must(&create(1, 1, TO_SET))?;
    // A purpose that there is not, and one of which there are as many as may be.
    for wrong in [9, TO_SET] {
        let codes = admin.run(&reading.modify(1, 0, wrong))?.codes();
        arose(codes.0 != status::OK, || {
            format!("MODIFY to purpose {wrong} succeeds")
        })?;
        let now = purpose(&admin, reading, 0)?;
        let clauses: &[_] = if codes.0 == status::EINVAL {
            &[UNCHANGED, HARMLESS]
        } else {
            &[UNCHANGED]
        };
        demand(
            clauses,
            now == Some(TO_GET),
            "an object is what it was before a MODIFY that failed",
            || format!("its purpose is {now:?} after {codes:?}"),
        )?;
    }
    Ok(reading.name().to_owned())
}

fn written_last(bench: &Bench) -> Judged {
    let admin = objects(bench, 4, 4)?;
    let reading = admin.reading(0)?;
    for (id, made) in [(0, TO_GET), (1, TO_SET), (2, TO_GET)] {
        admin.must(&create(1, id, made))?;
        let now = purpose(&admin, reading, id)?;
        demand(
            ANSWERED,
            now == Some(made),
            "what the last CREATE or MODIFY wrote",
            || format!("object {id} has {now:?} after CREATE with {made}"),
        )?;
        for wanted in [TO_SET, TO_GET, TO_SET, TO_SET, TO_GET] {
            admin.must(&reading.modify(1, id, wanted))?;
            let now = purpose(&admin, reading, id)?;
            demand(
                ANSWERED,
                now == Some(wanted),
                "what the last CREATE or MODIFY wrote",
                || format!("object {id} has {now:?} after MODIFY with {wanted}"),
            )?;
        }
    }
    Ok(reading.name().to_owned())
}

fn destroyed_by_reset(bench: &Bench) -> Judged {
    let admin = objects(bench, 4, 4)?;
    let reading = admin.reading(0)?;
    for (id, purpose) in [(1, TO_GET), (2, TO_SET)] {
        admin.must(&create(1, id, purpose))?;
    }
    bench.reset()?;
    let admin = objects(bench, 4, 4)?;
    for id in [1, 2] {
        let now = purpose(&admin, reading, id)?;
        demand(DESTROYED, now.is_none(), "no object after a reset", || {
            format!("object {id} has purpose {now:?}")
        })?;
        let codes = admin.run(&create(1, id, TO_GET))?.codes();
        demand(DESTROYED, codes.0 == status::OK, "its id is free", || {
            format!("making object {id} ends in {codes:?}")
        })?;
    }
    Ok(String::new())
}

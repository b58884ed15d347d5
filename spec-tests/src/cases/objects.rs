//! Resource objects, by those through which members' parts are had and set.

use super::capabilities::limits;
use super::{Case, special};
use crate::clause;
use crate::constants::admin::{TO_GET, TO_SET, status};
use crate::harness::objects::{Reading, create, destroy, limit};
use crate::harness::{Admin, Bench, Command, Judged, Stop, arose, demand};
use crate::target::Variant;

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
        "objects_are_what_was_written_last_by_the_table",
        &[ANSWERED],
        Variant::TableOpcodes,
        written_last,
    ),
    special(
        "objects_are_destroyed_by_a_reset",
        &[DESTROYED],
        Variant::Owner,
        destroyed_by_reset,
    ),
];

/// A device with one member and with objects; so many of each purpose are allowed.
pub(super) fn objects(bench: &Bench, get: u8, set: u8) -> Result<Admin<'_>, Stop> {
    let admin = bench.administer(0)?;
    admin.with_objects(1, get, set)?;
    Ok(admin)
}

pub(super) fn status_of(admin: &Admin<'_>, command: &Command) -> Result<u16, Stop> {
    Ok(admin.run(command)?.codes().0)
}

/// The purpose of an object of member 1, if it exists.
pub(super) fn purpose(admin: &Admin<'_>, reading: Reading, id: u32) -> Result<Option<u8>, Stop> {
    let answer = admin.run(&reading.query(1, id))?;
    Ok(answer.is_ok().then(|| Reading::purpose(&answer)).flatten())
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

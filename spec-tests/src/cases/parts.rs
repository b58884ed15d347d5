//! Device parts: having them, setting them, and in what order they come.

use super::{Case, special};
use crate::clause;
use crate::constants::admin::{group, opcode, qualifier, status};
use crate::constants::parts::{
    COMMON_CFG, DEV_CFG, DEV_FEATURES, DRV_FEATURES, OPTIONAL, UNKNOWN, VQ_CFG, rank,
};
use crate::constants::reg;
use crate::harness::{Absent, Bench, Command, Judged, Owned, Part, Stop, arose, demand};
use crate::target::Variant;

const ALL_OR_NONE: &str = clause!(parts "D1");
const GET_AGAIN: &str = clause!(parts "D2");
const ORDER: &str = clause!(parts "D3");
const SET_STOPPED: &str = clause!(parts "D4");
const SET_AGAIN: &str = clause!(parts "D5");
const LENGTHS: &str = clause!(parts "D6");
const FEATURES: &str = clause!(parts "D7");
const DEFAULTS: &str = clause!(parts "D22");
const DEVICE_FIRST: &str = clause!(parts "D24");
const DEVICE_BEFORE_COMMON: &str = clause!(parts "D25");
const BOTH_BEFORE_COMMON: &str = clause!(parts "D26");
const DEVICE_BEFORE_CONFIG: &str = clause!(parts "D27");
const VERIFIED: &str = clause!(parts "D28");
const UNCHANGED: &str = clause!(admin "D6");

const fn owner(
    name: &'static str,
    clauses: &'static [&'static str],
    run: fn(&Bench) -> Judged,
) -> Case {
    special(name, clauses, Variant::Owner, run)
}

pub(super) const CASES: &[Case] = &[
    owner(
        "parts_have_all_their_commands_or_none",
        &[ALL_OR_NONE],
        all_or_none,
    ),
    owner(
        "parts_are_had_as_often_as_one_likes",
        &[GET_AGAIN],
        get_again,
    ),
    owner("parts_come_in_the_order_of_the_table", &[ORDER], order),
    owner(
        "features_of_the_device_come_before_the_drivers",
        &[DEVICE_FIRST],
        |bench| {
            precedes(
                &Owned::new(bench)?,
                DEVICE_FIRST,
                DRV_FEATURES,
                &[DEV_FEATURES],
            )
        },
    ),
    owner(
        "features_of_the_device_come_before_the_common_configuration",
        &[DEVICE_BEFORE_COMMON],
        |bench| {
            precedes(
                &Owned::new(bench)?,
                DEVICE_BEFORE_COMMON,
                COMMON_CFG,
                &[DEV_FEATURES],
            )
        },
    ),
    owner(
        "features_of_both_come_before_the_common_configuration",
        &[BOTH_BEFORE_COMMON],
        |bench| {
            let both = [DEV_FEATURES, DRV_FEATURES];
            precedes(&Owned::new(bench)?, BOTH_BEFORE_COMMON, COMMON_CFG, &both)
        },
    ),
    owner(
        "features_of_the_device_come_before_its_configuration",
        &[DEVICE_BEFORE_CONFIG],
        before_config,
    ),
    owner(
        "parts_of_a_running_member_are_not_set",
        &[SET_STOPPED],
        set_running,
    ),
    owner(
        "parts_are_set_as_often_as_one_likes",
        &[SET_AGAIN],
        set_again,
    ),
    owner("a_part_of_another_length_is_refused", &[LENGTHS], lengths),
    owner(
        "features_of_the_device_are_compared_and_not_set",
        &[FEATURES],
        features,
    ),
    owner("what_is_read_only_is_not_set", &[VERIFIED], read_only),
    owner(
        "parts_that_are_refused_change_nothing",
        &[UNCHANGED],
        refused,
    ),
    owner(
        "a_reset_brings_parts_back_to_default",
        &[DEFAULTS],
        |bench| defaults(bench, Bench::reset),
    ),
    owner(
        "a_function_level_reset_brings_parts_back_to_default",
        &[DEFAULTS],
        |bench| defaults(bench, Bench::function_reset),
    ),
];

fn all_or_none(bench: &Bench) -> Judged {
    const ALL: [u16; 8] = [
        opcode::OBJ_CREATE,
        opcode::OBJ_MODIFY_OR_QUERY,
        opcode::OBJ_QUERY_OR_MODIFY,
        opcode::OBJ_DESTROY,
        opcode::PARTS_METADATA_GET,
        opcode::PARTS_GET,
        opcode::PARTS_SET,
        opcode::MODE_SET,
    ];
    let owned = Owned::with(bench, &[])?;
    let reported = owned.admin.supported(group::SR_IOV)?;
    let there: Vec<u16> = ALL
        .into_iter()
        .filter(|opcode| reported.contains(opcode))
        .collect();
    demand(
        ALL_OR_NONE,
        there.is_empty() || there.len() == ALL.len(),
        "all commands of parts reported, or none",
        || format!("{there:#x?} are reported"),
    )?;
    if there.is_empty() {
        return Err(Stop::NotApplicable(Absent::Command(opcode::PARTS_GET)));
    }
    for opcode in there {
        let command = Command::new(opcode, group::SR_IOV).about(1);
        let codes = owned.admin.run(&command.with([0; 24]))?.codes();
        demand(
            ALL_OR_NONE,
            codes != (status::EINVAL, qualifier::INVALID_OPCODE),
            "what is reported is carried out",
            || format!("command {opcode:#06x} ends in {codes:?}"),
        )?;
    }
    Ok(String::new())
}

fn get_again(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    owned.member.up(0)?;
    // Of a running member they may change, of a stopped one not.
    for _ in 0..4 {
        let codes = owned.get()?.codes();
        demand(
            GET_AGAIN,
            codes.0 == status::OK,
            "parts every time they are asked for",
            || format!("{codes:?}"),
        )?;
    }
    owned.stop()?;
    let first = owned.parts()?;
    arose(!first.is_empty(), || "there are no parts".to_owned())?;
    for round in 0..8 {
        let answer = owned.get()?;
        let same = answer.is_ok() && Part::all(answer.result())? == first;
        demand(
            GET_AGAIN,
            same,
            "the same parts every time, while the member is stopped",
            || format!("round {round}: {:?}", answer.codes()),
        )?;
    }
    Ok(format!("{} parts", first.len()))
}

fn kinds(parts: &[Part]) -> Vec<u16> {
    parts.iter().map(|part| part.kind).collect()
}

fn order(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    owned.member.up(0)?;
    owned.stop()?;
    let all = owned.parts()?;
    let mut backwards = all.clone();
    backwards.reverse();
    let selected = owned.selected(&backwards)?;
    for (what, parts) in [("all", all), ("selected", selected)] {
        let ranks: Vec<u8> = parts.iter().filter_map(|part| rank(part.kind)).collect();
        arose(ranks.len() >= 3, || {
            format!(
                "{what}: types {:#x?} say nothing of an order",
                kinds(&parts)
            )
        })?;
        demand(
            ORDER,
            ranks.is_sorted(),
            "parts in the order of the table, however they were asked for",
            || format!("{what}: {:#x?}", kinds(&parts)),
        )?;
    }
    Ok(String::new())
}

/// In what is listed and in what is had, the first part of type `what` comes after one of each
/// type of `before`. One that is not there at all does not count: the table lets it be left out.
fn precedes(owned: &Owned<'_>, clause: &'static str, what: u16, before: &[u16]) -> Judged {
    owned.member.up(0)?;
    owned.stop()?;
    let mut compared = 0;
    for parts in [owned.headers()?, owned.parts()?] {
        let kinds = kinds(&parts);
        let place = |kind: u16| kinds.iter().position(|other| *other == kind);
        let Some(at) = place(what) else {
            return Err(Stop::NotApplicable(Absent::Part(what)));
        };
        for kind in before.iter().copied() {
            let first = place(kind);
            demand(
                clause,
                first.is_none_or(|first| first < at),
                "what others are to be judged by comes before them",
                || format!("part {kind:#x} comes after part {what:#x}: {kinds:#x?}"),
            )?;
            compared += usize::from(first.is_some());
        }
    }
    arose(compared > 0, || format!("none of {before:#x?} is reported"))?;
    Ok(String::new())
}

/// The standard names this part and gives it no number. What is judged is what carries the
/// project's and holds the device configuration.
fn before_config(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    let config = owned.member.device_config()?;
    let parts = owned.parts()?;
    let is_config = |part: &&Part| part.kind == DEV_CFG && config.starts_with(&part.value);
    if parts
        .iter()
        .find(is_config)
        .is_none_or(|part| part.value.is_empty())
    {
        return Err(Stop::NotApplicable(Absent::Part(DEV_CFG)));
    }
    precedes(&owned, DEVICE_BEFORE_CONFIG, DEV_CFG, &[DEV_FEATURES])
}

fn set_running(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    let mut live = owned.member.up(0)?;
    let parts = owned.parts()?;
    let codes = owned.set(&parts)?.codes();
    demand(
        SET_STOPPED,
        codes.0 != status::OK,
        "an error while the member is not stopped",
        || format!("its own parts: {codes:?}"),
    )?;
    let data = owned.member.buffer(512)?;
    owned.member.exchange(&mut live, data)?;
    owned.stop()?;
    let parts = owned.parts()?;
    let codes = owned.set(&parts)?.codes();
    arose(codes.0 == status::OK, || {
        format!("they are not taken of a stopped member either: {codes:?}")
    })?;
    Ok(String::new())
}

/// The parts, with the descriptor area of queue 0 elsewhere.
fn moved(parts: &[Part]) -> Result<Vec<Part>, Stop> {
    const DESC: usize = 8;
    let mut parts = parts.to_vec();
    let queue = parts
        .iter_mut()
        .find(|part| part.kind == VQ_CFG && part.number() == 0);
    let byte = queue.and_then(|part| part.value.get_mut(DESC + 1));
    let byte = byte.ok_or(Stop::NotApplicable(Absent::Part(VQ_CFG)))?;
    // Another page.
    *byte ^= 0x10;
    Ok(parts)
}

fn set_again(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    owned.member.up(0)?;
    owned.stop()?;
    let first = owned.parts()?;
    let second = moved(&first)?;
    for (round, parts) in [&first, &first, &second, &second, &first, &second, &first]
        .into_iter()
        .enumerate()
    {
        let codes = owned.set(parts)?.codes();
        demand(
            SET_AGAIN,
            codes.0 == status::OK,
            "parts are taken every time",
            || format!("time {}: {codes:?}", round + 1),
        )?;
        let now = owned.parts()?;
        demand(
            SET_AGAIN,
            now == *parts,
            "what was set last is what there is",
            || format!("time {}: {}", round + 1, difference(parts, &now)),
        )?;
    }
    Ok(String::new())
}

/// Where two lists of parts differ first.
fn difference(wanted: &[Part], got: &[Part]) -> String {
    let pair = wanted.iter().zip(got).find(|(wanted, got)| wanted != got);
    match pair {
        Some((wanted, got)) => format!("{wanted:x?} became {got:x?}"),
        None => format!("{} parts became {}", wanted.len(), got.len()),
    }
}

fn lengths(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    owned.member.up(0)?;
    owned.stop()?;
    let parts = owned.parts()?;
    let codes = owned.set(&parts)?.codes();
    arose(codes.0 == status::OK, || {
        format!("the member's own parts are not taken: {codes:?}")
    })?;
    let mut tried = 0;
    for part in &parts {
        let length = part.value.len();
        for other in [0, length.saturating_sub(1), length + 1, length + 8] {
            if other == length {
                continue;
            }
            let mut wrong = part.clone();
            wrong.value.resize(other, 0);
            let codes = owned.set(&[wrong])?.codes();
            demand(
                LENGTHS,
                codes.0 != status::OK,
                "an error for a part whose length is not the member's",
                || {
                    let kind = part.kind;
                    format!("part {kind:#x} with {other} bytes for {length}: {codes:?}")
                },
            )?;
            tried += 1;
        }
    }
    Ok(format!("{tried} lengths tried"))
}

fn features(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    let offered = owned.member.offered()?;
    owned.stop()?;
    let parts = owned.parts()?;
    let own = parts.iter().find(|part| part.kind == DEV_FEATURES);
    let own = own.ok_or(Stop::NotApplicable(Absent::Part(DEV_FEATURES)))?;
    let codes = owned.set(std::slice::from_ref(own))?.codes();
    arose(codes.0 == status::OK, || {
        format!("the member's own features are not taken: {codes:?}")
    })?;
    let known = offered & offered.wrapping_neg();
    for (what, bits) in [
        ("one less", offered & !known),
        ("one more", offered | 1 << 49),
    ] {
        let mut other = own.clone();
        let bytes = bits.to_le_bytes();
        for (at, byte) in other.value.iter_mut().zip(bytes) {
            *at = byte;
        }
        let codes = owned.set(&[other])?.codes();
        let now = owned.member.offered()?;
        let shown = owned.selected(std::slice::from_ref(own))?;
        demand(
            FEATURES,
            now == offered && shown == [own.clone()],
            "the features of the device stay as they are",
            || format!("{what}: {offered:#x} became {now:#x}, as a part {shown:x?}"),
        )?;
        demand(
            FEATURES,
            codes.0 != status::OK,
            "features that are not the device's do not match",
            || format!("{what}: {codes:?}"),
        )?;
    }
    Ok(String::new())
}

fn read_only(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    owned.member.up(0)?;
    owned.stop()?;
    let facts = |bench: &Bench| -> Result<(u64, u64, Vec<u8>), Stop> {
        let config = match bench.device_config() {
            Err(Stop::NotApplicable(_)) => Vec::new(),
            config => config?,
        };
        Ok((bench.get(reg::NUM_QUEUES)?, bench.offered()?, config))
    };
    let before = facts(&owned.member)?;
    let all = owned.parts()?;
    let invariant = |part: &&Part| match part.kind {
        DEV_FEATURES | DEV_CFG => true,
        COMMON_CFG => u64::from(part.number()) == reg::NUM_QUEUES.offset,
        _ => false,
    };
    let mut tried = 0;
    for part in all.iter().filter(invariant) {
        let mut other = part.clone();
        let Some(first) = other.value.first_mut() else {
            continue;
        };
        *first ^= 1;
        let answer = owned.set(&[other])?;
        let now = facts(&owned.member)?;
        demand(
            VERIFIED,
            now == before && owned.parts()? == all,
            "what is read-only stays as it is, whatever was set",
            || {
                let codes = answer.codes();
                format!("after part {:#x}, answered {codes:?}: {now:x?}", part.kind)
            },
        )?;
        tried += 1;
    }
    arose(tried > 0, || "no part is read-only".to_owned())?;
    Ok(format!("{tried} parts tried"))
}

fn refused(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    owned.member.up(0)?;
    owned.stop()?;
    let before = owned.parts()?;
    let good = moved(&before)?;
    let unknown = |flags| Part {
        kind: UNKNOWN,
        flags,
        selector: [0; 8],
        value: vec![1; 8],
    };
    let mut bad = good.clone();
    bad.push(unknown(0));
    let codes = owned.set(&bad)?.codes();
    arose(codes.0 == status::EINVAL, || {
        format!("a mandatory part that there is not: {codes:?}")
    })?;
    let now = owned.parts()?;
    demand(
        UNCHANGED,
        now == before,
        "nothing of a set that is refused is applied",
        || difference(&before, &now),
    )?;
    let shown = owned.member.status()?;
    demand(
        UNCHANGED,
        shown & crate::constants::status::NEEDS_RESET == 0,
        "no error state",
        || format!("status {shown:#04x}"),
    )?;
    // The same without the part that is in the way, which is left out if it may be.
    let mut optional = good.clone();
    optional.push(unknown(OPTIONAL));
    let codes = owned.set(&optional)?.codes();
    let now = owned.parts()?;
    arose(codes.0 == status::OK && now == good, || {
        format!("the others are not taken either: {codes:?}")
    })?;
    Ok(String::new())
}

fn defaults(bench: &Bench, reset: fn(&Bench) -> Result<(), Stop>) -> Judged {
    let owned = Owned::new(bench)?;
    let default = owned.parts()?;
    let mut live = owned.member.up(0)?;
    let data = owned.member.buffer(512)?;
    owned.member.exchange(&mut live, data)?;
    let running = owned.parts()?;
    arose(running != default, || {
        "the parts of a running member are those of one that nobody has touched".to_owned()
    })?;
    reset(&owned.member)?;
    let after = owned.parts()?;
    demand(
        DEFAULTS,
        after == default,
        "every part as it is by default",
        || difference(&default, &after),
    )?;
    Ok(String::new())
}

//! Page-write recording: what a device refuses, and what it says when its room runs out. Rules of
//! this project throughout, after ideas of 2023.

use super::recording::{NEED, numbers};
use super::{Case, special};
use crate::constants::PAGE;
use crate::constants::admin::{qualifier, status};
use crate::harness::{
    Absent, Bench, EVERYWHERE, Judged, Owned, Records, Stop, arose, changed_pages, demand, pages_of,
};
use crate::target::Variant;
use std::collections::BTreeSet;

pub(super) const CASES: &[Case] = &[
    special(
        "a_bad_start_is_refused",
        &["WR-4"],
        Variant::Owner,
        bad_starts,
    ),
    special(
        "a_start_while_recording_is_refused",
        &["WR-5"],
        Variant::Owner,
        busy,
    ),
    special(
        "a_stop_of_nothing_is_refused_or_done",
        &["WR-5"],
        Variant::Owner,
        idle,
    ),
    special(
        "more_pages_than_there_is_room_for",
        &["WR-6"],
        Variant::Owner,
        too_much,
    ),
    special(
        "an_overflow_is_told",
        &["WR-9"],
        Variant::FewRecords,
        overflow,
    ),
    special(
        "an_overflow_is_told_in_the_end",
        &["WR-9"],
        Variant::FewRecords,
        overflow_stays,
    ),
];

/// Nothing is recorded, and recording can start: the device is as if nothing had been asked of it.
fn starts_afresh(owned: &Owned<'_>, clause: &'static str, what: &str) -> Result<(), Stop> {
    let answer = owned.read_once(EVERYWHERE, 4096)?;
    let none = !answer.is_ok() || Records::of(&answer)?.pages.is_empty();
    let start = owned.try_record(PAGE, &[(0, 16 * PAGE)])?;
    demand(
        clause,
        none && start.is_ok(),
        "nothing is recorded, and recording can start",
        || {
            format!(
                "{what}: none recorded: {none}, START ends in {:?}",
                start.codes()
            )
        },
    )?;
    let codes = owned.end_recording()?.codes();
    arose(codes.0 == status::OK, || format!("STOP: {codes:?}"))
}

fn bad_starts(bench: &Bench) -> Judged {
    let owned = Owned::with(bench, &NEED)?;
    let limits = owned.limits()?;
    arose(limits.page_sizes & PAGE != 0, || {
        format!("no pages of 4 KiB: {limits:x?}")
    })?;
    let unsupported = (0..64).find(|shift| limits.page_sizes & 1 << shift == 0);
    let unsupported = 1_u64 << unsupported.unwrap_or(0);
    let mut bad = vec![
        ("no range", PAGE, Vec::new()),
        ("an empty range", PAGE, vec![(PAGE, 0)]),
        ("a start in the middle of a page", PAGE, vec![(512, PAGE)]),
        ("a length of half a page", PAGE, vec![(PAGE, PAGE / 2)]),
        ("a range round the end", PAGE, vec![(!(PAGE - 1), 2 * PAGE)]),
        (
            "ranges that overlap",
            PAGE,
            vec![(0, 4 * PAGE), (3 * PAGE, PAGE)],
        ),
        (
            "the same range twice",
            PAGE,
            vec![(PAGE, PAGE), (PAGE, PAGE)],
        ),
        (
            "a good range and a bad one",
            PAGE,
            vec![(0, PAGE), (PAGE + 1, PAGE)],
        ),
        ("pages of no size", 0, vec![(0, PAGE)]),
        (
            "pages of a size that is no power of 2",
            3 * PAGE,
            vec![(0, 3 * PAGE)],
        ),
        (
            "pages of a size that is not offered",
            unsupported,
            vec![(0, unsupported)],
        ),
    ];
    if limits.ranges < 4096 {
        let apart = (0..=u64::from(limits.ranges)).map(|at| (2 * PAGE * at, PAGE));
        bad.push(("too many ranges", PAGE, apart.collect()));
    }
    for (what, page_size, ranges) in &bad {
        let codes = owned.try_record(*page_size, ranges)?.codes();
        demand(
            "WR-4",
            codes == (status::EINVAL, qualifier::INVALID_FIELD),
            "EINVAL and Q_INVALID_FIELD",
            || format!("{what}: {codes:?}"),
        )?;
        starts_afresh(&owned, "WR-4", what)?;
    }
    Ok(format!("{} bad ones", bad.len()))
}

fn busy(bench: &Bench) -> Judged {
    let owned = Owned::with(bench, &NEED)?;
    owned.record(PAGE, &[(0, 16 * PAGE)])?;
    for ranges in [[(0, 16 * PAGE)], [(32 * PAGE, PAGE)]] {
        let codes = owned.try_record(PAGE, &ranges)?.codes();
        demand(
            "WR-5",
            codes.0 == status::EBUSY,
            "EBUSY while recording goes on",
            || format!("{codes:?}"),
        )?;
    }
    Ok(String::new())
}

fn idle(bench: &Bench) -> Judged {
    let owned = Owned::with(bench, &NEED)?;
    let never = owned.end_recording()?.codes();
    owned.record(PAGE, &[(0, 16 * PAGE)])?;
    let codes = owned.end_recording()?.codes();
    arose(codes.0 == status::OK, || format!("STOP: {codes:?}"))?;
    let over = owned.end_recording()?.codes();
    for codes in [never, over] {
        demand(
            "WR-5",
            [status::EINVAL, status::OK].contains(&codes.0),
            "EINVAL or OK for a STOP of nothing",
            || format!("{codes:?}"),
        )?;
    }
    Ok(format!("{never:?}, {over:?}"))
}

fn too_much(bench: &Bench) -> Judged {
    let owned = Owned::with(bench, &NEED)?;
    // Half of all addresses, in pages of 4 KiB.
    let codes = owned.try_record(PAGE, &[(0, 1 << 63)])?.codes();
    if codes.0 == status::OK {
        return Err(Stop::NotApplicable(Absent::Status(status::ENOMEM)));
    }
    demand(
        "WR-6",
        codes == (status::ENOMEM, qualifier::NO_RESOURCE) || codes.0 == status::ENOSPC,
        "ENOMEM with Q_NORESOURCE, or ENOSPC",
        || format!("{codes:?}"),
    )?;
    starts_afresh(&owned, "WR-6", "a start that was too much")?;
    Ok(String::new())
}

/// Has a member write more pages than its owner holds records of; returns the pages.
fn overflowing(owned: &Owned<'_>) -> Result<BTreeSet<u64>, Stop> {
    let member = &owned.member;
    let limits = owned.limits()?;
    let mut live = member.up(0)?;
    let room = member.memory().len() / PAGE;
    if u64::from(limits.records) + 64 > room {
        return Err(Stop::NotApplicable(Absent::Variant(Variant::FewRecords)));
    }
    let (iova, len) = (member.memory().iova(), member.memory().len());
    owned.record(PAGE, &[(iova, len)])?;
    let pages = member.buffer(PAGE * (u64::from(limits.records) + 24))?;
    let before = member.snapshot()?;
    for at in 0..pages.len / PAGE {
        member.exchange(&mut live, pages.part(at * PAGE, 512))?;
    }
    let written = changed_pages(&before, &member.snapshot()?, iova);
    let written = &written & &pages_of(pages);
    let held = usize::try_from(limits.records).unwrap_or(usize::MAX);
    arose(written.len() > held, || {
        format!("{} pages for {limits:?}", written.len())
    })?;
    Ok(written)
}

fn told(clause: &'static str, written: &BTreeSet<u64>, records: &Records) -> Result<(), Stop> {
    let lost = written.difference(&numbers(records)).count();
    demand(
        clause,
        lost == 0 || records.overflow,
        "a flag that says so where a record was lost",
        || {
            format!(
                "{lost} of {} pages are missing and no flag is set",
                written.len()
            )
        },
    )
}

fn overflow(bench: &Bench) -> Judged {
    let owned = Owned::with(bench, &NEED)?;
    let written = overflowing(&owned)?;
    let records = owned.records(EVERYWHERE)?;
    told("WR-9", &written, &records)?;
    Ok(format!(
        "{} records of {} pages, flag {}",
        records.pages.len(),
        written.len(),
        records.overflow
    ))
}

fn overflow_stays(bench: &Bench) -> Judged {
    let owned = Owned::with(bench, &NEED)?;
    let written = overflowing(&owned)?;
    // The word does not fit, so nobody is told; then recording stops.
    owned.read_once(EVERYWHERE, 4)?;
    let codes = owned.end_recording()?.codes();
    arose(codes.0 == status::OK, || format!("STOP: {codes:?}"))?;
    let records = owned.records_by(EVERYWHERE, 64)?;
    told("WR-9", &written, &records)?;
    Ok(format!("flag {}", records.overflow))
}

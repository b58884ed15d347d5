//! Page-write recording: what is recorded, and what becomes of it. Rules of this project throughout,
//! after ideas of 2023.
//!
//! The truth is the bytes of the member's memory: pages whose bytes differ were written. Those of
//! the available ring say nothing, for the driver's part writes them.

use super::{Case, special};
use crate::constants::admin::{ANSWER, opcode, status};
use crate::constants::records::{CAP_QUERY, READ, START, STOP};
use crate::constants::{PAGE, feature};
use crate::harness::{
    Bench, EVERYWHERE, Judged, Live, Owned, QUIET, Records, Span, Stop, arose, changed_pages,
    demand, pages_of, read,
};
use crate::target::Variant;
use std::collections::BTreeSet;

/// The commands of recording.
pub(super) const NEED: [u16; 4] = [CAP_QUERY, START, STOP, READ];

const fn owner(
    name: &'static str,
    clauses: &'static [&'static str],
    run: fn(&Bench) -> Judged,
) -> Case {
    special(name, clauses, Variant::Owner, run)
}

pub(super) const CASES: &[Case] = &[
    owner("every_written_page_is_recorded", &["WR-1"], every_page),
    owner(
        "every_written_page_is_recorded_while_records_are_read",
        &["WR-1"],
        under_load,
    ),
    owner("a_page_is_recorded_once_between_reads", &["WR-1"], once),
    owner("pages_have_the_size_that_was_asked_for", &["WR-1"], sizes),
    owner("nothing_outside_the_ranges_is_recorded", &["WR-2"], within),
    owner("a_read_takes_what_it_returns", &["WR-3"], takes),
    owner("a_read_of_a_range_leaves_the_others", &["WR-3"], leaves),
    owner("a_small_buffer_loses_nothing", &["WR-3"], small),
    owner("a_command_that_fails_loses_nothing", &["WR-3"], failing),
    owner("recording_stays_until_it_is_read", &["WR-7"], stays),
    owner("a_start_forgets_what_was_before", &["WR-7"], forgets),
    owner(
        "a_reset_of_the_member_changes_nothing",
        &["WR-8"],
        |bench| outlives(bench, Bench::reset),
    ),
    owner(
        "a_function_level_reset_of_the_member_changes_nothing",
        &["WR-8"],
        |bench| outlives(bench, Bench::function_reset),
    ),
    owner("a_reset_of_the_owner_ends_recording", &["WR-8"], |bench| {
        ends(bench, Bench::reset)
    }),
    owner(
        "records_of_a_stopped_member_are_complete",
        &["WR-10"],
        complete,
    ),
];

/// A member with a running queue, whose owner records all that it writes.
fn recorded(bench: &Bench) -> Result<(Owned<'_>, Live), Stop> {
    let owned = Owned::with(bench, &NEED)?;
    let live = owned.member.up(0)?;
    owned.record(PAGE, &[everything(&owned.member)])?;
    Ok((owned, live))
}

/// The range of all of a case's memory.
fn everything(member: &Bench) -> (u64, u64) {
    (member.memory().iova(), member.memory().len())
}

fn range(span: Span) -> (u64, u64) {
    (span.iova, span.len)
}

/// Its pages: no request is for more, for that is what an entropy device gives at once.
fn each_page(span: Span) -> Vec<Span> {
    let pages = 0..span.len / PAGE;
    pages.map(|page| span.part(page * PAGE, PAGE)).collect()
}

/// Has the device write all of these, in one go, and returns the pages that were written.
fn write(member: &Bench, live: &mut Live, buffers: &[Span]) -> Result<BTreeSet<u64>, Stop> {
    for data in buffers {
        member.fill(*data)?;
        member.stage(live, *data)?;
    }
    let before = member.snapshot()?;
    live.ring.publish(live.ring.next)?;
    member.kick(0)?;
    arose(member.used_all(live)?, || {
        "the requests were not carried out".to_owned()
    })?;
    written_since(member, live, &before, buffers)
}

fn written_since(
    member: &Bench,
    live: &Live,
    before: &[u8],
    least: &[Span],
) -> Result<BTreeSet<u64>, Stop> {
    let changed = changed_pages(before, &member.snapshot()?, member.memory().iova());
    let written = &changed - &pages_of(live.ring.avail);
    let least: BTreeSet<u64> = least.iter().flat_map(|span| pages_of(*span)).collect();
    arose(least.is_subset(&written), || {
        format!("pages {least:x?} should have been written, {written:x?} were")
    })?;
    Ok(written)
}

/// Numbers of the pages of 4 KiB that records are about.
pub(super) fn numbers(records: &Records) -> BTreeSet<u64> {
    records.pages.iter().map(|address| address / PAGE).collect()
}

/// Reads until these pages were recorded, or for as long as a device may take: the page of the used
/// index may be recorded after its store, which is what ended the wait for the requests.
fn gather(owned: &Owned<'_>, want: &BTreeSet<u64>) -> Result<Records, Stop> {
    let mut all = Records::default();
    owned.member.wait(owned.member.limit, || {
        let read = owned.records(EVERYWHERE)?;
        all.pages.extend(read.pages);
        all.overflow |= read.overflow;
        Ok(want.is_subset(&numbers(&all)))
    })?;
    arose(!all.overflow, || "records ran out".to_owned())?;
    Ok(all)
}

fn demand_all(clause: &'static str, want: &BTreeSet<u64>, got: &Records) -> Result<(), Stop> {
    let got = numbers(got);
    demand(
        clause,
        want.is_subset(&got),
        "a record of every page that was written",
        || {
            let lost: BTreeSet<_> = want.difference(&got).collect();
            format!("pages {lost:x?} are missing; written {want:x?}, recorded {got:x?}")
        },
    )
}

fn every_page(bench: &Bench) -> Judged {
    let (owned, mut live) = recorded(bench)?;
    let member = &owned.member;
    let pages = member.buffer(24 * PAGE)?;
    // The second begins and ends in the middle of a page.
    let buffers = [
        pages.part(0, 512),
        pages.part(2 * PAGE + 512, 4096),
        pages.part(8 * PAGE, 4096),
        pages.part(23 * PAGE, 1024),
    ];
    let written = write(member, &mut live, &buffers)?;
    let records = gather(&owned, &written)?;
    demand_all("WR-1", &written, &records)?;
    let extra = numbers(&records).difference(&written).count();
    Ok(format!(
        "{} pages written, {extra} records more than needed",
        written.len()
    ))
}

fn under_load(bench: &Bench) -> Judged {
    let (owned, mut live) = recorded(bench)?;
    let member = &owned.member;
    let count = u64::from(live.capacity());
    let pages = member.buffer(PAGE * count)?;
    let buffers: Vec<Span> = (0..count).map(|at| pages.part(at * PAGE, 4096)).collect();
    let mut reads = 0;
    for _ in 0..8 {
        for data in &buffers {
            member.fill(*data)?;
            member.stage(&mut live, *data)?;
        }
        let before = member.snapshot()?;
        live.ring.publish(live.ring.next)?;
        member.kick(0)?;
        let mut all = Records::default();
        let used = member.wait(member.limit, || {
            all.pages.extend(owned.records(EVERYWHERE)?.pages);
            reads += 1;
            Ok(live.ring.used_index()? == live.ring.next)
        })?;
        arose(used, || "the requests were not carried out".to_owned())?;
        let written = written_since(member, &live, &before, &buffers)?;
        let missing = &written - &numbers(&all);
        let rest = gather(&owned, &missing)?;
        all.pages.extend(rest.pages);
        demand_all("WR-1", &written, &all)?;
    }
    Ok(format!("{reads} reads while requests were carried out"))
}

fn once(bench: &Bench) -> Judged {
    let (owned, mut live) = recorded(bench)?;
    let member = &owned.member;
    let pages = member.buffer(4 * PAGE)?;
    let buffers: Vec<Span> = (0..4).map(|at| pages.part(at * PAGE, 512)).collect();
    for round in 0..3 {
        // Each page is written three times before anybody reads.
        for _ in 0..3 {
            write(member, &mut live, &buffers)?;
        }
        let one = Records::of(&owned.read_once(range(pages), 4096)?)?;
        let want = pages_of(pages);
        demand_all("WR-1", &want, &one)?;
        demand(
            "WR-1",
            one.pages.len() == want.len(),
            "one record of a page, however often it was written",
            || format!("round {round}: {:x?}", one.pages),
        )?;
    }
    Ok(String::new())
}

fn sizes(bench: &Bench) -> Judged {
    let owned = Owned::with(bench, &NEED)?;
    let member = &owned.member;
    let mut live = member.up(0)?;
    let data = member.buffer(512)?;
    let offered = owned.limits()?.page_sizes;
    let end = (member.memory().iova() + member.memory().len()).next_power_of_two();
    let mut tried = 0;
    for shift in (12..40).filter(|shift| offered & 1 << shift != 0) {
        let size = 1_u64 << shift;
        owned.record(size, &[(0, end.max(size))])?;
        let written = write(member, &mut live, &[data])?;
        let want: BTreeSet<u64> = written
            .iter()
            .map(|page| page * PAGE / size * size)
            .collect();
        let mut got = BTreeSet::new();
        member.wait(member.limit, || {
            got.extend(owned.records((0, end.max(size)))?.pages);
            Ok(want.is_subset(&got))
        })?;
        demand(
            "WR-1",
            want.is_subset(&got) && got.iter().all(|address| address % size == 0),
            "addresses of pages of the size that START said",
            || format!("pages of {size:#x}: written {want:x?}, recorded {got:x?}"),
        )?;
        let codes = owned.end_recording()?.codes();
        arose(codes.0 == status::OK, || format!("STOP: {codes:?}"))?;
        tried += 1;
    }
    arose(tried > 0, || {
        format!("no page size is offered: {offered:#x}")
    })?;
    Ok(format!("{tried} page sizes"))
}

fn within(bench: &Bench) -> Judged {
    let owned = Owned::with(bench, &NEED)?;
    let member = &owned.member;
    let mut live = member.up(0)?;
    let pages = member.buffer(9 * PAGE)?;
    let part = |at: u64, len: u64| pages.part(at * PAGE, len * PAGE);
    // Pages 1 and 2, and 5.
    let ranges = [part(5, 1), part(1, 2)];
    owned.record(PAGE, &ranges.map(range))?;
    let buffers: Vec<Span> = (0..9).map(|at| part(at, 1)).collect();
    let written = write(member, &mut live, &buffers)?;
    let want: BTreeSet<u64> = ranges.iter().flat_map(|span| pages_of(*span)).collect();
    let records = gather(&owned, &want)?;
    arose(want.is_subset(&numbers(&records)), || {
        format!("pages {want:x?} are not recorded: {:x?}", records.pages)
    })?;
    let stray = &numbers(&records) - &want;
    demand(
        "WR-2",
        stray.is_empty(),
        "no record of a page outside the ranges",
        || format!("pages {stray:x?}"),
    )?;
    Ok(format!(
        "{} pages written, {} of them inside",
        written.len(),
        want.len()
    ))
}

fn takes(bench: &Bench) -> Judged {
    let (owned, mut live) = recorded(bench)?;
    let data = owned.member.buffer(4 * PAGE)?;
    let written = write(&owned.member, &mut live, &each_page(data))?;
    let first = gather(&owned, &written)?;
    arose(pages_of(data).is_subset(&numbers(&first)), || {
        "the pages were not recorded".to_owned()
    })?;
    let again = owned.records(range(data))?;
    demand(
        "WR-3",
        again.pages.is_empty(),
        "what was read is not there any more",
        || format!("{:x?} once more", again.pages),
    )?;
    Ok(String::new())
}

fn leaves(bench: &Bench) -> Judged {
    let (owned, mut live) = recorded(bench)?;
    let data = owned.member.buffer(4 * PAGE)?;
    write(&owned.member, &mut live, &each_page(data))?;
    let (front, back) = (data.part(0, 2 * PAGE), data.part(2 * PAGE, 2 * PAGE));
    let first = owned.records(range(back))?;
    demand(
        "WR-3",
        numbers(&first) == pages_of(back),
        "the records of the range that was asked for",
        || format!("{:x?}", first.pages),
    )?;
    let second = owned.records(range(front))?;
    demand(
        "WR-3",
        numbers(&second) == pages_of(front),
        "the records of other ranges stay",
        || format!("{:x?}", second.pages),
    )?;
    Ok(String::new())
}

fn small(bench: &Bench) -> Judged {
    let (owned, mut live) = recorded(bench)?;
    let data = owned.member.buffer(6 * PAGE)?;
    write(&owned.member, &mut live, &each_page(data))?;
    // Room for the status, for no record, for one and for a part of the next.
    let mut all = Records::default();
    for room in [4, ANSWER, ANSWER + 7, ANSWER + 8, ANSWER + 15] {
        let answer = owned.read_once(range(data), room)?;
        if room >= ANSWER {
            let read = Records::of(&answer)?;
            demand(
                "WR-3",
                read.more,
                "a word that there are more, where the buffer was too small",
                || format!("room for {room} bytes: {read:x?}"),
            )?;
            all.pages.extend(read.pages);
        }
    }
    all.pages
        .extend(owned.records_by(range(data), ANSWER + 16)?.pages);
    demand(
        "WR-3",
        numbers(&all) == pages_of(data) && all.pages.len() == 6,
        "each record once, however small the buffers are",
        || format!("{:x?}", all.pages),
    )?;
    Ok(String::new())
}

fn failing(bench: &Bench) -> Judged {
    let (owned, mut live) = recorded(bench)?;
    let data = owned.member.buffer(2 * PAGE)?;
    write(&owned.member, &mut live, &each_page(data))?;
    let (start, length) = range(data);
    let bad = [
        ("of nothing", read((start, 0))),
        ("of half a page", read((start + 8, length))),
        ("round the end", read((!(PAGE - 1), 2 * PAGE))),
        ("of larger pages", {
            let mut other = read((0, 1 << 21));
            other.truncate(16);
            other.extend((1_u64 << 21).to_le_bytes());
            other
        }),
    ];
    for (what, data) in bad {
        let codes = owned.command(READ, data, 4096)?.codes();
        arose(codes.0 != status::OK, || format!("a read {what} succeeds"))?;
    }
    let codes = owned.try_record(PAGE, &[EVERYWHERE])?.codes();
    arose(codes.0 != status::OK, || {
        "a second START succeeds".to_owned()
    })?;
    let records = owned.records(range(data))?;
    demand(
        "WR-3",
        numbers(&records) == pages_of(data) && records.pages.len() == 2,
        "records stay where a command fails",
        || format!("{:x?}", records.pages),
    )?;
    write(&owned.member, &mut live, &each_page(data))?;
    let records = owned.records(range(data))?;
    demand(
        "WR-3",
        numbers(&records) == pages_of(data),
        "recording goes on where a command fails",
        || format!("{:x?}", records.pages),
    )?;
    Ok(String::new())
}

fn stays(bench: &Bench) -> Judged {
    let (owned, mut live) = recorded(bench)?;
    let member = &owned.member;
    let (early, late) = (member.buffer(PAGE)?, member.buffer(PAGE)?);
    write(member, &mut live, &[early])?;
    let codes = owned.end_recording()?.codes();
    arose(codes.0 == status::OK, || format!("STOP: {codes:?}"))?;
    write(member, &mut live, &[late])?;
    let records = owned.records(EVERYWHERE)?;
    demand_all("WR-7", &pages_of(early), &records)?;
    demand(
        "WR-7",
        numbers(&records).is_disjoint(&pages_of(late)),
        "nothing recorded after STOP",
        || format!("{:x?}", records.pages),
    )?;
    Ok(String::new())
}

fn forgets(bench: &Bench) -> Judged {
    let (owned, mut live) = recorded(bench)?;
    let member = &owned.member;
    let (early, late) = (member.buffer(PAGE)?, member.buffer(PAGE)?);
    write(member, &mut live, &[early])?;
    let codes = owned.end_recording()?.codes();
    arose(codes.0 == status::OK, || format!("STOP: {codes:?}"))?;
    owned.record(PAGE, &[everything(member)])?;
    write(member, &mut live, &[late])?;
    let records = gather(&owned, &pages_of(late))?;
    arose(pages_of(late).is_subset(&numbers(&records)), || {
        "nothing is recorded after another START".to_owned()
    })?;
    demand(
        "WR-7",
        numbers(&records).is_disjoint(&pages_of(early)),
        "no record of before START",
        || format!("{:x?}", records.pages),
    )?;
    Ok(String::new())
}

fn outlives(bench: &Bench, reset: fn(&Bench) -> Result<(), Stop>) -> Judged {
    let (owned, mut live) = recorded(bench)?;
    let member = &owned.member;
    let (early, late) = (member.buffer(PAGE)?, member.buffer(PAGE)?);
    write(member, &mut live, &[early])?;
    reset(member)?;
    let mut live = member.up(0)?;
    write(member, &mut live, &[late])?;
    let both = &pages_of(early) | &pages_of(late);
    let records = gather(&owned, &both)?;
    demand(
        "WR-8",
        both.is_subset(&numbers(&records)),
        "records of before the member's reset, and of after it",
        || format!("{both:x?} were written, recorded {:x?}", records.pages),
    )?;
    Ok(String::new())
}

fn ends(bench: &Bench, reset: fn(&Bench) -> Result<(), Stop>) -> Judged {
    let (owned, mut live) = recorded(bench)?;
    let Owned { admin, member } = owned;
    let (early, late) = (member.buffer(PAGE)?, member.buffer(PAGE)?);
    write(&member, &mut live, &[early])?;
    drop(admin);
    reset(bench)?;
    // The member's driver knows nothing of it.
    write(&member, &mut live, &[late])?;
    let admin = bench.administer(feature::SR_IOV)?;
    admin.own(1, &NEED)?;
    let owned = Owned { admin, member };
    let answer = owned.read_once(EVERYWHERE, 4096)?;
    let left = match answer.is_ok() {
        true => Records::of(&answer)?.pages,
        false => Vec::new(),
    };
    demand(
        "WR-8",
        left.is_empty(),
        "no record left when the owner was reset",
        || format!("{left:x?}"),
    )?;
    let codes = owned
        .try_record(PAGE, &[everything(&owned.member)])?
        .codes();
    demand(
        "WR-8",
        codes.0 == status::OK,
        "no recording going on when the owner was reset",
        || format!("START ends in {codes:?}"),
    )?;
    let records = owned.records(EVERYWHERE)?;
    demand(
        "WR-8",
        numbers(&records).is_disjoint(&(&pages_of(early) | &pages_of(late))),
        "nothing recorded before START",
        || format!("{:x?}", records.pages),
    )?;
    Ok(String::new())
}

fn complete(bench: &Bench) -> Judged {
    let owned = Owned::with(bench, &[CAP_QUERY, START, STOP, READ, opcode::MODE_SET])?;
    let member = &owned.member;
    let mut live = member.up(0)?;
    owned.record(PAGE, &[everything(member)])?;
    let count = u64::from(live.capacity());
    let pages = member.buffer(PAGE * count)?;
    let mut told = String::new();
    for _ in 0..4 {
        member.fill(pages)?;
        for at in 0..count {
            member.stage(&mut live, pages.part(at * PAGE, 4096))?;
        }
        let before = member.snapshot()?;
        live.ring.publish(live.ring.next)?;
        member.kick(0)?;
        owned.stop()?;
        // One reading, at once: nothing may come later.
        let records = owned.records(EVERYWHERE)?;
        let written = written_since(member, &live, &before, &[])?;
        demand_all("WR-10", &written, &records)?;
        member.wait(QUIET, || Ok(false))?;
        let late = owned.records(EVERYWHERE)?;
        demand(
            "WR-10",
            late.pages.is_empty(),
            "no record of a member that is stopped",
            || format!("{:x?}", late.pages),
        )?;
        owned.go_on()?;
        arose(member.used_all(&live)?, || "it does not go on".to_owned())?;
        told = format!("{} pages written when it stopped", written.len());
        owned.records(EVERYWHERE)?;
    }
    Ok(told)
}

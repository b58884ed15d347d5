//! Zones that are opened, closed, finished, reset and erased, or cannot be.

use super::Case;
use super::zoned::writing;
use crate::clause;
use crate::constants::blk::{self, zone};
use crate::constants::feature;
use crate::harness::{Absent, Bench, Judged, Stop, Zone, Zoned, arose, demand, range};

const CONVENTIONAL: &str = clause!(blk "D17");
const OPEN: &str = clause!(blk "D19");
const RESOURCES: &str = clause!(blk "D20");
const CLOSE: &str = clause!(blk "D21");
const FINISH: &str = clause!(blk "D22");
const RESET: &str = clause!(blk "D23");
const OFFLINE: &str = clause!(blk "D34");
const ERASE_SIZE: &str = clause!(blk "D38");
const ERASE: &str = clause!(blk "D39");

pub(super) const CASES: &[Case] = &[
    writing(
        "conventional_zones_are_not_managed",
        &[CONVENTIONAL],
        conventional,
    ),
    writing("a_full_zone_is_not_opened", &[OPEN], open_full),
    writing("a_zone_too_many_is_not_opened", &[RESOURCES], open_too_many),
    writing("a_full_zone_is_not_closed", &[CLOSE], close_full),
    writing("a_read_only_zone_is_not_finished", &[FINISH], finish),
    writing("a_read_only_zone_is_not_reset", &[RESET], reset),
    writing("an_offline_zone_does_nothing", &[OFFLINE], offline),
    writing("part_of_a_zone_is_not_erased", &[ERASE_SIZE], erase_part),
    writing("a_secure_erase_resets_zones", &[ERASE], erase),
    writing(
        "a_conventional_zone_is_not_erased",
        &[ERASE],
        erase_conventional,
    ),
];

const COMMANDS: [u32; 4] = [
    blk::ZONE_OPEN,
    blk::ZONE_CLOSE,
    blk::ZONE_FINISH,
    blk::ZONE_RESET,
];

fn in_state(zoned: &mut Zoned<'_>, state: u8, what: &'static str) -> Result<Zone, Stop> {
    zoned.one(what, |one| one.state == state)
}

fn conventional(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let one = zoned.one("conventional zones", |one| one.kind == zone::CONVENTIONAL)?;
    for kind in COMMANDS {
        let status = zoned.command(kind, one.start)?;
        demand(
            CONVENTIONAL,
            status == blk::ZONE_INVALID_CMD,
            "open, close, finish and reset of a conventional zone end in ZONE_INVALID_CMD",
            || format!("type {kind}: status {status}"),
        )?;
    }
    Ok(String::new())
}

/// A full zone: a fresh one that was written to its end, which every way to become full leads by.
fn full(zoned: &mut Zoned<'_>) -> Result<Zone, Stop> {
    let one = zoned.fresh_one()?;
    zoned.done(blk::ZONE_OPEN, one.start)?;
    zoned.done(blk::ZONE_FINISH, one.start)?;
    let now = zoned.now(&one)?;
    arose(now.state == zone::FULL, || {
        format!("a finished zone is in state {}", now.state)
    })?;
    Ok(now)
}

/// An impossible transition of `one`: refused, and the state as it was.
fn impossible(zoned: &mut Zoned<'_>, clause: &'static str, kind: u32, one: &Zone) -> Judged {
    let status = zoned.command(kind, one.start)?;
    let now = zoned.now(one)?;
    demand(
        clause,
        status == blk::ZONE_INVALID_CMD && now.state == one.state,
        "ZONE_INVALID_CMD, and the zone in the state it was in",
        || {
            format!(
                "type {kind}: status {status}, state {} after {}",
                now.state, one.state
            )
        },
    )?;
    Ok(String::new())
}

fn open_full(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let one = full(&mut zoned)?;
    impossible(&mut zoned, OPEN, blk::ZONE_OPEN, &one)?;
    zoned.done(blk::ZONE_RESET, one.start)?;
    zoned.done(blk::ZONE_OPEN, one.start)?;
    Ok(String::new())
}

fn close_full(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let one = full(&mut zoned)?;
    impossible(&mut zoned, CLOSE, blk::ZONE_CLOSE, &one)?;
    // The text lists no way from empty to closed either; some devices take it for done.
    let fresh = zoned.fresh_one()?;
    let status = zoned.command(blk::ZONE_CLOSE, fresh.start)?;
    Ok(format!("closing an empty zone ends in status {status}"))
}

fn finish(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let one = in_state(&mut zoned, zone::READ_ONLY, "read-only zones")?;
    impossible(&mut zoned, FINISH, blk::ZONE_FINISH, &one)?;
    // The text lists no way from empty to full either; other standards of zones have one.
    let fresh = zoned.fresh_one()?;
    let status = zoned.command(blk::ZONE_FINISH, fresh.start)?;
    Ok(format!("finishing an empty zone ends in status {status}"))
}

fn reset(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let one = in_state(&mut zoned, zone::READ_ONLY, "read-only zones")?;
    impossible(&mut zoned, RESET, blk::ZONE_RESET, &one)
}

/// As many zones are opened as can be, then one more.
fn open_too_many(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let limit = usize::try_from(zoned.traits.max_open).unwrap_or(usize::MAX);
    if limit == 0 {
        return Err(Stop::NotApplicable(Absent::Own("limit of open zones")));
    }
    let zones = zoned.fresh(limit + 1)?;
    let Some((last, before)) = zones.split_last() else {
        return Err(Stop::Inconclusive("no zones".to_owned()));
    };
    for one in before {
        zoned.done(blk::ZONE_OPEN, one.start)?;
    }
    let status = zoned.command(blk::ZONE_OPEN, last.start)?;
    let now = zoned.now(last)?;
    demand(
        RESOURCES,
        matches!(status, blk::ZONE_OPEN_RESOURCE | blk::ZONE_ACTIVE_RESOURCE)
            && now.state == zone::EMPTY,
        "ZONE_OPEN_RESOURCE or ZONE_ACTIVE_RESOURCE, and the zone still empty",
        || format!("status {status}, state {}", now.state),
    )?;
    Ok(format!("{limit} open zones"))
}

fn offline(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let one = in_state(&mut zoned, zone::OFFLINE, "offline zones")?;
    let granule = zoned.traits.granule;
    let noise = zoned.disk.noise(granule);
    let mut requests = vec![
        (blk::IN, Vec::new(), blk::SECTOR * granule),
        (blk::OUT, noise.clone(), 0),
    ];
    if zoned.traits.max_append != 0 {
        requests.push((blk::ZONE_APPEND, noise, 8));
    }
    requests.extend(COMMANDS.map(|kind| (kind, Vec::new(), 0)));
    for (kind, data, room) in &requests {
        let answer = zoned.disk.ask(*kind, one.start, data, *room)?;
        demand(
            OFFLINE,
            answer.status == blk::ZONE_INVALID_CMD,
            "every request to an offline zone ends in ZONE_INVALID_CMD",
            || format!("type {kind}: status {}", answer.status),
        )?;
    }
    Ok(format!("{} requests", requests.len()))
}

fn erase_part(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(feature::BLK_SECURE_ERASE)?;
    let one = zoned.fresh_one()?;
    let granule = zoned.traits.granule;
    let noise = zoned.written(one.start, granule)?;
    let whole = zoned.traits.zone_sectors;
    for sectors in [whole / 2, granule, whole + granule] {
        let request = range(one.start, sectors, 0);
        let status = zoned.disk.ask(blk::SECURE_ERASE, 0, &request, 0)?.status;
        let now = zoned.now(&one)?;
        let kept =
            now.pointer == one.start + granule && zoned.disk.read(one.start, granule)? == noise;
        demand(
            ERASE_SIZE,
            status != blk::OK && kept,
            "a secure erase of anything but whole zones not carried out",
            || format!("{sectors} sectors: status {status}; what was written is there: {kept}"),
        )?;
    }
    Ok("taken for a rule of the device: it does not carry out what is no multiple".to_owned())
}

fn erase(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(feature::BLK_SECURE_ERASE)?;
    let one = zoned.fresh_one()?;
    let granule = zoned.traits.granule;
    let noise = zoned.written(one.start, granule)?;
    let whole = range(one.start, zoned.traits.zone_sectors, 0);
    let status = zoned.disk.ask(blk::SECURE_ERASE, 0, &whole, 0)?.status;
    let now = zoned.now(&one)?;
    let read = zoned
        .disk
        .ask(blk::IN, one.start, &[], blk::SECTOR * granule)?;
    let gone = read.status != blk::OK || read.data != noise;
    demand(
        ERASE,
        status == blk::OK && now.state == zone::EMPTY && now.pointer == one.start && gone,
        "the zone empty, its write pointer at its start, and its data gone",
        || {
            format!(
                "status {status}, state {}, write pointer {} of the zone at {}; its data is gone: {gone}",
                now.state, now.pointer, one.start
            )
        },
    )?;
    Ok(String::new())
}

fn erase_conventional(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(feature::BLK_SECURE_ERASE)?;
    let one = zoned.one("conventional zones", |one| one.kind == zone::CONVENTIONAL)?;
    let whole = range(one.start, zoned.traits.zone_sectors, 0);
    let status = zoned.disk.ask(blk::SECURE_ERASE, 0, &whole, 0)?.status;
    demand(
        ERASE,
        status == blk::ZONE_INVALID_CMD,
        "ZONE_INVALID_CMD, as for the reset of a conventional zone",
        || format!("status {status}"),
    )?;
    Ok(String::new())
}

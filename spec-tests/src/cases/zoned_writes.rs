//! Writes, appends and reads of zones that must be written in sequence.

use super::zoned::writing;
use super::{Case, special};
use crate::clause;
use crate::constants::blk::{self, zone};
use crate::harness::{Absent, Bench, Judged, Stop, Zone, Zoned, arose, demand};
use crate::target::Variant;

const NOT_SEQUENTIAL: &str = clause!(blk "D18");
const RESOURCES: &str = clause!(blk "D24");
const NOT_FIRST: &str = clause!(blk "D25");
const TOO_LONG: &str = clause!(blk "D26");
const PLACE: &str = clause!(blk "D27");
const NO_APPENDS: &str = clause!(blk "D28");
const TOO_LARGE: &str = clause!(blk "D29");
const ACROSS: &str = clause!(blk "D30");
const UNALIGNED: &str = clause!(blk "D31");
const READ_ONLY: &str = clause!(blk "D33");
const BEYOND: &str = clause!(blk "D35");
const UNWRITTEN: &str = clause!(blk "D36");

pub(super) const CASES: &[Case] = &[
    writing(
        "an_append_to_a_conventional_zone",
        &[NOT_SEQUENTIAL],
        append_conventional,
    ),
    writing("a_write_to_a_zone_too_many", &[RESOURCES], too_many),
    writing("an_append_within_a_zone", &[NOT_FIRST], append_within),
    writing("a_write_beyond_a_zone_s_capacity", &[TOO_LONG], too_long),
    writing(
        "an_append_beyond_a_zone_s_capacity",
        &[TOO_LONG],
        append_too_long,
    ),
    writing("an_append_says_where_it_went", &[PLACE], place),
    Case {
        writes: true,
        ..special(
            "an_append_to_a_disk_that_knows_none",
            &[NO_APPENDS],
            Variant::NoAppend,
            no_appends,
        )
    },
    writing("an_append_that_is_too_large", &[TOO_LARGE], too_large),
    writing("requests_across_zones", &[ACROSS], across),
    writing("a_write_away_from_the_pointer", &[UNALIGNED], unaligned),
    writing("writes_to_a_read_only_zone", &[READ_ONLY], read_only),
    writing("what_was_reset_is_unwritten", &[BEYOND], reset_is_unwritten),
    writing(
        "what_was_finished_early_is_unwritten",
        &[BEYOND],
        finished_is_unwritten,
    ),
    writing("unwritten_sectors_are_all_alike", &[UNWRITTEN], unwritten),
];

/// A disk that knows appends.
fn appending(bench: &Bench) -> Result<Zoned<'_>, Stop> {
    let zoned = bench.zoned(0)?;
    if zoned.traits.max_append < zoned.traits.granule {
        return Err(Stop::NotApplicable(Absent::Own("appends")));
    }
    Ok(zoned)
}

/// Demands that a write or an append was refused with `status`, and that nothing came of it.
fn refused(
    zoned: &mut Zoned<'_>,
    clause: &'static str,
    one: &Zone,
    (status, wanted): (u8, u8),
    wants: &str,
) -> Result<(), Stop> {
    let now = zoned.now(one)?;
    let moved = one.is_fresh() && now.pointer != one.start;
    demand(clause, status == wanted && !moved, wants, || {
        format!("status {status}, the write pointer moved: {moved}")
    })
}

fn append_conventional(bench: &Bench) -> Judged {
    let mut zoned = appending(bench)?;
    let one = zoned.one("conventional zones", |one| one.kind == zone::CONVENTIONAL)?;
    let noise = zoned.disk.noise(zoned.traits.granule);
    let (status, _) = zoned.append(one.start, &noise)?;
    let verdict = (status, blk::ZONE_INVALID_CMD);
    let wants = "an append to a conventional zone ends in ZONE_INVALID_CMD";
    refused(&mut zoned, NOT_SEQUENTIAL, &one, verdict, wants)?;
    let fresh = zoned.fresh_one()?;
    let (status, _) = zoned.append(fresh.start, &noise)?;
    arose(status == blk::OK, || {
        format!("an append to another zone ends in status {status}")
    })?;
    Ok(String::new())
}

/// Explicitly open zones do not give way to a write.
fn too_many(bench: &Bench) -> Judged {
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
    let noise = zoned.disk.noise(zoned.traits.granule);
    let mut statuses = vec![zoned.disk.write(last.start, &noise)?];
    if zoned.traits.max_append >= zoned.traits.granule {
        statuses.push(zoned.append(last.start, &noise)?.0);
    }
    let known =
        |status: &u8| matches!(*status, blk::ZONE_OPEN_RESOURCE | blk::ZONE_ACTIVE_RESOURCE);
    demand(
        RESOURCES,
        statuses.iter().all(known),
        "ZONE_OPEN_RESOURCE or ZONE_ACTIVE_RESOURCE",
        || format!("{limit} zones are open; write and append end in status {statuses:?}"),
    )?;
    Ok(format!("{limit} open zones"))
}

fn append_within(bench: &Bench) -> Judged {
    let mut zoned = appending(bench)?;
    let one = zoned.fresh_one()?;
    let granule = zoned.traits.granule;
    let noise = zoned.disk.noise(granule);
    for sector in [one.start + granule, one.start + 1] {
        let (status, _) = zoned.append(sector, &noise)?;
        let verdict = (status, blk::ZONE_INVALID_CMD);
        let wants = "an append that names another than the first sector ends in ZONE_INVALID_CMD";
        refused(&mut zoned, NOT_FIRST, &one, verdict, wants)?;
    }
    let (status, _) = zoned.append(one.start, &noise)?;
    arose(status == blk::OK, || {
        format!("one that names the first ends in status {status}")
    })?;
    Ok(String::new())
}

fn too_long(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let one = zoned.fresh_one()?;
    let noise = zoned.disk.noise(one.capacity + zoned.traits.granule);
    let status = zoned.disk.write(one.start, &noise)?;
    let verdict = (status, blk::ZONE_INVALID_CMD);
    let wants = "a write beyond the zone's capacity ends in ZONE_INVALID_CMD";
    refused(&mut zoned, TOO_LONG, &one, verdict, wants)?;
    zoned.written(one.start, one.capacity)?;
    let now = zoned.now(&one)?;
    arose(now.state == zone::FULL, || {
        format!(
            "a zone that was written to its end is in state {}",
            now.state
        )
    })?;
    let noise = zoned.disk.noise(zoned.traits.granule);
    let status = zoned
        .disk
        .write(one.start + one.capacity - zoned.traits.granule, &noise)?;
    demand(
        TOO_LONG,
        status != blk::OK,
        "no write to a full zone",
        || "it is carried out".to_owned(),
    )?;
    Ok(String::new())
}

/// The zone is filled until less is left than one append may have.
fn append_too_long(bench: &Bench) -> Judged {
    let mut zoned = appending(bench)?;
    let granule = zoned.traits.granule;
    let most = zoned.traits.max_append / granule * granule;
    if most < 2 * granule {
        return Err(Stop::NotApplicable(Absent::Own("appends of two granules")));
    }
    let one = zoned.fresh_one()?;
    zoned.written(one.start, one.capacity - granule)?;
    let noise = zoned.disk.noise(2 * granule);
    let (status, _) = zoned.append(one.start, &noise)?;
    demand(
        TOO_LONG,
        status == blk::ZONE_INVALID_CMD,
        "an append beyond the zone's capacity ends in ZONE_INVALID_CMD",
        || format!("status {status}"),
    )?;
    Ok(String::new())
}

fn place(bench: &Bench) -> Judged {
    let mut zoned = appending(bench)?;
    let one = zoned.fresh_one()?;
    let granule = zoned.traits.granule;
    let mut pointer = one.start;
    for _ in 0..3 {
        let noise = zoned.disk.noise(granule);
        let (status, place) = zoned.append(one.start, &noise)?;
        arose(status == blk::OK, || {
            format!("an append ends in status {status}")
        })?;
        demand(
            PLACE,
            place == pointer && zoned.disk.read(pointer, granule)? == noise,
            "append_sector is where the data went: the write pointer before it",
            || format!("append_sector {place}, the write pointer was at {pointer}"),
        )?;
        pointer += granule;
    }
    Ok(String::new())
}

fn no_appends(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    if zoned.traits.max_append != 0 {
        return Err(Stop::NotApplicable(Absent::Own("max_append_sectors of 0")));
    }
    let one = zoned.fresh_one()?;
    let noise = zoned.disk.noise(zoned.traits.granule);
    let (status, _) = zoned.append(one.start, &noise)?;
    let verdict = (status, blk::UNSUPP);
    let wants = "an append ends in UNSUPP";
    refused(&mut zoned, NO_APPENDS, &one, verdict, wants)?;
    Ok(String::new())
}

fn too_large(bench: &Bench) -> Judged {
    let mut zoned = appending(bench)?;
    let granule = zoned.traits.granule;
    let more = zoned.traits.max_append / granule * granule + granule;
    let one = zoned.one("zones with room for more than an append", |one| {
        one.is_fresh() && one.capacity >= more
    })?;
    let noise = zoned.disk.noise(more);
    let (status, _) = zoned.append(one.start, &noise)?;
    let verdict = (status, blk::ZONE_INVALID_CMD);
    let wants = "an append beyond max_append_sectors ends in ZONE_INVALID_CMD";
    refused(&mut zoned, TOO_LARGE, &one, verdict, wants)?;
    Ok(format!("{more} sectors"))
}

/// Reads that begin in one zone and end in the next, and a write that would.
fn across(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let whole = zoned.traits.zone_sectors;
    let zones = zoned.disk.zones(&zoned.traits.clone())?;
    let pair = zones.windows(2).find_map(|pair| match pair {
        [this, next] if this.is_fresh() && next.is_fresh() => Some((*this, *next)),
        _ => None,
    });
    let Some((this, next)) = pair else {
        return Err(Stop::NotApplicable(Absent::Own(
            "two zones to be written in sequence, next to each other",
        )));
    };
    for before in [1, zoned.traits.granule] {
        let sector = next.start - before;
        let room = blk::SECTOR * 2 * before;
        let status = zoned.disk.ask(blk::IN, sector, &[], room)?.status;
        demand(
            ACROSS,
            status == blk::ZONE_INVALID_CMD,
            "a read across zones ends in ZONE_INVALID_CMD",
            || format!("{} sectors from {sector}: status {status}", 2 * before),
        )?;
    }
    let noise = zoned.disk.noise(whole + zoned.traits.granule);
    let status = zoned.disk.write(this.start, &noise)?;
    let verdict = (status, blk::ZONE_INVALID_CMD);
    let wants = "a write across zones ends in ZONE_INVALID_CMD";
    refused(&mut zoned, ACROSS, &this, verdict, wants)?;
    Ok(String::new())
}

fn unaligned(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let one = zoned.fresh_one()?;
    let granule = zoned.traits.granule;
    let noise = zoned.disk.noise(granule);
    let status = zoned.disk.write(one.start + granule, &noise)?;
    let verdict = (status, blk::ZONE_UNALIGNED_WP);
    let wants = "a write beyond the write pointer ends in ZONE_UNALIGNED_WP";
    refused(&mut zoned, UNALIGNED, &one, verdict, wants)?;
    zoned.written(one.start, granule)?;
    let status = zoned.disk.write(one.start, &noise)?;
    demand(
        UNALIGNED,
        status == blk::ZONE_UNALIGNED_WP,
        "a write before the write pointer ends in ZONE_UNALIGNED_WP",
        || format!("status {status}"),
    )?;
    zoned.written(one.start + granule, granule)?;
    Ok(String::new())
}

fn read_only(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let one = zoned.one("read-only zones", |one| one.state == zone::READ_ONLY)?;
    let granule = zoned.traits.granule;
    let before = zoned.disk.read(one.start, granule)?;
    let noise = zoned.disk.noise(granule);
    let mut statuses = vec![zoned.disk.write(one.start, &noise)?];
    if zoned.traits.max_append >= granule {
        statuses.push(zoned.append(one.start, &noise)?.0);
    }
    let kept = zoned.disk.read(one.start, granule)? == before;
    demand(
        READ_ONLY,
        kept && statuses.iter().all(|one| *one == blk::ZONE_INVALID_CMD),
        "writes and appends end in ZONE_INVALID_CMD and write nothing",
        || format!("write and append: status {statuses:?}; the data is as before: {kept}"),
    )?;
    Ok(String::new())
}

/// What reads of unwritten sectors give: bytes, or none if they fail.
fn unwritten_at(zoned: &mut Zoned<'_>, sector: u64, sectors: u64) -> Result<Option<Vec<u8>>, Stop> {
    let room = blk::SECTOR * sectors;
    let answer = zoned.disk.ask(blk::IN, sector, &[], room)?;
    Ok((answer.status == blk::OK).then_some(answer.data))
}

/// A zone that was written, reset, and is read again, first empty and then written in part.
fn reset_is_unwritten(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let one = zoned.fresh_one()?;
    let granule = zoned.traits.granule;
    let noise = zoned.written(one.start, 2 * granule)?;
    arose(zoned.disk.read(one.start, 2 * granule)? == noise, || {
        "what was written does not read back".to_owned()
    })?;
    zoned.done(blk::ZONE_RESET, one.start)?;
    let empty = unwritten_at(&mut zoned, one.start, 2 * granule)?;
    zoned.written(one.start, granule)?;
    let rest = unwritten_at(&mut zoned, one.start + granule, granule)?;
    let half = noise.len() / 2;
    let stale = |read: &Option<Vec<u8>>, old: &[u8]| {
        let pairs = read
            .iter()
            .flat_map(|bytes| bytes.chunks(512).zip(old.chunks(512)));
        pairs.filter(|(now, then)| now == then).count()
    };
    let (before, after) = (stale(&empty, &noise), stale(&rest, &noise[half..]));
    demand(
        BEYOND,
        before + after == 0,
        "nothing of what was written before the reset",
        || format!("{before} sectors of it in the empty zone, {after} behind the write pointer"),
    )?;
    Ok(String::new())
}

/// A zone that was finished before its end reads beyond that as one that was never written.
fn finished_is_unwritten(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let granule = zoned.traits.granule;
    let [one, fresh] = zoned.fresh(2)?[..] else {
        return Err(Stop::Inconclusive("no two zones".to_owned()));
    };
    zoned.written(one.start, granule)?;
    zoned.done(blk::ZONE_FINISH, one.start)?;
    let finished = unwritten_at(&mut zoned, one.start + granule, granule)?;
    let empty = unwritten_at(&mut zoned, fresh.start + granule, granule)?;
    demand(
        BEYOND,
        finished == empty,
        "the rest of a finished zone as in an empty one",
        || "other bytes, or one of them fails".to_owned(),
    )?;
    Ok(String::new())
}

/// The pattern of unwritten sectors is the device's choice, but it is one: every such sector holds
/// the same, again and again. Or such reads fail.
fn unwritten(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let granule = zoned.traits.granule;
    let [one, other] = zoned.fresh(2)?[..] else {
        return Err(Stop::Inconclusive("no two zones".to_owned()));
    };
    let noise = zoned.written(one.start, granule)?;
    let reads = [
        unwritten_at(&mut zoned, one.start + granule, granule)?,
        unwritten_at(&mut zoned, other.start, granule)?,
        unwritten_at(&mut zoned, other.start, granule)?,
    ];
    let sectors: Vec<&[u8]> = reads
        .iter()
        .flatten()
        .flat_map(|read| read.chunks(512))
        .collect();
    let alike = sectors.windows(2).all(|pair| pair.first() == pair.last());
    let answered = reads.iter().flatten().count();
    demand(
        UNWRITTEN,
        alike && matches!(answered, 0 | 3),
        "one pattern in every unwritten sector, or no such read carried out",
        || format!("{answered} of 3 reads carried out; their sectors are alike: {alike}"),
    )?;
    let mixed = unwritten_at(&mut zoned, one.start, 2 * granule)?;
    let right = mixed.as_ref().is_none_or(|bytes| {
        let (written, rest) = bytes.split_at(noise.len());
        let pattern = sectors.first();
        written == noise && rest.chunks(512).all(|sector| Some(&sector) == pattern)
    });
    demand(
        UNWRITTEN,
        right,
        "what was written, then the pattern",
        || "other bytes".to_owned(),
    )?;
    Ok(format!(
        "{answered} of 3 reads of unwritten sectors carried out"
    ))
}

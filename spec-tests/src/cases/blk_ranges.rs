//! Discard, secure erase and write zeroes: their flags, and what is left of sectors.

use super::{Case, plain};
use crate::clause;
use crate::constants::{blk, feature};
use crate::harness::{Absent, Bench, Disk, Judged, Stop, arose, demand, range};

const UNKNOWN: &str = clause!(blk "D4");
const NO_UNMAP: &str = clause!(blk "D5");
const ZEROES: &str = clause!(blk "D8");

pub(super) const CASES: &[Case] = &[
    writing("unknown_flags_of_a_discard", &[UNKNOWN], unknown_discard).rings(),
    writing(
        "unknown_flags_of_a_write_zeroes",
        &[UNKNOWN],
        unknown_zeroes,
    )
    .rings(),
    writing("unknown_flags_of_a_secure_erase", &[UNKNOWN], unknown_erase),
    writing("a_discard_with_unmap", &[NO_UNMAP], discard_unmap).rings(),
    writing("zeroes_after_a_write_zeroes", &[ZEROES], zeroes).rings(),
    writing("zeroes_in_several_segments", &[ZEROES], zeroes_in_segments).rings(),
];

const fn writing(
    name: &'static str,
    clauses: &'static [&'static str],
    run: fn(&Bench) -> Judged,
) -> Case {
    Case {
        writes: true,
        ..plain(name, clauses, run)
    }
}

/// A few sectors that every disk can drop: aligned as `alignment` of the configuration wants it,
/// and to 4 KiB at least.
fn some_sectors(bench: &Bench, alignment: u64) -> Result<(u64, u64), Stop> {
    let unit = alignment.max(1).next_multiple_of(8);
    let units = bench.config_field(blk::CAPACITY, 8)? / unit;
    arose(units > 0, || format!("it has no {unit} sectors"))?;
    Ok((unit * bench.random(units), unit))
}

/// Each reserved flag alone, all of them, and one in the second of two segments. `sectors` is a
/// range for which the request succeeds without flags.
fn unknown(disk: &mut Disk<'_>, kind: u32, (sector, count): (u64, u64)) -> Judged {
    let plain = range(sector, count, 0);
    let flags = (1..32).map(|bit| 1 << bit).chain([!blk::UNMAP, u32::MAX]);
    for flags in flags {
        let status = disk.ask(kind, 0, &range(sector, count, flags), 0)?.status;
        demand(
            UNKNOWN,
            status == blk::UNSUPP,
            "UNSUPP if a reserved flag is set",
            || format!("status {status} with flags {flags:#x}"),
        )?;
    }
    let status = disk.ask(kind, 0, &plain, 0)?.status;
    arose(status == blk::OK, || {
        format!("without flags it ends in status {status} too")
    })?;
    Ok(String::new())
}

fn unknown_discard(bench: &Bench) -> Judged {
    let mut disk = bench.disk(feature::BLK_DISCARD)?;
    let alignment = bench.config_field(blk::DISCARD_ALIGNMENT, 4)?;
    let sectors = some_sectors(bench, alignment)?;
    unknown(&mut disk, blk::DISCARD, sectors)
}

fn unknown_zeroes(bench: &Bench) -> Judged {
    let mut disk = bench.disk(feature::BLK_WRITE_ZEROES)?;
    let sectors = some_sectors(bench, 1)?;
    unknown(&mut disk, blk::WRITE_ZEROES, sectors)
}

fn unknown_erase(bench: &Bench) -> Judged {
    let offered = bench.offered()?;
    let zoned = offered & feature::BLK_ZONED;
    bench.is_disk()?;
    if zoned != 0 {
        let mut zoned = bench.zoned(feature::BLK_SECURE_ERASE)?;
        let zone = zoned.fresh_one()?;
        let sectors = (zone.start, zoned.traits.zone_sectors);
        return unknown(&mut zoned.disk, blk::SECURE_ERASE, sectors);
    }
    let mut disk = bench.disk(feature::BLK_SECURE_ERASE)?;
    let alignment = bench.config_field(blk::ERASE_ALIGNMENT, 4)?;
    let sectors = some_sectors(bench, alignment)?;
    unknown(&mut disk, blk::SECURE_ERASE, sectors)
}

fn discard_unmap(bench: &Bench) -> Judged {
    let mut disk = bench.disk(feature::BLK_DISCARD)?;
    let alignment = bench.config_field(blk::DISCARD_ALIGNMENT, 4)?;
    let (sector, count) = some_sectors(bench, alignment)?;
    let unmap = range(sector, count, blk::UNMAP);
    let status = disk.ask(blk::DISCARD, 0, &unmap, 0)?.status;
    demand(
        NO_UNMAP,
        status == blk::UNSUPP,
        "a discard with unmap ends in UNSUPP",
        || format!("status {status}"),
    )?;
    let plain = range(sector, count, 0);
    let status = disk.ask(blk::DISCARD, 0, &plain, 0)?.status;
    arose(status == blk::OK, || {
        format!("without unmap it ends in status {status}")
    })?;
    Ok(String::new())
}

fn zeroes(bench: &Bench) -> Judged {
    let mut disk = bench.disk(feature::BLK_WRITE_ZEROES)?;
    for flags in [0, blk::UNMAP] {
        let (sector, count) = some_sectors(bench, 1)?;
        let noise = disk.noise(count);
        let status = disk.write(sector, &noise)?;
        arose(
            status == blk::OK && disk.read(sector, count)? == noise,
            || format!("sector {sector} cannot be written: status {status}"),
        )?;
        let request = range(sector, count, flags);
        let status = disk.ask(blk::WRITE_ZEROES, 0, &request, 0)?.status;
        arose(status == blk::OK, || {
            format!("write zeroes ends in status {status}")
        })?;
        let left = disk.read(sector, count)?;
        demand(
            ZEROES,
            left.iter().all(|byte| *byte == 0),
            "zeroes in all of the range",
            || {
                let other = left.iter().position(|byte| *byte != 0);
                format!("flags {flags:#x}: another byte at {other:?} of the range")
            },
        )?;
    }
    Ok(String::new())
}

/// Two segments of one request, with something between them that has to stay.
fn zeroes_in_segments(bench: &Bench) -> Judged {
    let mut disk = bench.disk(feature::BLK_WRITE_ZEROES)?;
    let most = bench.config_field(blk::WRITE_ZEROES_SEGMENTS, 4)?;
    let sectors = bench.config_field(blk::WRITE_ZEROES_SECTORS, 4)?;
    let (first, unit) = some_sectors(bench, 1)?;
    let first = first.saturating_sub(2 * unit);
    if most < 2 || sectors < unit {
        return Err(Stop::NotApplicable(Absent::Own(
            "write zeroes of two segments",
        )));
    }
    let noise = disk.noise(3 * unit);
    let status = disk.write(first, &noise)?;
    arose(status == blk::OK, || {
        format!("sector {first} cannot be written: status {status}")
    })?;
    let segments = [
        range(first, unit, 0),
        range(first + 2 * unit, unit, blk::UNMAP),
    ];
    let status = disk.ask(blk::WRITE_ZEROES, 0, segments.as_flattened(), 0)?;
    let status = status.status;
    arose(status == blk::OK, || {
        format!("write zeroes of two segments ends in status {status}")
    })?;
    let left = disk.read(first, 3 * unit)?;
    let part = noise.len() / 3;
    let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    demand(
        ZEROES,
        zero(&left[..part])
            && zero(&left[2 * part..])
            && left[part..2 * part] == noise[part..2 * part],
        "zeroes in both ranges, and what is between them as it was",
        || {
            let other = left.iter().position(|byte| *byte != 0);
            format!("the first other byte is at {other:?}, in parts of {part}")
        },
    )?;
    Ok(String::new())
}

//! Drivers that break the rules of zoned disks.

use crate::raw::Raw;
use crate::{Mutant, WANTED, mutant, named};
use spec_tests::clause;
use spec_tests::constants::feature;
use spec_tests::judge::Plan;

fn zoned() -> Plan {
    named("zoned")
}

/// Requests to a zoned disk.
fn sends(d: &mut Raw, requests: &[(u32, u64, usize, usize)]) {
    d.up((WANTED | feature::BLK_ZONED) & !feature::BLK_DISCARD);
    for (kind, sector, out, room) in requests {
        d.disk(*kind, *sector, &vec![7; *out], *room);
    }
}

pub const MUTANTS: &[Mutant] = &[
    mutant("discards_on_zones", &[clause!(blk_init "R6")], zoned, |d| {
        d.up(WANTED | feature::BLK_ZONED)
    }),
    mutant(
        "drives_zones_unknowingly",
        &[clause!(blk_init "R8")],
        zoned,
        |d| d.up(WANTED),
    ),
    mutant("counts_zones_in_bytes", &[clause!(blk "R17")], zoned, |d| {
        sends(d, &[(24, 1 << 20, 0, 0)])
    }),
    mutant("reports_from_nowhere", &[clause!(blk "R18")], zoned, |d| {
        sends(d, &[(16, 1 << 30, 0, 128)])
    }),
    mutant("resets_inside_a_zone", &[clause!(blk "R20")], zoned, |d| {
        sends(d, &[(24, 8, 0, 0)])
    }),
    mutant(
        "resets_all_of_one_zone",
        &[clause!(blk "R21")],
        zoned,
        |d| sends(d, &[(26, 2048, 0, 0)]),
    ),
    mutant("appends_inside_a_zone", &[clause!(blk "R22")], zoned, |d| {
        sends(d, &[(15, 8, 4096, 8)])
    }),
    mutant("appends_too_much", &[clause!(blk "R23")], zoned, |d| {
        sends(d, &[(15, 0, 65 * 512, 8)])
    }),
    mutant(
        "writes_part_of_a_granule",
        &[clause!(blk "R25")],
        zoned,
        |d| sends(d, &[(1, 0, 512, 0)]),
    ),
    mutant(
        "writes_between_granules",
        &[clause!(blk "R26")],
        zoned,
        |d| sends(d, &[(1, 1, 4096, 0)]),
    ),
    mutant("writes_anywhere", &[clause!(blk "R27")], zoned, |d| {
        sends(d, &[(1, 64, 4096, 0)])
    }),
];

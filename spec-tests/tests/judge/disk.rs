//! Drivers that break the rules of disk requests.

use crate::raw::Raw;
use crate::{Mutant, WANTED, mutant, named, watch};
use spec_tests::clause;
use spec_tests::constants::feature;

/// One request.
fn sends(d: &mut Raw, kind: u32, sector: u64, out: &[u8], room: usize) {
    d.up(WANTED);
    d.disk(kind, sector, out, room);
}

fn segments(count: u8, flags: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    for at in 0..count {
        bytes.extend(u64::from(at).to_le_bytes());
        bytes.extend([1, 0, 0, 0, flags, 0, 0, 0]);
    }
    bytes
}

pub const MUTANTS: &[Mutant] = &[
    mutant("reads_beyond_capacity", &[clause!(blk "R2")], watch, |d| {
        sends(d, 0, 1 << 40, &[], 512)
    }),
    mutant(
        "refuses_read_only_disks",
        &[clause!(blk "R3")],
        || named("read-only"),
        |d| {
            d.up(WANTED & !feature::BLK_RO);
        },
    ),
    mutant("flushes_a_sector", &[clause!(blk "R4")], watch, |d| {
        sends(d, 4, 8, &[], 0)
    }),
    mutant("flushes_data", &[clause!(blk "R5")], watch, |d| {
        sends(d, 4, 0, &[0; 512], 0)
    }),
    mutant("reads_part_of_a_sector", &[clause!(blk "R6")], watch, |d| {
        sends(d, 0, 0, &[], 500)
    }),
    mutant(
        "discards_part_of_a_segment",
        &[clause!(blk "R7")],
        watch,
        |d| sends(d, 11, 0, &[0; 8], 0),
    ),
    mutant("asks_for_a_longer_id", &[clause!(blk "R8")], watch, |d| {
        sends(d, 8, 0, &[], 32)
    }),
    mutant("discards_many_segments", &[clause!(blk "R9")], watch, |d| {
        sends(d, 11, 0, &segments(5, 0), 0)
    }),
    mutant("erases_many_segments", &[clause!(blk "R10")], watch, |d| {
        sends(d, 14, 0, &segments(5, 0), 0)
    }),
    mutant("zeroes_many_segments", &[clause!(blk "R11")], watch, |d| {
        sends(d, 13, 0, &segments(5, 0), 0)
    }),
    mutant("discards_with_unmap", &[clause!(blk "R14")], watch, |d| {
        sends(d, 11, 0, &segments(1, 1), 0)
    }),
];

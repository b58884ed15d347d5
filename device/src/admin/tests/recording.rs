//! Page-write recording by command.

use super::bench::{Bench, PATIENCE, map, memory, u16_at, u32_at};
use crate::function::{AdminConfig, FunctionConfig, PciFunction};
use crate::tracker::Marking;
use std::sync::Arc;

const QUERY: u16 = 0x40;
const START: u16 = 0x41;
const STOP: u16 = 0x42;
const READ: u16 = 0x43;

pub(super) fn start(page_size: u64, ranges: &[(u64, u64)]) -> Vec<u8> {
    let mut data = page_size.to_le_bytes().to_vec();
    data.extend(u32::try_from(ranges.len()).unwrap().to_le_bytes());
    data.extend([0; 4]);
    for (start, length) in ranges {
        data.extend(start.to_le_bytes());
        data.extend(length.to_le_bytes());
    }
    data
}

pub(super) fn read(start: u64, length: u64, page_size: u64) -> Vec<u8> {
    let mut data = start.to_le_bytes().to_vec();
    data.extend(length.to_le_bytes());
    data.extend(page_size.to_le_bytes());
    data
}

/// Reads once: pages in ascending order, and the flags MORE and OVERFLOW.
pub(super) fn records(
    bench: &Bench,
    group: u16,
    member: u64,
    room: usize,
) -> (Vec<u64>, bool, bool) {
    let data = read(0, 1 << 40, 0);
    let answer = bench.command(READ, group, member, &data, room);
    assert_eq!(u16_at(&answer, 0), 0);
    let output = u32_at(&answer, 4);
    let mut pages: Vec<u64> = answer[8..]
        .chunks_exact(8)
        .map(|record| u64::from_le_bytes(record.try_into().unwrap()) >> 12)
        .collect();
    assert_eq!(usize::try_from(output & 0x3fff_ffff), Ok(pages.len()));
    pages.sort_unstable();
    (pages, output & 1 << 30 != 0, output & 1 << 31 != 0)
}

/// The member writes some bytes.
pub(super) fn touch(member: &PciFunction, iova: u64, len: usize) {
    let mem = member.dma().enter();
    let mut burst = mem.burst();
    burst.write(iova, &vec![1; len]).unwrap();
}

fn recording(records: u32, members: usize) -> Bench {
    let admin = AdminConfig {
        queues: 2,
        max_records: records,
        ..AdminConfig::default()
    };
    let bench = Bench::ready(admin, members);
    for member in &bench.members {
        map(member, &memory());
    }
    bench
}

#[test]
fn limits_are_told() {
    let bench = recording(77, 1);
    let answer = bench.command(QUERY, 1, 1, &[], 64);
    assert_eq!(answer.len(), 24);
    assert_eq!(u32_at(&answer, 8), 0x7fff_f000);
    assert_eq!((u32_at(&answer, 16), u32_at(&answer, 20)), (255, 77));
}

#[test]
fn pages_are_read_once_and_from_their_ranges_only() {
    let bench = recording(1000, 2);
    let ranges = [(0x10_0000, 0x1_0000), (0, 0x8000)];
    assert_eq!(
        bench.status(READ, 1, 1, &read(0, 0x1000, 0), 64),
        (22, 1),
        "nothing to read"
    );
    assert_eq!(bench.status(STOP, 1, 1, &[], 8), (22, 1), "nothing to stop");
    assert_eq!(bench.status(START, 1, 1, &start(4096, &ranges), 8), (0, 0));
    assert_eq!(
        bench.status(START, 1, 1, &start(4096, &ranges), 8),
        (16, 1),
        "EBUSY"
    );
    touch(&bench.members[0], 0x1fff, 2);
    touch(&bench.members[0], 0x1fff, 2);
    touch(&bench.members[0], 0x7_0000, 0x9_1001);
    touch(&bench.members[1], 0x3000, 1);
    assert_eq!(
        records(&bench, 1, 1, 4096),
        (vec![1, 2, 0x100, 0x101], false, false)
    );
    assert_eq!(records(&bench, 1, 1, 4096), (vec![], false, false));
    touch(&bench.members[0], 0x1000, 1);
    assert_eq!(bench.status(STOP, 1, 1, &[], 8), (0, 0));
    touch(&bench.members[0], 0x5000, 1);
    assert_eq!(
        records(&bench, 1, 1, 4096).0,
        [1],
        "kept until read, none added"
    );
    touch(&bench.members[0], 0x1000, 1);
    assert_eq!(
        bench.status(START, 1, 1, &start(1 << 21, &[(0, 1 << 21)]), 8),
        (0, 0)
    );
    touch(&bench.members[0], 0x12_3456, 1);
    assert_eq!(
        bench.status(READ, 1, 1, &read(0, 1 << 21, 4096), 64),
        (22, 3)
    );
    assert_eq!(
        records(&bench, 1, 1, 64).0,
        [0],
        "one page of 2 MiB, and none of before"
    );
}

#[test]
fn small_buffers_leave_the_rest() {
    let bench = recording(1000, 1);
    assert_eq!(
        bench.status(START, 1, 1, &start(4096, &[(0, 0x40_0000)]), 8),
        (0, 0)
    );
    touch(&bench.members[0], 0, 10 << 12);
    let answer = bench.command(READ, 1, 1, &read(0, 1 << 40, 0), 8);
    assert_eq!(
        u32_at(&answer, 4),
        1 << 30,
        "no room for one: there may be more"
    );
    let (one, more, _) = records(&bench, 1, 1, 16 + 7);
    assert_eq!((one.len(), more), (1, true));
    // Not even for the status: nothing is read, so nothing is lost.
    let command = Bench::encode(READ, 1, 1, &read(0, 1 << 40, 0));
    assert_eq!(bench.raw(0, &command, 4).0, 4);
    // A buffer that is not there.
    let n = bench.submit_at(0, &command, 1 << 40, 4096);
    assert_eq!(bench.finish(0, n), 0);
    let (rest, more, overflow) = records(&bench, 1, 1, 4096);
    assert_eq!((rest.len(), more, overflow), (9, false, false));
}

#[test]
fn overflow_is_told_with_sixteen_records() {
    let bench = recording(16, 1);
    assert_eq!(
        bench.status(START, 1, 1, &start(4096, &[(0, 0x40_0000)]), 8),
        (0, 0)
    );
    touch(&bench.members[0], 0, 16 << 12);
    assert!(!records(&bench, 1, 1, 4096).2);
    touch(&bench.members[0], 0, 17 << 12);
    let (pages, more, overflow) = records(&bench, 1, 1, 4096);
    assert_eq!((pages.len(), more, overflow), (16, false, true));
    assert_eq!(records(&bench, 1, 1, 4096), (vec![], false, false));
    touch(&bench.members[0], 0, 17 << 12);
    assert_eq!(bench.status(STOP, 1, 1, &[], 8), (0, 0));
    assert_eq!(
        bench.status(START, 1, 1, &start(4096, &[(0, 0x40_0000)]), 8),
        (0, 0)
    );
    assert_eq!(
        records(&bench, 1, 1, 4096),
        (vec![], false, false),
        "START forgets"
    );
}

#[test]
fn a_reset_of_the_member_changes_nothing_and_one_of_the_owner_everything() {
    let bench = recording(1000, 1);
    let all = start(4096, &[(0, 0x40_0000)]);
    assert_eq!(bench.status(START, 1, 1, &all, 8), (0, 0));
    touch(&bench.members[0], 0x1000, 1);
    assert!(bench.members[0].reset_and_wait(PATIENCE));
    touch(&bench.members[0], 0x2000, 1);
    bench.members[0].bar_write(0, 0x14, &[0]);
    touch(&bench.members[0], 0x3000, 1);
    assert_eq!(records(&bench, 1, 1, 4096).0, [1, 2, 3]);
    touch(&bench.members[0], 0x4000, 1);
    bench.reset();
    bench.bring_up();
    bench.enable_vfs(1);
    bench.use_lists();
    assert_eq!(bench.status(READ, 1, 1, &read(0, 0x1000, 0), 64), (22, 1));
    assert_eq!(bench.status(START, 1, 1, &all, 8), (0, 0));
    assert_eq!(records(&bench, 1, 1, 4096).0.len(), 0);
}

/// The owner's recording of a function and the function's own do not know of each other.
#[test]
fn owner_and_self_record_apart() {
    let admin = AdminConfig {
        queues: 1,
        ..AdminConfig::default()
    };
    let own = Bench::with_lists(1, 0);
    let bench = Bench::owning(admin, Arc::clone(&own.owner));
    let all = start(4096, &[(0x30_0000, 0x10_0000)]);
    assert_eq!(own.status(START, 0, 0, &all, 8), (0, 0));
    assert_eq!(bench.status(START, 1, 1, &all, 8), (0, 0));
    touch(&own.owner, 0x30_1000, 1);
    assert_eq!(records(&own, 0, 0, 64).0, [0x301]);
    assert_eq!(records(&bench, 1, 1, 64).0, [0x301]);
    own.reset();
    touch(&own.owner, 0x30_2000, 1);
    assert_eq!(records(&bench, 1, 1, 64).0, [0x302]);
}

/// The negative control of everything that rests on records.
#[test]
fn a_function_that_does_not_mark_records_nothing() {
    let silent = PciFunction::new(
        FunctionConfig {
            marking: Marking::Off,
            ..FunctionConfig::default()
        },
        crate::rng::RngDevice::seeded(1),
    );
    map(&silent, &memory());
    let admin = AdminConfig {
        queues: 1,
        ..AdminConfig::default()
    };
    let bench = Bench::owning(admin, Arc::clone(&silent));
    assert_eq!(
        bench.status(START, 1, 1, &start(4096, &[(0, 0x40_0000)]), 8),
        (0, 0)
    );
    touch(&silent, 0x1000, 1);
    assert_eq!(records(&bench, 1, 1, 64).0.len(), 0);
}

/// One owner, all the members there can be.
#[test]
fn two_hundred_and_fifty_six_members_record() {
    let bench = Bench::with_lists(2, 256);
    let page = 0x1000;
    for member in 1..=256_u64 {
        let all = start(4096, &[(0, 0x40_0000)]);
        assert_eq!(bench.status(START, 1, member, &all, 8), (0, 0), "{member}");
    }
    assert_eq!(
        bench.status(START, 1, 257, &start(4096, &[(0, 4096)]), 8),
        (22, 5)
    );
    let file = memory();
    for (number, member) in (0_u64..).zip(&bench.members) {
        map(member, &file);
        touch(member, number * page, 1);
    }
    for member in 1..=256 {
        assert_eq!(records(&bench, 1, member, 64).0, [member - 1]);
    }
}

//! Modes and parts of members.

use super::bench::{Bench, PATIENCE, map, memory, negotiate, set_queue, u16_at, u32_at};
use crate::function::PciFunction;
use crate::status::State;
use std::os::unix::fs::FileExt;

const PARTS_GET: u16 = 0x0f;
const PARTS_SET: u16 = 0x10;
const MODE_SET: u16 = 0x11;
const HEADER: [u8; 8] = [0; 8];

/// Object 0 gets the parts of the member, object 1 sets them.
pub(super) fn objects(bench: &Bench, member: u64) {
    bench.limits(8, 8);
    assert_eq!(bench.create(member, 0, 0), (0, 0));
    assert_eq!(bench.create(member, 1, 1), (0, 0));
}

pub(super) fn stop(bench: &Bench, member: u64, stopped: bool) -> (u16, u16) {
    bench.status(MODE_SET, 1, member, &[u8::from(stopped)], 8)
}

pub(super) fn all_parts(bench: &Bench, member: u64) -> Vec<u8> {
    let data = [&HEADER[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
    let answer = bench.command(PARTS_GET, 1, member, &data, 0x4000);
    assert_eq!(u16_at(&answer, 0), 0);
    answer[8..].to_vec()
}

pub(super) fn set_parts(bench: &Bench, member: u64, parts: &[u8]) -> (u16, u16) {
    let data = [&[0, 0, 0, 0, 1, 0, 0, 0], parts].concat();
    bench.status(PARTS_SET, 1, member, &data, 8)
}

/// Type, selector and value of each.
fn split(parts: &[u8]) -> Vec<(u16, u16, Vec<u8>)> {
    let mut all = Vec::new();
    let mut rest = parts;
    while rest.len() >= 16 {
        let len = usize::try_from(u32_at(rest, 12)).unwrap();
        all.push((
            u16_at(rest, 0),
            u16_at(rest, 4),
            rest[16..16 + len].to_vec(),
        ));
        rest = &rest[16 + len..];
    }
    assert!(rest.iter().all(|byte| *byte == 0));
    all
}

pub(super) fn part(part_type: u16, flags: u8, selector: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = part_type.to_le_bytes().to_vec();
    bytes.extend([flags, 0]);
    bytes.extend(selector.to_le_bytes());
    bytes.extend([0; 6]);
    bytes.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
    bytes.extend(value);
    bytes
}

/// A driver with one ring in memory of its own: an entropy device that fills `buffers` pages.
pub(super) fn run(member: &PciFunction, memory: &std::fs::File) {
    map(member, memory);
    negotiate(member, 1 << 32 | 1 << 43 | 1 << 44);
    member.bar_write(0, 0x10, &0_u16.to_le_bytes());
    set_queue(member, 0, [0x1000, 0x2000, 0x3000]);
    member.bar_write(0, 0x14, &[0x0f]);
}

fn offer(member: &PciFunction, memory: &std::fs::File, n: u16) {
    let mut desc = (0x1_0000 + u64::from(n) * 0x1000).to_le_bytes().to_vec();
    desc.extend(4096_u32.to_le_bytes());
    desc.extend([2, 0, 0, 0]);
    let write = |at: u64, bytes: &[u8]| memory.write_all_at(bytes, at).unwrap();
    write(0x1000 + 16 * u64::from(n), &desc);
    write(0x2004 + 2 * u64::from(n), &n.to_le_bytes());
    write(0x2002, &(n + 1).to_le_bytes());
    member.bar_write(0, 0x3000, &[0, 0]);
}

fn used(memory: &std::fs::File) -> u16 {
    let mut bytes = [0; 2];
    memory.read_exact_at(&mut bytes, 0x3002).unwrap();
    u16::from_le_bytes(bytes)
}

fn await_used(memory: &std::fs::File, expected: u16) {
    let begin = std::time::Instant::now();
    while used(memory) != expected {
        assert!(begin.elapsed() < PATIENCE, "{} used", used(memory));
        std::thread::yield_now();
    }
}

#[test]
fn a_stopped_member_does_nothing_and_goes_on_where_it_was() {
    let bench = Bench::with_lists(2, 2);
    let memory = memory();
    run(&bench.members[0], &memory);
    offer(&bench.members[0], &memory, 0);
    await_used(&memory, 1);
    assert_eq!(stop(&bench, 1, true), (0, 0));
    assert_eq!(stop(&bench, 1, true), (0, 0), "twice");
    assert_eq!(
        bench.members[0].state(),
        State::Running,
        "its driver does not know"
    );
    let before = bench.members[0].stats().interrupts;
    offer(&bench.members[0], &memory, 1);
    bench.members[0].notify_config_change();
    assert_eq!(
        stop(&bench, 2, false),
        (0, 0),
        "another member is another matter"
    );
    assert_eq!(used(&memory), 1);
    assert_eq!(bench.members[0].stats().interrupts, before);
    assert_eq!(stop(&bench, 1, false), (0, 0));
    await_used(&memory, 2);
    assert_eq!(stop(&bench, 1, false), (0, 0), "twice");
    assert_eq!(bench.status(MODE_SET, 1, 1, &[2], 8), (22, 3));
}

#[test]
fn suspend_and_stop_are_latched_apart() {
    let bench = Bench::with_lists(1, 1);
    let (member, memory) = (&bench.members[0], memory());
    run(member, &memory);
    assert_eq!(stop(&bench, 1, true), (0, 0));
    member.bar_write(0, 0x14, &[0x1f]);
    assert_eq!(member.state(), State::Suspended { changed: false });
    assert_eq!(stop(&bench, 1, false), (0, 0));
    offer(member, &memory, 0);
    assert_eq!(member.state(), State::Suspended { changed: false });
    assert_eq!(stop(&bench, 1, true), (0, 0));
    member.bar_write(0, 0x14, &[0x1f]);
    assert_eq!(member.state(), State::Running);
    assert_eq!(
        used(&memory),
        0,
        "resumed by its driver, stopped by its owner"
    );
    assert_eq!(stop(&bench, 1, false), (0, 0));
    await_used(&memory, 1);
}

#[test]
fn parts_move_a_member_to_another_in_the_middle_of_its_work() {
    let bench = Bench::with_lists(1, 2);
    let memory = memory();
    run(&bench.members[0], &memory);
    for n in 0..3 {
        offer(&bench.members[0], &memory, n);
    }
    await_used(&memory, 3);
    for member in [1, 2] {
        objects(&bench, member);
    }
    assert_eq!(stop(&bench, 1, true), (0, 0));
    let parts = all_parts(&bench, 1);
    let types: Vec<u16> = split(&parts).iter().map(|part| part.0).collect();
    assert_eq!(
        types,
        [
            0x100, 0x101, 0x102, 0x102, 0x102, 0x102, 0x102, 0x103, 0x104, 0x105, 0x1f0
        ]
    );
    let metadata = |what: u8, room: usize| {
        let data = [&HEADER[..], &[what, 0, 0, 0, 0, 0, 0, 0]].concat();
        bench.command(0x0e, 1, 1, &data, room)
    };
    assert_eq!(
        usize::try_from(u32_at(&metadata(0, 64), 8)),
        Ok(parts.len())
    );
    assert_eq!(u32_at(&metadata(1, 64), 8), 11);
    assert_eq!(metadata(2, 4096).len(), 16 + 11 * 16);
    assert_eq!(u16_at(&metadata(2, 64), 0), 12, "ENOMEM");
    assert_eq!(u16_at(&metadata(3, 64), 0), 22);

    map(&bench.members[1], &memory);
    assert_eq!(set_parts(&bench, 2, &parts), (16, 1), "not stopped");
    assert_eq!(stop(&bench, 2, true), (0, 0));
    assert_eq!(set_parts(&bench, 2, &parts), (0, 0));
    assert_eq!(
        set_parts(&bench, 2, &parts),
        (0, 0),
        "as often as one likes"
    );
    assert_eq!(all_parts(&bench, 2), parts);
    assert_eq!(used(&memory), 3);
    offer(&bench.members[1], &memory, 3);
    assert_eq!(used(&memory), 3, "before it is resumed nothing moves");
    assert_eq!(stop(&bench, 2, false), (0, 0));
    await_used(&memory, 4);
    assert_eq!(bench.members[1].state(), State::Running);
}

#[test]
fn selected_parts_come_in_the_order_of_the_table() {
    let bench = Bench::with_lists(1, 1);
    objects(&bench, 1);
    let wanted = [
        part(0x104, 0, 0, &[]),
        part(0x0777, 0, 0, &[]),
        part(0x104, 0, 9, &[]),
        part(0x100, 0, 0, &[]),
        part(0x102, 0, 18, &[]),
    ];
    let data = [&HEADER[..], &[0; 8], &wanted.concat()].concat();
    let answer = bench.command(PARTS_GET, 1, 1, &data, 4096);
    let parts = split(&answer[8..]);
    let found: Vec<(u16, u16)> = parts.iter().map(|part| (part.0, part.1)).collect();
    assert_eq!(found, [(0x100, 0), (0x102, 18), (0x104, 0)]);
    assert_eq!(parts[1].2, [1, 0]);
    assert_eq!(parts[2].2.len(), 32);
}

#[test]
fn parts_that_do_not_fit_change_nothing() {
    let bench = Bench::with_lists(1, 1);
    objects(&bench, 1);
    assert_eq!(stop(&bench, 1, true), (0, 0));
    let before = all_parts(&bench, 1);
    let features = split(&before)[0].2.clone();
    let other: Vec<u8> = features.iter().map(|byte| byte ^ 1).collect();
    let queue = |size: u16, vector: u16, enabled: u16| {
        let mut cfg = Vec::new();
        for value in [size, vector, enabled, 0] {
            cfg.extend(value.to_le_bytes());
        }
        cfg.extend([0; 24]);
        cfg
    };
    let good = part(0x101, 0, 0, &(1_u64 << 32).to_le_bytes());
    let cases: [(&str, Vec<u8>); 20] = [
        ("other features", part(0x100, 1, 0, &other)),
        (
            "features not offered",
            part(0x101, 0, 0, &(1_u64 << 34).to_le_bytes()),
        ),
        ("short features", part(0x101, 0, 0, &[0; 4])),
        ("long features", part(0x101, 0, 0, &[0; 16])),
        ("an empty value", part(0x103, 0, 0, &[])),
        ("no such status", part(0x103, 0, 0, &[0x04])),
        (
            "a status that the features do not carry",
            part(0x103, 0, 0, &[0x1b]),
        ),
        ("mandatory and unknown", part(0x106, 0, 0, &[0; 8])),
        ("another device type's", part(0x200, 0, 0, &[0; 8])),
        ("a field that is none", part(0x102, 0, 17, &[0])),
        ("another number of queues", part(0x102, 0, 18, &[2, 0])),
        ("a field's length", part(0x102, 0, 22, &[2, 0, 0, 0])),
        ("no such queue", part(0x104, 0, 1, &queue(256, 0, 0))),
        ("a size", part(0x104, 0, 0, &queue(512, 0, 0))),
        (
            "a size that is no power",
            part(0x104, 0, 0, &queue(3, 0, 0)),
        ),
        ("a vector", part(0x104, 0, 0, &queue(256, 7, 0))),
        ("enabled twice over", part(0x104, 0, 0, &queue(256, 1, 2))),
        (
            "another doorbell",
            part(0x105, 0, 0, &[1, 0, 0, 0, 0, 0, 0, 0]),
        ),
        ("cut off", part(0x101, 0, 0, &[0; 8])[..20].to_vec()),
        ("half a header", vec![1; 9]),
    ];
    for (what, case) in cases {
        assert_eq!(set_parts(&bench, 1, &case), (22, 3), "{what}");
        // Nor with a good part in front.
        let both = [good.clone(), case].concat();
        assert_eq!(set_parts(&bench, 1, &both), (22, 3), "{what}");
        assert_eq!(all_parts(&bench, 1), before, "{what}");
    }
    let twice = [good.clone(), good.clone()].concat();
    assert_eq!(set_parts(&bench, 1, &twice), (22, 3));
    let back = [part(0x103, 0, 0, &[3]), good.clone()].concat();
    assert_eq!(set_parts(&bench, 1, &back), (22, 3), "out of order");
    let too_long = [part(0x101, 0, 0, &[0; 8])[..12].to_vec(), vec![0xff; 12]].concat();
    assert_eq!(set_parts(&bench, 1, &too_long), (22, 3));
    assert_eq!(all_parts(&bench, 1), before);
    // Optional parts that nobody knows are skipped, wherever they stand.
    let unknown = part(0x5ff, 1, 3, &[1, 2, 3]);
    let known = [unknown.clone(), good, unknown, part(0x103, 0, 0, &[0x0b])].concat();
    assert_eq!(set_parts(&bench, 1, &known), (0, 0));
    assert_eq!(bench.members[0].state(), State::FeaturesOk);
}

#[test]
fn an_object_serves_its_purpose_only() {
    let bench = Bench::with_lists(1, 2);
    objects(&bench, 1);
    let get = |id: u8, member| {
        let data = [&[0, 0, 0, 0, id, 0, 0, 0], &[1, 0, 0, 0, 0, 0, 0, 0][..]].concat();
        let answer = bench.command(PARTS_GET, 1, member, &data, 4096);
        (u16_at(&answer, 0), u16_at(&answer, 2))
    };
    assert_eq!(get(0, 1), (0, 0));
    assert_eq!(get(1, 1), (22, 3), "one to set with");
    assert_eq!(get(2, 1), (6, 3));
    assert_eq!(get(0, 2), (6, 3), "another member's");
    assert_eq!(
        bench.status(PARTS_SET, 1, 1, &HEADER, 8),
        (22, 3),
        "one to get with"
    );
}

#[test]
fn a_reset_clears_the_parts_and_leaves_the_objects() {
    let bench = Bench::with_lists(1, 1);
    let memory = memory();
    let fresh = {
        objects(&bench, 1);
        all_parts(&bench, 1)
    };
    run(&bench.members[0], &memory);
    assert_ne!(all_parts(&bench, 1), fresh);
    assert_eq!(stop(&bench, 1, true), (0, 0));
    assert!(bench.members[0].reset_and_wait(PATIENCE));
    assert_eq!(all_parts(&bench, 1), fresh);
    assert_eq!(
        set_parts(&bench, 1, &fresh),
        (16, 1),
        "a function level reset lets it go on"
    );
}

//! Administration from the driver's side of real queues in real memory.
//!
//! Offsets, opcodes and structures are typed again from the specification.

mod bench;
mod hostile;
mod members;
mod recording;
mod refused;
mod waiting;

use bench::{Bench, LISTS_OF_SELF, list_words, u16_at};

const LIST_QUERY: u16 = 0;
const LIST_USE: u16 = 1;
const CAP_LIST: u16 = 7;
const CAP_GET: u16 = 8;
const CAP_SET: u16 = 9;

#[test]
fn registers_show_the_queues_once_they_are_negotiated() {
    let bench = Bench::new(2, 2);
    assert_eq!(bench.register16(0x12), 1, "num_queues, without them");
    assert_eq!((bench.register16(0x3c), bench.register16(0x3e)), (1, 2));
    assert_eq!(bench.owner.vectors(), 4);
    bench.write16(0x16, 1);
    assert_eq!(bench.register16(0x18), 64);
    let plain = Bench::negotiated(2, 2, 1 << 32);
    plain.write16(0x16, 1);
    assert_eq!(
        plain.register16(0x18),
        0,
        "without the feature there is none"
    );
}

#[test]
fn a_function_without_administration_offers_none() {
    let bench = Bench::offering(0, 0);
    assert_eq!(bench & (1 << 41 | 1 << 37), 0);
    assert_eq!(Bench::offering(1, 0) & (1 << 41 | 1 << 37), 1 << 41);
    assert_eq!(
        Bench::offering(1, 3) & (1 << 41 | 1 << 37),
        1 << 41 | 1 << 37
    );
}

#[test]
fn only_lists_are_legal_before_a_list_is_used() {
    let bench = Bench::new(1, 0);
    assert_eq!(bench.status(0x40, 0, 0, &[], 64), (22, 2));
    assert_eq!(bench.status(LIST_QUERY, 0, 0, &[], 64), (0, 0));
    let list = bench.command(LIST_QUERY, 0, 0, &[], 64);
    assert_eq!(list_words(&list), LISTS_OF_SELF, "without members");
    assert_eq!(bench.status(LIST_USE, 0, 0, &list[8..], 8), (0, 0));
    assert_eq!(bench.status(0x40, 0, 0, &[], 64), (0, 0));
    // Each group has a list of its own.
    assert_eq!(bench.status(LIST_QUERY, 1, 0, &[], 64), (22, 4));
    // A driver may give up the lists themselves.
    assert_eq!(bench.status(LIST_USE, 0, 0, &[0; 16], 8), (0, 0));
    assert_eq!(bench.status(LIST_QUERY, 0, 0, &[], 64), (22, 2));
    assert_eq!(bench.status(0x40, 0, 0, &[], 64), (22, 2));
}

#[test]
fn a_list_with_what_was_not_reported_changes_nothing() {
    let bench = Bench::with_lists(1, 0);
    for bits in [
        vec![0xff; 8],
        [vec![0; 16], vec![1]].concat(),
        vec![0xff; 65536 - 24],
    ] {
        assert_eq!(bench.status(LIST_USE, 0, 0, &bits, 8), (22, 3));
    }
    assert_eq!(
        bench.status(0x40, 0, 0, &[], 64),
        (0, 0),
        "the former list holds"
    );
    bench.reset();
    bench.bring_up();
    assert_eq!(
        bench.status(0x40, 0, 0, &[], 64),
        (22, 2),
        "a reset forgets it"
    );
}

#[test]
fn group_comes_before_opcode_and_opcode_before_member() {
    let bench = Bench::with_lists(1, 2);
    assert_eq!(bench.status(0x7777, 9, 77, &[], 64), (22, 4));
    assert_eq!(bench.status(0x7777, 1, 77, &[], 64), (22, 2));
    assert_eq!(bench.status(0x11, 1, 77, &[], 64), (22, 5));
    for (member, answer) in [(0, (22, 5)), (1, (0, 0)), (2, (0, 0)), (3, (22, 5))] {
        assert_eq!(bench.status(0x11, 1, member, &[0], 64), answer, "{member}");
    }
    assert_eq!(bench.status(0x40, 0, 1, &[], 64), (22, 5));
    // Parts are for members that are owned, capabilities for the owner.
    assert_eq!(bench.status(0x11, 0, 0, &[1], 64), (22, 2));
    assert_eq!(bench.status(CAP_LIST, 1, 1, &[], 64), (22, 2));
    assert_eq!(bench.status(0x12, 1, 1, &[], 64), (22, 2));
}

#[test]
fn members_are_there_while_they_are_enabled() {
    let bench = Bench::with_lists(1, 3);
    bench.enable_vfs(0);
    assert_eq!(bench.status(LIST_QUERY, 1, 0, &[], 64), (22, 4));
    bench.enable_vfs(1);
    assert_eq!(bench.status(0x11, 1, 1, &[0], 64), (0, 0));
    assert_eq!(bench.status(0x11, 1, 2, &[0], 64), (22, 5));
    // NumVFs stands while VFs are enabled, and stays within TotalVFs.
    bench.owner.config_write(0x150, &3_u16.to_le_bytes());
    assert_eq!(bench.config16(0x150), 1);
    bench.owner.config_write(0x148, &[0]);
    bench.owner.config_write(0x150, &4_u16.to_le_bytes());
    assert_eq!(bench.config16(0x150), 1);
    assert_eq!((bench.config16(0x14c), bench.config16(0x14e)), (3, 3));
    assert_eq!(bench.config16(0x140), 0x10);
    assert_eq!(bench.config16(0x15a), 0x1044);
}

#[test]
fn short_buffers_cut_and_long_ones_are_left_alone() {
    let bench = Bench::with_lists(1, 0);
    // Two bytes of command: LIST_QUERY of the self group. Eight bytes of room: the status.
    assert_eq!(bench.raw(0, &[0, 0], 8), (8, vec![0; 8]));
    let (len, bytes) = bench.raw(0, &[0, 0], 4096);
    assert_eq!(len, 24, "two words of list, not the buffer");
    assert!(bytes[24..].iter().all(|byte| *byte == 0xcc), "left alone");
    // Room for half of it.
    let (len, bytes) = bench.raw(0, &[0, 0], 16);
    assert_eq!((len, u16_at(&bytes, 0)), (16, 0));
    // Too small for anything: as much of the status as goes in, and no failure.
    assert_eq!(bench.raw(0, &[0, 0], 3).0, 3);
    assert_eq!(
        bench.raw(0, &[], 8),
        (8, vec![0; 8]),
        "nothing at all reads 0"
    );
    assert_eq!(bench.status(0x40, 0, 0, &[1; 5000], 64), (0, 0));
}

#[test]
fn capabilities_are_one() {
    let bench = Bench::with_lists(1, 1);
    assert_eq!(
        bench.command(CAP_LIST, 0, 0, &[], 64)[8..16],
        [1, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(bench.command(CAP_GET, 0, 0, &[0; 8], 64)[8..10], [255, 255]);
    assert_eq!(bench.status(CAP_GET, 0, 0, &[1, 0], 64), (6, 3));
    assert_eq!(
        bench.status(CAP_SET, 0, 0, &[0, 8, 0, 0, 0, 0, 0, 0, 1, 1], 64),
        (6, 3)
    );
    // Limits are 0 until they are set.
    assert_eq!(bench.create(1, 0, 0), (22, 3));
    bench.limits(2, 1);
    assert_eq!(bench.create(1, 0, 0), (0, 0));
    assert_eq!(bench.create(1, 0, 0), (17, 3), "EEXIST");
    assert_eq!(bench.create(1, 1, 0), (0, 0));
    assert_eq!(bench.create(1, 2, 0), (28, 6), "a third to get with");
    assert_eq!(bench.create(1, 2, 2), (22, 3), "no such purpose");
    assert_eq!(bench.create(1, 3, 1), (22, 3), "beyond both limits");
    assert_eq!(bench.create(1, 2, 1), (0, 0));
    let lower = |get, set| bench.status(CAP_SET, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0, get, set], 64);
    assert_eq!(lower(1, 1), (16, 1), "EBUSY");
    assert_eq!(bench.destroy(1, 1), (0, 0));
    assert_eq!(bench.destroy(1, 1), (6, 3));
    assert_eq!(lower(1, 1), (16, 1), "number 2 is beyond");
    assert_eq!(bench.destroy(1, 2), (0, 0));
    assert_eq!(lower(1, 0), (0, 0));
    bench.reset();
    bench.bring_up();
    bench.enable_vfs(1);
    bench.use_lists();
    assert_eq!(
        bench.create(1, 0, 0),
        (22, 3),
        "a reset forgets limits and objects"
    );
}

#[test]
fn modify_and_query_follow_either_reading() {
    for table in [false, true] {
        let bench = Bench::with_opcodes(table);
        bench.limits(1, 1);
        let (modify, query) = if table { (0x0c, 0x0b) } else { (0x0b, 0x0c) };
        let with_flags = |id: u8, purpose: u8| {
            let mut data = vec![0, 0, 0, 0, id, 0, 0, 0];
            data.extend([0; 8]);
            data.extend([purpose, 0, 0, 0, 0, 0, 0, 0]);
            data
        };
        assert_eq!(bench.create(1, 0, 0), (0, 0));
        assert_eq!(bench.status(modify, 1, 1, &with_flags(0, 1), 8), (0, 0));
        assert_eq!(bench.command(query, 1, 1, &with_flags(0, 0), 64)[8], 1);
        assert_eq!(bench.status(modify, 1, 1, &with_flags(0, 7), 8), (22, 3));
        assert_eq!(
            bench.command(query, 1, 1, &with_flags(0, 0), 64)[8],
            1,
            "no effect"
        );
        assert_eq!(bench.status(modify, 1, 1, &with_flags(1, 1), 8), (6, 3));
        assert_eq!(bench.status(query, 1, 1, &with_flags(1, 1), 64), (6, 3));
    }
}

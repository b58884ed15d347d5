//! Commands that no driver may send, and bytes that are none.

use super::bench::{Bench, map, memory, u16_at};
use super::recording::{read, start};
use proptest::prelude::*;

const START: u16 = 0x41;

#[test]
fn bad_ranges_are_refused_and_start_nothing() {
    let bench = Bench::with_lists(1, 1);
    let many: Vec<(u64, u64)> = (0..256).map(|n| (n << 13, 4096)).collect();
    let mut lying = start(4096, &[(0, 4096)]);
    lying[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut short = start(4096, &[(0, 4096)]);
    short[8] = 2;
    let cases = [
        ("none", start(4096, &[])),
        ("empty", start(4096, &[(0, 0)])),
        ("misaligned start", start(4096, &[(8, 4096)])),
        ("misaligned length", start(4096, &[(0, 4097)])),
        (
            "misaligned for the page size",
            start(1 << 21, &[(4096, 1 << 21)]),
        ),
        ("overlapping", start(4096, &[(0x2000, 0x2000), (0, 0x3000)])),
        ("the same twice", start(4096, &[(0, 4096), (0, 4096)])),
        ("wrapping", start(4096, &[(u64::MAX - 4095, 8192)])),
        (
            "up to the very end",
            start(4096, &[(u64::MAX - 4095, 4096)]),
        ),
        ("too many", start(4096, &many)),
        ("more than there are", lying),
        ("one that is missing", short),
        ("pages of no size", start(0, &[(0, 4096)])),
        ("pages of 2 KiB", start(2048, &[(0, 4096)])),
        ("pages of three pages", start(3 << 12, &[(0, 3 << 12)])),
        ("pages of 2 GiB", start(1 << 31, &[(0, 1 << 31)])),
        ("nothing", Vec::new()),
    ];
    for (what, data) in cases {
        assert_eq!(bench.status(START, 1, 1, &data, 8), (22, 3), "{what}");
    }
    let huge = start(4096, &[(0, 1 << 62)]);
    assert_eq!(bench.status(START, 1, 1, &huge, 8), (12, 6), "ENOMEM");
    let all: Vec<(u64, u64)> = (0..255).map(|n| (n << 13, 4096)).collect();
    assert_eq!(bench.status(START, 1, 1, &start(4096, &all), 8), (0, 0));
    for (start, length, page) in [
        (0, 0, 0),
        (1, 4096, 0),
        (0, 4095, 0),
        (u64::MAX - 4095, 8192, 0),
        (0, 4096, 8192),
    ] {
        let data = read(start, length, page);
        assert_eq!(
            bench.status(0x43, 1, 1, &data, 64),
            (22, 3),
            "{start:#x}+{length:#x}"
        );
    }
}

/// A chain with nothing to write to, and one with nothing to read.
#[test]
fn half_a_command_breaks_nothing() {
    let bench = Bench::with_lists(1, 1);
    let command = Bench::encode(0x11, 1, 1, &[0]);
    assert_eq!(bench.raw(0, &command, 0).0, 0);
    assert_eq!(bench.raw(0, &[], 4096).0, 24, "opcode 0 of the self group");
    // A command in memory that is not there.
    let n = bench.submit_unmapped(0, 8);
    assert_eq!(bench.finish(0, n), 8);
    assert_eq!(bench.result(0, 4), [22, 0, 1, 0]);
    assert_eq!(bench.status(0x11, 1, 1, &[0], 8), (0, 0));
}

#[test]
fn a_broken_owner_is_told_so_and_can_be_reset() {
    let bench = Bench::with_lists(1, 1);
    // The available index goes further than the ring has entries.
    std::os::unix::fs::FileExt::write_all_at(&bench.memory, &999_u16.to_le_bytes(), 0x1002)
        .unwrap();
    bench.write(0x3004, &1_u16.to_le_bytes());
    let begin = std::time::Instant::now();
    while bench.owner.stats().errors == 0 {
        assert!(begin.elapsed() < super::bench::PATIENCE);
        std::thread::yield_now();
    }
    bench.reset();
    bench.bring_up();
    bench.enable_vfs(1);
    bench.use_lists();
    assert_eq!(bench.status(0x11, 1, 1, &[0], 8), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever bytes come, every command is answered, with a status and a qualifier that exist,
    /// and a member that is not named stays as it is.
    #[test]
    fn any_bytes_are_answered(
        commands in prop::collection::vec(
            (
                prop_oneof![0_u16..0x14, 0x40_u16..0x44, any::<u16>()],
                0_u16..3,
                0_u64..3,
                prop::collection::vec(
                    prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..96),
                0_usize..128,
            ),
            1..20,
        )
    ) {
        let bench = Bench::with_lists(1, 2);
        map(&bench.members[0], &memory());
        for (opcode, group, member, data, room) in commands {
            // Member 2 is left out.
            let member = if member == 2 { 3 } else { member };
            let bytes = Bench::encode(opcode, group, member, &data);
            let (len, answer) = bench.raw(0, &bytes, room);
            prop_assert!(len <= room);
            if len >= 8 {
                let (status, qualifier) = (u16_at(&answer, 0), u16_at(&answer, 2));
                prop_assert!([0, 6, 12, 16, 17, 22, 28].contains(&status), "{}", status);
                prop_assert!(qualifier <= 7);
                prop_assert_eq!(status == 0, qualifier == 0);
            }
        }
        prop_assert_eq!(bench.members[1].stats(), Default::default());
    }
}

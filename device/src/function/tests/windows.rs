//! Widths, the PCI_CFG window, interrupts, and accesses that nobody should make.

use super::*;
use proptest::prelude::*;

fn config(bench: &Bench, offset: usize, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    bench.core.config_read(offset, &mut data);
    data
}

/// Points the window that the capability list puts at 0xc0.
fn point(bench: &Bench, bar: u8, offset: u32, length: u32) {
    bench.core.config_write(0xc4, &[bar]);
    bench.core.config_write(0xc8, &offset.to_le_bytes());
    bench.core.config_write(0xcc, &length.to_le_bytes());
}

#[test]
fn reads_of_any_width_show_the_bytes() {
    let bench = Bench::running(FunctionConfig::default());
    assert_eq!(bench.read(0x12, 4), [2, 0, 0x0f, 0]);
    assert_eq!(bench.read(0x13, 1), [0]);
    assert_eq!(bench.read(0x14, 8), [0x0f, 0, 1, 0, 128, 0, 2, 0]);
    assert_eq!(bench.read(68, 8), [0; 8], "after the last");
    assert_eq!(bench.read(CONFIG - 2, 6), [0, 0, 1, 2, 3, 4]);
    assert_eq!(bench.read(CONFIG + 6, 4), [7, 8, 0, 0]);
    assert_eq!(bench.read(0x3fff, 1), [0]);
    assert_eq!(bench.read(0x3fff, 2), [0xff; 2], "runs out of the BAR");
    assert_eq!(bench.read(u64::MAX, 2), [0xff; 2]);
}

#[test]
fn writes_of_another_width_are_ignored() {
    let bench = Bench::running(FunctionConfig::default());
    let ignored = bench.core.stats().ignored;
    bench.core.bar_write(0, STATUS, &[0, 0]);
    bench.core.bar_write(0, STATUS, &[0, 0, 0, 0]);
    bench.core.bar_write(0, SELECT, &[0]);
    bench.core.bar_write(0, 0x20, &[0; 8]);
    bench.core.bar_write(0, STATUS, &[]);
    bench.core.bar_write(0, 0x12, &[0, 0]);
    bench.core.bar_write(2, STATUS, &[0]);
    assert_eq!((bench.status(), bench.read16(SELECT)), (0x0f, 1));
    assert_eq!(bench.core.stats().ignored, ignored + 7);
}

#[test]
fn device_configuration_is_written_within_its_length() {
    let bench = Bench::running(FunctionConfig::default());
    bench.core.bar_write(0, CONFIG + 6, &[0xaa, 0xbb]);
    bench.core.bar_write(0, CONFIG + 7, &[0xcc, 0xdd]);
    bench.core.bar_write(0, CONFIG + 0xfff, &[1]);
    assert_eq!(bench.read(CONFIG, 8), [1, 2, 3, 4, 5, 6, 0xaa, 0xbb]);
    let bench = Bench::new(FunctionConfig::default());
    bench.write8(CONFIG, 9);
    assert_eq!(bench.read(CONFIG, 1), [1], "no driver yet");
}

#[test]
fn the_window_reads_and_writes_registers() {
    let bench = Bench::running(FunctionConfig::default());
    assert_eq!(config(&bench, 0xd0, 4), [0; 4], "length 0");
    point(&bench, 0, 0x14, 1);
    assert_eq!(config(&bench, 0xd0, 1), [0x0f]);
    bench.core.config_write(0xd0, &[0x1f]);
    assert_eq!(bench.status(), 0x1b);
    point(&bench, 0, 0x16, 2);
    bench.core.config_write(0xd0, &[1, 0]);
    assert_eq!(
        (bench.read16(SELECT), config(&bench, 0xd0, 2)),
        (1, vec![1, 0])
    );
    point(&bench, 0, 0x3800, 4);
    assert_eq!(
        config(&bench, 0xd0, 4),
        [0; 4],
        "the tracker is reachable too"
    );
    point(&bench, 1, 12, 4);
    assert_eq!(config(&bench, 0xd0, 4), [1, 0, 0, 0], "a masked vector");
    for (bar, offset) in [(0, 0x4000), (0, u32::MAX - 3), (1, 0x2000), (5, 0)] {
        point(&bench, bar, offset, 4);
        assert_eq!(
            config(&bench, 0xd0, 4),
            [0xff; 4],
            "BAR {bar} at {offset:#x}"
        );
        bench.core.config_write(0xd0, &[0; 4]);
    }
}

#[test]
fn interrupts_set_the_isr_and_reach_the_sink() {
    let bench = Bench::running(FunctionConfig::default());
    bench.events.queue_used(1);
    bench.events.queue_used(0);
    assert_eq!(bench.signals(), [2, 1]);
    assert_eq!(config(&bench, 6, 1), [0x18], "INTx status: MSI-X is off");
    assert_eq!(
        (bench.read(0x1000, 1), bench.read(0x1000, 1)),
        (vec![1], vec![0])
    );
    assert_eq!(config(&bench, 6, 1), [0x10]);
    assert_eq!(bench.core.stats().interrupts, 2);

    bench
        .core
        .set_interrupts(Arc::clone(&bench.sink) as Arc<_>, MsixOwner::Function);
    bench.core.config_write(0x42, &[0, 0x80]);
    bench.events.queue_used(1);
    assert!(
        bench.signals().is_empty(),
        "masked in the function's own table"
    );
    bench.core.bar_write(1, 2 * 16 + 12, &[0; 4]);
    assert_eq!(bench.signals(), [2]);
}

#[test]
fn vectors_and_sizes() {
    let bench = Bench::new(FunctionConfig::default());
    assert_eq!(bench.core.vectors(), 3);
    assert_eq!(
        [0, 1, 2, 255].map(PciFunction::bar_size),
        [0x4000, 0x2000, 0, 0]
    );
}

#[derive(Clone, Debug)]
enum Op {
    Read(u8, u64, usize),
    Write(u8, u64, Vec<u8>),
    ConfigRead(usize, usize),
    ConfigWrite(usize, Vec<u8>),
    Used(u16),
    Broken(u16),
    Changed,
    Reset,
}

fn op() -> impl Strategy<Value = Op> {
    let known = prop::sample::select(vec![
        0_u64,
        8,
        12,
        0x10,
        STATUS,
        SELECT,
        SIZE,
        VECTOR,
        ENABLE,
        0x20,
        QUEUE_RESET,
        AVAIL_STATE,
        USED_STATE,
        0x1000,
        CONFIG,
        DOORBELLS,
        DOORBELLS + 4,
        0x3800,
        0x3801,
        0x3808,
        0x3810,
    ]);
    let offset = prop_oneof![6 => known, 1 => 0..0x4010_u64, 1 => any::<u64>()];
    let values = prop::sample::select(vec![0_u8, 1, 2, 3, 0x0b, 0x0f, 0x1b, 0x1f, 0x8f, 0xff]);
    let data = prop_oneof![
        6 => (values, prop::sample::select(vec![1, 2, 4])).prop_map(|(value, len)| {
            let mut data = vec![0; len];
            data[0] = value;
            data
        }),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    let bar = prop_oneof![8 => Just(0_u8), 2 => Just(1), 1 => any::<u8>()];
    prop_oneof![
        4 => (bar.clone(), offset.clone(), 0..20_usize).prop_map(|(b, o, l)| Op::Read(b, o, l)),
        12 => (bar, offset, data.clone()).prop_map(|(b, o, d)| Op::Write(b, o, d)),
        2 => (0..4200_usize, 0..20_usize).prop_map(|(o, l)| Op::ConfigRead(o, l)),
        2 => (0..4200_usize, data).prop_map(|(o, d)| Op::ConfigWrite(o, d)),
        1 => any::<u16>().prop_map(Op::Used),
        1 => any::<u16>().prop_map(Op::Broken),
        1 => Just(Op::Changed),
        1 => Just(Op::Reset),
    ]
}

proptest! {
    /// Whatever comes: no panic, queues run in the states that allow it only, nothing is told while
    /// suspended, and a reset ends in 0.
    #[test]
    fn anything_goes(ops in prop::collection::vec(op(), 1..120), ready in any::<bool>()) {
        let bench = if ready {
            Bench::running(FunctionConfig::default())
        } else {
            Bench::new(FunctionConfig { pasid: Pasid::Enabled, ..FunctionConfig::default() })
        };
        for op in ops {
            let before = bench.status();
            bench.signals();
            let spoke = !matches!(op, Op::Used(_));
            match op {
                Op::Read(bar, offset, len) => bench.core.bar_read(bar, offset, &mut vec![0; len]),
                Op::Write(bar, offset, data) => bench.core.bar_write(bar, offset, &data),
                Op::ConfigRead(offset, len) => bench.core.config_read(offset, &mut vec![0; len]),
                Op::ConfigWrite(offset, data) => bench.core.config_write(offset, &data),
                Op::Used(queue) => bench.events.queue_used(queue),
                Op::Broken(queue) => {
                    let what = "a test says so".into();
                    bench.events.queue_broken(queue, QueueError::Broken { what });
                }
                Op::Changed => bench.core.notify_config_change(),
                Op::Reset => bench.core.reset(),
            }
            let status = bench.status();
            if !bench.running_queues().is_empty() {
                prop_assert_ne!(status & 4, 0, "queues run at {:#x}", status);
            }
            if spoke && before & 4 == 0 && status & 4 == 0 {
                prop_assert!(bench.signals().is_empty(), "{:#x} to {:#x}", before, status);
            }
        }
        bench.core.reset();
        prop_assert_eq!((bench.status(), bench.running_queues()), (0, vec![]));
    }
}

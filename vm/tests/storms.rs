//! Maps come and go while a guest is tracked and moved: no page is lost by it.

use migration::observe::Silent;
use migration::policy::Rounds;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vm::guest::{Pattern, Shape};
use vm::{InProcess, Limits, MarkingMode, Means, Remapper, migrate_in_process_beside};

/// Where a vIOMMU would put things.
const ALIASES: u64 = 1 << 40;

/// Maps low memory anew in place, as SeaBIOS does at boot, and lets other addresses come and go,
/// as behind a vIOMMU; returns the number of edits.
fn storm(maps: &Remapper, ended: &AtomicBool) -> u64 {
    let mut edits = 0;
    while !ended.load(Ordering::Acquire) {
        maps.map(0, 16 << 20, 0).unwrap();
        for n in 0..64 {
            maps.map(ALIASES + n * 8192, 4096, n * 4096).unwrap();
        }
        maps.unmap(ALIASES, 64 * 8192);
        edits += 66;
    }
    edits
}

#[test]
fn maps_come_and_go_while_pages_are_tracked() {
    for marking in [MarkingMode::Bits, MarkingMode::Bytes, MarkingMode::Off] {
        let plan = InProcess {
            shape: Shape {
                memory: 32 << 20,
                devices: 2,
                queues: 1,
                queue_size: 256,
                depth: 32,
                blocks: 2048,
                pattern: Pattern::Random,
                writes_percent: 30,
                seed: 3,
                marking,
                means: Means::default(),
                reset_every: 0,
                packed: false,
            },
            granularity: 4096,
            policy: Rounds {
                min_rounds: 6,
                max_rounds: 8,
                stop_pages: 64,
            },
            plain_copies: 0,
            before: 1000,
            after: 1000,
            destination: Limits::default(),
        };
        let folder = tempfile::tempdir().unwrap();
        let edits = AtomicU64::new(0);
        let beside = |maps: Remapper, ended: &AtomicBool| {
            edits.store(storm(&maps, ended), Ordering::Release);
        };
        let outcome = migrate_in_process_beside(&plan, folder.path(), &mut Silent, beside).unwrap();
        assert!(edits.load(Ordering::Acquire) > 1000);
        if marking == MarkingMode::Off {
            assert!(outcome.memory.unwrap().lost_device > 0);
        } else {
            let objections = outcome.objections();
            assert!(objections.is_empty(), "{marking:?}: {objections:#?}");
        }
    }
}

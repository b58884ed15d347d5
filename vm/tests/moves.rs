//! Whole moves: every workload, marking mode and granularity, each with its negative control.

use migration::observe::Silent;
use migration::policy::Rounds;
use vm::guest::{Pattern, Shape};
use vm::{InProcess, Limits, MarkingMode, Means, Outcome, migrate_in_process};

const MIB: u64 = 1 << 20;

fn plan(pattern: Pattern, marking: MarkingMode, granularity: u64) -> InProcess {
    InProcess {
        shape: Shape {
            memory: 32 * MIB,
            devices: 1,
            queues: 2,
            queue_size: 256,
            depth: 32,
            blocks: 2048,
            pattern,
            writes_percent: 30,
            seed: 0x71de,
            marking,
            means: Means::default(),
            reset_every: 0,
            packed: false,
        },
        granularity,
        policy: Rounds {
            min_rounds: 5,
            max_rounds: 6,
            stop_pages: 64,
        },
        plain_copies: 0,
        before: 2000,
        after: 2000,
        destination: Limits::default(),
    }
}

fn run(plan: &InProcess) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    migrate_in_process(plan, folder.path(), &mut Silent).unwrap()
}

/// The move with marking on must be a proof; the same move with marking off must lose pages.
fn moves(pattern: Pattern, marking: MarkingMode) {
    for granularity in [4 << 10, 64 << 10, 2 << 20] {
        let what = format!("{pattern:?}, {marking:?}, {granularity:#x}");
        let outcome = run(&plan(pattern, marking, granularity));
        let objections = outcome.objections();
        assert!(
            objections.is_empty(),
            "{what}: {objections:#?}\n{outcome:#?}"
        );
        assert!(outcome.moved, "{what}");

        let control = run(&plan(pattern, MarkingMode::Off, granularity));
        let memory = control.memory.as_ref().expect("the memories are compared");
        assert!(control.device_writes > 0, "{what}: inconclusive");
        assert!(memory.lost_device > 0, "{what}: {control:#?}");
        assert_eq!(memory.lost_cpu + memory.lost_unused, 0, "{what}");
        assert!(!control.moved && control.resumed, "{what}");
        // What could not be moved is whole where it stayed.
        assert!(
            control.guest_objections().is_empty(),
            "{what}: {control:#?}"
        );
    }
}

#[test]
fn random_bits() {
    moves(Pattern::Random, MarkingMode::Bits);
}

#[test]
fn random_bytes() {
    moves(Pattern::Random, MarkingMode::Bytes);
}

#[test]
fn zipf_bits() {
    moves(Pattern::Zipf, MarkingMode::Bits);
}

#[test]
fn zipf_bytes() {
    moves(Pattern::Zipf, MarkingMode::Bytes);
}

#[test]
fn sequential_bits() {
    moves(Pattern::Sequential, MarkingMode::Bits);
}

#[test]
fn sequential_bytes() {
    moves(Pattern::Sequential, MarkingMode::Bytes);
}

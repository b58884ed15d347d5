//! The rival's way: records instead of a bitmap, device parts instead of registers, both through an
//! owner. Judged like any move, each with its negative control.

use migration::MigrationError;
use migration::observe::Silent;
use migration::policy::Rounds;
use vm::guest::{Pattern, Shape};
use vm::{InProcess, Limits, MarkingMode, Means, Outcome, migrate_in_process};

fn plan(pattern: Pattern, means: Means) -> InProcess {
    InProcess {
        shape: Shape {
            memory: 32 << 20,
            devices: 2,
            queues: 2,
            queue_size: 256,
            depth: 32,
            blocks: 2048,
            pattern,
            writes_percent: 30,
            seed: 0x71de,
            marking: MarkingMode::Bits,
            means,
            reset_every: 0,
            packed: false,
        },
        granularity: 4096,
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

const RECORDS: Means = Means {
    records: Some(1 << 18),
    parts: false,
};
const PARTS: Means = Means {
    records: None,
    parts: true,
};

fn run(plan: &InProcess) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    migrate_in_process(plan, folder.path(), &mut Silent).unwrap()
}

fn proved(what: &str, plan: &InProcess) -> Outcome {
    let outcome = run(plan);
    let objections = outcome.objections();
    assert!(
        objections.is_empty(),
        "{what}: {objections:#?}\n{outcome:#?}"
    );
    assert!(outcome.moved, "{what}");
    outcome
}

/// With marking off the same move must lose pages, and leave the guest whole where it was.
fn control(what: &str, plan: &InProcess) {
    let mut plan = plan.clone();
    plan.shape.marking = MarkingMode::Off;
    let control = run(&plan);
    let memory = control.memory.as_ref().expect("the memories are compared");
    assert!(control.device_writes > 0, "{what}: inconclusive");
    assert!(memory.lost_device > 0, "{what}: {control:#?}");
    assert_eq!(memory.lost_cpu + memory.lost_unused, 0, "{what}");
    assert!(!control.moved && control.resumed, "{what}");
    assert!(
        control.guest_objections().is_empty(),
        "{what}: {control:#?}"
    );
}

fn moves(means: Means) {
    for pattern in [Pattern::Random, Pattern::Zipf, Pattern::Sequential] {
        let what = format!("{means:?}, {pattern:?}");
        let plan = plan(pattern, means);
        proved(&what, &plan);
        control(&what, &plan);
    }
}

#[test]
fn records_and_registers() {
    moves(RECORDS);
}

#[test]
fn bitmap_and_parts() {
    moves(PARTS);
}

#[test]
fn records_and_parts() {
    moves(Means {
        parts: true,
        ..RECORDS
    });
}

/// Every round overflows, so every round sends all there is: slow, and right.
#[test]
fn sixteen_records_are_enough_to_be_right() {
    let means = Means {
        records: Some(16),
        parts: true,
    };
    let plan = plan(Pattern::Random, means);
    let outcome = proved("16 records", &plan);
    let last = outcome.report.rounds.last().unwrap();
    let records = last.shares.iter().find(|s| s.name == "records0").unwrap();
    assert_eq!(records.pages, 32 << 8, "all of them");
    control("16 records", &plan);
}

#[test]
fn large_pages_are_recorded_as_such() {
    let mut plan = plan(Pattern::Zipf, RECORDS);
    plan.granularity = 64 << 10;
    let outcome = proved("64 KiB", &plan);
    assert!(
        outcome
            .report
            .granularity
            .contains(&("records1".to_owned(), 64 << 10))
    );
}

/// A move whose trackers were all started. A reset while one is being programmed leaves it off, its
/// device says so, and nothing is moved: that is no loss, and proves none.
fn begun(plan: &InProcess) -> Outcome {
    for _ in 0..20 {
        let outcome = run(plan);
        match &outcome.error {
            Some(MigrationError::Source { name, .. })
                if name.starts_with("tracker") && outcome.report.rounds.is_empty() =>
            {
                assert!(outcome.resumed && !outcome.moved, "{outcome:#?}");
                assert!(outcome.guest_objections().is_empty(), "{outcome:#?}");
            }
            _ => return outcome,
        }
    }
    panic!("a reset has met the start of a tracker 20 times");
}

/// A guest that resets its devices at will, in the middle of their work. The owner's records do not
/// mind; the devices' own bitmap is gone with the first reset.
#[test]
fn resets_are_survived_by_records_alone() {
    for parts in [false, true] {
        let means = Means { parts, ..RECORDS };
        let mut plan = plan(Pattern::Random, means);
        plan.shape.reset_every = 150;
        let outcome = proved("resets", &plan);
        assert!(outcome.resets > 2, "{} resets", outcome.resets);
        control("resets", &plan);

        plan.shape.means = Means { parts, ..PARTS };
        let outcome = begun(&plan);
        let memory = outcome.memory.as_ref().expect("the memories are compared");
        assert!(memory.lost_device > 0, "{outcome:#?}");
        assert!(outcome.guest_objections().is_empty(), "{outcome:#?}");
    }
}

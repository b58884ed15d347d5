//! The bulk round of a migration against a plain copy of the same bytes over the same socket.
//!
//! Both run while the guest reads and writes its disk at full speed, both between memories that
//! were touched before, one after the other in each of the runs.

use benches::{Bound, Line, Mode, finish, settle, wanted};
use migration::observe::Silent;
use migration::policy::Rounds;
use std::process::ExitCode;
use vm::guest::{Pattern, Shape};
use vm::{InProcess, Limits, MarkingMode, Means, migrate_in_process};

const RUNS: usize = 7;
const MEMORY: u64 = 512 << 20;

/// One whole, verified move; the share of a plain copy's rate that its bulk round reached.
fn run(seed: u64) -> (f64, String) {
    let plan = InProcess {
        shape: Shape {
            memory: MEMORY,
            devices: 1,
            queues: 2,
            queue_size: 256,
            depth: 32,
            blocks: 1 << 15,
            pattern: Pattern::Random,
            writes_percent: 30,
            seed,
            marking: MarkingMode::Bits,
            means: Means::default(),
            reset_every: 0,
            packed: false,
        },
        granularity: 4096,
        policy: Rounds::for_memory(MEMORY / 4096),
        plain_copies: 3,
        before: 2000,
        after: 2000,
        destination: Limits::default(),
    };
    let folder = tempfile::tempdir().expect("a folder for evidence");
    let outcome = migrate_in_process(&plan, folder.path(), &mut Silent).expect("the guest runs");
    assert!(
        outcome.objections().is_empty(),
        "{:?}",
        outcome.objections()
    );
    let report = outcome.report;
    let bulk = report.bulk_rate().expect("there is a bulk round");
    let plain = report.plain_rate().expect("there are plain copies");
    (
        bulk / plain,
        format!("{:.2} GB/s : {:.2} GB/s", bulk / 1e9, plain / 1e9),
    )
}

fn main() -> ExitCode {
    if !wanted("migrate") {
        return ExitCode::SUCCESS;
    }
    settle();
    let mode = Mode::from_args();
    let mut runs: Vec<_> = (0..RUNS)
        .map(|run_number| run(0x71de + run_number as u64))
        .collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (figure, detail) = runs[RUNS / 2].clone();
    let line = Line {
        name: "migrate/bulk round, guest at full speed / plain copy over the same unix socket"
            .into(),
        bound: Bound::AtLeast(0.85),
        figure,
        spread: [runs[0].0, runs[RUNS - 1].0],
        detail,
    };
    line.print(mode);
    finish(&[line])
}

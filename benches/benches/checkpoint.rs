//! How long a guest of 1 GiB stands still for a checkpoint, and how many there are in a second.
//!
//! Both sides are real: devices under full load, a socket between two threads. A guest dirties about
//! so many pages as the line says between two checkpoints; what it dirtied is printed.

use benches::{Bound, Line as Report, Mode, finish, settle, wanted};
use migration::checkpoint::{EpochReport, Line, Primary, Secondary};
use serde_json::json;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vm::guest::{EmulatedGuest, Pattern, Shape};
use vm::{Backup, Hosting, Limits, MarkingMode, Means, evidence};

const MEMORY: u64 = 1 << 30;
const PAGES: u64 = MEMORY / 4096;
const BLOCKS: u64 = 1 << 15;
const CHECKPOINTS: u64 = 200;
const PATIENCE: Duration = Duration::from_secs(30);

fn hosting(folder: &Path, side: &str) -> Hosting {
    let disk = folder.join(format!("{side}.img"));
    File::create(&disk).expect("a disk");
    evidence::format_disk(&disk, 0, BLOCKS).expect("a formatted disk");
    Hosting {
        disks: vec![disk],
        evidence: None,
        side: side.to_owned(),
        limits: Limits::default(),
        hold: Some(64 << 20),
        disk_fault: None,
    }
}

/// Checkpoints of a guest that completes so many requests between two; how long all took.
fn run(requests: u64) -> (Vec<EpochReport>, Duration) {
    let folder = tempfile::tempdir().expect("a folder for disks");
    let shape = Shape {
        memory: MEMORY,
        devices: 1,
        queues: 1,
        queue_size: 256,
        depth: 32,
        blocks: BLOCKS,
        pattern: Pattern::Random,
        writes_percent: 10,
        seed: 0x71de,
        marking: MarkingMode::Bits,
        means: Means::default(),
        reset_every: 0,
        packed: false,
    };
    let (mine, theirs) = (
        hosting(folder.path(), "primary"),
        hosting(folder.path(), "secondary"),
    );
    let (here, there) = UnixStream::pair().expect("a socket pair");
    let (line, switch) = Line::new(here);
    let (their_line, their_switch) = Line::new(there);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut backup = Backup::new(theirs, MEMORY, false);
            let secondary = Secondary::pair(&mut backup, their_line, their_switch, PATIENCE);
            secondary.expect("a pair").run(|_, _| {});
        });
        let mut guest = EmulatedGuest::boot(&shape, &mine).expect("the guest boots");
        guest.ask_for_checkpoints(&switch);
        let paired = Primary::pair(&mut guest, line, switch.clone(), PATIENCE);
        let (mut primary, _) = paired.expect("a pair");
        let begin = Instant::now();
        let mut epochs = Vec::new();
        for _ in 0..CHECKPOINTS {
            let worked = primary.guest().run_for(requests, PATIENCE);
            assert!(worked.expect("the guest runs"));
            epochs.push(primary.checkpoint().expect("a checkpoint"));
        }
        let elapsed = begin.elapsed();
        switch.fail_over().expect("the first request");
        let survived = primary.survive().expect("the guest goes on");
        assert!(survived.aftermath.is_empty(), "{:?}", survived.aftermath);
        (epochs, elapsed)
    })
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn show(name: &str, epochs: &[EpochReport], elapsed: Duration) -> (f64, [f64; 2], f64) {
    let sorted = |of: fn(&EpochReport) -> u64| {
        let mut all: Vec<u64> = epochs.iter().map(of).collect();
        all.sort_unstable();
        all
    };
    let at = |all: &[u64], percent: usize| all[(all.len() - 1) * percent / 100] as f64 / 1e6;
    let pauses = sorted(|epoch| epoch.pause_ns);
    let pages = sorted(|epoch| epoch.pages);
    let rate = epochs.len() as f64 / elapsed.as_secs_f64();
    let (p50, p99) = (at(&pauses, 50), at(&pauses, 99));
    let median = |of: fn(&EpochReport) -> u64| at(&sorted(of), 50);
    println!(
        "{}",
        json!({
            "checkpoints": name, "number": epochs.len(), "per_second": rate,
            "pages_p50": pages[pages.len() / 2], "of_pages": PAGES,
            "pause_ms": {"p50": p50, "p99": p99},
            "of_it_ms_p50": {
                "stop": median(|e| e.stop_ns), "harvest": median(|e| e.harvest_ns),
                "aside": median(|e| e.aside_ns),
            },
            "send_ms_p50": median(|e| e.send_ns),
            "ahead_p50": sorted(|e| e.ahead)[epochs.len() / 2],
            "load_ms_p50": median(|e| e.load_ns),
        })
    );
    (p99, [p50, at(&pauses, 100)], rate)
}

fn main() -> ExitCode {
    if !wanted("checkpoint") {
        return ExitCode::SUCCESS;
    }
    settle();
    let mode = Mode::from_args();
    let (epochs, elapsed) = run(PAGES / 100);
    let (p99, spread, _) = show("1 % dirtied", &epochs, elapsed);
    let pause = Report {
        name: "checkpoint/pause of a guest of 1 GiB, 1 % dirtied, p99 in ms".into(),
        bound: Bound::AtMost(10.0),
        figure: p99,
        spread,
        detail: "spread: p50 and the longest".into(),
    };
    let (epochs, elapsed) = run(PAGES / 1000);
    let (_, _, rate) = show("0.1 % dirtied", &epochs, elapsed);
    let often = Report {
        name: "checkpoint/checkpoints a second, 0.1 % dirtied between two".into(),
        bound: Bound::AtLeast(40.0),
        figure: rate,
        spread: [rate, rate],
        detail: format!("{} checkpoints", epochs.len()),
    };
    let lines = [pause, often];
    lines.iter().for_each(|line| line.print(mode));
    finish(&lines)
}

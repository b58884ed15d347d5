//! Lock, stage and apply of many devices, in round trips: 16 agents in processes of their own behind
//! wires that delay, and 256 simulated ones.
//!
//! Beside each stands the shape of the system that this was modelled on, computed and not measured: locks
//! one after another, two more phases, and polling every 3 s (3 s at most, 1.5 s on average).

use benches::agents::{Far, Simulated, serve_if_told};
use benches::{Bound, Line, Mode, finish, settle, wanted};
use migration::agent::{Agents, DeviceConfig, Mode as Marks, Tracking};
use migration::lock::{LockedSet, Remote, Remotes, Terms};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

const RUNS: usize = 9;
const ROUND_TRIP: Duration = Duration::from_millis(5);
const REAL: usize = 16;
const SIMULATED: usize = 256;
/// Of the original, between two polls.
const POLL: Duration = Duration::from_secs(3);
const MOST_ROUND_TRIPS: f64 = 10.0;

/// Lock, stage, apply; the release is not counted.
fn change(remotes: Vec<Arc<dyn Remote<DeviceConfig>>>, run: usize) -> Duration {
    let config = DeviceConfig {
        tracking: (run.is_multiple_of(2)).then(|| Tracking {
            ranges: std::iter::once(0..1 << 30).collect(),
            granularity: 4096,
            pasid: None,
            mode: Marks::Bitmap,
        }),
        ..DeviceConfig::default()
    };
    let remotes = Remotes::new(remotes).expect("names of their own");
    let begin = Instant::now();
    let applied = LockedSet::lock(remotes, Terms::new("bench"))
        .and_then(|set| set.for_each(|_| Ok(config.clone())))
        .and_then(LockedSet::apply)
        .expect("all apply");
    let took = begin.elapsed();
    assert_eq!(applied.release().stuck, []);
    took
}

fn line(name: String, count: usize, mut took: Vec<Duration>) -> Line {
    took.sort();
    let trips = |time: Duration| time.as_secs_f64() / ROUND_TRIP.as_secs_f64();
    let median = took[took.len() / 2];
    let trip = ROUND_TRIP.as_secs_f64();
    let locks = count as f64 * trip + 2.0 * trip;
    Line {
        name,
        bound: Bound::AtMost(MOST_ROUND_TRIPS),
        figure: trips(median),
        spread: [trips(took[0]), trips(took[took.len() - 1])],
        detail: format!(
            "{:.1} ms; the original's shape, computed: {:.0} ms and {:.0} to poll at most",
            median.as_secs_f64() * 1e3,
            locks * 1e3,
            POLL.as_secs_f64() * 1e3
        ),
    }
}

fn main() -> ExitCode {
    if serve_if_told() {
        return ExitCode::SUCCESS;
    }
    if !wanted("locks") {
        return ExitCode::SUCCESS;
    }
    let mode = Mode::from_args();
    let folder = tempfile::tempdir().expect("a folder");
    let far: Vec<Far> = (0..REAL)
        .map(|number| {
            let folder = folder.path().join(number.to_string());
            Far::start(&folder, ROUND_TRIP / 2).expect("an agent")
        })
        .collect();
    let agents = Agents::new(None).expect("a client");
    settle();
    // The devices' own time to apply is within this, so that nothing is subtracted.
    let real = (0..RUNS).map(|run| {
        let remote = |far: &Far| Arc::new(agents.remote(far.place())) as Arc<dyn Remote<_>>;
        change(far.iter().map(remote).collect(), run)
    });
    let name = format!("locks/{REAL} agents: lock, stage, apply, in round trips of 5 ms");
    let real = line(name, REAL, real.collect());
    let fleet = Simulated::fleet(SIMULATED, ROUND_TRIP);
    let simulated = (0..RUNS).map(|run| {
        let remote = |one: &Simulated| Arc::new(one.clone()) as Arc<dyn Remote<_>>;
        change(fleet.iter().map(remote).collect(), run)
    });
    let name = format!("locks/{SIMULATED} SIMULATED remotes: the same, without processes or disks");
    let simulated = line(name, SIMULATED, simulated.collect());
    let lines = [real, simulated];
    for line in &lines {
        line.print(mode);
    }
    finish(&lines)
}

//! What judges a run. Each failure is a panic that begins with the oracle's name:
//!
//! * `oracle reset`: after any sequence a reset ends, and a plain sound driver works.
//! * `oracle steps`: work is bounded by what was asked for, in calls and bytes, not in time.
//! * `oracle grant`: memory that was not granted for writing is as it was.
//! * `oracle tracking`: what differs from a shadow copy of memory is marked; lost = 0.
//! * `oracle progress`: what was made available is used, unless the device says that it is broken.
//! * `oracle memory`: a run takes a bounded amount of memory.
//! * `oracle answers`: every message is answered, with as much as it says.
//! * `oracle descriptors`: whoever is gone leaves no descriptor open.
//! * `oracle soundness`: what is damaged is refused; what is sound is taken.

use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long one thing may take before it counts as hung. No figure is judged by it.
pub const PATIENCE: Duration = Duration::from_secs(8);

/// Memory that a run may take beyond what there was, in KiB: the largest request's buffers, twice
/// over, and what allocators keep.
pub const MEMORY_KIB: u64 = 96 << 10;

/// Watches how much memory the process takes at its peak.
#[derive(Debug)]
pub struct MemoryWatch {
    before: u64,
}

impl MemoryWatch {
    /// From here on.
    ///
    /// # Panics
    ///
    /// The system does not tell: there is no /proc.
    pub fn begin() -> Self {
        // 5: the peak is what there is now.
        let mut peak = fs::OpenOptions::new()
            .write(true)
            .open("/proc/self/clear_refs")
            .expect("/proc/self/clear_refs");
        peak.write_all(b"5").expect("the peak can be set back");
        Self {
            before: kib("VmRSS:"),
        }
    }

    /// Until here.
    ///
    /// # Panics
    ///
    /// `oracle memory`.
    pub fn end(self) {
        let peak = kib("VmHWM:");
        let taken = peak.saturating_sub(self.before);
        assert!(
            taken <= MEMORY_KIB,
            "oracle memory: {taken} KiB were taken by one run, at most {MEMORY_KIB} expected"
        );
    }
}

/// Watches how many descriptors the process has.
#[derive(Debug)]
pub struct DescriptorWatch {
    before: usize,
}

impl DescriptorWatch {
    /// From here on.
    pub fn begin() -> Self {
        Self {
            before: descriptors(),
        }
    }

    /// A session is over. Descriptors that were in a message nobody read are closed by the system, not
    /// at once.
    ///
    /// # Panics
    ///
    /// `oracle descriptors`.
    pub fn judge(&self) {
        let began = Instant::now();
        while descriptors() > self.before && began.elapsed() < Duration::from_secs(2) {
            thread::sleep(Duration::from_millis(1));
        }
        let (now, before) = (descriptors(), self.before);
        assert!(
            now <= before,
            "oracle descriptors: {now} are open after a session, {before} were before"
        );
    }
}

/// Descriptors of this process.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// A line of /proc/self/status in KiB.
fn kib(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in /proc/self/status"))
}

static WORKERS_PANICKED: AtomicU64 = AtomicU64::new(0);

/// Counts panics of the device's workers from now on: the engine turns one into a broken queue, so
/// nobody else hears of it. Under libFuzzer it ends the process before.
pub fn watch_workers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() == Some("tidemark-io") {
                WORKERS_PANICKED.fetch_add(1, Ordering::SeqCst);
                before(info);
            }
        }));
    });
}

/// Runs a target on an input and says what its oracles said.
///
/// # Errors
///
/// The first oracle's words, or those of any panic, a worker's included.
pub fn judge(run: impl FnOnce() + std::panic::UnwindSafe) -> Result<(), String> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    watch_workers();
    let before = WORKERS_PANICKED.load(Ordering::SeqCst);
    let ran = std::panic::catch_unwind(run);
    let panicked = WORKERS_PANICKED.load(Ordering::SeqCst) - before;
    if panicked != 0 {
        return Err(format!("{panicked} planted panic or defect on a worker"));
    }
    ran.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
            .unwrap_or_else(|| "a panic without words".to_owned())
    })
}

//! The kernels of the claims report beside their peers: marking new pages, and taking the marks.
//!
//! `cargo bench -p benches -- claims` prints the table and then criterion's own figures;
//! `--check` prints the table alone, as JSON.

use benches::claims::measure::markers::Marker;
use benches::claims::measure::patterns::Pattern;
use benches::{Bound, Line, Mode, finish, interleave, settle, wanted};
use criterion::{Criterion, Throughput};
use driver::dirty::DirtySet;
use std::cell::RefCell;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const GUEST: u64 = 64 << 30;
const PAGES: u64 = GUEST / 4096;
const COUNT: usize = 1 << 14;
const ROUNDS: usize = 61;

/// What a round of a kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Mark,
    Take,
}

impl Kernel {
    fn name(self) -> &'static str {
        match self {
            Self::Mark => "mark a new page, random in 64 GiB",
            Self::Take => "know 16384 dirty pages of 64 GiB",
        }
    }

    /// One round, whose other half is not timed; no page may be lost and none invented.
    fn round(self, marker: &mut Marker, list: &[u64], found: &mut DirtySet) -> Duration {
        let start = Instant::now();
        marker.mark(list);
        let marked = start.elapsed();
        let start = Instant::now();
        let count = marker.take(found).expect("it can be read");
        let taken = start.elapsed();
        assert_eq!(count, list.len() as u64, "pages lost or invented");
        match self {
            Self::Mark => marked,
            Self::Take => taken,
        }
    }
}

fn markers() -> Vec<(&'static str, Marker)> {
    Marker::all(GUEST).expect("there is memory for all of them")
}

fn list() -> Vec<u64> {
    let power = PAGES.trailing_zeros();
    Pattern::Random
        .pages(power, COUNT, 1)
        .expect("pages of the guest")
}

/// Both mechanisms beside each peer.
fn table(mode: Mode) -> Vec<Line> {
    let (list, mut all) = (list(), markers());
    let found = RefCell::new(DirtySet::new(PAGES));
    let peers = all.split_off(2);
    let mut lines = Vec::new();
    let peers: Vec<_> = peers
        .into_iter()
        .map(|(name, marker)| (name, RefCell::new(marker)))
        .collect();
    for kernel in [Kernel::Mark, Kernel::Take] {
        for (ours, marker) in &mut all {
            for (peer, other) in &peers {
                let ratio = interleave(
                    ROUNDS,
                    || kernel.round(marker, &list, &mut found.borrow_mut()),
                    || kernel.round(&mut other.borrow_mut(), &list, &mut found.borrow_mut()),
                );
                let name = format!("claims/{}, {ours} / {peer}", kernel.name());
                let line = Line::new(name, Bound::None, &ratio, COUNT as f64);
                line.print(mode);
                lines.push(line);
            }
        }
    }
    lines
}

fn criterion(criterion: &mut Criterion) {
    let list = list();
    let mut found = DirtySet::new(PAGES);
    for kernel in [Kernel::Mark, Kernel::Take] {
        let mut group = criterion.benchmark_group(kernel.name());
        group.throughput(Throughput::Elements(COUNT as u64));
        for (name, marker) in &mut markers() {
            group.bench_function(*name, |bencher| {
                bencher.iter_custom(|rounds| {
                    (0..rounds)
                        .map(|_| kernel.round(marker, &list, &mut found))
                        .sum()
                });
            });
        }
        group.finish();
    }
}

fn main() -> ExitCode {
    if !wanted("claims") {
        return ExitCode::SUCCESS;
    }
    settle();
    let mode = Mode::from_args();
    let lines = table(mode);
    if mode == Mode::Table {
        let mut c = Criterion::default().configure_from_args();
        criterion(&mut c);
        c.final_summary();
    }
    finish(&lines)
}

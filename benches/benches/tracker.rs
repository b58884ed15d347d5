//! Marking and harvesting against vm-memory's `AtomicBitmap` and against the machine.
//!
//! `cargo bench -p benches -- tracker` prints the table and then criterion's own figures;
//! `--check` prints the table alone, as JSON.

use benches::limit;
use benches::memory::{Random, memory_file};
use benches::{Bound, Line, Mode, finish, interleave, settle, wanted};
use criterion::Criterion;
use device::dma::{Dma, DmaGuard};
use device::tracker::{TrackerConfig, Written};
use driver::dirty::harvest::take_words;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::Permissions;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use zerocopy::{FromBytes, IntoBytes};

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
/// Many and short: what else happens on the machine for a second must not decide the median.
const ROUNDS: usize = 61;
/// Kept in step with the workspace's manifest by the lock file; printed beside every ratio.
const PEER: &str = "vm-memory 0.18 AtomicBitmap";
const BITMAP_IOVA: u64 = 1 << 50;

/// Our tracker over a bitmap in a memory file, as a device has it.
struct Tracked {
    dma: Dma,
    bitmap: File,
    len: u64,
}

impl Tracked {
    fn new(guest: u64) -> Self {
        let len = guest / PAGE / 8;
        let bitmap = memory_file(len.next_multiple_of(PAGE)).expect("memory for the bitmap");
        let dma = Dma::new();
        let size = len.next_multiple_of(PAGE);
        dma.map(BITMAP_IOVA, size, &bitmap, 0, Permissions::ReadWrite)
            .expect("a legal map");
        dma.set_tracker(TrackerConfig {
            enabled: true,
            bitmap_addr: BITMAP_IOVA,
            bitmap_length: len,
            ..TrackerConfig::default()
        });
        Self { dma, bitmap, len }
    }

    fn clear(&self) {
        let zeroes = vec![0; usize::try_from(self.len).expect("fits")];
        self.bitmap
            .write_all_at(&zeroes, 0)
            .expect("the bitmap is writable");
    }

    fn dirty(&self) -> u64 {
        let mut bytes = vec![0; usize::try_from(self.len).expect("fits")];
        self.bitmap
            .read_exact_at(&mut bytes, 0)
            .expect("the bitmap is readable");
        bytes.iter().map(|byte| u64::from(byte.count_ones())).sum()
    }

    /// The bursts of `list`, as they stand when their data has landed.
    ///
    /// A device's burst is in its caches by then, and so has room to spare. Thousands of them at
    /// once are to be no larger than what they say, which a copy is.
    fn bursts<'a>(guard: &'a DmaGuard, list: &[(u64, u64)], burst: usize) -> Vec<Written<'a>> {
        list.chunks(burst)
            .map(|chunk| {
                let mut written = guard.written();
                chunk
                    .iter()
                    .for_each(|&(iova, len)| written.record(iova, len));
                written.clone()
            })
            .collect()
    }

    /// Marks the bursts through the open door.
    fn run(guard: &DmaGuard, bursts: &[Written], repeats: u32) -> Duration {
        let start = Instant::now();
        for _ in 0..repeats {
            bursts.iter().for_each(|burst| guard.mark(burst));
        }
        start.elapsed()
    }

    /// No bit may be lost, and none invented.
    fn check(&self, list: &[(u64, u64)]) {
        assert_eq!(self.dirty(), distinct(list), "bits lost or invented");
    }
}

fn peer(guest: u64) -> AtomicBitmap {
    let bytes = usize::try_from(guest).expect("64-bit host");
    AtomicBitmap::new(bytes, NonZeroUsize::new(4096).expect("not zero"))
}

fn run_peer(peer: &AtomicBitmap, ranges: &[(u64, u64)], repeats: u32) -> Duration {
    let start = Instant::now();
    for _ in 0..repeats {
        for &(iova, len) in ranges {
            peer.mark_dirty(to_usize(iova), to_usize(len));
        }
    }
    start.elapsed()
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("64-bit host")
}

/// Address and length of `count` pages.
fn range(page: u64, count: u64) -> (u64, u64) {
    (page * PAGE, count * PAGE)
}

fn pages(random: &mut Random, of: &[u64], count: usize) -> Vec<(u64, u64)> {
    let len = u64::try_from(of.len()).expect("fits");
    random
        .take(count)
        .map(|n| range(of[to_usize(n % len)], 1))
        .collect()
}

fn distinct(ranges: &[(u64, u64)]) -> u64 {
    let mut pages: Vec<u64> = ranges
        .iter()
        .flat_map(|&(at, len)| at / PAGE..(at + len) / PAGE)
        .collect();
    pages.sort_unstable();
    pages.dedup();
    u64::try_from(pages.len()).expect("fits")
}

/// How often a round goes through its list.
#[derive(Clone, Copy, PartialEq)]
enum Repeats {
    /// Once, on a clean bitmap: first touches.
    OnceClean,
    /// So often, on pages that stay marked: re-marks. The list is short enough for the caches, so
    /// that what is timed is marking and not the reading of a list.
    Marked(u32),
}

/// Marks of `ranges`.
fn marks(
    name: &str,
    bound: Bound,
    guest: u64,
    ranges: &[(u64, u64)],
    burst: usize,
    repeats: Repeats,
) -> Line {
    let (ours, theirs) = (Tracked::new(guest), peer(guest));
    let guard = ours.dma.enter();
    let bursts = Tracked::bursts(&guard, ranges, burst);
    let (times, clean) = match repeats {
        Repeats::OnceClean => (1, true),
        Repeats::Marked(times) => (times, false),
    };
    let ratio = interleave(
        ROUNDS,
        || {
            if clean {
                ours.clear();
            }
            let time = Tracked::run(&guard, &bursts, times);
            ours.check(ranges);
            time
        },
        || {
            if clean {
                theirs.reset();
            }
            run_peer(&theirs, ranges, times)
        },
    );
    let count = f64::from(u32::try_from(ranges.len()).expect("fits")) * f64::from(times);
    Line::new(
        format!("tracker/{name}, bursts of {burst} / {PEER}"),
        bound,
        &ratio,
        count,
    )
}

/// Two threads that mark the same pages at once.
fn two_threads(bound: Bound) -> Line {
    const HOT: usize = 64;
    const BURST: usize = 32;
    const COUNT: u16 = 1 << 9;
    const REPEATS: u32 = 4096;
    let guest = 64 * GIB;
    let (ours, theirs) = (Tracked::new(guest), peer(guest));
    let mut random = Random(3);
    let hot: Vec<u64> = (&mut random)
        .take(HOT)
        .map(|n| n % (guest / PAGE))
        .collect();
    let lists = [(); 2].map(|()| pages(&mut random, &hot, COUNT.into()));
    let ratio = interleave(
        ROUNDS,
        || {
            ours.clear();
            let time = both(|thread| {
                let guard = ours.dma.enter();
                Tracked::run(
                    &guard,
                    &Tracked::bursts(&guard, &lists[thread], BURST),
                    REPEATS,
                )
            });
            ours.check(&lists.concat());
            time
        },
        || {
            theirs.reset();
            both(|thread| run_peer(&theirs, &lists[thread], REPEATS))
        },
    );
    let name = format!("tracker/two threads, same {HOT} pages, bursts of {BURST} / {PEER}");
    Line::new(name, bound, &ratio, f64::from(COUNT) * f64::from(REPEATS))
}

/// Mean of what two threads that start together take.
fn both(each: impl Fn(usize) -> Duration + Sync) -> Duration {
    let barrier = Barrier::new(2);
    let run = |thread| {
        barrier.wait();
        each(thread)
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        (run(0) + other.join().expect("no panic")) / 2
    })
}

/// The harvest of a clean bitmap of a 1 TiB guest, in memory that no cache holds, as a share of the
/// fastest read of the very same memory.
fn clean_harvest(bound: Bound) -> Line {
    const WORDS: usize = (32 << 20) / 8;
    let memory = std::cell::RefCell::new(vec![0u64; WORDS]);
    // Eight times what any cache here holds.
    let ballast = vec![1u64; (256 << 20) / 8];
    let ratio = interleave(
        ROUNDS,
        || {
            limit::evict(&ballast);
            let start = Instant::now();
            let read = limit::simd_read(&memory.borrow());
            let time = start.elapsed();
            assert_eq!(read, 0);
            time
        },
        || {
            limit::evict(&ballast);
            let mut memory = memory.borrow_mut();
            let words = <[AtomicU64]>::mut_from_bytes(memory.as_mut_bytes()).expect("same layout");
            let mut taken = 0;
            let start = Instant::now();
            take_words(words, |_, _| taken += 1);
            let time = start.elapsed();
            assert_eq!(taken, 0);
            time
        },
    );
    let name = format!(
        "tracker/harvest of a clean 1 TiB-guest bitmap, cold: share of a {} read",
        limit::simd_name()
    );
    let mut line = Line::new(name, bound, &ratio, 1.0);
    let rate = |time: Duration| f64::from(32u32 << 20) / time.as_secs_f64() / 1e9;
    line.detail = format!(
        "{:.1} GB/s : {:.1} GB/s",
        rate(ratio.peer),
        rate(ratio.subject)
    );
    line
}

fn report(mode: Mode) -> Vec<Line> {
    let mut random = Random(1);
    let guest_pages = 64 * GIB / PAGE;
    let hot: Vec<u64> = (&mut random).take(256).map(|n| n % (GIB / PAGE)).collect();
    let remark = pages(&mut random, &hot, 1 << 9);
    let mut first: Vec<u64> = (&mut random)
        .take(1 << 20)
        .map(|n| n % guest_pages)
        .collect();
    let mut seen = std::collections::HashSet::new();
    first.retain(|&page| seen.insert(page));
    let first: Vec<_> = first.into_iter().map(|page| range(page, 1)).collect();
    let spans: Vec<_> = (&mut random)
        .take(1 << 12)
        .map(|n| range(n % (guest_pages / 256) * 256, 256))
        .collect();
    let (once, again) = (Repeats::OnceClean, Repeats::Marked(16384));
    let mut lines = Vec::new();
    let mut add = |line: Line| {
        line.print(mode);
        lines.push(line);
    };
    add(marks(
        "re-mark, 256 hot pages of 1 GiB",
        Bound::AtMost(0.15),
        GIB,
        &remark,
        32,
        again,
    ));
    add(marks(
        "re-mark, 256 hot pages of 1 GiB",
        Bound::None,
        GIB,
        &remark,
        1,
        again,
    ));
    add(marks(
        "first touch, random in 64 GiB",
        Bound::AtMost(1.1),
        64 * GIB,
        &first,
        32,
        once,
    ));
    add(marks(
        "first touch, random in 64 GiB",
        Bound::None,
        64 * GIB,
        &first,
        1,
        once,
    ));
    add(marks(
        "1 MiB span, random in 64 GiB",
        Bound::AtMost(0.05),
        64 * GIB,
        &spans,
        1,
        once,
    ));
    add(two_threads(Bound::AtMost(0.1)));
    add(clean_harvest(Bound::AtLeast(0.8)));
    lines
}

fn criterion(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tracker");
    let mut random = Random(1);
    let hot: Vec<u64> = (&mut random).take(256).map(|n| n % (GIB / PAGE)).collect();
    let remark = pages(&mut random, &hot, 1 << 10);
    let (ours, theirs) = (Tracked::new(GIB), peer(GIB));
    group.throughput(criterion::Throughput::Elements(1 << 10));
    group.bench_function("re-mark, bursts of 32", |bencher| {
        let guard = ours.dma.enter();
        let bursts = Tracked::bursts(&guard, &remark, 32);
        bencher.iter(|| bursts.iter().for_each(|burst| guard.mark(burst)));
    });
    group.bench_function(format!("re-mark, {PEER}"), |bencher| {
        bencher.iter(|| run_peer(&theirs, &remark, 1));
    });
    group.finish();
}

fn main() -> ExitCode {
    if !wanted("tracker") {
        return ExitCode::SUCCESS;
    }
    settle();
    let mode = Mode::from_args();
    let lines = report(mode);
    if mode == Mode::Table {
        let mut c = Criterion::default().configure_from_args();
        criterion(&mut c);
        c.final_summary();
    }
    finish(&lines)
}

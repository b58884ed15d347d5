//! Page-write recording: what a mark costs beside vm-memory's `AtomicBitmap`, and what a read moves
//! beside a plain copy.

use benches::memory::{Random, memory_file};
use benches::{Bound, Line, Mode, finish, interleave, settle, wanted};
use device::dma::Dma;
use device::function::{AdminConfig, FunctionConfig, PciFunction};
use device::rng::RngDevice;
use device::tracker::records::{Recorder, RecordsConfig};
use driver::Transport;
use driver::admin::{AdminQueue, RESULT_BYTES, Subject};
use driver::bus::Bus;
use driver::dirty::records::COMMANDS;
use spec::features::Features;
use spec::records::{Extent, READ, Read, START, Start, output};
use std::collections::BTreeSet;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};
use vm::EmulatedBus;
use vm_memory::Permissions;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use zerocopy::IntoBytes;

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
/// New pages of a round: few, so that what else happens on the machine meets few rounds.
const PAGES: usize = 1 << 12;
/// Lists that rounds take in turn.
const LISTS: usize = 16;
const ROUNDS: usize = 301;
const PEER: &str = "vm-memory 0.18 AtomicBitmap";
const ALL: std::ops::Range<u64> = 0..u64::MAX;

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("64-bit host")
}

/// Distinct pages in random order, as addresses.
fn pages(guest: u64, count: usize, seed: u64) -> Vec<u64> {
    let mut seen = BTreeSet::new();
    let random = Random(seed).map(|n| n % (guest / PAGE));
    let list: Vec<u64> = random
        .filter(|page| seen.insert(*page))
        .take(count)
        .map(|page| page * PAGE)
        .collect();
    list
}

/// A door whose writes are recorded, and nothing else is marked.
struct Recorded {
    dma: Dma,
    recorder: Arc<Recorder>,
}

impl Recorded {
    fn new(guest: u64) -> Self {
        let config = RecordsConfig {
            page_shift: 12,
            ranges: std::iter::once(0..guest).collect(),
            capacity: 1 << 20,
        };
        let recorder = Arc::new(Recorder::new(&config).expect("it fits"));
        let dma = Dma::new();
        dma.attach_recorder(Arc::clone(&recorder));
        Self { dma, recorder }
    }

    /// Marks every page by itself, or in bursts of so many, through the open door: what a device
    /// does when the data of a burst has landed. `ready` is called before.
    fn mark(&self, list: &[u64], burst: usize, ready: impl FnOnce()) -> Duration {
        let _guard = self.dma.enter();
        let writes: Vec<(u64, u64)> = list.iter().map(|iova| (*iova, PAGE)).collect();
        ready();
        timed(|| {
            writes
                .chunks(burst)
                .for_each(|burst| self.recorder.mark(burst));
        })
    }

    /// Ends the turn: only then all that was marked is ready to be read, so that it is part of what
    /// marks cost.
    fn turn(&self) -> Duration {
        timed(|| self.dma.quiet(|| self.recorder.turn()))
    }

    /// Forgets, after a look: no page may be lost, and none come twice.
    fn forget(&self, expected: usize) {
        let taken = self.recorder.take(&ALL, usize::MAX, || ());
        assert!(!taken.more && !taken.overflow);
        assert_eq!(taken.records.len(), expected, "records lost or invented");
        self.recorder.delivered(taken);
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Both lists at the same time, each by a thread of its own; the longer of the two.
fn both(lists: [&[u64]; 2], work: impl Fn(&[u64], &Barrier) -> Duration + Sync) -> Duration {
    let barrier = Barrier::new(2);
    let work = |list: &[u64]| work(list, &barrier);
    thread::scope(|scope| {
        let other = scope.spawn(|| work(lists[1]));
        let mine = work(lists[0]);
        mine.max(other.join().expect("it marks"))
    })
}

fn peer(guest: u64) -> AtomicBitmap {
    let page = NonZeroUsize::new(to_usize(PAGE)).expect("not zero");
    AtomicBitmap::new(to_usize(guest), page)
}

fn run_peer(peer: &AtomicBitmap, list: &[u64]) {
    for iova in list {
        peer.mark_dirty(to_usize(*iova), to_usize(PAGE));
    }
}

/// Bounds hold where both sides' bits stay in the caches: there the peer is at its best. A larger
/// guest's are shown, where what one side leaves in the caches decides as much.
fn marking(lines: &mut Vec<Line>, guest: u64, bounds: [Bound; 2]) {
    let (ours, theirs) = (Recorded::new(guest), peer(guest));
    let gib = guest / GIB;
    let all = pages(guest, 2 * LISTS * PAGES, 1);
    let pairs: Vec<[&[u64]; 2]> = all
        .chunks(2 * PAGES)
        .map(|pair| pair.split_at(PAGES).into())
        .collect();
    let (mut round, mut peer_round) = (0, 0);
    let next = |round: &mut usize| {
        *round += 1;
        pairs[*round % LISTS]
    };
    let operations = PAGES as f64;
    for (burst, bound) in [(1, bounds[0]), (32, Bound::None)] {
        let ratio = interleave(
            ROUNDS,
            || {
                let [list, _] = next(&mut round);
                let time = ours.mark(list, burst, || ()) + ours.turn();
                ours.forget(PAGES);
                time
            },
            || {
                let [list, _] = next(&mut peer_round);
                let time = timed(|| run_peer(&theirs, list));
                theirs.reset();
                time
            },
        );
        let name = format!("record a new page, {gib} GiB, bursts of {burst}, 1 writer : {PEER}");
        lines.push(Line::new(name, bound, &ratio, operations));
    }
    for (burst, bound) in [(1, bounds[1]), (32, Bound::None)] {
        let ratio = interleave(
            ROUNDS,
            || {
                let time = both(next(&mut round), |list, barrier| {
                    ours.mark(list, burst, || _ = barrier.wait())
                }) + ours.turn();
                ours.forget(2 * PAGES);
                time
            },
            || {
                let time = both(next(&mut peer_round), |list, barrier| {
                    barrier.wait();
                    timed(|| run_peer(&theirs, list))
                });
                theirs.reset();
                time
            },
        );
        let name = format!("record a new page, {gib} GiB, bursts of {burst}, 2 writers : {PEER}");
        lines.push(Line::new(name, bound, &ratio, operations));
    }
    // A page that is recorded already: the common case of used rings.
    let [hot, _] = pairs[0];
    ours.mark(hot, 32, || ());
    let ratio = interleave(
        ROUNDS,
        || ours.mark(hot, 32, || ()),
        || timed(|| run_peer(&theirs, hot)),
    );
    let name = format!("record a page again, {gib} GiB, bursts of 32, 1 writer : {PEER}");
    lines.push(Line::new(name, Bound::None, &ratio, operations));
}

/// A function that records itself, with the driver of its administration queue.
fn function() -> (Arc<PciFunction>, AdminQueue) {
    let config = FunctionConfig {
        admin: AdminConfig {
            queues: 1,
            max_records: 1 << 20,
            ..AdminConfig::default()
        },
        ..FunctionConfig::default()
    };
    let function = PciFunction::new(config, RngDevice::seeded(0));
    let bus = EmulatedBus::new(Arc::clone(&function)) as Arc<dyn Bus>;
    let transport = Arc::new(Transport::new(bus).expect("a device"));
    transport
        .negotiate(Features::ADMIN_VQ, Features::ADMIN_VQ)
        .expect("negotiated");
    let mut queue = AdminQueue::new(Arc::clone(&transport), 0).expect("a queue");
    transport.driver_ok().expect("live");
    queue.use_commands(0, &COMMANDS).expect("in use");
    (function, queue)
}

fn reading(lines: &mut Vec<Line>, guest: u64, bound: Bound) {
    let (function, mut queue) = function();
    let memory = memory_file(1 << 20).expect("memory");
    function
        .dma()
        .map(1 << 50, 1 << 20, &memory, 0, Permissions::ReadWrite)
        .expect("a legal map");
    let start = Start {
        page_size: PAGE.into(),
        count: 1.into(),
        reserved: 0.into(),
    };
    let extent = Extent {
        start: 0.into(),
        length: guest.into(),
    };
    let data = [start.as_bytes(), extent.as_bytes()].concat();
    queue
        .command(START, Subject::ITSELF, &data, 0)
        .expect("started");
    let ask = Read {
        start: 0.into(),
        length: guest.into(),
        page_size: 0.into(),
    };
    // As many as one command moves.
    let count = RESULT_BYTES / 8 - 1;
    let list = pages(guest, count, 3);
    let bytes = vec![1_u8; count * 8];
    let mut copy = vec![0_u8; count * 8];
    let ratio = interleave(
        ROUNDS,
        || timed(|| black_box(&mut copy).copy_from_slice(black_box(&bytes))),
        || {
            {
                let guard = function.dma().enter();
                let mut written = guard.written();
                list.iter().for_each(|iova| written.record(*iova, PAGE));
                guard.mark(&written);
            }
            timed(|| {
                let answer = queue.command(READ, Subject::ITSELF, ask.as_bytes(), count * 8);
                let answer = answer.expect("read");
                assert_eq!(
                    to_usize(u64::from(answer.output & output::COUNT)),
                    count,
                    "{:#x}",
                    answer.output
                );
            })
        },
    );
    // Bytes a second of the read over those of the copy: the copy's time over the read's.
    let gib = guest / GIB;
    let name = format!("READ by command, {gib} GiB, bytes a second : memcpy of the same bytes");
    lines.push(Line::new(name, bound, &ratio, count as f64));
}

fn main() -> ExitCode {
    let mode = Mode::from_args();
    let mut lines = Vec::new();
    settle();
    if wanted("records") {
        marking(&mut lines, GIB, [Bound::AtMost(6.0), Bound::AtMost(12.0)]);
        marking(&mut lines, 64 * GIB, [Bound::None; 2]);
        marking(&mut lines, 1024 * GIB, [Bound::None; 2]);
        reading(&mut lines, GIB, Bound::AtLeast(0.1));
        reading(&mut lines, 64 * GIB, Bound::None);
        reading(&mut lines, 1024 * GIB, Bound::None);
    }
    lines.iter().for_each(|line| line.print(mode));
    finish(&lines)
}

//! Page-write recording: what a mark costs beside vm-memory's `AtomicBitmap`, what a read moves
//! beside a plain copy, and what is reported when there is no room.

use benches::memory::{Random, memory_file};
use benches::{Bound, Line, Mode, finish, interleave, settle, wanted};
use device::dma::Dma;
use device::function::{AdminConfig, FunctionConfig, PciFunction};
use device::rng::RngDevice;
use device::tracker::records::{Recorder, RecordsConfig};
use driver::Transport;
use driver::admin::{AdminQueue, RESULT_BYTES, Subject};
use driver::bus::Bus;
use driver::dirty::records::{COMMANDS, RecordsSource};
use driver::dirty::{DirtySet, DirtySource};
use rustix::time::{ClockId, clock_gettime};
use spec::features::Features;
use spec::records::{Extent, READ, Read, START, Start, output};
use std::collections::BTreeSet;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::{Arc, Barrier, Mutex};
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
/// Queues of a device that has many.
const QUEUES: usize = 16;
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
        spent(|| {
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

/// What this thread's processor was at it: with more writers than processors the clock would count
/// the others' turns.
fn spent(work: impl FnOnce()) -> Duration {
    let now = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(
            u64::try_from(now.tv_sec).expect("not negative"),
            u32::try_from(now.tv_nsec).expect("below a second"),
        )
    };
    let start = now();
    work();
    now() - start
}

/// All lists at the same time, each by a thread of its own: the sum of what each took. One list is
/// for this thread.
fn together(lists: &[&[u64]], work: impl Fn(&[u64], &Barrier) -> Duration + Sync) -> Duration {
    let barrier = Barrier::new(lists.len());
    let work = |list: &[u64]| work(list, &barrier);
    let Some((mine, others)) = lists.split_first() else {
        return Duration::ZERO;
    };
    thread::scope(|scope| {
        let others: Vec<_> = others
            .iter()
            .map(|list| scope.spawn(|| work(list)))
            .collect();
        let mine = work(mine);
        let others = others
            .into_iter()
            .map(|other| other.join().expect("it marks"));
        mine + others.sum::<Duration>()
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

/// Rounds of new pages: ours by bursts of `burst` through the open door until their records are ready
/// to be read, the peer's one by one as it has nothing else. Both take the same lists in the same
/// order, and each list comes again after [`LISTS`] rounds.
struct Marks<'a> {
    guest: u64,
    ours: &'a Recorded,
    theirs: &'a AtomicBitmap,
    /// By writer.
    lists: &'a [Vec<&'a [u64]>],
}

impl Marks<'_> {
    fn new_pages(&self, burst: usize, bound: Bound) -> Line {
        let Self { ours, theirs, .. } = *self;
        let writers = self.lists[0].len();
        let (mut round, mut peer_round) = (0, 0);
        let next = |round: &mut usize| {
            *round += 1;
            self.lists[*round % self.lists.len()].as_slice()
        };
        let marked = next(&mut 0).iter().map(|list| list.len()).sum();
        let ratio = interleave(
            if writers <= 2 { ROUNDS } else { ROUNDS / 5 },
            || {
                let mark =
                    |list: &[u64], ready: &Barrier| ours.mark(list, burst, || _ = ready.wait());
                let time = together(next(&mut round), mark) + ours.turn();
                ours.forget(marked);
                time
            },
            || {
                let time = together(next(&mut peer_round), |list, ready| {
                    ready.wait();
                    spent(|| run_peer(theirs, list))
                });
                theirs.reset();
                time
            },
        );
        let gib = self.guest / GIB;
        let writers = if writers == 1 {
            "1 writer".to_owned()
        } else {
            format!("{writers} writers on different pages")
        };
        let name = format!("record a new page, {gib} GiB, bursts of {burst}, {writers} : {PEER}");
        Line::new(name, bound, &ratio, marked as f64)
    }

    /// Pages that are recorded already: the common case of used rings.
    fn again(&self, writers: usize) -> Line {
        let Self { ours, theirs, .. } = *self;
        let hot = vec![self.lists[0][0]; writers];
        together(&hot, |list, ready| ours.mark(list, 32, || _ = ready.wait()));
        let ratio = interleave(
            if writers == 1 { ROUNDS } else { ROUNDS / 5 },
            || together(&hot, |list, ready| ours.mark(list, 32, || _ = ready.wait())),
            || {
                together(&hot, |list, ready| {
                    ready.wait();
                    spent(|| run_peer(theirs, list))
                })
            },
        );
        ours.turn();
        ours.forget(PAGES);
        let gib = self.guest / GIB;
        let name = format!(
            "record a page again, {gib} GiB, bursts of 32, {writers} writers on the same pages : {PEER}"
        );
        Line::new(name, Bound::None, &ratio, (PAGES * writers) as f64)
    }
}

fn marking(mut add: impl FnMut(Line), guest: u64) {
    let (ours, theirs) = (Recorded::new(guest), peer(guest));
    // A small guest has pages for fewer lists.
    let count = (QUEUES * LISTS * PAGES).min(to_usize(guest / PAGE / 2));
    let all = pages(guest, count, 1);
    for (writers, bound) in [(1, 6.0), (2, 12.0), (QUEUES, 12.0)] {
        let lists: Vec<Vec<&[u64]>> = all
            .chunks(writers * PAGES)
            .map(|lists| lists.chunks(PAGES).collect())
            .take(LISTS)
            .collect();
        let marks = Marks {
            guest,
            ours: &ours,
            theirs: &theirs,
            lists: &lists,
        };
        add(marks.new_pages(1, Bound::AtMost(bound)));
        add(marks.new_pages(32, Bound::None));
        add(marks.again(writers));
    }
}

/// What the driver takes for written when the device has no room for some of the records: measured
/// on what it reports, for an honest price of [`spec::records::output::OVERFLOW`].
fn overflow(mut add: impl FnMut(Line), room: u32, dirty: usize) {
    let guest = GIB;
    let (function, queue) = function(room);
    let memory = memory_file(1 << 20).expect("memory");
    function
        .dma()
        .map(1 << 50, 1 << 20, &memory, 0, Permissions::ReadWrite)
        .expect("a legal map");
    let mut source = RecordsSource::new(Arc::new(Mutex::new(queue)), Subject::ITSELF);
    source
        .start(std::slice::from_ref(&(0..guest)), PAGE)
        .expect("the ranges are legal");
    {
        let guard = function.dma().enter();
        let mut written = guard.written();
        let list = pages(guest, dirty, 5);
        list.iter().for_each(|iova| written.record(*iova, PAGE));
        guard.mark(&written);
    }
    let mut set = DirtySet::new(guest / PAGE);
    let time = timed(|| source.report(0..guest, &mut set).expect("a report"));
    let reported = set.count() as f64;
    let told = source.overflows() != 0;
    assert_eq!(told, reported > dirty as f64, "in silence");
    let figure = reported / dirty as f64;
    add(Line {
        name: format!(
            "room for {room} records, {dirty} pages of 1 GiB written: pages reported : written"
        ),
        bound: Bound::None,
        figure,
        spread: [figure; 2],
        detail: format!("{reported} pages, read in {time:.0?}"),
    });
}

/// A function that records itself, with the driver of its administration queue.
fn function(max_records: u32) -> (Arc<PciFunction>, AdminQueue) {
    let config = FunctionConfig {
        admin: AdminConfig {
            queues: 1,
            max_records,
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

fn reading(mut add: impl FnMut(Line), guest: u64) {
    let (function, mut queue) = function(1 << 20);
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
    add(Line::new(name, Bound::AtLeast(0.1), &ratio, count as f64));
}

fn main() -> ExitCode {
    let mode = Mode::from_args();
    let mut lines = Vec::new();
    settle();
    let mut add = |line: Line| {
        line.print(mode);
        lines.push(line);
    };
    if wanted("records") {
        for guest in [GIB, 64 * GIB, 1024 * GIB] {
            marking(&mut add, guest);
            reading(&mut add, guest);
        }
        for (room, dirty) in [(16, 17), (4096, 4096), (4096, 4097), (4096, 65_536)] {
            overflow(&mut add, room, dirty);
        }
    }
    finish(&lines)
}

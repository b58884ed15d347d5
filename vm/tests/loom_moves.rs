//! What surrounds the marking protocol in a move, under every interleaving and reordering that loom
//! knows: rounds that fail and put their pages back, logs that are replaced, queues that stop, devices
//! whose queues suspend together.
//!
//! Marking, taking and the sets of pages are the real functions. The locks and phases around them are
//! models of `device::dma` and `device::engine`: their rules, not their code. Each wrong variant must be
//! shown to fail.

mod proof;

use device::tracker::protocol::{Fenced, MarkWord, mark_fenced};
use driver::dirty::DirtySet;
use driver::dirty::harvest::{TakeWord, take_word};
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex, RwLock};
use loom::thread;
use proof::{fails, holds};

const PAGES: usize = 2;

/// A word of a bitmap on loom's atomics, by the rule.
struct Word(AtomicU64);

impl MarkWord for Word {
    fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn or(&self, mask: u64) {
        self.0.fetch_or(mask, Ordering::Release);
    }
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

impl TakeWord for Word {
    fn load_relaxed(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn swap_acq_rel(&self, new: u64) -> u64 {
        self.0.swap(new, Ordering::AcqRel)
    }
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// Guest memory of two pages.
struct Memory([AtomicU64; PAGES]);

impl Memory {
    fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// A burst: data, fence, marks.
    fn write(&self, log: &Word, pages: &[usize], value: u64) {
        for &page in pages {
            self.0[page].store(value, Ordering::Relaxed);
        }
        let fenced = Fenced::after_data::<Word>();
        for &page in pages {
            mark_fenced(fenced, log, 1 << page);
        }
    }

    fn copy(&self, dirty: &DirtySet, copy: &mut [u64; PAGES]) {
        for (page, copy) in (0..).zip(copy) {
            if dirty.contains(page) {
                *copy = self.0[usize::try_from(page).unwrap()].load(Ordering::Relaxed);
            }
        }
    }

    fn assert_equal(&self, copy: &[u64; PAGES]) {
        let now = self.0.each_ref().map(|page| page.load(Ordering::Relaxed));
        assert_eq!(now, *copy, "lost page");
    }
}

fn word() -> Word {
    Word(AtomicU64::new(0))
}

/// Takes all marks of `log` into a set, with the fence that lets pages be read.
fn harvest(log: &Word, into: &mut DirtySet) {
    into.or_word(0, take_word(log));
    <Word as TakeWord>::fence();
}

/// A round that fails after it has taken its marks, and one that follows.
#[derive(Clone, Copy, PartialEq)]
enum Failed {
    /// It puts its pages back, and the next round begins with them.
    PutBack,
    /// It forgets them.
    Forgotten,
    /// It puts back only what was marked again meanwhile.
    OnlyNew,
}

/// Two bursts, a round of which nothing arrives, a round that goes through, and the last one.
fn a_round_fails(way: Failed, bursts: &'static [&'static [usize]]) -> impl Fn() + Sync + Send {
    move || {
        let guest = Arc::new((Memory::new(), word()));
        let harvester = {
            let guest = Arc::clone(&guest);
            thread::spawn(move || {
                let (memory, log) = &*guest;
                let mut copy = [0; PAGES];
                let mut pending = DirtySet::new(64);
                // The copy of this round does not arrive.
                let mut lost = DirtySet::new(64);
                harvest(log, &mut lost);
                match way {
                    Failed::PutBack => pending.union_with(&lost),
                    Failed::Forgotten => {}
                    Failed::OnlyNew => {
                        let mut again = DirtySet::new(64);
                        harvest(log, &mut again);
                        again.intersect_with(&lost);
                        pending.union_with(&again);
                    }
                }
                harvest(log, &mut pending);
                memory.copy(&pending, &mut copy);
                copy
            })
        };
        let (memory, log) = &*guest;
        for (value, burst) in (1..).zip(bursts) {
            memory.write(log, burst, value);
        }
        let mut copy = harvester.join().unwrap();
        let mut last = DirtySet::new(64);
        harvest(log, &mut last);
        memory.copy(&last, &mut copy);
        memory.assert_equal(&copy);
    }
}

#[test]
fn a_failed_round_loses_nothing() {
    let way = Failed::PutBack;
    holds(
        "put back: two bursts of one page",
        None,
        a_round_fails(way, &[&[0], &[0]]),
    );
    holds(
        "put back: two bursts of two pages",
        None,
        a_round_fails(way, &[&[0, 1], &[0, 1]]),
    );
}

#[test]
fn a_failed_round_that_is_forgotten_loses() {
    let name = "put back: forgotten";
    fails(
        "lost page",
        name,
        a_round_fails(Failed::Forgotten, &[&[0], &[0]]),
    );
    let name = "put back: only what was marked again";
    fails(
        "lost page",
        name,
        a_round_fails(Failed::OnlyNew, &[&[0], &[0]]),
    );
}

/// How a log takes the place of another.
#[derive(Clone, Copy, PartialEq)]
enum Replaced {
    /// While the door is shut; then the old one is harvested for the last time.
    Shut,
    /// While bursts may be under way.
    Open,
    /// The old one was harvested for the last time before.
    HarvestedBefore,
    /// The burst looks which log there is before it goes through the door.
    LookedUpOutside,
}

/// Logs, of which one is in force, and the door that bursts go through.
struct Door {
    memory: Memory,
    logs: [Word; 2],
    current: AtomicUsize,
    door: RwLock<()>,
}

impl Door {
    fn burst(&self, way: Replaced, value: u64) {
        let early = self.current.load(Ordering::Acquire);
        let _open = self.door.read().unwrap();
        let log = match way {
            Replaced::LookedUpOutside => early,
            _ => self.current.load(Ordering::Acquire),
        };
        self.memory.write(&self.logs[log], &[0], value);
    }
}

/// Two bursts through the door, and a log that is replaced: the old one goes, so what is marked there
/// after its last harvest is lost.
fn a_log_is_replaced(way: Replaced) -> impl Fn() + Sync + Send {
    move || {
        let door = Arc::new(Door {
            memory: Memory::new(),
            logs: [word(), word()],
            current: AtomicUsize::new(0),
            door: RwLock::new(()),
        });
        let front = {
            let door = Arc::clone(&door);
            thread::spawn(move || {
                let mut dirty = DirtySet::new(64);
                if way == Replaced::HarvestedBefore {
                    harvest(&door.logs[0], &mut dirty);
                }
                if way == Replaced::Open {
                    door.current.store(1, Ordering::Release);
                } else {
                    let _shut = door.door.write().unwrap();
                    door.current.store(1, Ordering::Release);
                }
                if way != Replaced::HarvestedBefore {
                    harvest(&door.logs[0], &mut dirty);
                }
                let mut copy = [0; PAGES];
                door.memory.copy(&dirty, &mut copy);
                copy
            })
        };
        door.burst(way, 1);
        door.burst(way, 2);
        let mut copy = front.join().unwrap();
        let mut last = DirtySet::new(64);
        harvest(&door.logs[1], &mut last);
        door.memory.copy(&last, &mut copy);
        door.memory.assert_equal(&copy);
    }
}

#[test]
fn a_log_that_is_replaced_loses_nothing() {
    holds(
        "log replaced behind a shut door",
        None,
        a_log_is_replaced(Replaced::Shut),
    );
}

#[test]
fn a_log_that_is_replaced_otherwise_loses() {
    let loses = |name, way| fails("lost page", name, a_log_is_replaced(way));
    loses("log replaced during bursts", Replaced::Open);
    loses("log harvested, then replaced", Replaced::HarvestedBefore);
    loses("log looked up outside the door", Replaced::LookedUpOutside);
}

/// How a queue is stopped.
#[derive(Clone, Copy, PartialEq)]
enum Stopped {
    /// A queue that a worker has is told, and the worker answers when it has marked what it wrote.
    Rule,
    /// The answer does not wait for the worker.
    AtOnce,
    /// The worker answers before it marks.
    BeforeMarks,
    /// A kick while a worker is at the queue is dropped.
    KickDropped,
    /// The worker looks for a kick, and only then gives the queue back.
    LooksThenLeaves,
}

/// A queue's phase, as the engine has them.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Idle,
    Scheduled,
    Running { kicked: bool, stop: bool },
    Stopped,
}

struct Queue {
    way: Stopped,
    memory: Memory,
    log: Word,
    /// Requests that were made available, and how many of them were carried out.
    available: AtomicU64,
    used: AtomicU64,
    phase: Mutex<Phase>,
    /// That the phase changed, or that no more kicks will come.
    changed: Condvar,
    /// Looked at and set with the phase held.
    quiet: AtomicU64,
}

impl Queue {
    fn new(way: Stopped) -> Arc<Self> {
        Arc::new(Self {
            way,
            memory: Memory::new(),
            log: word(),
            available: AtomicU64::new(0),
            used: AtomicU64::new(0),
            phase: Mutex::new(Phase::Idle),
            changed: Condvar::new(),
            quiet: AtomicU64::new(0),
        })
    }

    /// The driver makes a request available, then kicks.
    fn kick(&self) {
        self.available.fetch_add(1, Ordering::Release);
        let mut phase = self.phase.lock().unwrap();
        *phase = match *phase {
            Phase::Idle => Phase::Scheduled,
            Phase::Running { stop, .. } if self.way != Stopped::KickDropped => {
                Phase::Running { kicked: true, stop }
            }
            other => other,
        };
        self.changed.notify_all();
    }

    /// The driver stops the queue, and goes on when it has stopped.
    fn stop(&self) {
        let mut phase = self.phase.lock().unwrap();
        *phase = match *phase {
            Phase::Running { kicked, .. } if self.way != Stopped::AtOnce => {
                Phase::Running { kicked, stop: true }
            }
            _ => Phase::Stopped,
        };
        self.changed.notify_all();
        while *phase != Phase::Stopped {
            phase = self.changed.wait(phase).unwrap();
        }
    }

    /// A worker: runs the queue when it is scheduled, until it is stopped or idle for good.
    fn work(&self) {
        loop {
            let mut phase = self.phase.lock().unwrap();
            while *phase == Phase::Idle && self.quiet.load(Ordering::Relaxed) == 0 {
                phase = self.changed.wait(phase).unwrap();
            }
            if matches!(*phase, Phase::Idle | Phase::Stopped) {
                return;
            }
            *phase = Phase::Running {
                kicked: false,
                stop: false,
            };
            drop(phase);
            let available = self.available.load(Ordering::Acquire);
            let done = self.used.load(Ordering::Relaxed);
            if self.way == Stopped::BeforeMarks {
                self.settle();
            }
            if available != done {
                self.memory.write(&self.log, &[0], available);
                self.used.store(available, Ordering::Relaxed);
            }
            if self.settle() {
                return;
            }
        }
    }

    /// The worker gives the queue back. True if it has stopped.
    fn settle(&self) -> bool {
        let mut phase = self.phase.lock().unwrap();
        let seen = *phase;
        if self.way == Stopped::LooksThenLeaves {
            drop(phase);
            phase = self.phase.lock().unwrap();
        }
        *phase = match seen {
            Phase::Running { stop: true, .. } | Phase::Stopped => Phase::Stopped,
            Phase::Running { kicked: true, .. } => Phase::Scheduled,
            _ => Phase::Idle,
        };
        self.changed.notify_all();
        *phase == Phase::Stopped
    }
}

/// A worker, and a driver that kicks, stops the queue and harvests for the last time.
fn a_queue_stops(way: Stopped) -> impl Fn() + Sync + Send {
    move || {
        let queue = Queue::new(way);
        let worker = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.work())
        };
        queue.kick();
        queue.stop();
        let mut copy = [0; PAGES];
        let mut last = DirtySet::new(64);
        harvest(&queue.log, &mut last);
        queue.memory.copy(&last, &mut copy);
        // Nothing may be written from now on: joined, the worker has done all that it ever will.
        worker.join().unwrap();
        queue.memory.assert_equal(&copy);
    }
}

/// A worker, and a driver that kicks twice: when the queue is idle for good, both requests have been
/// carried out.
fn two_kicks(way: Stopped) -> impl Fn() + Sync + Send {
    move || {
        let queue = Queue::new(way);
        let worker = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.work())
        };
        queue.kick();
        queue.kick();
        {
            let _held = queue.phase.lock().unwrap();
            queue.quiet.store(1, Ordering::Relaxed);
            queue.changed.notify_all();
        }
        worker.join().unwrap();
        assert_eq!(queue.used.load(Ordering::Relaxed), 2, "lost kick");
    }
}

#[test]
fn a_queue_that_stopped_writes_nothing_more() {
    holds(
        "queue stop: the last harvest",
        None,
        a_queue_stops(Stopped::Rule),
    );
    holds("queue stop: two kicks", None, two_kicks(Stopped::Rule));
}

#[test]
fn a_queue_that_stops_otherwise_loses() {
    let loses = |name, way| fails("lost page", name, a_queue_stops(way));
    loses("queue stop: answered at once", Stopped::AtOnce);
    loses(
        "queue stop: answered before the marks",
        Stopped::BeforeMarks,
    );
}

#[test]
fn a_kick_that_is_dropped_leaves_a_request() {
    let loses = |name, way| fails("lost kick", name, two_kicks(way));
    loses(
        "queue stop: a kick at a running queue is dropped",
        Stopped::KickDropped,
    );
    loses(
        "queue stop: looked for a kick, then left",
        Stopped::LooksThenLeaves,
    );
}

/// Two queues that drain, of which the last presents SUSPEND; `ORDERED` says whether the count of those
/// that are left orders what came before.
fn two_queues_suspend<const ORDERED: bool>(early: bool) -> impl Fn() + Sync + Send {
    move || {
        // A word for each: whoever reads one sees the other's marks only by what orders them.
        let guest = Arc::new((Memory::new(), [word(), word()]));
        let left = Arc::new(AtomicUsize::new(2));
        let suspended = Arc::new(AtomicU64::new(0));
        let queues: Vec<_> = (0..PAGES)
            .map(|page| {
                let (guest, left) = (Arc::clone(&guest), Arc::clone(&left));
                let suspended = Arc::clone(&suspended);
                thread::spawn(move || {
                    let drained = |order| {
                        if left.fetch_sub(1, order) == 1 {
                            suspended.store(1, Ordering::Release);
                        }
                    };
                    let order = if ORDERED {
                        Ordering::AcqRel
                    } else {
                        Ordering::Relaxed
                    };
                    if early {
                        drained(order);
                    }
                    guest.0.write(&guest.1[page], &[page], 1);
                    if !early {
                        drained(order);
                    }
                })
            })
            .collect();
        let (memory, logs) = &*guest;
        if suspended.load(Ordering::Acquire) == 1 {
            let (mut copy, mut last) = ([0; PAGES], DirtySet::new(64));
            logs.iter().for_each(|log| harvest(log, &mut last));
            memory.copy(&last, &mut copy);
            for queue in queues {
                queue.join().unwrap();
            }
            memory.assert_equal(&copy);
        } else {
            for queue in queues {
                queue.join().unwrap();
            }
        }
    }
}

#[test]
fn the_last_queue_presents_suspend() {
    holds(
        "suspend of two queues",
        None,
        two_queues_suspend::<true>(false),
    );
}

#[test]
fn suspend_that_does_not_wait_for_all_queues_loses() {
    let loses = |name, model| fails("lost page", name, model);
    loses(
        "suspend of two queues: before they drain",
        two_queues_suspend::<true>(true),
    );
}

#[test]
fn suspend_by_an_unordered_count_loses() {
    let name = "suspend of two queues: unordered count";
    fails("lost page", name, two_queues_suspend::<false>(false));
}

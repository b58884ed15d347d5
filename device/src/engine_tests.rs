//! The engine under kicks, stops and devices that misbehave. Threads meet through channels; the
//! time limits only turn a hang into a failure.

use super::*;
use crate::queue::test_ring::{BASE, Guest, TestRing};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

const HANG: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Stopped(u16, QueueState),
    Used(u16),
    Broken(u16),
}

#[derive(Debug)]
struct Events(Sender<Event>);

impl EngineEvents for Events {
    fn queue_stopped(&self, index: u16, state: QueueState) {
        let _ = self.0.send(Event::Stopped(index, state));
    }
    fn queue_used(&self, index: u16) {
        let _ = self.0.send(Event::Used(index));
    }
    fn queue_broken(&self, index: u16, _error: QueueError) {
        let _ = self.0.send(Event::Broken(index));
    }
}

/// Uses one chain a step. Queue by queue, it can be made to wait in the midst of a step.
#[derive(Debug)]
struct Device {
    queues: u16,
    /// Says which queue it is at, then waits for a word.
    gate: Option<(Sender<u16>, Mutex<Receiver<()>>)>,
    panic: AtomicBool,
    inside: Vec<AtomicBool>,
    done: AtomicU64,
}

impl VirtioDevice for Device {
    fn device_id(&self) -> u16 {
        0
    }
    fn pci_class(&self) -> u32 {
        0
    }
    fn features(&self) -> u64 {
        0
    }
    fn num_queues(&self) -> u16 {
        self.queues
    }
    fn queue_max_size(&self, _index: u16) -> u16 {
        64
    }
    fn config_len(&self) -> usize {
        0
    }
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    fn config_write(&self, _offset: usize, _data: &[u8]) -> bool {
        false
    }
    fn negotiated(&self, _features: u64) {}
    fn reset(&self) {}

    fn process(
        &self,
        index: u16,
        queue: &mut Virtqueue,
        dma: &Dma,
        notify: &mut dyn FnMut(),
    ) -> Result<Progress, QueueError> {
        let inside = &self.inside[usize::from(index)];
        assert!(!inside.swap(true, Ordering::AcqRel), "two workers at once");
        let mut used = false;
        let progress = self.step(index, queue, dma, &mut used);
        if used {
            notify();
        }
        inside.store(false, Ordering::Release);
        progress
    }
}

impl Device {
    fn step(
        &self,
        index: u16,
        queue: &mut Virtqueue,
        dma: &Dma,
        used: &mut bool,
    ) -> Result<Progress, QueueError> {
        let chain = queue.pop(&dma.enter())?;
        // An empty queue is given up before the gate: what is offered there is the engine's to see.
        let idle = chain.is_none() && !queue.enable_notification(&dma.enter())?;
        if let Some((at, go)) = &self.gate {
            at.send(index).unwrap();
            go.lock().unwrap().recv().unwrap();
        }
        assert!(!self.panic.load(Ordering::Relaxed), "as it was told to");
        if let Some(chain) = chain {
            let mem = dma.enter();
            queue.push(&mem, chain.head, 0)?;
            self.done.fetch_add(1, Ordering::Relaxed);
            *used |= queue.needs_notification(&mem)?;
        }
        Ok(if idle { Progress::Idle } else { Progress::More })
    }
}

struct Bed {
    guest: Guest,
    device: Arc<Device>,
    engine: Engine,
    events: Receiver<Event>,
    at: Receiver<u16>,
    go: Sender<()>,
}

const RING_AT: [u64; 2] = [BASE, BASE + 0x10000];

impl Bed {
    fn new(workers: usize, gated: bool) -> Self {
        let guest = Guest::new(1 << 20);
        let (at_tx, at) = channel();
        let (go, go_rx) = channel();
        let device = Arc::new(Device {
            queues: 2,
            gate: gated.then(|| (at_tx, Mutex::new(go_rx))),
            panic: AtomicBool::new(false),
            inside: vec![AtomicBool::new(false), AtomicBool::new(false)],
            done: AtomicU64::new(0),
        });
        let (tx, events) = channel();
        let engine = Engine::on_pool(
            Pool::new(workers),
            &(Arc::clone(&device) as Arc<dyn VirtioDevice>),
            &guest.dma,
            &(Arc::new(Events(tx)) as Arc<dyn EngineEvents>),
        );
        Self {
            guest,
            device,
            engine,
            events,
            at,
            go,
        }
    }

    fn ring(&self, index: u16) -> TestRing<'_> {
        let ring = TestRing::new(&self.guest, RING_AT[usize::from(index)], 64);
        ring.set(0, 0x1000, 1, 0, 0);
        ring
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(HANG).unwrap()
    }

    fn arrives(&self) -> u16 {
        self.at.recv_timeout(HANG).unwrap()
    }

    /// Lets a gated device through one step that finds nothing, so that the queue is idle or about
    /// to be.
    fn start_idle(&self, index: u16) {
        self.engine.start(index, self.ring(index).config()).unwrap();
        assert_eq!(self.arrives(), index);
        self.go.send(()).unwrap();
    }
}

const fn state(n: u16) -> QueueState {
    QueueState { avail: n, used: n }
}

#[test]
fn what_is_available_at_the_start_is_done_without_a_kick() {
    let bed = Bed::new(2, false);
    bed.ring(0).offer(0);
    bed.engine.start(0, bed.ring(0).config()).unwrap();
    assert_eq!(bed.event(), Event::Used(0));
    assert!(bed.engine.stop(0));
    assert_eq!(bed.event(), Event::Stopped(0, state(1)));
    assert_eq!(bed.engine.state(0), Some(state(1)));
    assert_eq!(bed.engine.state(1), None);
}

#[test]
fn a_kick_during_a_run_is_not_lost() {
    let bed = Bed::new(1, true);
    bed.engine.start(0, bed.ring(0).config()).unwrap();
    assert_eq!(bed.arrives(), 0);
    // The step has found the queue empty and is about to say so.
    bed.ring(0).offer(0);
    bed.engine.kick(0);
    bed.go.send(()).unwrap();
    assert_eq!(bed.arrives(), 0);
    bed.go.send(()).unwrap();
    assert_eq!(bed.event(), Event::Used(0));
    // The step that finds it empty again.
    assert_eq!(bed.arrives(), 0);
    bed.go.send(()).unwrap();
}

#[test]
fn a_stop_during_a_run_waits_for_it_and_is_answered_once() {
    let bed = Bed::new(2, true);
    bed.ring(0).offer(0);
    bed.ring(0).offer(0);
    bed.engine.start(0, bed.ring(0).config()).unwrap();
    assert_eq!(bed.arrives(), 0);
    assert!(bed.engine.stop(0));
    assert!(bed.engine.stop(0));
    bed.engine.kick(0);
    assert!(bed.events.try_recv().is_err(), "stopped with work in hand");
    assert!(matches!(
        bed.engine.start(0, bed.ring(0).config()),
        Err(QueueError::NotStartable { index: 0, .. })
    ));
    bed.go.send(()).unwrap();
    assert_eq!(bed.event(), Event::Used(0));
    assert_eq!(bed.event(), Event::Stopped(0, state(1)));
    assert!(!bed.engine.stop(0));

    // It goes on where it stopped.
    let config = bed.ring(0).config_at(state(1));
    bed.engine.start(0, config).unwrap();
    assert_eq!(bed.arrives(), 0);
    assert!(bed.engine.stop(0));
    bed.go.send(()).unwrap();
    assert_eq!(bed.event(), Event::Used(0));
    assert_eq!(bed.event(), Event::Stopped(0, state(2)));
}

#[test]
fn queues_that_are_not_started_ignore_everything() {
    let bed = Bed::new(1, false);
    for index in [0, 1, 2, 0xffff] {
        bed.engine.kick(index);
        assert!(!bed.engine.stop(index));
        assert_eq!(bed.engine.state(index), None);
    }
    let config = bed.ring(0).config();
    assert!(matches!(
        bed.engine.start(2, config),
        Err(QueueError::NotStartable { index: 2, .. })
    ));
    let larger = QueueConfig {
        size: 128,
        ..config
    };
    assert!(matches!(
        bed.engine.start(0, larger),
        Err(QueueError::Broken { .. })
    ));
    assert!(bed.events.try_recv().is_err());
}

#[test]
fn one_worker_takes_turns() {
    let bed = Bed::new(1, true);
    for index in [0, 1] {
        for _ in 0..3 {
            bed.ring(index).offer(0);
        }
        bed.engine.start(index, bed.ring(index).config()).unwrap();
    }
    let turns: Vec<u16> = (0..8)
        .map(|_| {
            let at = bed.arrives();
            bed.go.send(()).unwrap();
            at
        })
        .collect();
    assert_eq!(turns, [0, 1, 0, 1, 0, 1, 0, 1]);
}

#[test]
fn a_broken_queue_is_told_once_and_still_stops() {
    let bed = Bed::new(2, false);
    bed.ring(0).offer(0);
    bed.ring(0).offer(999);
    bed.engine.start(0, bed.ring(0).config()).unwrap();
    assert_eq!(bed.event(), Event::Used(0));
    assert_eq!(bed.event(), Event::Broken(0));
    bed.engine.kick(0);
    assert!(bed.engine.stop(0));
    assert_eq!(bed.event(), Event::Stopped(0, state(1)));
    assert!(bed.events.try_recv().is_err());
}

#[test]
fn a_device_that_panics_breaks_its_queue_and_no_other() {
    let bed = Bed::new(1, true);
    bed.ring(0).offer(0);
    bed.engine.start(0, bed.ring(0).config()).unwrap();
    assert_eq!(bed.arrives(), 0);
    bed.device.panic.store(true, Ordering::Relaxed);
    bed.go.send(()).unwrap();
    assert_eq!(bed.event(), Event::Broken(0));
    bed.device.panic.store(false, Ordering::Relaxed);
    bed.ring(1).offer(0);
    bed.engine.start(1, bed.ring(1).config()).unwrap();
    assert_eq!(bed.arrives(), 1);
    bed.go.send(()).unwrap();
    assert_eq!(bed.event(), Event::Used(1));
    assert_eq!(bed.arrives(), 1);
    bed.go.send(()).unwrap();
    bed.engine.stop(0);
    assert_eq!(bed.event(), Event::Stopped(0, state(0)));
}

#[test]
fn a_dropped_engine_stops_its_queues() {
    let bed = Bed::new(2, true);
    bed.start_idle(0);
    bed.engine.start(1, bed.ring(1).config()).unwrap();
    assert_eq!(bed.arrives(), 1);
    drop(bed.engine);
    bed.go.send(()).unwrap();
    let mut stopped: Vec<u16> = (0..2)
        .map(|_| match bed.events.recv_timeout(HANG).unwrap() {
            Event::Stopped(index, _) => index,
            other => panic!("{other:?}"),
        })
        .collect();
    stopped.sort_unstable();
    assert_eq!(stopped, [0, 1]);
}

/// A VMM that changes its guest's memory map takes the rings away and brings them back; a queue
/// with nothing in flight outlasts that, and needs no kick to see what came meanwhile.
#[test]
fn a_queue_at_rest_outlasts_its_rings() {
    let bed = Bed::new(2, false);
    bed.engine.start(0, bed.ring(0).config()).unwrap();
    for _ in 0..100 {
        bed.ring(0).offer(0);
        bed.engine.kick(0);
        assert_eq!(bed.event(), Event::Used(0));
        bed.guest.dma.unmap(BASE, bed.guest.size);
        for _ in 0..3 {
            bed.engine.kick(0);
        }
        bed.ring(0).offer(0);
        bed.guest.map();
        assert_eq!(bed.event(), Event::Used(0));
    }
    bed.guest.dma.unmap(BASE, bed.guest.size);
    bed.engine.kick(0);
    assert!(bed.engine.stop(0));
    assert_eq!(bed.event(), Event::Stopped(0, state(200)));
    assert!(bed.events.try_recv().is_err());
}

/// With a request in flight there is a buffer to be lost.
#[test]
fn a_queue_at_work_breaks_without_its_rings() {
    let bed = Bed::new(1, true);
    bed.ring(0).offer(0);
    bed.engine.start(0, bed.ring(0).config()).unwrap();
    assert_eq!(bed.arrives(), 0);
    bed.guest.dma.unmap(BASE, bed.guest.size);
    bed.go.send(()).unwrap();
    assert_eq!(bed.event(), Event::Broken(0));
    bed.guest.map();
    bed.engine.kick(0);
    assert!(bed.engine.stop(0));
    assert_eq!(bed.event(), Event::Stopped(0, state(0)));
}

/// A driver that offers and kicks, one at a time: a kick that is lost hangs it.
#[test]
fn no_kick_is_lost_between_runs() {
    const ROUNDS: u16 = 3000;
    let bed = Bed::new(2, false);
    bed.engine.start(0, bed.ring(0).config()).unwrap();
    for n in 1..=ROUNDS {
        bed.ring(0).offer(0);
        bed.engine.kick(0);
        while bed.ring(0).used_idx() != n {
            assert_eq!(bed.event(), Event::Used(0));
        }
    }
    assert_eq!(bed.device.done.load(Ordering::Relaxed), u64::from(ROUNDS));
}

/// Kicks, stops and drivers at once: every start has one stop, states follow each other, and at the
/// end everything offered has been used.
#[test]
fn kicks_against_stops() {
    const STARTS: u32 = 300;
    const OFFERS: u16 = 5000;
    let bed = Bed::new(3, false);
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        for index in 0..2 {
            let (bed, running) = (&bed, &running);
            // A driver that keeps within its ring.
            let engine = &bed.engine;
            let guest = &bed.guest;
            let ring = TestRing::new(guest, RING_AT[usize::from(index)], 64);
            ring.set(0, 0x1000, 1, 0, 0);
            scope.spawn(move || {
                let mut offered: u16 = 0;
                while offered < OFFERS {
                    if offered.wrapping_sub(ring.used_idx()) < 64 {
                        ring.offer(0);
                        offered += 1;
                    } else {
                        std::thread::yield_now();
                    }
                    engine.kick(index);
                }
                while ring.used_idx() != OFFERS {
                    std::thread::yield_now();
                    engine.kick(index);
                }
            });
            scope.spawn(move || {
                while running.load(Ordering::Relaxed) {
                    engine.kick(index);
                    std::thread::yield_now();
                }
            });
        }
        let mut states = [QueueState::default(); 2];
        for _ in 0..STARTS {
            for (index, at) in (0..).zip(&states) {
                let ring = TestRing::new(&bed.guest, RING_AT[usize::from(index)], 64);
                bed.engine.start(index, ring.config_at(*at)).unwrap();
            }
            for index in 0..2 {
                assert!(bed.engine.stop(index));
                bed.engine.stop(index);
            }
            let mut left = 2;
            while left > 0 {
                match bed.event() {
                    Event::Used(_) => {}
                    Event::Broken(index) => panic!("queue {index} broke"),
                    Event::Stopped(index, state) => {
                        states[usize::from(index)] = state;
                        let ring = TestRing::new(&bed.guest, RING_AT[usize::from(index)], 64);
                        assert_eq!((state.avail, state.used), (state.used, ring.used_idx()));
                        left -= 1;
                    }
                }
            }
            assert!(
                bed.events.try_iter().next().is_none(),
                "an event after the stop"
            );
        }
        for (index, at) in (0..).zip(&states) {
            let ring = TestRing::new(&bed.guest, RING_AT[usize::from(index)], 64);
            bed.engine.start(index, ring.config_at(*at)).unwrap();
        }
        running.store(false, Ordering::Relaxed);
    });
    assert_eq!(
        bed.device.done.load(Ordering::Relaxed),
        2 * u64::from(OFFERS)
    );
}

//! The block device under its engine: many queues, stops and unmaps under load, and whether what
//! is marked is what changed.

use super::bed::wire::{FLUSH, IN, IOERR, OK, OUT};
use super::bed::{Bed, HEADER, IN_AT, OUT_AT, STATUS, UNTOUCHED};
use crate::blk::buffer::Spares;
use crate::blk::{BlkDevice, BlkOptions};
use crate::engine::{Engine, EngineEvents};
use crate::queue::QueueConfig;
use crate::queue::test_ring::{BASE, Guest, NEXT, TestRing, WRITE};
use crate::tracker::{Marking, TrackerConfig};
use crate::virtio::{QueueError, VirtioDevice};
use spec::queue_state::QueueState;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Only turns a hang into a failure.
const HANG: Duration = Duration::from_secs(60);

#[derive(Debug)]
enum Event {
    Stopped(u16, QueueState),
    Used,
}

#[derive(Debug)]
struct Events(Sender<Event>);

impl EngineEvents for Events {
    fn queue_stopped(&self, index: u16, state: QueueState) {
        let _ = self.0.send(Event::Stopped(index, state));
    }
    fn queue_used(&self, _index: u16) {
        let _ = self.0.send(Event::Used);
    }
    fn queue_broken(&self, index: u16, error: QueueError) {
        panic!("queue {index}: {error}");
    }
}

const QUEUES: u16 = 64;
const SIZE: u16 = 64;
/// Guest memory of one queue: its ring, then 16 requests of two pages each.
const STRIDE: u64 = 0x30000;

/// Contents that tell one block from every other.
fn block(tag: u16) -> Vec<u8> {
    tag.to_le_bytes().repeat(2048)
}

struct Machine {
    guest: Guest,
    engine: Engine,
    events: Receiver<Event>,
    disk: File,
}

impl Machine {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(direct: bool) -> Self {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(u64::from(QUEUES) * 16 * 4096).unwrap();
        let options = BlkOptions {
            queues: QUEUES,
            queue_size: SIZE,
            direct,
            ..BlkOptions::default()
        };
        let device = BlkDevice::open(disk.try_clone().unwrap(), options).unwrap();
        let guest = Guest::new(STRIDE * u64::from(QUEUES));
        let (tx, events) = channel();
        let engine = Engine::new(device, Arc::clone(&guest.dma), Arc::new(Events(tx)));
        Self {
            guest,
            engine,
            events,
            disk,
        }
    }

    fn ring(&self, queue: u16) -> TestRing<'_> {
        TestRing::new(&self.guest, BASE + STRIDE * u64::from(queue), SIZE)
    }

    fn slot(&self, queue: u16, n: u16) -> (u64, u64) {
        let header = self.ring(queue).end() + 8192 * u64::from(n);
        (header, header + 4096)
    }

    /// Prepares a request for block `n` of the queue's share of the disk.
    fn request(&self, queue: u16, n: u16, kind: u32, data: Option<u16>) {
        let (header, page) = self.slot(queue, n);
        let sector = 8 * (16 * u64::from(queue) + u64::from(n));
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        bytes.push(0xff);
        self.guest.write(header, &bytes);
        if let Some(tag) = data {
            self.guest.write(page, &block(tag));
        }
        let ring = self.ring(queue);
        let flags = if kind == IN { WRITE | NEXT } else { NEXT };
        ring.set(3 * n, header, 16, NEXT, 3 * n + 1);
        ring.set(3 * n + 1, page, 4096, flags, 3 * n + 2);
        ring.set(3 * n + 2, header + 16, 1, WRITE, 0);
        // The interrupt of this request, which is the last so far.
        ring.set_used_event(ring.avail_idx());
        ring.offer(3 * n);
    }

    fn start(&self, queue: u16, state: QueueState) {
        let config = QueueConfig {
            event_idx: queue.is_multiple_of(2),
            ..self.ring(queue).config_at(state)
        };
        self.engine.start(queue, config).unwrap();
    }

    /// A page of the disk, through memory that O_DIRECT may use too.
    fn on_disk(&self, at: u64) -> Vec<u8> {
        let mut page = Spares::default().take(4096);
        self.disk.read_exact_at(page.bytes_mut(), at).unwrap();
        page.bytes().to_vec()
    }

    fn wait_used(&self, queue: u16, idx: u16) {
        while self.ring(queue).used_idx() != idx {
            let _ = self.events.recv_timeout(HANG).unwrap();
        }
    }

    /// Stops all queues; returns their states.
    fn stop(&self) -> Vec<QueueState> {
        let mut states = vec![None; usize::from(QUEUES)];
        for queue in 0..QUEUES {
            assert!(self.engine.stop(queue));
        }
        while states.iter().any(Option::is_none) {
            if let Event::Stopped(queue, state) = self.events.recv_timeout(HANG).unwrap() {
                let before = states[usize::from(queue)].replace(state);
                assert_eq!(before, None, "queue {queue} stopped twice");
            }
        }
        states.into_iter().flatten().collect()
    }
}

#[test]
fn sixty_four_queues_write_and_read_back() {
    write_and_read_back(&Machine::new());
}

/// Past the page cache the kernel has reads and writes of many queues at once.
#[test]
fn sixty_four_queues_write_and_read_back_past_the_page_cache() {
    write_and_read_back(&Machine::with(true));
}

fn write_and_read_back(machine: &Machine) {
    for queue in 0..QUEUES {
        machine.start(queue, QueueState::default());
    }
    for (round, kind) in [(1, OUT), (2, IN)] {
        for queue in 0..QUEUES {
            for n in 0..16 {
                let tag = 16 * queue + n;
                machine.request(queue, n, kind, Some(if kind == OUT { tag } else { 0xeeee }));
            }
            machine.engine.kick(queue);
        }
        for queue in 0..QUEUES {
            machine.wait_used(queue, 16 * round);
        }
    }
    for queue in 0..QUEUES {
        for n in 0..16 {
            let (header, page) = machine.slot(queue, n);
            let tag = 16 * queue + n;
            assert_eq!(machine.guest.read(header + 16, 1), [OK]);
            assert_eq!(machine.guest.read(page, 4096), block(tag));
            let at = 4096 * (16 * u64::from(queue) + u64::from(n));
            assert_eq!(machine.on_disk(at), block(tag));
        }
    }
    let states = machine.stop();
    assert!(states.iter().all(|s| (s.avail, s.used) == (32, 32)));
}

/// Requests are offered, queues are stopped in the midst and started again from what they said:
/// every request is used once, in order, and has been carried out.
#[test]
fn stops_under_load_lose_and_repeat_nothing() {
    stop_under_load(&Machine::new());
}

#[test]
fn stops_with_requests_in_the_kernel_lose_and_repeat_nothing() {
    stop_under_load(&Machine::with(true));
}

fn stop_under_load(machine: &Machine) {
    let mut states = vec![QueueState::default(); usize::from(QUEUES)];
    for round in 1..=20u16 {
        for (queue, state) in (0..).zip(&states) {
            machine.start(queue, *state);
        }
        for n in 0..16 {
            for queue in 0..QUEUES {
                // Room in the ring: 16 of 64 a round, and each round begins with all of them used.
                machine.request(queue, n, OUT, Some(round));
                machine.engine.kick(queue);
            }
        }
        states = machine.stop();
        for (queue, state) in (0..).zip(&states) {
            let ring = machine.ring(queue);
            assert_eq!((state.avail, state.used), (state.used, ring.used_idx()));
            // What is not done yet is done after a start.
            machine.start(queue, *state);
        }
        for queue in 0..QUEUES {
            machine.wait_used(queue, 16 * round);
        }
        states = machine.stop();
        for queue in 0..QUEUES {
            let heads: Vec<u32> = (16 * (round - 1)..16 * round)
                .map(|at| machine.ring(queue).used_at(at).0)
                .collect();
            let expected: Vec<u32> = (0..16).map(|n| 3 * n).collect();
            assert_eq!(heads, expected);
        }
    }
}

/// Data pages vanish and return while requests run: each is answered OK or IOERR, no queue breaks,
/// and nothing is stored through a map that is gone.
#[test]
fn kicks_against_unmaps() {
    let machine = Machine::new();
    let pages: Vec<u64> = (0..4)
        .flat_map(|queue| (0..16).map(move |n| (queue, n)))
        .map(|(queue, n)| machine.slot(queue, n).1)
        .collect();
    for queue in 0..4 {
        machine.start(queue, QueueState::default());
    }
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let (guest, running, pages) = (&machine.guest, &running, &pages);
        let _ended = Ended(running);
        scope.spawn(move || {
            while running.load(Ordering::Relaxed) {
                for &page in pages {
                    guest.dma.unmap(page, 4096);
                    // The door was shut: this page is the test's alone now.
                    guest.write(page, &[0x77; 4096]);
                    let now = guest.read(page, 4096);
                    assert!(now.iter().all(|&b| b == 0x77), "a store through an old map");
                    let offset = page - BASE;
                    let perm = vm_memory::Permissions::ReadWrite;
                    guest
                        .dma
                        .map(page, 4096, &guest.file, offset, perm)
                        .unwrap();
                }
            }
        });
        for round in 1..=100u16 {
            for queue in 0..4 {
                for n in 0..16 {
                    let kind = if (n + round) % 2 == 0 { IN } else { OUT };
                    machine.request(queue, n, kind, None);
                }
                machine.engine.kick(queue);
            }
            for queue in 0..4 {
                machine.wait_used(queue, 16 * round);
                for n in 0..16 {
                    let status = machine.guest.read(machine.slot(queue, n).0 + 16, 1)[0];
                    assert!([OK, IOERR].contains(&status), "{status}");
                }
            }
        }
    });
}

/// Ends the other thread, in a failing test too.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A stop waits for what was popped, not for all that is available.
#[test]
fn a_stop_ends_the_popping() {
    let bed = Bed::new();
    let ring = bed.ring();
    bed.header(HEADER, FLUSH, 0);
    for n in 0..128 {
        ring.set(2 * n, HEADER, 16, NEXT, 2 * n + 1);
        ring.set(2 * n + 1, STATUS, 1, WRITE, 0);
        ring.offer(2 * n);
    }
    let (tx, events) = channel();
    let gate = bed.disk.gate.lock().unwrap();
    let engine = Engine::new(
        bed.device.clone(),
        Arc::clone(&bed.guest.dma),
        Arc::new(Events(tx)),
    );
    let config = ring.config_at(QueueState::default());
    engine.start(0, config).unwrap();
    // The worker has come to the first flush when somebody waits for the gate.
    while bed.disk.waiting.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    assert!(engine.stop(0));
    drop(gate);
    loop {
        if let Event::Stopped(0, state) = events.recv_timeout(HANG).unwrap() {
            assert_eq!(state, QueueState { avail: 1, used: 1 });
            break;
        }
    }
}

/// An unmap does not wait for the disk: no guard is held during I/O.
#[test]
fn the_door_is_shut_during_disk_io() {
    let mut bed = Bed::new();
    let gate = bed.disk.gate.lock().unwrap();
    bed.submit(0, IN, 5, 0, 512);
    bed.submit(4, OUT, 9, 2 << 20, 0);
    let (disk, guest) = (Arc::clone(&bed.disk), &bed.guest);
    let device = Arc::clone(&bed.device);
    let mut queue = bed.queue.take().unwrap();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            device
                .process(0, &mut queue, &guest.dma, &mut || {})
                .unwrap();
            queue.stop()
        });
        // Wherever the worker is, it comes to wait for the gate and these do not wait for it.
        guest.dma.unmap(IN_AT, 4096);
        guest.dma.unmap(OUT_AT, 4096);
        drop(gate);
        assert_eq!(worker.join().unwrap(), QueueState { avail: 2, used: 2 });
    });
    drop(disk);
}

const BITMAP: u64 = 0x9000_0000;

/// What the device changed, page by page, against what it marked.
fn changed_and_marked(marking: Marking) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let mut bed = Bed::new();
    let log = File::from(rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    // A bit per page up to the end of guest memory.
    let length = (BASE + bed.guest.size) / 4096 / 8;
    log.set_len(length.next_multiple_of(4096)).unwrap();
    let perm = vm_memory::Permissions::ReadWrite;
    bed.guest
        .dma
        .map(BITMAP, length.next_multiple_of(4096), &log, 0, perm)
        .unwrap();
    bed.guest.dma.set_tracker(TrackerConfig {
        enabled: true,
        bitmap_addr: BITMAP,
        bitmap_length: length,
        marking,
        ..TrackerConfig::default()
    });
    // So that every store changes something.
    bed.guest.write(OUT_AT, &vec![UNTOUCHED; 12 << 20]);
    bed.guest.write(OUT_AT, &[0x11; 4096]);
    bed.guest.write(STATUS + 0x1000, &[UNTOUCHED]);
    bed.submit(0, IN, 100, 0, 3 * 4096);
    bed.submit(4, OUT, 300, 4096, 0);
    let ring = bed.ring();
    // Larger than the bounce buffer, not aligned.
    bed.header(OUT_AT + 0x10_0000, IN, 0);
    ring.set(8, OUT_AT + 0x10_0000, 16, NEXT, 9);
    ring.set(9, IN_AT + 0x10_0800, 2 << 20, NEXT | WRITE, 10);
    ring.set(10, STATUS + 0x1000, 1, WRITE, 0);
    ring.offer(8);
    let size = usize::try_from(bed.guest.size).unwrap();
    let before = bed.guest.read(BASE, size);
    bed.run().unwrap();
    let after = bed.guest.read(BASE, size);
    let pages = |bytes: &[u8]| bytes.chunks(4096).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let changed = (BASE / 4096..)
        .zip(pages(&before).iter().zip(&pages(&after)))
        .filter(|(_, (before, after))| before != after)
        .map(|(page, _)| page)
        .collect();
    let mut bitmap = vec![0; usize::try_from(length).unwrap()];
    log.read_exact_at(&mut bitmap, 0).unwrap();
    let marked = (0u64..)
        .zip(&bitmap)
        .filter(|(_, byte)| **byte != 0)
        .flat_map(|(at, &byte)| {
            (0..8)
                .filter(move |bit| byte & (1 << bit) != 0)
                .map(move |bit| 8 * at + bit)
        })
        .collect();
    (changed, marked)
}

#[test]
fn what_is_marked_is_what_changed() {
    let (changed, marked) = changed_and_marked(Marking::Bit);
    assert!(changed.len() > 512 + 3);
    assert_eq!(marked, changed);
    // The control: the same without marks fails.
    let (changed, marked) = changed_and_marked(Marking::Off);
    assert_eq!((changed.len() > 512 + 3, marked.len()), (true, 0));
}

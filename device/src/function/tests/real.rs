//! The whole function: real queues, real memory, the entropy device.
//!
//! Rings are built here by hand, and judged by the bytes of memory.

use super::{Sink, at};
use crate::function::{FunctionConfig, InterruptSink, MsixOwner, PciFunction};
use crate::queue::{InflightShape, InflightTable};
use crate::rng::RngDevice;
use crate::tracker::Marking;
use spec::queue_state::QueueState;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_memory::Permissions;

const MEMORY: usize = 1 << 20;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const BITMAP: u64 = 0x8000;
const BITMAP_LENGTH: usize = MEMORY / 4096 / 8;
const PATIENCE: Duration = Duration::from_secs(20);
/// VERSION_1, SUSPEND, QUEUE_STATE: no EVENT_IDX, 16-bit doorbells.
const FEATURES: u64 = 1 << 32 | 1 << 43 | 1 << 44;

/// A driver with pencil and paper.
struct Driver {
    function: Arc<PciFunction>,
    memory: File,
    sink: Arc<Sink>,
}

impl Driver {
    fn new(config: FunctionConfig, memory: File) -> Self {
        let function = PciFunction::new(config, RngDevice::seeded(7));
        let size = u64::try_from(MEMORY).unwrap();
        function
            .dma()
            .map(0, size, &memory, 0, Permissions::ReadWrite)
            .expect("mapped");
        let sink = Arc::new(Sink::default());
        function.set_interrupts(Arc::clone(&sink) as Arc<dyn InterruptSink>, MsixOwner::Vmm);
        Self {
            function,
            memory,
            sink,
        }
    }

    fn fresh(config: FunctionConfig) -> Self {
        let memory = tempfile::tempfile().expect("a file");
        memory
            .set_len(u64::try_from(MEMORY).unwrap())
            .expect("its size");
        Self::new(config, memory)
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(0, offset, data);
    }
    fn read16(&self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.function.bar_read(0, offset, &mut data);
        u16::from_le_bytes(data)
    }
    fn status(&self) -> u8 {
        let mut data = [0];
        self.function.bar_read(0, 0x14, &mut data);
        data[0]
    }

    fn start(&self, desc: u64, state: QueueState) {
        for status in [0, 1, 3] {
            self.write(0x14, &[status]);
        }
        for half in 0..2_u32 {
            self.write(8, &half.to_le_bytes());
            let bits = u32::try_from(FEATURES >> (32 * half) & 0xffff_ffff).unwrap();
            self.write(12, &bits.to_le_bytes());
        }
        self.write(0x14, &[0x0b]);
        self.write(0x1a, &1_u16.to_le_bytes());
        for (offset, address) in [(0x20, desc), (0x28, AVAIL), (0x30, USED)] {
            self.write(offset, &address.to_le_bytes()[..4]);
            self.write(offset + 4, &address.to_le_bytes()[4..]);
        }
        self.write(0x40, &state.avail.to_le_bytes());
        self.write(0x42, &state.used.to_le_bytes());
        self.write(0x1c, &1_u16.to_le_bytes());
        self.write(0x14, &[0x0f]);
    }

    fn track(&self) {
        let length = u64::try_from(BITMAP_LENGTH).unwrap();
        for (offset, value) in [(0x3808, BITMAP), (0x3810, length)] {
            self.write(offset, &value.to_le_bytes()[..4]);
            self.write(offset + 4, &value.to_le_bytes()[4..]);
        }
        self.write(0x3800, &[1]);
    }

    /// Makes one writable buffer available as the `n`th.
    fn offer(&self, n: u16, address: u64, len: u32) {
        let slot = n % 256;
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend(len.to_le_bytes());
        descriptor.extend([2, 0, 0, 0]);
        self.put(DESC + 16 * u64::from(slot), &descriptor);
        self.put(AVAIL + 4 + 2 * u64::from(slot), &slot.to_le_bytes());
        self.put(AVAIL + 2, &(n + 1).to_le_bytes());
    }
    fn ring(&self) {
        self.write(0x3000, &[0, 0]);
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, address).expect("written");
    }
    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY];
        self.memory.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }
    fn used(&self) -> u16 {
        let mut index = [0; 2];
        self.memory
            .read_exact_at(&mut index, USED + 2)
            .expect("read");
        u16::from_le_bytes(index)
    }

    fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(
                start.elapsed() < PATIENCE,
                "{what}: status {:#x}",
                self.status()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    fn suspend(&self) {
        self.write(0x14, &[0x1f]);
        self.wait("suspended", |driver| driver.status() == 0x1b);
    }
    fn state(&self) -> QueueState {
        QueueState {
            avail: self.read16(0x40),
            used: self.read16(0x42),
        }
    }
}

/// Pages that differ, those left out that the driver itself wrote, and the bitmap's own.
fn changed(before: &[u8], after: &[u8]) -> Vec<usize> {
    let pages = before.chunks(4096).zip(after.chunks(4096)).enumerate();
    let left_out = [DESC, AVAIL, BITMAP].map(|at| usize::try_from(at / 4096).unwrap());
    pages
        .filter(|(page, (a, b))| !left_out.contains(page) && a != b)
        .map(|(page, _)| page)
        .collect()
}

fn marked(memory: &[u8]) -> Vec<usize> {
    let bitmap = &memory[usize::try_from(BITMAP).unwrap()..][..BITMAP_LENGTH];
    let bit = |page: &usize| bitmap[page / 8] & (1 << (page % 8)) != 0;
    (0..MEMORY / 4096).filter(bit).collect()
}

/// One buffer across two pages; what changed and what is marked once the device is suspended.
fn pages_of_one_request(marking: Marking) -> (Vec<usize>, Vec<usize>) {
    let driver = Driver::fresh(FunctionConfig {
        marking,
        ..FunctionConfig::default()
    });
    driver.track();
    // The reset that begins the initialisation switches the tracker off again (DT-6).
    driver.start(DESC, at(0));
    driver.track();
    // Taken first: a started queue may be looked at without a doorbell.
    let before = driver.memory();
    driver.offer(0, 0x1_0800, 4096);
    driver.ring();
    driver.wait("used", |driver| driver.used() == 1);
    driver.suspend();
    assert_eq!(driver.state(), at(1));
    let after = driver.memory();
    (changed(&before, &after), marked(&after))
}

#[test]
fn what_is_written_is_marked_by_the_time_of_suspend() {
    let (changed, marked) = pages_of_one_request(Marking::Bit);
    assert_eq!(changed, [0x3, 0x10, 0x11]);
    assert_eq!(marked, changed, "nothing lost, nothing too much");
}

#[test]
fn without_marking_the_same_test_fails() {
    let (changed, marked) = pages_of_one_request(Marking::Off);
    assert_eq!((changed, marked), (vec![0x3, 0x10, 0x11], vec![]));
}

#[test]
fn a_suspended_device_stands_still_and_goes_on_afterwards() {
    let driver = Driver::fresh(FunctionConfig::default());
    driver.start(DESC, at(0));
    driver.suspend();
    driver.offer(0, 0x1_0000, 64);
    driver.ring();
    let before = driver.memory();
    std::thread::sleep(Duration::from_millis(30));
    assert!(driver.memory() == before, "SUS-12");
    assert!(driver.sink.0.lock().unwrap().is_empty());
    driver.write(0x14, &[0x1f]);
    driver.wait("running", |driver| driver.status() == 0x0f);
    driver.wait("used without another doorbell", |driver| driver.used() == 1);
    driver.wait("told", |driver| *driver.sink.0.lock().unwrap() == [1]);
}

#[test]
fn another_function_takes_over_where_this_one_stopped() {
    let first = Driver::fresh(FunctionConfig::default());
    first.start(DESC, at(0));
    for n in 0..300 {
        first.offer(n, 0x1_0000, 64);
        first.ring();
        first.wait("used", |driver| driver.used() == n + 1);
    }
    first.suspend();
    let state = first.state();
    assert_eq!(state, at(300));
    let memory = first.memory.try_clone().expect("cloned");
    assert!(first.function.reset_and_wait(PATIENCE));
    drop(first);

    let second = Driver::new(FunctionConfig::default(), memory);
    second.start(DESC, state);
    second.offer(300, 0x2_0000, 64);
    second.ring();
    second.wait("used", |driver| driver.used() == 301);
    let memory = second.memory();
    assert!(memory[0x2_0000..0x2_0040].iter().any(|byte| *byte != 0));
    second.suspend();
    assert_eq!(second.state(), at(301));
}

#[test]
fn a_ring_that_is_not_there_needs_a_reset_which_mends_it() {
    let driver = Driver::fresh(FunctionConfig::default());
    driver.start(0xdead_0000, at(0));
    driver.offer(0, 0x1_0000, 64);
    driver.ring();
    driver.wait("an error", |driver| driver.status() == 0x4f);
    assert!(driver.function.reset_and_wait(PATIENCE));
    assert_eq!(driver.status(), 0);
    driver.start(DESC, at(0));
    driver.ring();
    driver.wait("used", |driver| driver.used() == 1);
}

#[test]
fn resets_and_suspends_under_load_end() {
    let driver = Driver::fresh(FunctionConfig::default());
    for round in 0..40_u16 {
        driver.put(AVAIL, &[0; 4]);
        driver.put(USED, &[0; 4]);
        driver.start(DESC, at(0));
        for n in 0..round % 16 {
            driver.offer(n, 0x1_0000 + 4096 * u64::from(n), 4096);
            driver.ring();
        }
        if round % 3 == 0 {
            driver.suspend();
            let state = driver.state();
            assert_eq!(state.used, driver.used(), "QS-5");
            assert_eq!(state.avail, state.used, "nothing in flight");
        }
        driver.write(0x14, &[0]);
        driver.wait("reset", |driver| driver.status() == 0);
    }
    assert!(driver.function.stats().resets >= 40);
}

/// Front doors, workers and resets at once. A deadlock shows as a reset that never ends.
#[test]
fn many_threads_at_the_registers() {
    let driver = Driver::fresh(FunctionConfig::default());
    let function = &driver.function;
    let ends = Instant::now() + Duration::from_millis(300);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while Instant::now() < ends {
                driver.start(DESC, at(0));
                driver.write(0x14, &[0x1f]);
                driver.write(0x14, &[0x1f]);
            }
        });
        scope.spawn(|| {
            let mut n = 0_u16;
            while Instant::now() < ends {
                driver.offer(n, 0x1_0000, 4096);
                n = n.wrapping_add(1);
                driver.ring();
                driver.track();
                driver.status();
            }
        });
        scope.spawn(|| {
            while Instant::now() < ends {
                function.notify_config_change();
                function.config_write(0x42, &[0, 0x80]);
                driver.state();
                function.reset();
            }
        });
    });
    assert!(function.reset_and_wait(PATIENCE));
    assert_eq!(driver.status(), 0);
}

/// The table of what is in flight is for split queues.
#[test]
fn packed_queues_are_offered_where_asked_for_and_not_beside_an_inflight_table() {
    let all = FunctionConfig {
        features: FunctionConfig::SUPPORTED,
        ..FunctionConfig::default()
    };
    let shape = InflightShape {
        queues: 1,
        queue_size: 256,
    };
    let table = || {
        let file = InflightTable::new_file(shape).expect("a file");
        InflightTable::open(&file, 0, shape.bytes(), shape).expect("a table")
    };
    for (config, inflight, offered) in [
        (FunctionConfig::default(), None, false),
        (all, None, true),
        (all, Some(table()), false),
    ] {
        let rng = RngDevice::seeded(7);
        let function = PciFunction::with_inflight(config, rng, inflight);
        function.bar_write(0, 0, &1_u32.to_le_bytes());
        let mut features = [0; 4];
        function.bar_read(0, 4, &mut features);
        assert_eq!(u32::from_le_bytes(features) >> 2 & 1 == 1, offered);
    }
}

//! A block function with everything around it that a fuzzer's bytes may touch: registers, guest
//! memory of which only a part is granted, a shadow copy, a log, counters.

mod disk;
mod memory;
mod sound;
#[cfg(test)]
mod tests;
mod watched;

pub use memory::{GuestMemory, PAGE, PAGES, READ_ONLY, Store, UNMAPPED, WRITABLE};
pub use watched::Counts;

use crate::Plant;
use crate::oracle::{MemoryWatch, PATIENCE};
use device::function::{AdminConfig, FunctionConfig, InterruptSink, MsixOwner, PciFunction};
use device::virtio::VirtioDevice;
use disk::FuzzDisk;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use watched::Watched;

/// Sectors of the disk.
pub const SECTORS: u64 = 64;
/// How often [`Rig::settle`] looks: some milliseconds.
const SETTLE_LOOKS: u32 = 100;
/// Largest size of a queue.
pub const QUEUE_SIZE: u16 = 32;

/// Registers in BAR 0, typed again from the standard and the capabilities' places.
pub mod reg {
    #![expect(missing_docs, reason = "they are the standard's names")]
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const QUEUE_RESET: u64 = 0x3a;
    pub const AVAIL_STATE: u64 = 0x40;
    pub const USED_STATE: u64 = 0x42;
    pub const CONFIG: u64 = 0x2000;
    pub const DOORBELLS: u64 = 0x3000;
    pub const TRACKER_ENABLE: u64 = 0x3800;
    pub const TRACKER_POWER: u64 = 0x3801;
    pub const TRACKER_PASID: u64 = 0x3804;
    pub const TRACKER_ADDR: u64 = 0x3808;
    pub const TRACKER_LENGTH: u64 = 0x3810;
}

/// Status bits.
pub mod status {
    #![expect(missing_docs, reason = "they are the standard's names")]
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const SUSPEND: u8 = 16;
    pub const NEEDS_RESET: u8 = 64;
}

/// Feature bits.
pub mod feature {
    #![expect(missing_docs, reason = "they are the standard's names")]
    pub const BLK_FLUSH: u64 = 1 << 9;
    pub const BLK_DISCARD: u64 = 1 << 13;
    pub const BLK_WRITE_ZEROES: u64 = 1 << 14;
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
    pub const PACKED: u64 = 1 << 34;
    pub const NOTIFICATION_DATA: u64 = 1 << 38;
    pub const RING_RESET: u64 = 1 << 40;
    pub const ADMIN_VQ: u64 = 1 << 41;
    pub const SUSPEND: u64 = 1 << 43;
    pub const QUEUE_STATE: u64 = 1 << 44;
}

/// Where a queue's areas are, as the harness gave them to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Entries.
    pub size: u16,
    /// IOVA of the descriptors.
    pub desc: u64,
    /// IOVA of the available ring, or of the driver's event suppression.
    pub driver: u64,
    /// IOVA of the used ring, or of the device's event suppression.
    pub device: u64,
}

impl Rings {
    /// Where sound queues are: two pages for each.
    pub fn of_queue(queue: u16, size: u16) -> Self {
        let base = 0x1000 * u64::from(queue);
        Self {
            size,
            desc: base,
            driver: base + 0x400,
            device: base + 0x800,
        }
    }
}

/// What the rig is to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Request queues.
    pub queues: u16,
    /// Administration queues.
    pub admin: u16,
    /// Members of an SR-IOV group.
    pub members: usize,
    /// Marks go to a log that no driver can touch, instead of to the tracker's bitmap.
    pub log: bool,
    /// Marks are recorded, beside whatever becomes of the tracker.
    pub records: bool,
    /// The disk is a file, so that the kernel does its I/O.
    pub file: bool,
}

/// A function, its memory, and what is counted.
#[derive(Debug)]
pub struct Rig {
    /// The function.
    pub function: Arc<PciFunction>,
    /// Virtual functions.
    pub members: Vec<Arc<PciFunction>>,
    /// Guest memory.
    pub memory: GuestMemory,
    /// The features that were asked for last.
    pub features: u64,
    counts: Arc<Counts>,
    /// Things that the device was asked to do.
    asked: u64,
    watch: MemoryWatch,
}

/// A block device on a disk in memory, watched, with one queue.
pub fn block(memory: &GuestMemory, plant: Option<Plant>) -> Arc<dyn VirtioDevice> {
    let counts = Arc::new(Counts::default());
    let disk = FuzzDisk::new(memory, Arc::clone(&counts), plant);
    Watched::new(disk.into_disk(false), 1, counts, plant)
}

impl Store for Rig {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        Self::put(self, at, bytes);
    }
}

#[derive(Debug, Default)]
struct Sink(AtomicU64);

impl InterruptSink for Sink {
    fn signal(&self, _vector: u16) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Rig {
    /// A function after power-on.
    ///
    /// # Panics
    ///
    /// The system gives no memory.
    pub fn new(options: Options, plant: Option<Plant>) -> Self {
        let watch = MemoryWatch::begin();
        let mut memory = GuestMemory::new();
        let counts = Arc::new(Counts::default());
        let disk = FuzzDisk::new(&memory, Arc::clone(&counts), plant);
        let device = Watched::new(
            disk.into_disk(options.file),
            options.queues.max(1),
            Arc::clone(&counts),
            plant,
        );
        let config = FunctionConfig {
            features: FunctionConfig::SUPPORTED,
            admin: AdminConfig {
                queues: options.admin,
                max_records: 64,
                max_ranges: 8,
                ..AdminConfig::default()
            },
            ..FunctionConfig::default()
        };
        let member = |_| {
            let disk = FuzzDisk::new(&memory, Arc::default(), None);
            let device = Watched::new(disk.into_disk(false), 1, Arc::default(), None);
            PciFunction::new(FunctionConfig::default(), device)
        };
        let members: Vec<_> = (0..options.members).map(member).collect();
        let function = if members.is_empty() {
            PciFunction::new(config, device)
        } else {
            PciFunction::owner(config, device, members.clone()).expect("an owner of few")
        };
        function.set_interrupts(Arc::new(Sink::default()), MsixOwner::Function);
        for dma in members.iter().chain([&function]).map(|it| it.dma()) {
            memory.map_all(dma);
            if options.log {
                memory.log_to(dma);
            }
            if options.records {
                memory.record(dma);
            }
        }
        Self {
            function,
            members,
            memory,
            features: 0,
            counts,
            asked: 0,
            watch,
        }
    }

    /// Notes that the device was asked for something in another way than through the rig.
    pub fn note(&mut self) {
        self.asked += 1;
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.asked += 1;
        self.function.bar_write(0, offset, data);
    }

    /// Writes a byte.
    pub fn write8(&mut self, offset: u64, value: u8) {
        self.write(offset, &[value]);
    }

    /// Writes 16 bits.
    pub fn write16(&mut self, offset: u64, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    /// Writes 32 bits.
    pub fn write32(&mut self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    /// Writes 64 bits in two halves.
    pub fn write64(&mut self, offset: u64, value: u64) {
        let bytes = value.to_le_bytes();
        self.write(offset, &bytes[..4]);
        self.write(offset + 4, &bytes[4..]);
    }

    /// Reads 16 bits.
    pub fn read16(&self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.function.bar_read(0, offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Reads the device status.
    pub fn status(&self) -> u8 {
        let mut data = [0];
        self.function.bar_read(0, reg::STATUS, &mut data);
        data[0]
    }

    /// Stores into guest memory as its CPU does.
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.asked += 1;
        self.memory.put(at, bytes);
    }

    /// From reset to FEATURES_OK.
    ///
    /// # Panics
    ///
    /// `oracle reset`.
    pub fn negotiate(&mut self, features: u64) {
        self.features = features;
        // Until it reads 0 the device is still what it was before.
        self.write8(reg::STATUS, 0);
        assert!(
            self.wait(|rig| rig.status() == 0),
            "oracle reset: not done before a start, status {:#04x}",
            self.status()
        );
        self.write8(reg::STATUS, status::ACKNOWLEDGE);
        self.write8(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
        self.write32(reg::DRIVER_FEATURE_SELECT, 0);
        self.write(reg::DRIVER_FEATURE, &[a, b, c, d]);
        self.write32(reg::DRIVER_FEATURE_SELECT, 1);
        self.write(reg::DRIVER_FEATURE, &[e, f, g, h]);
        self.write8(reg::STATUS, 0x0b);
    }

    /// Gives the device a queue.
    pub fn enable(&mut self, queue: u16, rings: Rings) {
        self.write16(reg::QUEUE_SELECT, queue);
        self.write16(reg::QUEUE_SIZE, rings.size);
        self.write64(reg::QUEUE_DESC, rings.desc);
        self.write64(reg::QUEUE_DRIVER, rings.driver);
        self.write64(reg::QUEUE_DEVICE, rings.device);
        self.write16(reg::QUEUE_ENABLE, 1);
    }

    /// Notifies a queue, as NOTIFICATION_DATA has it or not.
    pub fn kick(&mut self, queue: u16) {
        let at = reg::DOORBELLS + 4 * u64::from(queue);
        if self.features & feature::NOTIFICATION_DATA == 0 {
            self.write16(at, queue);
        } else {
            self.write32(at, u32::from(queue));
        }
    }

    /// Where a queue stands: available and used state.
    pub fn queue_state(&mut self, queue: u16) -> (u16, u16) {
        // Not counted: who looks more often has not asked for more.
        let select = queue.to_le_bytes();
        self.function.bar_write(0, reg::QUEUE_SELECT, &select);
        (self.read16(reg::AVAIL_STATE), self.read16(reg::USED_STATE))
    }

    /// `oracle steps`: what was done against what was asked for.
    ///
    /// # Panics
    ///
    /// The oracle's.
    pub fn judge_steps(&self) {
        let Counts { calls, disk, bytes } = &*self.counts;
        // Whatever the driver does may make a ring's worth of chains available, and wake the queue.
        let chains = (self.asked + 16) * u64::from(QUEUE_SIZE);
        let per_chain = 16 * SECTORS * 512;
        for (what, count, most) in [
            ("calls of the device", calls, 4 * chains),
            ("calls of the disk", disk, 64 * chains),
            ("bytes of the disk", bytes, per_chain * chains),
        ] {
            let count = count.load(Ordering::Relaxed);
            assert!(
                count <= most,
                "oracle steps: {count} {what} for {} things asked for, at most {most} expected",
                self.asked
            );
        }
    }

    /// Waits until `done`, which is looked at again and again. False if it never was.
    pub fn wait(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let began = Instant::now();
        let mut round = 0_u32;
        loop {
            if done(self) {
                return true;
            }
            self.judge_steps();
            if began.elapsed() > PATIENCE {
                return false;
            }
            round += 1;
            if round < 64 {
                thread::yield_now();
            } else {
                thread::sleep(Duration::from_micros(50));
            }
        }
    }

    /// Gives the workers a moment for what was made available: without it, how much is done before
    /// the next step would be chance. Demands nothing.
    pub fn settle(&mut self, queue: u16) {
        for _ in 0..SETTLE_LOOKS {
            let (avail, used) = self.queue_state(queue);
            let wanted = self.memory.get16(Rings::of_queue(queue, 0).driver + 2);
            if self.status() & 0x5f != 0x0f || (avail == used && used == wanted) {
                return;
            }
            thread::sleep(Duration::from_micros(20));
        }
    }

    /// `oracle progress` for a suspend that was asked for: it ends, with nothing in flight.
    ///
    /// # Panics
    ///
    /// The oracle's.
    pub fn judge_suspend(&mut self) {
        let over = |status: u8| status & (status::SUSPEND | status::NEEDS_RESET) != 0;
        let ended = self.wait(|rig| over(rig.status()));
        assert!(
            ended,
            "oracle progress: a suspend that never ends, status {:#04x}",
            self.status()
        );
    }

    /// What can be judged of memory with the device at rest.
    fn judge_memory(&self) {
        self.memory.judge_grants();
        self.memory.judge_marks();
    }

    /// Ends a run: a reset, then all that can be judged of memory, then a sound driver.
    ///
    /// # Panics
    ///
    /// The oracles'.
    pub fn finish(mut self) {
        assert!(
            self.function.reset_and_wait(PATIENCE),
            "oracle reset: not done, status {:#04x}",
            self.status()
        );
        assert_eq!(self.status(), 0, "oracle reset: the status after a reset");
        for member in &self.members {
            assert!(
                member.reset_and_wait(PATIENCE),
                "oracle reset: a member's is not done"
            );
        }
        self.judge_steps();
        self.judge_memory();
        self.memory.map_all(self.function.dma());
        // One kind of ring for each input, always the same.
        let packed = self.asked.is_multiple_of(2);
        sound::drive(&mut self, packed);
        self.judge_memory();
        let Self { function, .. } = &self;
        assert!(
            function.reset_and_wait(PATIENCE),
            "oracle reset: the last one"
        );
        self.watch.end();
    }
}

//! The function from the driver's side of the registers, over an engine that does what it is told.
//!
//! Offsets and bits are typed again from the specification.

use super::inner::{Core, Machinery};
use super::*;
use crate::engine::EngineEvents;
use crate::queue::Virtqueue;
use crate::virtio::Progress;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

mod life;
mod real;
mod tracking;
mod windows;

const STATUS: u64 = 0x14;
const GENERATION: u64 = 0x15;
const SELECT: u64 = 0x16;
const SIZE: u64 = 0x18;
const VECTOR: u64 = 0x1a;
const ENABLE: u64 = 0x1c;
const QUEUE_RESET: u64 = 0x3a;
const AVAIL_STATE: u64 = 0x40;
const USED_STATE: u64 = 0x42;
const CONFIG: u64 = 0x2000;
const DOORBELLS: u64 = 0x3000;

const ALL: u64 = 1 << 44 | 1 << 43 | 1 << 40 | 1 << 38 | 1 << 32 | 1 << 29 | 1 << 28 | 1 << 9;

/// A device type with nothing in it.
#[derive(Debug, Default)]
struct Dummy {
    config: Mutex<Vec<u8>>,
    /// Features without which it serves nobody.
    demands: Mutex<u64>,
    negotiated: Mutex<Vec<u64>>,
    resets: Mutex<u32>,
}

impl VirtioDevice for Dummy {
    fn device_id(&self) -> u16 {
        2
    }
    fn pci_class(&self) -> u32 {
        0x01_00_00
    }
    fn features(&self) -> u64 {
        // Bits 30 and 34 are not a device type's to offer.
        1 << 9 | 1 << 30 | 1 << 34
    }
    fn num_queues(&self) -> u16 {
        2
    }
    fn queue_max_size(&self, index: u16) -> u16 {
        256 >> index
    }
    fn config_len(&self) -> usize {
        8
    }
    fn config(&self) -> Vec<u8> {
        self.config.lock().unwrap().clone()
    }
    fn config_write(&self, offset: usize, data: &[u8]) -> bool {
        self.config.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
        true
    }
    fn accepts(&self, features: u64) -> bool {
        let demands = *self.demands.lock().unwrap();
        features & demands == demands
    }
    fn negotiated(&self, features: u64) {
        self.negotiated.lock().unwrap().push(features);
    }
    fn reset(&self) {
        *self.resets.lock().unwrap() += 1;
    }
    fn process(
        &self,
        _: u16,
        _: &mut Virtqueue,
        _: &Dma,
        _: &mut dyn FnMut(),
    ) -> Result<Progress, QueueError> {
        Ok(Progress::Idle)
    }
}

/// What the stand-in for the engine was told and is to do.
#[derive(Debug, Default)]
struct Told {
    started: BTreeMap<u16, QueueConfig>,
    starts: u32,
    /// Stops that are answered by [`Bench::finish`] only.
    stopping: BTreeSet<u16>,
    stops_wait: bool,
    start_fails: bool,
    kicks: Vec<u16>,
    live: QueueState,
    tracker: Vec<TrackerConfig>,
}

#[derive(Debug)]
struct Fake {
    told: Arc<Mutex<Told>>,
    events: Arc<dyn EngineEvents>,
}

impl Machinery for Fake {
    fn start(&self, index: u16, config: QueueConfig) -> Result<(), QueueError> {
        let mut told = self.told.lock().unwrap();
        if told.start_fails {
            return Err(QueueError::Broken {
                what: "a test says so".into(),
            });
        }
        told.starts += 1;
        assert!(
            told.started.insert(index, config).is_none(),
            "started twice"
        );
        Ok(())
    }
    fn kick(&self, index: u16) {
        self.told.lock().unwrap().kicks.push(index);
    }
    fn stop(&self, index: u16) -> bool {
        let state = {
            let mut told = self.told.lock().unwrap();
            if !told.started.contains_key(&index) {
                return false;
            }
            assert!(told.stopping.insert(index), "stopped twice");
            if told.stops_wait {
                return true;
            }
            told.started.remove(&index);
            told.stopping.remove(&index);
            told.live
        };
        self.events.queue_stopped(index, state);
        true
    }
    fn state(&self, index: u16) -> Option<QueueState> {
        let told = self.told.lock().unwrap();
        told.started.contains_key(&index).then_some(told.live)
    }
    fn set_tracker(&self, config: TrackerConfig) {
        self.told.lock().unwrap().tracker.push(config);
    }
}

#[derive(Debug, Default)]
struct Sink(Mutex<Vec<u16>>);

impl InterruptSink for Sink {
    fn signal(&self, vector: u16) {
        self.0.lock().unwrap().push(vector);
    }
}

/// A function, and both its sides.
struct Bench {
    core: Arc<Core>,
    device: Arc<Dummy>,
    told: Arc<Mutex<Told>>,
    events: Arc<dyn EngineEvents>,
    sink: Arc<Sink>,
}

impl Bench {
    fn new(config: FunctionConfig) -> Self {
        let device = Arc::new(Dummy::default());
        *device.config.lock().unwrap() = vec![1, 2, 3, 4, 5, 6, 7, 8];
        let told = Arc::new(Mutex::new(Told::default()));
        let mut events = None;
        let core = Core::new(
            config,
            Arc::clone(&device) as Arc<dyn VirtioDevice>,
            None,
            |given| {
                events = Some(Arc::clone(&given));
                Box::new(Fake {
                    told: Arc::clone(&told),
                    events: given,
                })
            },
        );
        let sink = Arc::new(Sink::default());
        core.set_interrupts(Arc::clone(&sink) as Arc<dyn InterruptSink>, MsixOwner::Vmm);
        Self {
            core,
            device,
            told,
            events: events.expect("given"),
            sink,
        }
    }

    /// A device at FEATURES_OK with these features.
    fn negotiated(config: FunctionConfig, features: u64) -> Self {
        let bench = Self::new(config);
        bench.negotiate(features);
        bench
    }

    fn negotiate(&self, features: u64) {
        for status in [0, 1, 3] {
            self.write8(STATUS, status);
        }
        for half in 0..2_u32 {
            self.write32(8, half);
            self.write32(
                12,
                u32::try_from(features >> (32 * half) & 0xffff_ffff).unwrap(),
            );
        }
        self.write8(STATUS, 0x0b);
        assert_eq!(self.status(), 0x0b);
    }

    /// A running device with both queues enabled, vectors 1 and 2 for them and 0 for changes.
    fn running(config: FunctionConfig) -> Self {
        let bench = Self::negotiated(config, ALL);
        bench.set_up();
        bench.write8(STATUS, 0x0f);
        bench
    }

    fn set_up(&self) {
        self.write16(0x10, 0);
        for queue in 0..2 {
            self.write16(SELECT, queue);
            self.write16(VECTOR, queue + 1);
            self.write16(ENABLE, 1);
        }
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.core.bar_read(0, offset, &mut data);
        data
    }
    fn read16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset, 2).try_into().unwrap())
    }
    fn read32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset, 4).try_into().unwrap())
    }
    fn status(&self) -> u8 {
        self.read(STATUS, 1)[0]
    }
    fn write8(&self, offset: u64, value: u8) {
        self.core.bar_write(0, offset, &[value]);
    }
    fn write16(&self, offset: u64, value: u16) {
        self.core.bar_write(0, offset, &value.to_le_bytes());
    }
    fn write32(&self, offset: u64, value: u32) {
        self.core.bar_write(0, offset, &value.to_le_bytes());
    }
    /// Reads a register of queue `queue`.
    fn of_queue(&self, queue: u16, offset: u64) -> u16 {
        self.write16(SELECT, queue);
        self.read16(offset)
    }

    fn told<T>(&self, look: impl FnOnce(&mut Told) -> T) -> T {
        look(&mut self.told.lock().unwrap())
    }
    fn running_queues(&self) -> Vec<u16> {
        self.told(|told| told.started.keys().copied().collect())
    }
    fn signals(&self) -> Vec<u16> {
        std::mem::take(&mut self.sink.0.lock().unwrap())
    }
    /// The engine finishes a stop it was asked for.
    fn finish(&self, queue: u16, state: QueueState) {
        self.told(|told| {
            assert!(told.stopping.remove(&queue), "was not asked to stop");
            told.started.remove(&queue);
        });
        self.events.queue_stopped(queue, state);
    }
}

fn at(index: u16) -> QueueState {
    QueueState {
        avail: index,
        used: index,
    }
}

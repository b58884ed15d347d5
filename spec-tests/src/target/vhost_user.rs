//! Rings over vhost-user: a function of registers in front of a backend that has only rings.
//!
//! Cases act on a PCI function; those that are about rings alone run on this one. Its registers are
//! the suite's own and are judged by nobody: what they are written is told to the backend when the
//! driver says FEATURES_OK and DRIVER_OK.

use crate::constants::{Field, blk, cfg_type, feature, packed, pci, reg, ring, status};
use driver::bus::{Bus, BusError, Interrupt};
use driver::memory::DmaMemory;
use driver::transport::QueueSetup;
use driver::vhost_user::{Frontend, QueueEvents, SharedMemory, VhostUserError};
use spec::features::Features;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// First address of memory: low, as everywhere in the suite, and not 0.
const FIRST_ADDRESS: u64 = 1 << 20;
/// Largest queue that the suite makes.
const QUEUE_SIZE: u16 = 256;
/// Where the structures lie in BAR 0.
const COMMON_AT: u32 = 0;
const COMMON_LEN: usize = 64;
const NOTIFY_AT: u32 = 0x1000;
const NOTIFY_STEP: u32 = 4;
const ISR_AT: u32 = 0x2000;
const DEVICE_AT: u32 = 0x3000;
/// The registers of one queue, within the common configuration.
const QUEUE_AT: usize = 24;
const QUEUE_LEN: usize = 32;
/// Bytes of configuration space, and of a capability in it.
const CONFIG_LEN: usize = 256;
const CAP_STEP: u8 = 20;
/// Bytes of device configuration that are asked for.
const DEVICE_LEN: usize = 60;
/// Where the capabilities lie in configuration space.
const CAPS_AT: u8 = 0x40;

/// A function of registers over one connection.
#[derive(Debug)]
pub struct VhostUserBus {
    inner: Mutex<Inner>,
    vectors: Arc<Vectors>,
    config_space: Vec<u8>,
    offered: u64,
}

#[derive(Debug)]
struct Inner {
    frontend: Frontend,
    common: [u8; COMMON_LEN],
    /// The registers of each queue, as [`reg::QUEUE_SIZE`] to the end of `queue_device`.
    queues: Vec<[u8; QUEUE_LEN]>,
    features: u64,
    memories: Vec<SharedMemory>,
    running: BTreeMap<u16, Arc<QueueEvents>>,
    device: Vec<u8>,
}

/// Which events stand behind which vector at the moment.
#[derive(Debug, Default)]
struct Vectors {
    events: Mutex<BTreeMap<u16, Arc<QueueEvents>>>,
    changed: Condvar,
}

/// One vector. It fires when the queue that is mapped to it does.
#[derive(Debug)]
struct Vector {
    number: u16,
    vectors: Arc<Vectors>,
}

impl Interrupt for Vector {
    fn wait(&self, timeout: Duration) -> bool {
        let begun = Instant::now();
        let mut events = lock(&self.vectors.events);
        loop {
            let left = timeout.saturating_sub(begun.elapsed());
            if let Some(mine) = events.get(&self.number).cloned() {
                drop(events);
                return mine.wait(left);
            }
            if left.is_zero() {
                return false;
            }
            let waited = self.vectors.changed.wait_timeout(events, left);
            events = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// To the suite, a backend that refuses what every backend must do is one that has gone.
fn gone(doing: &'static str) -> impl FnOnce(VhostUserError) -> BusError {
    move |error| BusError::Unreachable {
        doing,
        source: io::Error::other(error),
    }
}

impl VhostUserBus {
    /// Connects to the backend that listens at `path`, which is taken for a disk: the protocol does
    /// not say what it is.
    ///
    /// # Errors
    /// The frontend's.
    pub fn connect(path: &Path) -> Result<Self, VhostUserError> {
        let mut frontend = Frontend::connect(path)?;
        let offered = frontend.offered().bits();
        // Backends without configuration, or with less of it, have none for the suite.
        let device = frontend
            .config(DEVICE_LEN)
            .unwrap_or_else(|_| vec![0; DEVICE_LEN]);
        let queues = usize::from(frontend.num_queues());
        let mut inner = Inner {
            frontend,
            common: [0; COMMON_LEN],
            queues: vec![[0; QUEUE_LEN]; queues],
            features: 0,
            memories: Vec::new(),
            running: BTreeMap::new(),
            device,
        };
        inner.default_registers();
        let vectors = u16::try_from(queues).unwrap_or(u16::MAX).saturating_add(1);
        Ok(Self {
            inner: Mutex::new(inner),
            vectors: Arc::default(),
            config_space: config_space(vectors),
            // Bits 26 and 30 are the protocol's own.
            offered: offered & !(1 << 26 | 1 << 30),
        })
    }

    fn write_common(&self, at: u64, data: &[u8]) -> Result<(), BusError> {
        let mut inner = lock(&self.inner);
        let is = |field: Field| field.offset == at;
        let value = number(data);
        if is(reg::DEVICE_STATUS) {
            return inner.set_status(data.first().copied().unwrap_or(0), self);
        }
        if is(reg::DRIVER_FEATURE) {
            let window = inner.read(reg::DRIVER_FEATURE_SELECT).checked_mul(32);
            if let Some(shift @ (0 | 32)) = window {
                let others = inner.features & !(0xffff_ffff << shift);
                inner.features = others | value << shift;
            }
            return Ok(());
        }
        if let Some(place) = inner.place(at, data.len()) {
            place.copy_from_slice(data);
        }
        let live = inner.status() & status::DRIVER_OK != 0;
        if is(reg::QUEUE_ENABLE) && value == 1 && live {
            let index = inner.selected();
            inner.start(index, self)?;
        }
        Ok(())
    }

    fn read_common(&self, at: u64, data: &mut [u8]) {
        let mut inner = lock(&self.inner);
        let is = |field: Field| field.offset == at;
        let window = |bits: u64, select: u64| match select {
            0 => bits & 0xffff_ffff,
            1 => bits >> 32,
            _ => 0,
        };
        let value = if is(reg::DEVICE_FEATURE) {
            window(self.offered, inner.read(reg::DEVICE_FEATURE_SELECT))
        } else if is(reg::DRIVER_FEATURE) {
            window(inner.features, inner.read(reg::DRIVER_FEATURE_SELECT))
        } else if is(reg::NUM_QUEUES) {
            u64::try_from(inner.queues.len()).unwrap_or(0)
        } else if is(reg::QUEUE_NOTIFY_OFF) {
            u64::from(inner.selected())
        } else {
            inner.place(at, data.len()).map_or(0, |place| number(place))
        };
        let bytes = value.to_le_bytes();
        for (byte, value) in data.iter_mut().zip(bytes) {
            *byte = value;
        }
    }
}

impl Inner {
    /// Registers at `at`: the selected queue's, or those that are no queue's.
    fn place(&mut self, at: u64, len: usize) -> Option<&mut [u8]> {
        let at = usize::try_from(at).ok()?;
        match at.checked_sub(QUEUE_AT) {
            Some(within) if within < QUEUE_LEN => {
                let index = usize::from(self.selected());
                self.queues.get_mut(index)?.get_mut(within..within + len)
            }
            _ => self.common.get_mut(at..at + len),
        }
    }

    fn read(&mut self, field: Field) -> u64 {
        self.place(field.offset, field.width)
            .map_or(0, |place| number(place))
    }

    fn write(&mut self, field: Field, value: u64) {
        if let Some(place) = self.place(field.offset, field.width) {
            place.copy_from_slice(&value.to_le_bytes()[..field.width]);
        }
    }

    fn selected(&self) -> u16 {
        let [.., low, high] = self.common[..24] else {
            return 0;
        };
        u16::from_le_bytes([low, high])
    }

    fn status(&mut self) -> u8 {
        u8::try_from(self.read(reg::DEVICE_STATUS)).unwrap_or(u8::MAX)
    }

    /// Every register as after power-on.
    fn default_registers(&mut self) {
        self.features = 0;
        self.common = [0; COMMON_LEN];
        for index in 0..self.queues.len() {
            self.write(reg::QUEUE_SELECT, u64::try_from(index).unwrap_or(0));
            for field in [reg::QUEUE_ENABLE]
                .into_iter()
                .chain(reg::QUEUE_DESC)
                .chain(reg::QUEUE_DRIVER)
                .chain(reg::QUEUE_DEVICE)
            {
                self.write(field, 0);
            }
            self.write(reg::QUEUE_SIZE, u64::from(QUEUE_SIZE));
            self.write(reg::QUEUE_MSIX_VECTOR, pci::NO_VECTOR);
        }
        self.write(reg::QUEUE_SELECT, 0);
    }

    fn set_status(&mut self, value: u8, bus: &VhostUserBus) -> Result<(), BusError> {
        if value == 0 {
            for index in std::mem::take(&mut self.running).into_keys() {
                self.frontend
                    .stop_queue(index)
                    .map_err(gone("stopping a queue"))?;
            }
            lock(&bus.vectors.events).clear();
            self.default_registers();
            return Ok(());
        }
        let new = value & !self.status();
        let mut shown = value;
        if new & status::FEATURES_OK != 0 {
            let wanted = self.features;
            if wanted & !bus.offered == 0 && wanted & feature::VERSION_1 != 0 {
                let wanted = Features::from_bits_retain(wanted);
                let agreed = self.frontend.negotiate(wanted, wanted);
                agreed.map_err(gone("agreeing on features"))?;
            } else {
                shown &= !status::FEATURES_OK;
            }
        }
        self.write(reg::DEVICE_STATUS, u64::from(shown));
        if new & status::DRIVER_OK != 0 {
            let memories: Vec<_> = self.memories.iter().collect();
            let shared = self.frontend.share(&memories);
            shared.map_err(gone("sharing memory"))?;
            for index in 0..u16::try_from(self.queues.len()).unwrap_or(u16::MAX) {
                self.start(index, bus)?;
            }
        }
        Ok(())
    }

    /// Starts a queue that is enabled.
    fn start(&mut self, index: u16, bus: &VhostUserBus) -> Result<(), BusError> {
        let selected = u64::from(self.selected());
        self.write(reg::QUEUE_SELECT, u64::from(index));
        let mut wide = |[low, high]: [Field; 2]| self.read(low) | self.read(high) << 32;
        let (desc, driver, device) = (
            wide(reg::QUEUE_DESC),
            wide(reg::QUEUE_DRIVER),
            wide(reg::QUEUE_DEVICE),
        );
        let mut short = |field| u16::try_from(self.read(field)).unwrap_or(0);
        let (size, vector) = (short(reg::QUEUE_SIZE), short(reg::QUEUE_MSIX_VECTOR));
        let enabled = short(reg::QUEUE_ENABLE) == 1;
        self.write(reg::QUEUE_SELECT, selected);
        if !enabled || self.running.contains_key(&index) {
            return Ok(());
        }
        let setup = QueueSetup {
            size,
            vector,
            desc,
            driver,
            device,
        };
        let base = match self.features & feature::RING_PACKED {
            0 => ring::STATE_DEFAULT,
            _ => packed::STATE_DEFAULT,
        };
        let base = u16::try_from(base).unwrap_or(0);
        let started = self.frontend.start_queue(index, setup, base);
        let events = Arc::new(started.map_err(gone("starting a queue"))?);
        if u64::from(vector) != pci::NO_VECTOR {
            lock(&bus.vectors.events).insert(vector, Arc::clone(&events));
            bus.vectors.changed.notify_all();
        }
        self.running.insert(index, events);
        Ok(())
    }
}

fn number(data: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    for (byte, value) in bytes.iter_mut().zip(data) {
        *byte = *value;
    }
    u64::from_le_bytes(bytes)
}

/// Identity, the capabilities of virtio and MSI-X.
fn config_space(vectors: u16) -> Vec<u8> {
    let mut space = vec![0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = space.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &pci::VENDOR.to_le_bytes());
    put(2, &(pci::DEVICE_BASE + blk::ID).to_le_bytes());
    put(
        usize::from(pci::STATUS),
        &pci::STATUS_CAPABILITIES.to_le_bytes(),
    );
    put(usize::from(pci::REVISION), &[1]);
    put(usize::from(pci::CAPABILITIES), &[CAPS_AT]);
    let mut at = CAPS_AT;
    for (kind, offset, length) in [
        (cfg_type::COMMON, COMMON_AT, 64_u32),
        (cfg_type::NOTIFY, NOTIFY_AT, 0x1000),
        (cfg_type::ISR, ISR_AT, 4),
        (cfg_type::DEVICE, DEVICE_AT, 60),
    ] {
        let next = at + CAP_STEP;
        put(usize::from(at), &[pci::ID_VENDOR, next, CAP_STEP, kind]);
        put(usize::from(at) + 8, &offset.to_le_bytes());
        put(usize::from(at) + 12, &length.to_le_bytes());
        put(usize::from(at) + 16, &NOTIFY_STEP.to_le_bytes());
        at = next;
    }
    put(usize::from(at), &[pci::ID_MSIX, 0]);
    put(
        usize::from(at) + 2,
        &vectors.saturating_sub(1).to_le_bytes(),
    );
    space
}

impl Bus for VhostUserBus {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), BusError> {
        let from = usize::from(offset);
        let there = self.config_space.get(from..).unwrap_or(&[]);
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(there) {
            *byte = *value;
        }
        Ok(())
    }
    fn config_write(&self, _offset: u16, _data: &[u8]) -> Result<(), BusError> {
        Ok(())
    }
    fn bar_read(&self, _bar: u8, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        data.fill(0);
        if let Some(at) = offset.checked_sub(u64::from(DEVICE_AT)) {
            let inner = lock(&self.inner);
            let there = inner
                .device
                .get(usize::try_from(at).unwrap_or(usize::MAX)..);
            for (byte, value) in data.iter_mut().zip(there.unwrap_or(&[])) {
                *byte = *value;
            }
        } else if offset < u64::from(NOTIFY_AT) {
            self.read_common(offset, data);
        }
        Ok(())
    }
    fn bar_write(&self, _bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError> {
        if offset < u64::from(NOTIFY_AT) {
            return self.write_common(offset, data);
        }
        if offset < u64::from(ISR_AT) {
            let index = (offset - u64::from(NOTIFY_AT)) / u64::from(NOTIFY_STEP);
            let events = u16::try_from(index)
                .ok()
                .and_then(|index| lock(&self.inner).running.get(&index).cloned());
            if let Some(events) = events {
                let kicked = events.kick();
                kicked.map_err(|source| BusError::Unreachable {
                    doing: "notifying a queue",
                    source,
                })?;
            }
        }
        Ok(())
    }
    fn dma_alloc(&self, len: u64) -> Result<DmaMemory, BusError> {
        let mut inner = lock(&self.inner);
        let end = inner
            .memories
            .last()
            .map_or(FIRST_ADDRESS, |memory| memory.range().end);
        let memory = SharedMemory::new(end, len).map_err(|error| BusError::Exhausted {
            what: format!("{len} bytes of memory"),
            why: error.to_string(),
        })?;
        let window = memory.window().clone();
        inner.memories.push(memory);
        Ok(window)
    }
    fn interrupt(&self, vector: u16) -> Result<Arc<dyn Interrupt>, BusError> {
        Ok(Arc::new(Vector {
            number: vector,
            vectors: Arc::clone(&self.vectors),
        }))
    }
    fn reset(&self) -> Result<(), BusError> {
        Err(BusError::Refused {
            doing: "a function level reset",
            source: io::Error::from(io::ErrorKind::Unsupported),
        })
    }
}

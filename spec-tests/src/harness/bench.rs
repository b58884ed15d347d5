//! The way to a function: registers by name, initialisation step by step, waiting.

use super::caps::{self, Caps, RawCap, Region};
use super::memory::Span;
use super::outcome::{Absent, Stop, arose};
use super::ring::{Layout, Ring};
use super::trace::Trace;
use crate::constants::{COMMON_LEN, Field, PAGE, Place, cfg_type, feature, pci, reg, status};
use crate::target::Subject;
use driver::bus::{Bus, Interrupt};
use driver::memory::DmaMemory;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a device may take for anything that it must do.
pub const LIMIT: Duration = Duration::from_secs(10);
/// How long a device is watched for something that it must not do.
pub const QUIET: Duration = Duration::from_millis(25);
/// How long a wait polls without sleeping, and how long it sleeps between polls after that: a part
/// of what it has waited already, and at most so long.
const SPIN: Duration = Duration::from_micros(300);
const NAP_OF: u32 = 4;
const NAP: Duration = Duration::from_millis(4);
/// Bytes of a case's memory.
const MEMORY: u64 = 2 << 20;
/// Entries of the queues that cases make, unless the device takes fewer.
const QUEUE_SIZE: u64 = 64;

/// A function under judgement, and everything that was done to it.
pub struct Bench {
    /// The way to it.
    pub bus: Arc<dyn Bus>,
    /// What it announces.
    pub caps: Caps,
    common: Region,
    memory: DmaMemory,
    taken: Cell<u64>,
    trace: Trace,
    random: Cell<u64>,
    change_config: Option<Box<dyn Fn()>>,
    members: RefCell<Vec<Option<Subject>>>,
    /// How long it may take for anything that it must do.
    pub limit: Duration,
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench")
            .field("bus", &self.bus)
            .field("caps", &self.caps)
            .finish()
    }
}

impl Bench {
    /// Finds the common configuration and gets memory.
    ///
    /// # Errors
    /// The bus's, or a failure if there is no common configuration.
    pub fn new(subject: Subject, trace: Trace, seed: u64) -> Result<Self, Stop> {
        const CLAUSE: &str =
            "virtio-over-pci-bus-pci-device-layout-common-configuration-structure-layout/D2";
        let Subject {
            bus,
            change_config,
            members,
            limit,
        } = subject;
        let caps = Caps::walk(bus.as_ref())?;
        let common = caps.region(cfg_type::COMMON, CLAUSE)?;
        arose(common.length >= COMMON_LEN, || {
            format!("the common configuration has {} bytes only", common.length)
        })?;
        let memory = bus.dma_alloc(MEMORY)?;
        Ok(Self {
            bus,
            caps,
            common,
            memory,
            taken: Cell::new(0),
            trace,
            random: Cell::new(seed),
            change_config,
            members: RefCell::new(members.into_iter().map(Some).collect()),
            limit,
        })
    }

    // What was done.

    /// Records a step for the report.
    pub fn step(&self, text: impl Into<String>) {
        self.trace.step(text.into());
    }

    /// The next random number below `end`, from the run's seed (SplitMix64).
    pub fn random(&self, end: u64) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }

    // Registers.

    fn place(&self, field: Field) -> Result<(u8, u64), Stop> {
        let region = match field.place {
            Place::Common => self.common,
            Place::Tracker => self
                .caps
                .tracker()
                .ok_or(Stop::NotApplicable(Absent::Tracker))?,
        };
        Ok((region.bar, region.offset + field.offset))
    }

    /// Reads a register with its natural width.
    ///
    /// # Errors
    /// The bus's; not applicable if the structure is absent.
    pub fn get(&self, field: Field) -> Result<u64, Stop> {
        let (bar, offset) = self.place(field)?;
        let mut data = [0; 8];
        self.bus.bar_read(bar, offset, &mut data[..field.width])?;
        Ok(u64::from_le_bytes(data))
    }

    /// Writes a register with its natural width.
    ///
    /// # Errors
    /// As [`Bench::get`].
    pub fn put(&self, field: Field, value: u64) -> Result<(), Stop> {
        let (bar, offset) = self.place(field)?;
        self.step(format!("write {value:#x} to {}", field.name));
        self.bus
            .bar_write(bar, offset, &value.to_le_bytes()[..field.width])?;
        Ok(())
    }

    /// Reads both halves of a 64-bit field.
    ///
    /// # Errors
    /// As [`Bench::get`].
    pub fn get_wide(&self, [low, high]: [Field; 2]) -> Result<u64, Stop> {
        Ok(self.get(low)? | self.get(high)? << 32)
    }

    /// Writes both halves of a 64-bit field.
    ///
    /// # Errors
    /// As [`Bench::get`].
    pub fn put_wide(&self, [low, high]: [Field; 2], value: u64) -> Result<(), Stop> {
        self.put(low, value & 0xffff_ffff)?;
        self.put(high, value >> 32)
    }

    /// The device status.
    ///
    /// # Errors
    /// The bus's.
    pub fn status(&self) -> Result<u8, Stop> {
        Ok(u8::try_from(self.get(reg::DEVICE_STATUS)?).unwrap_or(u8::MAX))
    }

    /// Writes the device status.
    ///
    /// # Errors
    /// The bus's.
    pub fn set_status(&self, value: u8) -> Result<(), Stop> {
        self.put(reg::DEVICE_STATUS, u64::from(value))
    }

    /// Reads the status until it is as wanted or the limit has passed; returns the last one read.
    ///
    /// # Errors
    /// The bus's.
    pub fn status_when(&self, wanted: impl Fn(u8) -> bool) -> Result<u8, Stop> {
        let mut last = 0;
        self.wait(self.limit, || {
            last = self.status()?;
            Ok(wanted(last))
        })?;
        self.step(format!("read status {last:#04x}"));
        Ok(last)
    }

    /// The PCI status register.
    ///
    /// # Errors
    /// The bus's.
    pub fn config_word(&self, at: u16) -> Result<u16, Stop> {
        caps::word(self.bus.as_ref(), at)
    }

    /// How long the device is watched for something that it must not do: longer where it is given
    /// longer than usual for what it must, as on an emulated processor.
    pub fn quiet(&self) -> Duration {
        QUIET.max(self.limit.saturating_sub(LIMIT) / 20)
    }

    /// Where the first conventional capability of this id is.
    ///
    /// # Errors
    /// The bus's.
    pub fn capability(&self, id: u8) -> Result<Option<u16>, Stop> {
        let [mut at, _] = self.config_word(pci::CAPABILITIES)?.to_le_bytes();
        for _ in 0..pci::CAPABILITIES_MAX {
            if u16::from(at) < pci::CAPABILITIES_BEGIN {
                break;
            }
            let [found, next] = self.config_word(u16::from(at))?.to_le_bytes();
            if found == id {
                return Ok(Some(u16::from(at)));
            }
            at = next;
        }
        Ok(None)
    }

    /// 32 bits of PCI configuration space.
    ///
    /// # Errors
    /// The bus's.
    pub fn config_dword(&self, at: u16) -> Result<u32, Stop> {
        caps::dword(self.bus.as_ref(), at)
    }

    /// The first capability of a type.
    ///
    /// # Errors
    /// A failure of `clause` if there is none.
    pub fn cap(&self, cfg_type: u8, clause: &'static str) -> Result<&RawCap, Stop> {
        self.caps.region(cfg_type, clause)?;
        self.caps
            .first(cfg_type)
            .ok_or(Stop::Inconclusive("no capability".to_owned()))
    }

    /// Reads the ISR status, which clears it.
    ///
    /// # Errors
    /// The bus's, or a failure if there is none.
    pub fn isr(&self) -> Result<u8, Stop> {
        const CLAUSE: &str = "virtio-over-pci-bus-pci-device-layout-isr-status-capability/D1";
        let region = self.caps.region(cfg_type::ISR, CLAUSE)?;
        let mut data = [0];
        self.bus.bar_read(region.bar, region.offset, &mut data)?;
        self.step(format!("read ISR status {:#x}", data[0]));
        Ok(data[0])
    }

    /// Reads all of the device configuration, byte by byte.
    ///
    /// # Errors
    /// The bus's; not applicable if there is none.
    pub fn device_config(&self) -> Result<Vec<u8>, Stop> {
        let region = self.device_region()?;
        let mut all = Vec::new();
        for offset in 0..region.length {
            let mut data = [0];
            self.bus
                .bar_read(region.bar, region.offset + offset, &mut data)?;
            all.extend(data);
        }
        Ok(all)
    }

    /// Where the device configuration is.
    ///
    /// # Errors
    /// Not applicable if there is none.
    pub fn device_region(&self) -> Result<Region, Stop> {
        let cap = self.caps.first(cfg_type::DEVICE);
        cap.map(|cap| cap.region)
            .ok_or(Stop::NotApplicable(Absent::WritableConfig))
    }

    // The steps of initialisation.

    /// Resets and waits until status reads 0.
    ///
    /// # Errors
    /// Inconclusive if that does not happen.
    pub fn reset(&self) -> Result<(), Stop> {
        self.set_status(0)?;
        let last = self.status_when(|status| status == 0)?;
        arose(last == 0, || {
            format!("status stays {last:#04x} after a reset")
        })
    }

    /// Function level reset, by the bus.
    ///
    /// # Errors
    /// The bus's.
    pub fn function_reset(&self) -> Result<(), Stop> {
        self.step("function level reset");
        self.bus.reset()?;
        Ok(())
    }

    /// The features offered.
    ///
    /// # Errors
    /// The bus's.
    pub fn offered(&self) -> Result<u64, Stop> {
        self.window(reg::DEVICE_FEATURE_SELECT, reg::DEVICE_FEATURE)
    }

    /// The features that the driver has written, as the device presents them.
    ///
    /// # Errors
    /// The bus's.
    pub fn accepted(&self) -> Result<u64, Stop> {
        self.window(reg::DRIVER_FEATURE_SELECT, reg::DRIVER_FEATURE)
    }

    fn window(&self, select: Field, value: Field) -> Result<u64, Stop> {
        self.put(select, 0)?;
        let low = self.get(value)?;
        self.put(select, 1)?;
        Ok(low | self.get(value)? << 32)
    }

    /// What a driver takes of any device: VERSION_1, and what a device may refuse to work without:
    /// ACCESS_PLATFORM where it is offered, for there may be an IOMMU, and ZONED of a disk whose
    /// zones must be written in sequence.
    ///
    /// # Errors
    /// The bus's.
    pub fn basis(&self) -> Result<u64, Stop> {
        let offered = self.offered()?;
        let platform = offered & (feature::ACCESS_PLATFORM | feature::ORDER_PLATFORM);
        Ok(feature::VERSION_1 | platform | self.insisted(offered)?)
    }

    /// Writes the driver's features.
    ///
    /// # Errors
    /// The bus's.
    pub fn accept(&self, features: u64) -> Result<(), Stop> {
        self.put(reg::DRIVER_FEATURE_SELECT, 0)?;
        self.put(reg::DRIVER_FEATURE, features & 0xffff_ffff)?;
        self.put(reg::DRIVER_FEATURE_SELECT, 1)?;
        self.put(reg::DRIVER_FEATURE, features >> 32)
    }

    /// Reset, ACKNOWLEDGE, DRIVER.
    ///
    /// # Errors
    /// Inconclusive if the reset does not end.
    pub fn to_driver(&self) -> Result<(), Stop> {
        self.reset()?;
        self.set_status(status::ACKNOWLEDGE)?;
        self.set_status(status::NEGOTIATING)
    }

    /// Everything up to FEATURES_OK with [`Bench::basis`] and `need`.
    ///
    /// # Errors
    /// Not applicable if `need` is not offered, inconclusive if FEATURES_OK does not stay.
    pub fn to_features_ok(&self, need: u64) -> Result<(), Stop> {
        self.to_driver()?;
        if self.offered()? & need != need {
            return Err(Stop::NotApplicable(Absent::Features(need)));
        }
        self.accept(need | self.basis()?)?;
        self.set_status(status::AGREED)?;
        let shown = self.status()?;
        arose(shown == status::AGREED, || {
            format!("status {shown:#04x} after FEATURES_OK")
        })
    }

    /// Makes a split ring for a queue, of at most 64 entries.
    ///
    /// # Errors
    /// As for [`Bench::entries`].
    pub fn ring(&self, queue: u16) -> Result<Ring, Stop> {
        let size = self.entries(queue)?;
        let [desc, avail, used] = Ring::lengths(size);
        let areas = [self.take(desc)?, self.take(avail)?, self.take(used)?];
        Ok(Ring::new(self.memory.clone(), size, areas))
    }

    /// How many entries a queue is given: 64, or as many as the device takes.
    ///
    /// # Errors
    /// Inconclusive if the queue is absent or too small for a request.
    pub fn entries(&self, queue: u16) -> Result<u16, Stop> {
        self.put(reg::QUEUE_SELECT, u64::from(queue))?;
        let largest = self.get(reg::QUEUE_SIZE)?;
        arose(largest >= 4, || {
            format!("queue {queue} has {largest} entries")
        })?;
        Ok(u16::try_from(largest.min(QUEUE_SIZE)).unwrap_or(0))
    }

    /// Tells the device where a queue's ring is, but does not enable it.
    ///
    /// # Errors
    /// The bus's.
    pub fn place_ring(&self, queue: u16, ring: &impl Layout) -> Result<(), Stop> {
        let [desc, driver, device] = ring.addresses();
        self.put(reg::QUEUE_SELECT, u64::from(queue))?;
        self.put(reg::QUEUE_SIZE, u64::from(ring.size()))?;
        self.put_wide(reg::QUEUE_DESC, desc)?;
        self.put_wide(reg::QUEUE_DRIVER, driver)?;
        self.put_wide(reg::QUEUE_DEVICE, device)
    }

    /// As [`Bench::place_ring`], and enables it.
    ///
    /// # Errors
    /// Inconclusive if it does not read back enabled.
    pub fn enable(&self, queue: u16, ring: &impl Layout) -> Result<(), Stop> {
        self.place_ring(queue, ring)?;
        self.put(reg::QUEUE_ENABLE, 1)?;
        let enabled = self.get(reg::QUEUE_ENABLE)?;
        arose(enabled == 1, || {
            format!("queue_enable reads {enabled} after 1 was written")
        })
    }

    /// DRIVER_OK.
    ///
    /// # Errors
    /// Inconclusive if it does not stay.
    pub fn driver_ok(&self) -> Result<(), Stop> {
        self.set_status(status::RUNNING)?;
        let shown = self.status()?;
        arose(shown == status::RUNNING, || {
            format!("status {shown:#04x} after DRIVER_OK")
        })
    }

    /// Suspends and waits for it.
    ///
    /// # Errors
    /// Inconclusive if status does not become 0x1b.
    pub fn suspend(&self) -> Result<(), Stop> {
        self.set_status(status::SUSPEND_OR_RESUME)?;
        let last = self.status_when(|shown| shown == status::SUSPENDED)?;
        arose(last == status::SUSPENDED, || {
            format!("status {last:#04x}, it does not suspend")
        })
    }

    /// Resumes and waits for it.
    ///
    /// # Errors
    /// Inconclusive if status does not become 0x0f.
    pub fn resume(&self) -> Result<(), Stop> {
        self.set_status(status::SUSPEND_OR_RESUME)?;
        let last = self.status_when(|shown| shown == status::RUNNING)?;
        arose(last == status::RUNNING, || {
            format!("status {last:#04x}, it does not resume")
        })
    }

    /// Rings a queue's doorbell.
    ///
    /// # Errors
    /// The bus's, or a failure if there are no doorbells.
    pub fn kick(&self, queue: u16) -> Result<(), Stop> {
        const CLAUSE: &str = "virtio-over-pci-bus-pci-device-layout-notification-capability/D1";
        let cap = self.cap(cfg_type::NOTIFY, CLAUSE)?;
        self.put(reg::QUEUE_SELECT, u64::from(queue))?;
        let off = self.get(reg::QUEUE_NOTIFY_OFF)? * u64::from(cap.extra);
        self.step(format!("notify queue {queue}"));
        let Region { bar, offset, .. } = cap.region;
        self.bus
            .bar_write(bar, offset + off, &queue.to_le_bytes())?;
        Ok(())
    }

    /// Maps a queue to MSI-X vector `vector` and returns its receiving end.
    ///
    /// # Errors
    /// Not applicable without MSI-X, inconclusive if the device refuses the vector.
    pub fn queue_vector(&self, queue: u16, vector: u16) -> Result<Arc<dyn Interrupt>, Stop> {
        self.put(reg::QUEUE_SELECT, u64::from(queue))?;
        self.vector(reg::QUEUE_MSIX_VECTOR, vector)
    }

    /// Maps configuration changes to an MSI-X vector and returns its receiving end.
    ///
    /// # Errors
    /// As [`Bench::queue_vector`].
    pub fn config_vector(&self, vector: u16) -> Result<Arc<dyn Interrupt>, Stop> {
        self.vector(reg::CONFIG_MSIX_VECTOR, vector)
    }

    fn vector(&self, field: Field, vector: u16) -> Result<Arc<dyn Interrupt>, Stop> {
        if self.caps.msix.is_none() {
            return Err(Stop::NotApplicable(Absent::Msix));
        }
        let interrupt = self.bus.interrupt(vector)?;
        self.put(field, u64::from(vector))?;
        let shown = self.get(field)?;
        arose(shown == u64::from(vector), || {
            format!("{} reads {shown:#x}", field.name)
        })?;
        Ok(interrupt)
    }

    /// Makes the device change its configuration by itself.
    ///
    /// # Errors
    /// Not applicable if the target cannot.
    pub fn change_config(&self) -> Result<(), Stop> {
        let change = self.change_config.as_ref();
        let change = change.ok_or(Stop::NotApplicable(Absent::ConfigChange))?;
        self.step("the device changes its configuration");
        change();
        Ok(())
    }

    /// The function of this number, from 1 on, which the target owns, with memory of its own and
    /// as its own driver reaches it. It can be had once.
    ///
    /// # Errors
    /// Not applicable if nobody but the target's driver reaches it, or it was taken before.
    pub fn member(&self, number: u16) -> Result<Self, Stop> {
        let mut members = self.members.borrow_mut();
        let index = usize::from(number).checked_sub(1);
        let subject = index.and_then(|index| members.get_mut(index)?.take());
        let subject = subject.ok_or(Stop::NotApplicable(Absent::Members(number)))?;
        let trace = self.trace.clone();
        Self::new(subject, trace, self.random.get() ^ u64::from(number))
    }

    // Memory and time.

    /// All memory of the case.
    pub fn memory(&self) -> &DmaMemory {
        &self.memory
    }

    /// Takes whole pages of memory.
    ///
    /// # Errors
    /// Inconclusive if there are none left.
    pub fn take(&self, len: u64) -> Result<Span, Stop> {
        let offset = self.taken.get();
        let end = offset + len.next_multiple_of(PAGE);
        arose(end <= self.memory.len(), || {
            format!("no {len} bytes of memory left")
        })?;
        self.taken.set(end);
        Ok(Span {
            offset,
            iova: self.memory.iova() + offset,
            len,
        })
    }

    /// A copy of a part of memory.
    ///
    /// # Errors
    /// The memory's.
    pub fn bytes(&self, span: Span) -> Result<Vec<u8>, Stop> {
        let mut bytes = vec![0; usize::try_from(span.len).unwrap_or(0)];
        self.memory.read(span.offset, &mut bytes)?;
        Ok(bytes)
    }

    /// A copy of all memory.
    ///
    /// # Errors
    /// The memory's.
    pub fn snapshot(&self) -> Result<Vec<u8>, Stop> {
        let mut all = vec![0; usize::try_from(self.memory.len()).unwrap_or(0)];
        self.memory.read(0, &mut all)?;
        Ok(all)
    }

    /// Polls until `done` or until `limit` has passed. True if done.
    ///
    /// # Errors
    /// Those of `done`.
    pub fn wait(
        &self,
        limit: Duration,
        mut done: impl FnMut() -> Result<bool, Stop>,
    ) -> Result<bool, Stop> {
        let start = Instant::now();
        loop {
            if done()? {
                return Ok(true);
            }
            let waited = start.elapsed();
            if waited >= limit {
                return Ok(false);
            }
            // What answers does so at once; what does not is not to be waited for at full speed.
            if waited < SPIN {
                std::thread::yield_now();
            } else {
                std::thread::sleep((waited / NAP_OF).min(NAP).min(limit - waited));
            }
        }
    }
}

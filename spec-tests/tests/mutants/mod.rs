//! Broken devices: the emulated one behind a bus that tells lies.

use driver::bus::{Bus, BusError, Interrupt};
use driver::memory::DmaMemory;
use spec_tests::constants::{Field, cfg_type, feature, reg, status};
use spec_tests::harness::{Absent, Caps, Region, Stop};
use spec_tests::target::{Emulated, Subject, Target, Variant};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// SUSPEND never shows.
    HidesSuspend,
    /// DRIVER_OK shows while suspended.
    KeepsDriverOk,
    /// SUSPEND shows at once, whatever the device does.
    HastySuspend,
    /// Queues are touched while suspended.
    TouchesWhileSuspended,
    /// A bit after the end of the bitmap is set with every notification.
    MarksBeyondLength,
    /// The first bit of the bitmap is set although tracking is off.
    MarksWhenOff,
    /// The bitmap is never switched off by a reset.
    KeepsTrackingOverReset,
    /// `pasid` holds whatever was written.
    TakesPasid,
    /// Reserved bytes of the tracker hold garbage.
    DirtyReserved,
    /// `queue_enable` survives a reset.
    KeepsQueueEnable,
    /// Vectors survive a reset.
    KeepsVectors,
    /// The notification multiplier is 6 and the device configuration begins at an odd place.
    CorruptsOffsets,
    /// The saved available state is one too far.
    StateOffByOne,
    /// Queue state written before enable is dropped.
    DropsState,
    /// The state is not default after a reset.
    KeepsState,
    /// A write of 0 to status is lost while suspended.
    LosesReset,
    /// FEATURES_OK stays whatever the driver accepted.
    AcceptsEverything,
    /// A reserved feature bit is offered.
    OffersReserved,
    /// VERSION_1 is not offered.
    NoVersion1,
    /// A write of a low half clears the high one.
    CouplesHalves,
    /// `config_generation` never changes.
    FrozenGeneration,
    /// Absent queues have the size of queue 0.
    PhantomQueues,
    /// Every vector fires all the time.
    FiresAlways,
    /// ISR status is not cleared by a read.
    StickyIsr,
}

/// A target whose every function tells one lie.
#[derive(Debug)]
pub struct Mutant(pub Lie);

impl Target for Mutant {
    fn fresh(&self, want: Variant) -> Result<Subject, Stop> {
        let Subject {
            bus, change_config, ..
        } = Emulated::default().fresh(want)?;
        let caps = Caps::walk(bus.as_ref())?;
        let region = |cfg_type| caps.first(cfg_type).map(|cap| cap.region);
        let at = |cfg_type| caps.first(cfg_type).map_or(0, |cap| cap.at);
        let liar = Liar {
            lie: self.0,
            common: caps.region(cfg_type::COMMON, "PC-12")?,
            notify: caps.region(cfg_type::NOTIFY, "PC-12")?,
            isr: region(cfg_type::ISR),
            tracker: region(cfg_type::TRACKER),
            notify_at: at(cfg_type::NOTIFY),
            device_at: at(cfg_type::DEVICE),
            memory: Mutex::default(),
            seen: Mutex::default(),
            asked: AtomicBool::new(false),
            bus,
        };
        Ok(Subject {
            bus: Arc::new(liar),
            change_config,
            limit: Duration::from_millis(200),
        })
    }
    fn claims(&self, what: Absent) -> bool {
        Emulated::default().claims(what)
    }
}

/// The bus.
#[derive(Debug)]
struct Liar {
    lie: Lie,
    bus: Arc<dyn Bus>,
    common: Region,
    notify: Region,
    isr: Option<Region>,
    tracker: Option<Region>,
    notify_at: u16,
    device_at: u16,
    memory: Mutex<Option<DmaMemory>>,
    /// Values that the driver wrote, by register, where a lie needs them.
    seen: Mutex<HashMap<&'static str, u64>>,
    /// A suspend was asked for, and no reset came.
    asked: AtomicBool,
}

impl Liar {
    fn region(&self, field: Field) -> Region {
        match field.place {
            spec_tests::constants::Place::Common => self.common,
            spec_tests::constants::Place::Tracker => self.tracker.unwrap_or(self.common),
        }
    }
    fn is(&self, field: Field, bar: u8, offset: u64) -> bool {
        let region = self.region(field);
        region.bar == bar && region.offset + field.offset == offset
    }
    fn get(&self, field: Field) -> Result<u64, BusError> {
        let region = self.region(field);
        let mut data = [0; 8];
        let at = region.offset + field.offset;
        self.bus
            .bar_read(region.bar, at, &mut data[..field.width])?;
        Ok(u64::from_le_bytes(data))
    }
    fn put(&self, field: Field, value: u64) -> Result<(), BusError> {
        let region = self.region(field);
        let at = region.offset + field.offset;
        self.bus
            .bar_write(region.bar, at, &value.to_le_bytes()[..field.width])
    }
    fn wide(&self, [low, high]: [Field; 2]) -> Result<u64, BusError> {
        Ok(self.get(low)? | self.get(high)? << 32)
    }
    fn seen(&self, field: Field) -> Option<u64> {
        self.seen.lock().unwrap().get(field.name).copied()
    }
    fn see(&self, field: Field, value: u64) {
        self.seen.lock().unwrap().insert(field.name, value);
    }
    fn suspended(&self) -> Result<bool, BusError> {
        Ok(self.get(reg::DEVICE_STATUS)? == u64::from(status::SUSPENDED))
    }
    /// Sets a byte of memory behind the device's back.
    fn scribble(&self, iova: u64, value: u8) {
        if let Some(memory) = &*self.memory.lock().unwrap()
            && let Some(offset) = iova.checked_sub(memory.iova())
        {
            let _ = memory.store_u8(offset, value, Ordering::SeqCst);
        }
    }

    /// What the driver is told instead of what was read.
    fn distort(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        let is = |field| self.is(field, bar, offset);
        let in_status = is(reg::DEVICE_STATUS);
        match self.lie {
            Lie::HidesSuspend if in_status => data[0] &= !status::SUSPEND,
            Lie::KeepsDriverOk if in_status && data[0] == status::SUSPENDED => {
                data[0] |= status::DRIVER_OK;
            }
            Lie::HastySuspend if in_status && self.asked.load(Ordering::SeqCst) => {
                data[0] = status::SUSPENDED;
            }
            Lie::AcceptsEverything
                if in_status
                    && self.seen(reg::DEVICE_STATUS) == Some(u64::from(status::AGREED)) =>
            {
                data[0] = status::AGREED;
            }
            Lie::TakesPasid if is(reg::TRACKER_PASID) => {
                if let Some(value) = self.seen(reg::TRACKER_PASID) {
                    data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
                }
            }
            Lie::DirtyReserved if is(reg::TRACKER_RESERVED_2) => data[0] = 1,
            Lie::KeepsQueueEnable if is(reg::QUEUE_ENABLE) => {
                data[0] |= u8::from(self.seen(reg::QUEUE_ENABLE) == Some(1));
            }
            Lie::KeepsVectors if is(reg::CONFIG_MSIX_VECTOR) => {
                if let Some(value) = self.seen(reg::CONFIG_MSIX_VECTOR)
                    && data == [0xff, 0xff]
                    && value == 0
                {
                    data.fill(0);
                }
            }
            Lie::StateOffByOne if is(reg::QUEUE_AVAIL_STATE) && self.suspended()? => {
                data[0] = data[0].wrapping_add(1);
            }
            Lie::KeepsState if is(reg::QUEUE_AVAIL_STATE) => {
                if data[0] != 0 {
                    self.see(reg::QUEUE_AVAIL_STATE, u64::from(data[0]));
                } else if let Some(old) = self.seen(reg::QUEUE_AVAIL_STATE) {
                    data[0] = u8::try_from(old).unwrap();
                }
            }
            Lie::OffersReserved | Lie::NoVersion1
                if is(reg::DEVICE_FEATURE) && self.get(reg::DEVICE_FEATURE_SELECT)? == 1 =>
            {
                if self.lie == Lie::NoVersion1 {
                    data[0] &= 0xfe;
                } else {
                    let [_, _, _, _, low, high, ..] = feature::RESERVED.to_le_bytes();
                    data[0] |= low;
                    data[1] |= high;
                }
            }
            Lie::FrozenGeneration if is(reg::CONFIG_GENERATION) => data[0] = 0,
            Lie::PhantomQueues if is(reg::QUEUE_SIZE) && data == [0, 0] => data[0] = 64,
            Lie::StickyIsr
                if self
                    .isr
                    .is_some_and(|isr| isr.bar == bar && isr.offset == offset) =>
            {
                let old = self.seen(reg::NUM_QUEUES).unwrap_or(0);
                self.see(reg::NUM_QUEUES, old | u64::from(data[0]));
                data[0] |= u8::try_from(old).unwrap();
            }
            _ => {}
        }
        Ok(())
    }

    /// What is done before a write reaches the device. False if it does not reach it.
    fn before(&self, bar: u8, offset: u64, value: u64) -> Result<bool, BusError> {
        let is = |field| self.is(field, bar, offset);
        if is(reg::DEVICE_STATUS) {
            self.see(reg::DEVICE_STATUS, value);
            let asks = value == u64::from(status::SUSPEND_OR_RESUME);
            let before = self.asked.load(Ordering::SeqCst);
            self.asked.store(asks && !before, Ordering::SeqCst);
        }
        for field in [
            reg::TRACKER_PASID,
            reg::QUEUE_ENABLE,
            reg::CONFIG_MSIX_VECTOR,
        ] {
            if is(field) {
                self.see(field, value);
            }
        }
        let state = is(reg::QUEUE_AVAIL_STATE) || is(reg::QUEUE_USED_STATE);
        Ok(match self.lie {
            Lie::LosesReset => !(is(reg::DEVICE_STATUS) && value == 0 && self.suspended()?),
            Lie::DropsState => !state,
            // The device is never asked, so it goes on.
            Lie::HastySuspend => {
                !(is(reg::DEVICE_STATUS) && value == u64::from(status::SUSPEND_OR_RESUME))
            }
            _ => true,
        })
    }

    /// What is done after a write has reached the device.
    fn after(&self, bar: u8, offset: u64) -> Result<(), BusError> {
        let end = self.notify.offset + self.notify.length;
        let kicked = bar == self.notify.bar && (self.notify.offset..end).contains(&offset);
        match self.lie {
            Lie::MarksBeyondLength if kicked && self.get(reg::TRACKER_ENABLE)? == 1 => {
                let base = self.wide(reg::TRACKER_ADDR)?;
                self.scribble(base + self.wide(reg::TRACKER_LENGTH)?, 1);
            }
            Lie::MarksWhenOff if kicked && self.get(reg::TRACKER_ENABLE)? == 0 => {
                self.scribble(self.wide(reg::TRACKER_ADDR)?, 1);
            }
            Lie::TouchesWhileSuspended if kicked && self.suspended()? => {
                self.scribble(self.wide(reg::QUEUE_DEVICE)? + 4, 0x77);
            }
            Lie::CouplesHalves => {
                for [low, high] in [reg::QUEUE_DESC, reg::QUEUE_DRIVER, reg::TRACKER_ADDR] {
                    if self.is(low, bar, offset) {
                        self.put(high, 0)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Resets with the tracker's registers put back afterwards.
    fn around_reset(&self, reset: impl FnOnce() -> Result<(), BusError>) -> Result<(), BusError> {
        let old = [
            (reg::TRACKER_GRA_POWER, self.get(reg::TRACKER_GRA_POWER)?),
            (reg::TRACKER_ADDR[0], self.get(reg::TRACKER_ADDR[0])?),
            (reg::TRACKER_LENGTH[0], self.get(reg::TRACKER_LENGTH[0])?),
            (reg::TRACKER_ENABLE, self.get(reg::TRACKER_ENABLE)?),
        ];
        reset()?;
        for (field, value) in old {
            self.put(field, value)?;
        }
        Ok(())
    }
}

impl Bus for Liar {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), BusError> {
        self.bus.config_read(offset, data)?;
        if self.lie == Lie::CorruptsOffsets {
            if offset == self.notify_at + 16 {
                data.copy_from_slice(&6_u32.to_le_bytes());
            } else if offset == self.device_at + 8 {
                data[0] |= 1;
            }
        }
        Ok(())
    }
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), BusError> {
        self.bus.config_write(offset, data)
    }
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        self.bus.bar_read(bar, offset, data)?;
        self.distort(bar, offset, data)
    }
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError> {
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        let write = || self.bus.bar_write(bar, offset, data);
        let resets = self.is(reg::DEVICE_STATUS, bar, offset) && value == 0;
        if resets && self.lie == Lie::KeepsTrackingOverReset {
            // The reset may go on for a while: the registers come back once it is through.
            return self.around_reset(|| {
                write()?;
                while self.get(reg::DEVICE_STATUS)? != 0 {
                    std::thread::yield_now();
                }
                Ok(())
            });
        }
        if self.before(bar, offset, value)? {
            write()?;
        }
        self.after(bar, offset)
    }
    fn dma_alloc(&self, len: u64) -> Result<DmaMemory, BusError> {
        let memory = self.bus.dma_alloc(len)?;
        *self.memory.lock().unwrap() = Some(memory.clone());
        Ok(memory)
    }
    fn interrupt(&self, vector: u16) -> Result<Arc<dyn Interrupt>, BusError> {
        let interrupt = self.bus.interrupt(vector)?;
        match self.lie {
            Lie::FiresAlways => Ok(Arc::new(Nervous)),
            _ => Ok(interrupt),
        }
    }
    fn reset(&self) -> Result<(), BusError> {
        self.asked.store(false, Ordering::SeqCst);
        match self.lie {
            Lie::KeepsTrackingOverReset => self.around_reset(|| self.bus.reset()),
            _ => self.bus.reset(),
        }
    }
}

/// An interrupt that has always fired.
#[derive(Debug)]
struct Nervous;

impl Interrupt for Nervous {
    fn wait(&self, _timeout: Duration) -> bool {
        true
    }
}

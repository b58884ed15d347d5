//! The PCI transport as its driver uses it (VIRTIO 1.4, "Virtio Over PCI Bus").

mod caps;
mod config;
mod queues;
mod regs;

pub use caps::{Capabilities, Region, enable};
pub use config::ConfigReader;
pub use queues::{Notifier, QueueSetup};

use crate::blk;
use crate::bus::Bus;
use crate::error::DriverError;
use regs::common;
use spec::features::Features;
use spec::status::DeviceStatus;
use spec::tracker::TrackerRegs;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long [`Transport::initialise`] and [`crate::state::restore`] wait for a reset.
pub const RESET_TIMEOUT: Duration = Duration::from_secs(10);

/// A virtio-pci function.
///
/// Methods take `&self` and may be called from several threads: what goes through a selector
/// register is done under a lock. Reading or changing one queue from two threads at once remains the
/// caller's mistake, as it is with the registers themselves.
#[derive(Debug)]
pub struct Transport {
    bus: Arc<dyn Bus>,
    caps: Capabilities,
    /// What was negotiated, 0 before.
    features: AtomicU64,
    /// Held from a write of a selector to the last access that depends on it.
    selectors: Mutex<()>,
}

impl Transport {
    /// Finds the virtio structures of a function, and lets it decode its BARs and master the bus.
    ///
    /// The device's status is left alone: a suspended or running device stays as it is.
    ///
    /// # Errors
    /// [`DriverError::NotVirtio`], [`DriverError::NoCapability`] or what the bus says.
    pub fn new(bus: Arc<dyn Bus>) -> Result<Self, DriverError> {
        let caps = Capabilities::find(&*bus)?;
        caps::enable(&*bus)?;
        Ok(Self {
            bus,
            caps,
            features: AtomicU64::new(0),
            selectors: Mutex::new(()),
        })
    }

    /// The bus that the function is on.
    pub fn bus(&self) -> &Arc<dyn Bus> {
        &self.bus
    }

    /// What the capability walk found.
    pub fn capabilities(&self) -> &Capabilities {
        &self.caps
    }

    /// The virtio device id: 2 is a block device.
    pub fn device_id(&self) -> u16 {
        self.caps.device_id
    }

    /// Reads the device status.
    ///
    /// # Errors
    /// What the bus says.
    pub fn status(&self) -> Result<DeviceStatus, DriverError> {
        let status = self.read8(offset_of!(spec::pci::CommonCfg, device_status))?;
        Ok(DeviceStatus::from_bits_retain(status))
    }

    /// Writes the device status as given. Most callers want one of the methods that know the rules:
    /// bits are only ever added, and 0 is a reset.
    ///
    /// # Errors
    /// What the bus says.
    pub fn write_status(&self, status: DeviceStatus) -> Result<(), DriverError> {
        self.write8(
            offset_of!(spec::pci::CommonCfg, device_status),
            status.bits(),
        )
    }

    /// Adds bits to the status that the device presents.
    ///
    /// # Errors
    /// What the bus says.
    pub fn add_status(&self, bits: DeviceStatus) -> Result<(), DriverError> {
        let status = self.status()?;
        self.write_status(status | bits)
    }

    /// Resets the device and waits until it says so (VIRTIO 1.4, "Device Reset"). Works in every
    /// state, suspended included.
    ///
    /// # Errors
    /// [`DriverError::Timeout`] or what the bus says.
    pub fn reset(&self, timeout: Duration) -> Result<(), DriverError> {
        self.write_status(DeviceStatus::empty())?;
        self.features.store(0, Ordering::Relaxed);
        self.wait(timeout, "completed its reset", |status| {
            Ok(status.is_empty())
        })
    }

    /// The features that the device offers.
    ///
    /// # Errors
    /// What the bus says.
    pub fn device_features(&self) -> Result<Features, DriverError> {
        let _selected = self.select();
        let mut words = [0; 2];
        for (half, word) in (0..).zip(&mut words) {
            self.write32(common!(device_feature_select), half)?;
            *word = self.read32(common!(device_feature))?;
        }
        let [low, high] = words.map(u64::from);
        Ok(Features::from_bits_retain(high << 32 | low))
    }

    /// The features that [`initialise`](Self::initialise) negotiated; none before and after a
    /// reset.
    pub fn features(&self) -> Features {
        Features::from_bits_retain(self.features.load(Ordering::Relaxed))
    }

    /// Takes over a device that somebody else has initialised: reads the features its driver
    /// accepted. For saving the state of a device without having driven it.
    ///
    /// # Errors
    /// [`DriverError::WrongStatus`] if the device has no FEATURES_OK, or what the bus says.
    pub fn adopt(&self) -> Result<Features, DriverError> {
        let status = self.status()?;
        if !status.contains(DeviceStatus::FEATURES_OK) {
            return Err(DriverError::WrongStatus {
                operation: "take over a device",
                status,
            });
        }
        let features = {
            let _selected = self.select();
            let mut words = [0; 2];
            for (half, word) in (0..).zip(&mut words) {
                self.write32(common!(driver_feature_select), half)?;
                *word = self.read32(common!(driver_feature))?;
            }
            let [low, high] = words.map(u64::from);
            high << 32 | low
        };
        self.features.store(features, Ordering::Relaxed);
        Ok(Features::from_bits_retain(features))
    }

    /// Steps 1 to 6 of VIRTIO 1.4, "Device Initialization": reset, ACKNOWLEDGE, DRIVER, feature
    /// negotiation, FEATURES_OK. Queues come next, then [`driver_ok`](Self::driver_ok).
    ///
    /// Accepts what is both wanted and offered; VERSION_1 is always wanted. Returns what was
    /// negotiated.
    ///
    /// # Errors
    /// [`DriverError::FeaturesMissing`] without VERSION_1, [`DriverError::FeaturesRefused`],
    /// [`DriverError::HostManaged`] (FAILED is set in all these cases), [`DriverError::Timeout`], or
    /// what the bus says.
    pub fn initialise(&self, wanted: Features) -> Result<Features, DriverError> {
        self.negotiate(wanted, Features::VERSION_1)
    }

    /// [`initialise`](Self::initialise), failing unless all of `needed` can be had.
    ///
    /// # Errors
    /// As [`initialise`](Self::initialise).
    pub fn negotiate(&self, wanted: Features, needed: Features) -> Result<Features, DriverError> {
        self.reset(RESET_TIMEOUT)?;
        self.add_status(DeviceStatus::ACKNOWLEDGE)?;
        self.add_status(DeviceStatus::DRIVER)?;
        let needed = needed | Features::VERSION_1;
        let offered = self.device_features()?;
        let missing = needed - offered;
        if !missing.is_empty() {
            self.add_status(DeviceStatus::FAILED)?;
            return Err(DriverError::FeaturesMissing(missing));
        }
        let accepted = offered & (wanted | needed);
        if self.device_id() == spec::blk::DEVICE_ID
            && let Err(unfit) = blk::judge_zones(self, offered - accepted)
        {
            self.add_status(DeviceStatus::FAILED)?;
            return Err(unfit);
        }
        {
            let _selected = self.select();
            let low = accepted.bits() & u64::from(u32::MAX);
            for (half, word) in (0..).zip([low, accepted.bits() >> 32]) {
                self.write32(common!(driver_feature_select), half)?;
                // Both words are below 2^32 by construction.
                self.write32(
                    common!(driver_feature),
                    u32::try_from(word).unwrap_or_default(),
                )?;
            }
        }
        self.add_status(DeviceStatus::FEATURES_OK)?;
        if !self.status()?.contains(DeviceStatus::FEATURES_OK) {
            self.add_status(DeviceStatus::FAILED)?;
            return Err(DriverError::FeaturesRefused(accepted));
        }
        self.features.store(accepted.bits(), Ordering::Relaxed);
        Ok(accepted)
    }

    /// Step 8: sets DRIVER_OK. The device is live when this returns.
    ///
    /// # Errors
    /// [`DriverError::WrongStatus`] before FEATURES_OK, [`DriverError::NeedsReset`], or what the bus
    /// says.
    pub fn driver_ok(&self) -> Result<(), DriverError> {
        let status = self.status()?;
        if !status.contains(DeviceStatus::FEATURES_OK) {
            return Err(DriverError::WrongStatus {
                operation: "set DRIVER_OK",
                status,
            });
        }
        self.write_status(status | DeviceStatus::DRIVER_OK)?;
        let status = self.status()?;
        if status.contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            return Err(DriverError::NeedsReset {
                doing: "starts",
                status,
            });
        }
        Ok(())
    }

    /// The vector for configuration changes.
    ///
    /// # Errors
    /// What the bus says.
    pub fn config_msix_vector(&self) -> Result<u16, DriverError> {
        self.read16(common!(config_msix_vector))
    }

    /// Maps configuration changes to `vector`, [`spec::pci::NO_VECTOR`] for none.
    ///
    /// # Errors
    /// [`DriverError::VectorRefused`] if the device does not keep it, or what the bus says.
    pub fn set_config_msix_vector(&self, vector: u16) -> Result<(), DriverError> {
        self.write16(common!(config_msix_vector), vector)?;
        if self.config_msix_vector()? != vector {
            return Err(DriverError::VectorRefused {
                vector,
                event: "configuration changes",
            });
        }
        Ok(())
    }

    /// True if the device has a dirty page tracker.
    pub fn has_tracker(&self) -> bool {
        self.caps.tracker.is_some()
    }

    /// Reads a byte of the tracker's registers ([`TrackerRegs`], `enable` or `gra_power`).
    ///
    /// # Errors
    /// [`DriverError::NoCapability`] or what the bus says.
    pub fn tracker_read8(&self, offset: usize) -> Result<u8, DriverError> {
        let [byte] = self.tracker_region()?.read(&*self.bus, offset)?;
        Ok(byte)
    }

    /// Writes a byte of the tracker's registers.
    ///
    /// # Errors
    /// As [`tracker_read8`](Self::tracker_read8).
    pub fn tracker_write8(&self, offset: usize, value: u8) -> Result<(), DriverError> {
        self.tracker_region()?.write(&*self.bus, offset, &[value])
    }

    /// Writes a 64-bit tracker register in two halves, the lower one first.
    ///
    /// # Errors
    /// As [`tracker_read8`](Self::tracker_read8).
    pub fn tracker_write64(&self, offset: usize, value: u64) -> Result<(), DriverError> {
        let region = self.tracker_region()?;
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        region.write(&*self.bus, offset, &[a, b, c, d])?;
        region.write(&*self.bus, offset + 4, &[e, f, g, h])
    }

    /// Writes the tracker's PASID, which a device without PASID ignores (draft 2023).
    ///
    /// # Errors
    /// As [`tracker_read8`](Self::tracker_read8).
    pub fn tracker_set_pasid(&self, pasid: u32) -> Result<(), DriverError> {
        let pasid = pasid & spec::tracker::PASID_MASK;
        let offset = offset_of!(TrackerRegs, pasid);
        self.tracker_region()?
            .write(&*self.bus, offset, &pasid.to_le_bytes())
    }

    /// All of the tracker's registers.
    ///
    /// # Errors
    /// As [`tracker_read8`](Self::tracker_read8).
    pub fn tracker_registers(&self) -> Result<TrackerRegs, DriverError> {
        let region = self.tracker_region()?;
        let word = |offset| -> Result<u32, DriverError> {
            Ok(u32::from_le_bytes(region.read(&*self.bus, offset)?))
        };
        let wide = |offset| -> Result<u64, DriverError> {
            Ok(u64::from(word(offset + 4)?) << 32 | u64::from(word(offset)?))
        };
        Ok(TrackerRegs {
            enable: self.tracker_read8(offset_of!(TrackerRegs, enable))?,
            gra_power: self.tracker_read8(offset_of!(TrackerRegs, gra_power))?,
            pasid: word(offset_of!(TrackerRegs, pasid))?.into(),
            bitmap_addr: wide(offset_of!(TrackerRegs, bitmap_addr))?.into(),
            bitmap_length: wide(offset_of!(TrackerRegs, bitmap_length))?.into(),
            ..TrackerRegs::default()
        })
    }

    fn tracker_region(&self) -> Result<&Region, DriverError> {
        let region = self.caps.tracker.as_ref();
        region.ok_or(DriverError::NoCapability("dirty page tracker"))
    }

    /// Reads the status until `done` says so. Yields at first, then sleeps up to a millisecond.
    ///
    /// # Errors
    /// [`DriverError::Timeout`] with the last status, whatever `done` or the bus says.
    pub(crate) fn wait(
        &self,
        timeout: Duration,
        what: &'static str,
        mut done: impl FnMut(DeviceStatus) -> Result<bool, DriverError>,
    ) -> Result<(), DriverError> {
        let begin = Instant::now();
        let mut pause = Duration::from_micros(20);
        for round in 0_u64.. {
            let status = self.status()?;
            if done(status)? {
                return Ok(());
            }
            if begin.elapsed() >= timeout {
                return Err(DriverError::Timeout {
                    what,
                    waited: timeout,
                    status,
                });
            }
            if round < 32 {
                std::thread::yield_now();
            } else {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    fn select(&self) -> MutexGuard<'_, ()> {
        // The guarded value is nothing, so a panicking holder cannot have left it broken: every
        // user writes the selector anew.
        self.selectors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;

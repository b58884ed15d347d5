//! A device that an agent configures by driving it: emulated in this process, behind vfio-user or VFIO.

use crate::target::Target;
use driver::dirty::harvest::HarvestWidth;
use driver::dirty::{DirtySource, TrackerSource};
use driver::memory::DmaMemory;
use driver::{DriverError, Transport, suspend};
use migration::agent::{Abilities, DeviceConfig, Managed, Mode, Tracking};
use spec::features::Features;
use spec::status::DeviceStatus;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

/// How long the device may take to suspend or to resume.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(10);
/// PCI Express extended capability of PASID, and where the list of those begins.
const PASID_CAPABILITY: u32 = 0x1b;
const EXTENDED_BEGIN: u16 = 0x100;

/// A device and its driver, which does nothing but what it is configured to.
#[derive(Debug)]
pub struct Hosted {
    transport: Arc<Transport>,
    abilities: Abilities,
    /// What is tracked, and by what.
    tracking: Option<(Tracking, TrackerSource)>,
    /// The largest bitmap so far: buses do not take memory back.
    bitmap: Option<DmaMemory>,
}

fn failed(doing: &str) -> impl Fn(&dyn Display) -> String + use<> {
    let doing = doing.to_owned();
    move |error| format!("{doing}: {error}")
}

impl Hosted {
    /// Takes hold of a device, which nobody else may drive meanwhile.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn open(target: &Target) -> Result<Self, String> {
        let bus = target.open().map_err(|error| error.to_string())?;
        let failed = failed(&format!("bringing up {target}"));
        let transport = Transport::new(bus).map_err(|error| failed(&error))?;
        let mut this = Self {
            abilities: Abilities {
                tracking: transport.has_tracker(),
                pasid: has_pasid(&transport).map_err(|error| failed(&error))?,
                suspend: false,
            },
            transport: Arc::new(transport),
            tracking: None,
            bitmap: None,
        };
        this.bring_up().map_err(|error| failed(&error))?;
        this.abilities.suspend = this.transport.features().contains(Features::SUSPEND);
        Ok(this)
    }

    /// As a driver without queues.
    fn bring_up(&mut self) -> Result<(), DriverError> {
        self.tracking = None;
        self.transport.initialise(Features::SUSPEND)?;
        self.transport.driver_ok()
    }

    fn track(&mut self, wanted: &Tracking) -> Result<TrackerSource, String> {
        let failed = failed("starting its tracker");
        let end = wanted.ranges.iter().map(|range| range.end).max();
        let bits = end.unwrap_or(0).div_ceil(wanted.granularity);
        let length = bits.div_ceil(8).next_multiple_of(4096);
        let bitmap = match self.bitmap.take().filter(|kept| kept.len() >= length) {
            Some(kept) => kept,
            None => {
                let made = self.transport.bus().dma_alloc(length);
                made.map_err(|error| failed(&error))?
            }
        };
        self.bitmap = Some(bitmap.clone());
        let width = match wanted.mode {
            Mode::Bitmap => HarvestWidth::Word,
            Mode::Bytes => HarvestWidth::Byte,
        };
        let source = TrackerSource::new(Arc::clone(&self.transport), bitmap, width);
        let mut source = source.map_err(|error| failed(&error))?;
        // Without one the register is not to keep another's.
        let pasid = wanted.pasid.unwrap_or(0);
        let set = self.transport.tracker_set_pasid(pasid);
        set.map_err(|error| failed(&error))?;
        source
            .start(&wanted.ranges, wanted.granularity)
            .map_err(|error| failed(&error))?;
        Ok(source)
    }

    fn set_tracking(&mut self, wanted: Option<&Tracking>) -> Result<(), String> {
        if self.tracking.as_ref().map(|(is, _)| is) == wanted {
            return Ok(());
        }
        if let Some((_, mut source)) = self.tracking.take() {
            let failed = failed("stopping its tracker");
            source.stop().map_err(|error| failed(&error))?;
        }
        if let Some(wanted) = wanted {
            self.tracking = Some((wanted.clone(), self.track(wanted)?));
        }
        Ok(())
    }
}

impl Managed for Hosted {
    fn abilities(&self) -> Abilities {
        self.abilities
    }

    fn apply(&mut self, config: &DeviceConfig) -> Result<(), String> {
        if self.was_reset() {
            let failed = failed("bringing it up again");
            self.bring_up().map_err(|error| failed(&error))?;
        }
        self.set_tracking(config.tracking.as_ref())?;
        if !self.abilities.suspend {
            return Ok(());
        }
        if config.suspended {
            let failed = failed("suspending it");
            suspend::suspend(&self.transport, SUSPEND_TIMEOUT).map_err(|error| failed(&error))
        } else {
            let failed = failed("letting it go on");
            suspend::resume(&self.transport, SUSPEND_TIMEOUT).map_err(|error| failed(&error))
        }
    }

    fn was_reset(&mut self) -> bool {
        // A device that cannot be asked is not known to be as it was left.
        let status = self.transport.status();
        !status.is_ok_and(|status| status.contains(DeviceStatus::FEATURES_OK))
    }
}

/// Whether the function announces PASID, switched on or not.
fn has_pasid(transport: &Transport) -> Result<bool, DriverError> {
    let mut at = EXTENDED_BEGIN;
    // A list of capabilities can hold at most this many; a longer one goes in circles.
    for _ in 0..(4096 - EXTENDED_BEGIN) / 4 {
        let mut header = [0; 4];
        transport.bus().config_read(at, &mut header)?;
        let header = u32::from_le_bytes(header);
        if header & 0xffff == PASID_CAPABILITY {
            return Ok(true);
        }
        at = u16::try_from(header >> 20 & 0xffc).unwrap_or(0);
        if at < EXTENDED_BEGIN {
            break;
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_becomes_what_it_is_configured_to_be() {
        let mut device = Hosted::open(&Target::Emulated).unwrap();
        let abilities = device.abilities();
        assert!(abilities.tracking && abilities.suspend);
        let enabled = |device: &Hosted| device.transport.tracker_registers().unwrap().enable;
        assert_eq!(enabled(&device), 0);
        let tracking = Tracking {
            ranges: vec![0..1 << 20, 4 << 20..8 << 20],
            granularity: 8192,
            pasid: None,
            mode: Mode::Bitmap,
        };
        let config = DeviceConfig {
            tracking: Some(tracking),
            suspended: true,
            managers: Vec::new(),
        };
        assert_eq!(config.check("d", abilities), Ok(()));
        device.apply(&config).unwrap();
        let registers = device.transport.tracker_registers().unwrap();
        assert_eq!((registers.enable, registers.gra_power), (1, 1));
        let status = device.transport.status().unwrap();
        assert!(suspend::is_suspended(status), "{status:?}");
        device.apply(&config).unwrap();
        assert!(!device.was_reset());

        device.apply(&DeviceConfig::default()).unwrap();
        assert_eq!(enabled(&device), 0);
        let status = device.transport.status().unwrap();
        assert!(!suspend::is_suspended(status), "{status:?}");

        device.apply(&config).unwrap();
        device.transport.reset(SUSPEND_TIMEOUT).unwrap();
        assert!(device.was_reset());
        device.apply(&DeviceConfig::default()).unwrap();
        assert!(!device.was_reset());
        assert_eq!(enabled(&device), 0);
    }
}

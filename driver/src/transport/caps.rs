//! The walk through a function's capabilities (VIRTIO 1.4, "Virtio Structure PCI Capabilities").
//!
//! The chain comes from the device and may be anything: every step is bounded and every pointer is
//! visited once.

use crate::bus::Bus;
use crate::error::DriverError;
use spec::pci::{DEVICE_ID_BASE, VENDOR_ID, VirtioPciCap, VirtioPciNotifyCap, cfg_type};
use zerocopy::FromBytes;

/// Offsets in the type 0 header of configuration space (PCI Local Bus Specification).
mod header {
    pub const VENDOR: u16 = 0x00;
    pub const DEVICE: u16 = 0x02;
    pub const COMMAND: u16 = 0x04;
    pub const STATUS: u16 = 0x06;
    pub const CAPABILITIES: u16 = 0x34;
    /// Capabilities lie behind the header.
    pub const END: u8 = 0x40;
    pub const COMMAND_MEMORY: u16 = 1 << 1;
    pub const COMMAND_MASTER: u16 = 1 << 2;
    pub const STATUS_HAS_CAPABILITIES: u16 = 1 << 4;
    pub const CAP_VENDOR: u8 = 0x09;
}

/// Up to and including `queue_device`: what every virtio 1.x device has.
const COMMON_MIN: u64 = 56;
/// PCI device ids of transitional block and entropy devices, which drivers must match too
/// (VIRTIO 1.4, "PCI Device Discovery"); they have the structures of 1.x like any other.
const TRANSITIONAL_BLOCK: u16 = 0x1001;
const TRANSITIONAL_ENTROPY: u16 = 0x1005;

/// A structure in a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// BAR number, 0 to 5.
    pub bar: u8,
    /// Offset in the BAR in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    pub(super) what: &'static str,
}

/// What the walk found: of each kind the first usable one, as the device orders them best first.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// Virtio device id.
    pub device_id: u16,
    /// Common configuration.
    pub common: Region,
    /// Notifications.
    pub notify: Region,
    /// Bytes between the notification addresses of two queues.
    pub notify_multiplier: u32,
    /// ISR status.
    pub isr: Region,
    /// Device-specific configuration, where the device type has one.
    pub device: Option<Region>,
    /// The dirty page tracker (project rule).
    pub tracker: Option<Region>,
}

fn read16(bus: &dyn Bus, offset: u16) -> Result<u16, DriverError> {
    let mut data = [0; 2];
    bus.config_read(offset, &mut data)?;
    Ok(u16::from_le_bytes(data))
}

fn read8(bus: &dyn Bus, offset: u16) -> Result<u8, DriverError> {
    let mut data = [0];
    bus.config_read(offset, &mut data)?;
    let [byte] = data;
    Ok(byte)
}

/// Reads a structure of configuration space byte by byte; `None` if it leaves the first 256 bytes.
fn read_struct<T: FromBytes>(bus: &dyn Bus, at: u8) -> Result<Option<T>, DriverError> {
    let at = u16::from(at);
    let mut data = [0_u8; size_of::<VirtioPciNotifyCap>()];
    let Some(data) = data.get_mut(..size_of::<T>()) else {
        return Ok(None);
    };
    for (offset, byte) in (at..).zip(data.iter_mut()) {
        if offset > 0xff {
            return Ok(None);
        }
        *byte = read8(bus, offset)?;
    }
    Ok(T::read_from_bytes(data).ok())
}

/// Lets the function decode its memory BARs and reach memory, as [`Transport::new`] does.
///
/// # Errors
/// What the bus says.
///
/// [`Transport::new`]: super::Transport::new
pub fn enable(bus: &dyn Bus) -> Result<(), DriverError> {
    let command = read16(bus, header::COMMAND)?;
    let wanted = command | header::COMMAND_MEMORY | header::COMMAND_MASTER;
    if wanted != command {
        bus.config_write(header::COMMAND, &wanted.to_le_bytes())?;
    }
    Ok(())
}

impl Capabilities {
    pub(super) fn find(bus: &dyn Bus) -> Result<Self, DriverError> {
        let vendor = read16(bus, header::VENDOR)?;
        let device = read16(bus, header::DEVICE)?;
        let device_id = match device.checked_sub(DEVICE_ID_BASE) {
            Some(id) if vendor == VENDOR_ID => id,
            None if vendor == VENDOR_ID && device == TRANSITIONAL_BLOCK => 2,
            None if vendor == VENDOR_ID && device == TRANSITIONAL_ENTROPY => 4,
            _ => return Err(DriverError::NotVirtio { vendor, device }),
        };
        let mut found: [Option<Region>; 5] = [None; 5];
        let [common, notify, isr, device, tracker] = &mut found;
        let mut multiplier = 0;
        let mut seen = [false; 256];
        let mut at = if read16(bus, header::STATUS)? & header::STATUS_HAS_CAPABILITIES != 0 {
            read8(bus, header::CAPABILITIES)? & !3
        } else {
            0
        };
        while at >= header::END {
            match seen.get_mut(usize::from(at)) {
                Some(seen) if !*seen => *seen = true,
                _ => break,
            }
            let next = read8(bus, u16::from(at) + 1)? & !3;
            if read8(bus, u16::from(at))? == header::CAP_VENDOR
                && let Some(cap) = read_struct::<VirtioPciCap>(bus, at)?
                && usize::from(cap.cap_len) >= size_of::<VirtioPciCap>()
            {
                let align = |bytes: u32| cap.offset.get() % bytes == 0;
                match cap.cfg_type {
                    cfg_type::COMMON if align(4) => {
                        keep(common, &cap, COMMON_MIN, "common configuration");
                    }
                    cfg_type::NOTIFY if notify.is_none() && align(2) => {
                        let whole = read_struct::<VirtioPciNotifyCap>(bus, at)?;
                        let long = usize::from(cap.cap_len) >= size_of::<VirtioPciNotifyCap>();
                        if let Some(whole) = whole.filter(|_| long) {
                            keep(notify, &cap, 2, "notification");
                            multiplier = whole.notify_off_multiplier.get();
                        }
                    }
                    cfg_type::ISR => keep(isr, &cap, 1, "ISR"),
                    cfg_type::DEVICE if align(4) => {
                        keep(device, &cap, 1, "device configuration");
                    }
                    cfg_type::TRACKER if align(4) => {
                        let size = size_of::<spec::tracker::TrackerRegs>() as u64;
                        keep(tracker, &cap, size, "dirty page tracker");
                    }
                    // VIRTIO 1.4: types that a driver does not know are skipped.
                    _ => {}
                }
            }
            at = next;
        }
        let [common, notify, isr, device, tracker] = found;
        Ok(Self {
            device_id,
            common: common.ok_or(DriverError::NoCapability("common configuration"))?,
            notify: notify.ok_or(DriverError::NoCapability("notification"))?,
            notify_multiplier: multiplier,
            isr: isr.ok_or(DriverError::NoCapability("ISR"))?,
            device,
            tracker,
        })
    }
}

/// Keeps the first capability that has a real BAR and is long enough.
fn keep(slot: &mut Option<Region>, cap: &VirtioPciCap, min: u64, what: &'static str) {
    let length = u64::from(cap.length.get());
    if slot.is_none() && cap.bar <= 5 && length >= min {
        *slot = Some(Region {
            bar: cap.bar,
            offset: u64::from(cap.offset.get()),
            length,
            what,
        });
    }
}

//! What a device says of itself. Nothing is changed but selectors.

use super::suspend::status_names;
use crate::error::VmError;
use driver::Transport;
use driver::blk::read_config;
use driver::bus::Bus;
use driver::transport::Region;
use serde::Serialize;
use spec::blk::{self, BlkFeatures};
use spec::features::Features;
use std::sync::Arc;

/// The names of device types that people meet; the standard has more.
const TYPES: &[(u16, &str)] = &[
    (1, "network"),
    (2, "block"),
    (3, "console"),
    (4, "entropy"),
    (5, "balloon"),
    (8, "SCSI host"),
    (16, "GPU"),
    (18, "input"),
    (19, "socket"),
    (26, "file system"),
];
/// Where extended capabilities begin, and that of PASID.
const EXTENDED: u16 = 0x100;
const PASID: u16 = 0x1b;

/// A device as it presents itself.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// PCI vendor id.
    pub vendor: u16,
    /// PCI device id.
    pub device: u16,
    /// PCI revision.
    pub revision: u8,
    /// PCI class code.
    pub class: u32,
    /// Virtio device id.
    pub virtio_id: u16,
    /// What that is, if it is one of the better known.
    pub virtio_type: &'static str,
    /// The structures that the capabilities point at.
    pub capabilities: Vec<Capability>,
    /// The device status.
    pub status: String,
    /// The features offered.
    pub features: u64,
    /// Their names; `bit N` for those without one here.
    pub feature_names: Vec<String>,
    /// The largest size of each queue.
    pub queues: Vec<u16>,
    /// Sectors of 512 bytes, of a block device.
    pub capacity: Option<u64>,
    /// The tracker's registers, where there is one.
    pub tracker: Option<Tracker>,
    /// Whether the PASID extended capability can be seen.
    pub pasid: bool,
}

/// A structure in a BAR.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Capability {
    /// Which.
    pub name: &'static str,
    /// BAR number.
    pub bar: u8,
    /// Offset in the BAR in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// The tracker's registers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Tracker {
    /// 1 while tracking.
    pub enable: u8,
    /// log2 of the page size in units of 4 KiB.
    pub gra_power: u8,
    /// The PASID tracked.
    pub pasid: u32,
    /// IOVA of the bitmap.
    pub bitmap_addr: u64,
    /// Bytes of the bitmap.
    pub bitmap_length: u64,
}

/// Asks a device everything that can be asked without driving it.
///
/// # Errors
/// [`VmError::Driver`]: it is no virtio 1.x device, or cannot be reached.
pub fn probe(bus: Arc<dyn Bus>) -> Result<Probe, VmError> {
    let transport = Transport::new(bus).map_err(VmError::driver("finding a virtio device"))?;
    let bus = transport.bus();
    let mut head = [0; 12];
    bus.config_read(0, &mut head)?;
    let [v0, v1, d0, d1, _, _, _, _, revision, c0, c1, c2] = head;
    let caps = transport.capabilities();
    let known = [
        ("common configuration", Some(caps.common)),
        ("notifications", Some(caps.notify)),
        ("ISR status", Some(caps.isr)),
        ("device configuration", caps.device),
        ("dirty pages tracker", caps.tracker),
    ];
    let capabilities = known.into_iter().filter_map(|(name, region)| {
        let Region {
            bar,
            offset,
            length,
            ..
        } = region?;
        Some(Capability {
            name,
            bar,
            offset,
            length,
        })
    });
    let asking = |error| VmError::driver("asking the device")(error);
    let features = transport.device_features().map_err(asking)?;
    let mut queues = Vec::new();
    for queue in 0..transport.num_queues().map_err(asking)? {
        queues.push(transport.queue_max_size(queue).map_err(asking)?);
    }
    let virtio_id = transport.device_id();
    let is_block = virtio_id == blk::DEVICE_ID;
    let capacity = match is_block {
        true => Some(read_config(&transport).map_err(asking)?.capacity.get()),
        false => None,
    };
    let tracker = match transport.has_tracker() {
        true => {
            let registers = transport.tracker_registers().map_err(asking)?;
            Some(Tracker {
                enable: registers.enable,
                gra_power: registers.gra_power,
                pasid: registers.pasid.get(),
                bitmap_addr: registers.bitmap_addr.get(),
                bitmap_length: registers.bitmap_length.get(),
            })
        }
        false => None,
    };
    let named = TYPES.iter().find(|(id, _)| *id == virtio_id);
    Ok(Probe {
        vendor: u16::from_le_bytes([v0, v1]),
        device: u16::from_le_bytes([d0, d1]),
        revision,
        class: u32::from_le_bytes([c0, c1, c2, 0]),
        virtio_id,
        virtio_type: named.map_or("another", |(_, name)| name),
        capabilities: capabilities.collect(),
        status: status_names(transport.status().map_err(asking)?),
        features: features.bits(),
        feature_names: names(features, is_block),
        queues,
        capacity,
        tracker,
        pasid: has_extended(&**bus, PASID)?,
    })
}

/// The names of features, in ascending order of bits.
pub fn names(features: Features, is_block: bool) -> Vec<String> {
    let bits = (0..64).filter(|bit| features.bits() >> bit & 1 != 0);
    bits.map(|bit| {
        let one = 1 << bit;
        let transport = Features::from_bits_retain(one).iter_names().next();
        let block = BlkFeatures::from_bits_truncate(one).iter_names().next();
        match (transport, block) {
            (Some((name, _)), _) => name.to_owned(),
            (None, Some((name, _))) if is_block => name.to_owned(),
            _ => format!("bit {bit}"),
        }
    })
    .collect()
}

/// Looks for an extended capability; the list comes from the device and is bounded here.
fn has_extended(bus: &dyn Bus, wanted: u16) -> Result<bool, VmError> {
    let mut at = EXTENDED;
    for _ in 0..(4096 - EXTENDED) / 4 {
        let mut head = [0; 4];
        bus.config_read(at, &mut head)?;
        let head = u32::from_le_bytes(head);
        if head == 0 || head == u32::MAX {
            return Ok(false);
        }
        if head & 0xffff == u32::from(wanted) {
            return Ok(true);
        }
        // Twelve bits, of which the lower two are reserved.
        at = u16::try_from(head >> 20 & 0xffc).unwrap_or(0);
        if at < EXTENDED {
            return Ok(false);
        }
    }
    Ok(false)
}

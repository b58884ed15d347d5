//! Another device made to be what the guest configured.

use super::face::{Face, OURS};
use super::maps::Maps;
use super::shadow::Shadow;
use super::{Back, MediateError};
use driver::bus::BusError;
use driver::state::{DeviceState, QueueSaved, restore};
use driver::{DriverError, Transport};
use spec::features::Features;
use spec::pci::CommonCfg;
use spec::status::DeviceStatus;
use std::fs::File;
use std::mem::offset_of;
use std::os::fd::AsFd;

/// Brings a device's maps from `before` to `now`; returns how many maps were made.
pub(super) fn map(back: &Back, before: &Maps, now: &Maps) -> Result<u64, BusError> {
    for (iova, entry) in before.iter().filter(|(iova, entry)| !now.has(*iova, entry)) {
        back.bus.unmap(iova, entry.size)?;
    }
    let mut made = 0;
    for (iova, entry) in now.iter().filter(|(iova, entry)| !before.has(*iova, entry)) {
        let fd = entry.memory.file.as_fd();
        back.bus
            .map(iova, entry.size, entry.access, fd, entry.offset)?;
        made += 1;
    }
    Ok(made)
}

/// Gives a device the VMM's eventfds.
pub(super) fn connect(back: &Back, vectors: &[Option<File>]) -> Result<(), BusError> {
    for (vector, event) in (0..).zip(vectors) {
        if let Some(event) = event {
            back.bus.connect_vector(vector, Some(event.as_fd()))?;
        }
    }
    Ok(())
}

/// Takes all eventfds from a device.
pub(super) fn disconnect(back: &Back) -> Result<(), BusError> {
    (0..back.bus.vectors()).try_for_each(|vector| back.bus.connect_vector(vector, None))
}

/// The state that the guest's writes describe, for a device that cannot be asked. `positions` has
/// the available and the used state of each enabled queue.
pub(super) fn described(
    face: &Face,
    shadow: &Shadow,
    mut position: impl FnMut(&QueueSaved) -> Result<(u16, u16), MediateError>,
) -> Result<DeviceState, MediateError> {
    let mut queues = Vec::new();
    for queue in &shadow.queues {
        let (avail, used) = if queue.enabled {
            position(queue)?
        } else {
            (0, 0)
        };
        queues.push(QueueSaved {
            avail,
            used,
            ..*queue
        });
    }
    Ok(DeviceState {
        device_id: face.device_id,
        features: (shadow.accepted() | OURS).bits(),
        config_vector: shadow.config_vector,
        queues,
    })
}

/// Brings a device that was reset to where a guest is that has not set DRIVER_OK.
pub(super) fn initialise(back: &Back, face: &Face, shadow: &Shadow) -> Result<(), DriverError> {
    let transport = &back.transport;
    if shadow.status.contains(DeviceStatus::FEATURES_OK) {
        let state = described(face, shadow, |_| Ok((0, 0)));
        // Without positions nothing can go wrong.
        restore(transport, &state.unwrap_or_default())?;
        return half_set_up(back, face, shadow);
    }
    transport.reset(driver::transport::RESET_TIMEOUT)?;
    for bit in [DeviceStatus::ACKNOWLEDGE, DeviceStatus::DRIVER] {
        if shadow.status.contains(bit) {
            transport.add_status(bit)?;
        }
    }
    let accepted = match shadow.accepted() {
        none if none.is_empty() => none,
        some => some | back.facilities.negotiated(),
    };
    write_features(transport, face, back, accepted)?;
    if shadow.config_vector != spec::pci::NO_VECTOR {
        transport.set_config_msix_vector(shadow.config_vector)?;
    }
    Ok(())
}

/// The features of a negotiation that is not complete.
fn write_features(
    transport: &Transport,
    face: &Face,
    back: &Back,
    accepted: Features,
) -> Result<(), DriverError> {
    if accepted.is_empty() || !transport.status()?.contains(DeviceStatus::ACKNOWLEDGE) {
        return Ok(());
    }
    let words = [accepted.bits() & u64::from(u32::MAX), accepted.bits() >> 32];
    for (select, word) in (0_u32..).zip(words) {
        let word = u32::try_from(word).unwrap_or(0);
        let select_at = offset_of!(CommonCfg, driver_feature_select);
        write(back, face, select_at, &select.to_le_bytes())?;
        let at = offset_of!(CommonCfg, driver_feature);
        write(back, face, at, &word.to_le_bytes())?;
    }
    Ok(())
}

/// Queues that the guest has begun to set up.
fn half_set_up(back: &Back, face: &Face, shadow: &Shadow) -> Result<(), DriverError> {
    for queue in shadow.queues.iter().filter(|queue| !queue.enabled) {
        let untouched = (queue.desc, queue.driver, queue.device) == (0, 0, 0);
        if untouched && queue.vector == spec::pci::NO_VECTOR {
            continue;
        }
        let select = offset_of!(CommonCfg, queue_select);
        write(back, face, select, &queue.index.to_le_bytes())?;
        let fields: [(usize, &[u8]); 5] = [
            (offset_of!(CommonCfg, queue_size), &queue.size.to_le_bytes()),
            (
                offset_of!(CommonCfg, queue_msix_vector),
                &queue.vector.to_le_bytes(),
            ),
            (offset_of!(CommonCfg, queue_desc), &queue.desc.to_le_bytes()),
            (
                offset_of!(CommonCfg, queue_driver),
                &queue.driver.to_le_bytes(),
            ),
            (
                offset_of!(CommonCfg, queue_device),
                &queue.device.to_le_bytes(),
            ),
        ];
        for (at, data) in fields {
            // 64-bit fields are two registers.
            for (at, data) in (at..).step_by(4).zip(data.chunks(4)) {
                write(back, face, at, data)?;
            }
        }
    }
    Ok(())
}

fn write(back: &Back, face: &Face, field: usize, data: &[u8]) -> Result<(), BusError> {
    let field = u64::try_from(field).unwrap_or(0);
    back.bus
        .bar_write(face.common.bar, face.common.offset + field, data)
}

//! What the guest configured, so that it can be configured again elsewhere even if the device that
//! had it can no longer be asked.

use super::face::Face;
use driver::bus::{Bus, BusError};
use driver::state::QueueSaved;
use spec::features::Features;
use spec::pci::{CommonCfg, NO_VECTOR};
use spec::status::DeviceStatus;
use std::collections::BTreeMap;
use std::mem::offset_of;

/// Bytes of the window capability.
pub(super) const WINDOW: usize = 20;
/// The command register (PCI): written last, because it switches the rest on.
const COMMAND: std::ops::Range<usize> = 4..6;

/// The guest's configuration of the device.
#[derive(Debug)]
pub(super) struct Shadow {
    pub status: DeviceStatus,
    pub device_select: u32,
    pub driver_select: u32,
    pub features: [u32; 2],
    pub config_vector: u16,
    pub queue_select: u16,
    pub queues: Vec<QueueSaved>,
    /// Bytes of configuration space that were written.
    config: BTreeMap<usize, u8>,
    /// Bytes of the MSI-X table that were written: offset in its BAR.
    table: BTreeMap<u64, u8>,
    /// The window onto the BARs, which the mediator keeps itself.
    pub window: [u8; WINDOW],
}

impl Shadow {
    /// After a reset.
    pub fn new(face: &Face) -> Self {
        let queues = (0..).zip(&face.queues).map(|(index, size)| QueueSaved {
            index,
            size: *size,
            vector: NO_VECTOR,
            ..QueueSaved::default()
        });
        Self {
            status: DeviceStatus::empty(),
            device_select: 0,
            driver_select: 0,
            features: [0; 2],
            config_vector: NO_VECTOR,
            queue_select: 0,
            queues: queues.collect(),
            config: BTreeMap::new(),
            table: BTreeMap::new(),
            window: [0; WINDOW],
        }
    }

    /// The guest reset the virtio device, not the function.
    pub fn reset(&mut self, face: &Face) {
        let fresh = Self::new(face);
        *self = Self {
            config: std::mem::take(&mut self.config),
            table: std::mem::take(&mut self.table),
            window: self.window,
            ..fresh
        };
    }

    /// The features that the guest accepted.
    pub fn accepted(&self) -> Features {
        let [low, high] = self.features.map(u64::from);
        Features::from_bits_retain(high << 32 | low)
    }

    /// The queue that the guest has selected.
    pub fn queue(&mut self) -> Option<&mut QueueSaved> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    /// The selected queue was reset.
    pub fn reset_queue(&mut self, face: &Face) {
        let size = face.queues.get(usize::from(self.queue_select)).copied();
        if let Some(queue) = self.queue() {
            *queue = QueueSaved {
                index: queue.index,
                size: size.unwrap_or(0),
                vector: NO_VECTOR,
                ..QueueSaved::default()
            };
        }
    }

    /// The guest wrote to configuration space, which has 4096 bytes.
    pub fn config_written(&mut self, offset: usize, data: &[u8]) {
        self.config.extend((offset..).zip(data.iter().copied()));
    }

    /// The guest wrote to the MSI-X table, which has at most 32 KiB.
    pub fn table_written(&mut self, offset: u64, data: &[u8]) {
        self.table.extend((offset..).zip(data.iter().copied()));
    }

    /// Writes the same to another device's configuration space and MSI-X table.
    pub fn configure(&self, face: &Face, bus: &dyn Bus) -> Result<(), BusError> {
        let (last, first): (Vec<_>, Vec<_>) = self
            .config
            .iter()
            .map(|(at, byte)| (*at, *byte))
            .partition(|(at, _)| COMMAND.contains(at));
        for (at, data) in accesses(&first).chain(accesses(&last)) {
            bus.config_write(u16::try_from(at).unwrap_or(u16::MAX), &data)?;
        }
        if let Some((bar, _)) = face.table {
            let bytes: Vec<_> = self.table.iter().map(|(at, byte)| (*at, *byte)).collect();
            for (at, data) in accesses(&bytes) {
                bus.bar_write(bar, at, &data)?;
            }
        }
        Ok(())
    }

    /// Puts the selectors where the guest has them: it may be in the middle of using them.
    pub fn select(&self, face: &Face, bus: &dyn Bus) -> Result<(), BusError> {
        let write = |field: usize, data: &[u8]| {
            let offset = u64::try_from(field).unwrap_or(0);
            bus.bar_write(face.common.bar, face.common.offset + offset, data)
        };
        write(
            offset_of!(CommonCfg, device_feature_select),
            &self.device_select.to_le_bytes(),
        )?;
        write(
            offset_of!(CommonCfg, driver_feature_select),
            &self.driver_select.to_le_bytes(),
        )?;
        write(
            offset_of!(CommonCfg, queue_select),
            &self.queue_select.to_le_bytes(),
        )
    }
}

/// Bytes in ascending order as aligned accesses of 4, 2 and 1 bytes.
fn accesses<T>(bytes: &[(T, u8)]) -> impl Iterator<Item = (T, Vec<u8>)>
where
    T: Copy + TryInto<u64>,
{
    let place = |n: usize| -> Option<u64> { bytes.get(n)?.0.try_into().ok() };
    let mut next = 0;
    std::iter::from_fn(move || {
        let (start, _) = bytes.get(next)?;
        let at = place(next)?;
        let run = |len: usize| {
            let end = u64::try_from(len - 1).ok().map(|more| at + more);
            at.is_multiple_of(u64::try_from(len).unwrap_or(1)) && place(next + len - 1) == end
        };
        let len = [4, 2, 1].into_iter().find(|len| run(*len)).unwrap_or(1);
        let data = bytes.get(next..next + len)?.iter().map(|(_, byte)| *byte);
        next += len;
        Some((*start, data.collect()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_they_would_have_been() {
        let bytes: Vec<(u64, u8)> = [3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 17, 18]
            .into_iter()
            .zip(0..)
            .collect();
        let all: Vec<_> = accesses(&bytes).collect();
        let expected = [
            (3, vec![0]),
            (4, vec![1, 2, 3, 4]),
            (8, vec![5]),
            (10, vec![6, 7]),
            (13, vec![8]),
            (16, vec![9, 10]),
            (18, vec![11]),
        ];
        assert_eq!(all, expected);
        assert_eq!(accesses::<u64>(&[]).count(), 0);
    }
}

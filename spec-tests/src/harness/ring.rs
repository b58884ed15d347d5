//! A split virtqueue written by hand: descriptor table, available ring, used ring.

use super::memory::Span;
use super::outcome::Stop;
use crate::constants::ring::{DESC, INDIRECT, NEXT, USED, WRITE};
use driver::memory::DmaMemory;
use std::sync::atomic::Ordering;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Address as the device knows it.
    pub iova: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it, else it reads it.
    pub writable: bool,
}

/// A ring of either format, as the device is told of it.
pub trait Layout {
    /// Entries.
    fn size(&self) -> u16;
    /// Addresses for `queue_desc`, `queue_driver` and `queue_device`.
    fn addresses(&self) -> [u64; 3];
}

/// A descriptor as it stands in memory.
fn entry(segment: Segment, flags: u16, next: u16) -> [u8; 16] {
    let mut entry = [0; 16];
    entry[..8].copy_from_slice(&segment.iova.to_le_bytes());
    entry[8..12].copy_from_slice(&segment.len.to_le_bytes());
    entry[12..14].copy_from_slice(&flags.to_le_bytes());
    entry[14..].copy_from_slice(&next.to_le_bytes());
    entry
}

/// The three areas, each on pages of its own.
#[derive(Clone, Debug)]
pub struct Ring {
    memory: DmaMemory,
    /// Descriptors.
    pub size: u16,
    /// Descriptor table.
    pub desc: Span,
    /// Available ring.
    pub avail: Span,
    /// Used ring.
    pub used: Span,
    /// The available index as the driver has written it.
    pub next: u16,
}

impl Layout for Ring {
    fn size(&self) -> u16 {
        self.size
    }
    fn addresses(&self) -> [u64; 3] {
        [self.desc.iova, self.avail.iova, self.used.iova]
    }
}

impl Ring {
    /// Bytes of the descriptor table, the available ring and the used ring.
    pub fn lengths(size: u16) -> [u64; 3] {
        let size = u64::from(size);
        [DESC * size, 6 + 2 * size, 6 + USED * size]
    }

    pub(super) fn new(memory: DmaMemory, size: u16, areas: [Span; 3]) -> Self {
        let [desc, avail, used] = areas;
        Self {
            memory,
            size,
            desc,
            avail,
            used,
            next: 0,
        }
    }

    /// Both indices are as if `index` buffers had gone through already. What lies before is no
    /// longer to be looked at: see [`Ring::forget`].
    ///
    /// # Errors
    /// The memory's.
    pub fn start_at(&mut self, index: u16) -> Result<(), Stop> {
        self.next = index;
        self.forget(0, self.size)?;
        self.publish(index)?;
        self.memory
            .store_u16(self.used.offset + 2, index, Ordering::Release)?;
        Ok(())
    }

    /// Makes the entries of indices `from` to `to` of both rings worthless: heads that do not
    /// exist, used elements that no device writes.
    ///
    /// # Errors
    /// The memory's.
    pub fn forget(&self, from: u16, to: u16) -> Result<(), Stop> {
        for index in from..to {
            let slot = u64::from(index % self.size);
            let head = self.avail.offset + 4 + 2 * slot;
            self.memory.store_u16(head, u16::MAX, Ordering::Relaxed)?;
            let element = self.used.offset + 4 + USED * slot;
            self.memory
                .store_u32(element, u32::MAX, Ordering::Relaxed)?;
            self.memory
                .store_u32(element + 4, u32::MAX, Ordering::Relaxed)?;
        }
        Ok(())
    }

    /// How many of the used elements of indices `from` to `to` a device has written since
    /// [`Ring::forget`].
    ///
    /// # Errors
    /// The memory's.
    pub fn rewritten(&self, from: u16, to: u16) -> Result<u16, Stop> {
        let mut count = 0;
        for index in from..to {
            count += u16::from(self.used_element(index)? != (u32::MAX, u32::MAX));
        }
        Ok(count)
    }

    /// Writes one descriptor as it is given.
    ///
    /// # Errors
    /// The memory's.
    pub fn descriptor(
        &self,
        index: u16,
        segment: Segment,
        flags: u16,
        next: u16,
    ) -> Result<(), Stop> {
        let entry = entry(segment, flags, next);
        self.memory
            .write(self.desc.offset + DESC * u64::from(index), &entry)?;
        Ok(())
    }

    /// Writes a chain from descriptor `head` on and its head into the available ring, and does not
    /// tell the device: [`Ring::publish`] does.
    ///
    /// # Errors
    /// The memory's.
    pub fn stage(&mut self, head: u16, chain: &[Segment]) -> Result<(), Stop> {
        self.chain(head, chain)?;
        self.expose(head)
    }

    /// Writes a chain from descriptor `head` on.
    ///
    /// # Errors
    /// The memory's.
    pub fn chain(&self, head: u16, chain: &[Segment]) -> Result<(), Stop> {
        for (place, (index, segment)) in (head..).zip(chain).enumerate() {
            let mut flags = if segment.writable { WRITE } else { 0 };
            if place + 1 < chain.len() {
                flags |= NEXT;
            }
            self.descriptor(index, *segment, flags, index.wrapping_add(1))?;
        }
        Ok(())
    }

    /// Writes the head of a chain that stands in the table already into the available ring;
    /// [`Ring::publish`] tells the device.
    ///
    /// # Errors
    /// The memory's.
    pub fn expose(&mut self, head: u16) -> Result<(), Stop> {
        let slot = u64::from(self.next % self.size);
        let at = self.avail.offset + 4 + 2 * slot;
        self.memory.store_u16(at, head, Ordering::Relaxed)?;
        self.next = self.next.wrapping_add(1);
        Ok(())
    }

    /// Writes an indirect table of these segments, chained in their order, into `table`, and the
    /// descriptor `index` that refers to it, with `flags` besides INDIRECT.
    ///
    /// # Errors
    /// The memory's.
    pub fn indirect(
        &self,
        index: u16,
        table: Span,
        chain: &[Segment],
        flags: u16,
    ) -> Result<(), Stop> {
        for (place, segment) in (0_u16..).zip(chain) {
            let mut flags = if segment.writable { WRITE } else { 0 };
            if usize::from(place) + 1 < chain.len() {
                flags |= NEXT;
            }
            let entry = entry(*segment, flags, place + 1);
            self.memory
                .write(table.offset + DESC * u64::from(place), &entry)?;
        }
        let whole = Segment {
            iova: table.iova,
            len: u32::try_from(DESC).unwrap_or(0) * u32::try_from(chain.len()).unwrap_or(0),
            writable: false,
        };
        self.descriptor(index, whole, flags | INDIRECT, 0)
    }

    /// Stores `used_event`, at the end of the available ring.
    ///
    /// # Errors
    /// The memory's.
    pub fn set_used_event(&self, index: u16) -> Result<(), Stop> {
        let at = self.avail.offset + 4 + 2 * u64::from(self.size);
        self.memory.store_u16(at, index, Ordering::SeqCst)?;
        Ok(())
    }

    /// Stores the available index.
    ///
    /// # Errors
    /// The memory's.
    pub fn publish(&self, index: u16) -> Result<(), Stop> {
        self.memory
            .store_u16(self.avail.offset + 2, index, Ordering::Release)?;
        Ok(())
    }

    /// Stores the available ring's flags.
    ///
    /// # Errors
    /// The memory's.
    pub fn set_flags(&self, flags: u16) -> Result<(), Stop> {
        self.memory
            .store_u16(self.avail.offset, flags, Ordering::SeqCst)?;
        Ok(())
    }

    /// The device's used index.
    ///
    /// # Errors
    /// The memory's.
    pub fn used_index(&self) -> Result<u16, Stop> {
        Ok(self
            .memory
            .load_u16(self.used.offset + 2, Ordering::Acquire)?)
    }

    /// The used ring's flags.
    ///
    /// # Errors
    /// The memory's.
    pub fn used_flags(&self) -> Result<u16, Stop> {
        Ok(self.memory.load_u16(self.used.offset, Ordering::Acquire)?)
    }

    /// Head and length of the element that the device put at used index `index`.
    ///
    /// # Errors
    /// The memory's.
    pub fn used_element(&self, index: u16) -> Result<(u32, u32), Stop> {
        let at = self.used.offset + 4 + USED * u64::from(index % self.size);
        let head = self.memory.load_u32(at, Ordering::Relaxed)?;
        let len = self.memory.load_u32(at + 4, Ordering::Relaxed)?;
        Ok((head, len))
    }
}

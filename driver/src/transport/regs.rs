//! Accesses to the common configuration, each with its field's natural width
//! (VIRTIO 1.4, "PCI-specific Initialization And Device Operation": "Common configuration structure
//! layout" and "PCI Device Layout").

use super::{Region, Transport};
use crate::bus::Bus;
use crate::error::DriverError;

/// Offset of a field of the common configuration.
macro_rules! common {
    ($field:ident) => {
        std::mem::offset_of!(spec::pci::CommonCfg, $field)
    };
}
pub(super) use common;

impl Region {
    /// Reads `N` bytes (1, 2, 4) with one access.
    pub(super) fn read<const N: usize>(
        &self,
        bus: &dyn Bus,
        offset: usize,
    ) -> Result<[u8; N], DriverError> {
        let mut data = [0; N];
        let at = self.at(offset as u64, N)?;
        bus.bar_read(self.bar, at, &mut data)?;
        Ok(data)
    }

    /// Writes 1, 2 or 4 bytes with one access.
    pub(super) fn write(
        &self,
        bus: &dyn Bus,
        offset: usize,
        data: &[u8],
    ) -> Result<(), DriverError> {
        let at = self.at(offset as u64, data.len())?;
        bus.bar_write(self.bar, at, data)?;
        Ok(())
    }

    /// Where in the BAR an access goes.
    pub(super) fn at(&self, offset: u64, len: usize) -> Result<u64, DriverError> {
        let need = offset.saturating_add(len as u64);
        if need > self.length {
            return Err(DriverError::StructureTooShort {
                what: "an access",
                capability: self.what,
                need,
                have: self.length,
            });
        }
        // Offset and length come from 32-bit fields and need does not exceed the length.
        Ok(self.offset.saturating_add(offset))
    }
}

impl Transport {
    pub(super) fn read8(&self, offset: usize) -> Result<u8, DriverError> {
        let [byte] = self.caps.common.read(&*self.bus, offset)?;
        Ok(byte)
    }

    pub(super) fn write8(&self, offset: usize, value: u8) -> Result<(), DriverError> {
        self.caps.common.write(&*self.bus, offset, &[value])
    }

    pub(super) fn read16(&self, offset: usize) -> Result<u16, DriverError> {
        Ok(u16::from_le_bytes(
            self.caps.common.read(&*self.bus, offset)?,
        ))
    }

    pub(super) fn write16(&self, offset: usize, value: u16) -> Result<(), DriverError> {
        let data = value.to_le_bytes();
        self.caps.common.write(&*self.bus, offset, &data)
    }

    pub(super) fn read32(&self, offset: usize) -> Result<u32, DriverError> {
        Ok(u32::from_le_bytes(
            self.caps.common.read(&*self.bus, offset)?,
        ))
    }

    pub(super) fn write32(&self, offset: usize, value: u32) -> Result<(), DriverError> {
        let data = value.to_le_bytes();
        self.caps.common.write(&*self.bus, offset, &data)
    }

    pub(super) fn read64(&self, offset: usize) -> Result<u64, DriverError> {
        let low = self.read32(offset)?;
        Ok(u64::from(self.read32(offset + 4)?) << 32 | u64::from(low))
    }

    pub(super) fn write64(&self, offset: usize, value: u64) -> Result<(), DriverError> {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        let common = &self.caps.common;
        common.write(&*self.bus, offset, &[a, b, c, d])?;
        common.write(&*self.bus, offset + 4, &[e, f, g, h])
    }
}

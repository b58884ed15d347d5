//! The device-specific configuration (VIRTIO 1.4, "Device Configuration Space").

use super::Transport;
use super::regs::common;
use crate::error::DriverError;

/// Attempts to read the configuration between two changes before giving up.
const ATTEMPTS: u32 = 100;

/// Reads fields of the device configuration, each with its natural width.
#[derive(Debug)]
pub struct ConfigReader<'a> {
    transport: &'a Transport,
}

impl ConfigReader<'_> {
    fn read<const N: usize>(&self, offset: usize) -> Result<[u8; N], DriverError> {
        let region = self.transport.caps.device.as_ref();
        region
            .ok_or(DriverError::NoCapability("device configuration"))?
            .read(&*self.transport.bus, offset)
    }

    /// Length of the device configuration in bytes, 0 if there is none. Fields beyond it belong to
    /// features that the device does not offer.
    pub fn len(&self) -> u64 {
        self.transport.caps.device.map_or(0, |region| region.length)
    }

    /// True if the device has no configuration.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a byte.
    ///
    /// # Errors
    /// [`DriverError::StructureTooShort`], [`DriverError::NoCapability`] or what the bus says.
    pub fn u8(&self, offset: usize) -> Result<u8, DriverError> {
        let [byte] = self.read(offset)?;
        Ok(byte)
    }

    /// Reads a 16-bit field. Errors as [`u8`](Self::u8).
    ///
    /// # Errors
    /// As [`u8`](Self::u8).
    pub fn u16(&self, offset: usize) -> Result<u16, DriverError> {
        Ok(u16::from_le_bytes(self.read(offset)?))
    }

    /// Reads a 32-bit field.
    ///
    /// # Errors
    /// As [`u8`](Self::u8).
    pub fn u32(&self, offset: usize) -> Result<u32, DriverError> {
        Ok(u32::from_le_bytes(self.read(offset)?))
    }

    /// Reads a 64-bit field in two halves.
    ///
    /// # Errors
    /// As [`u8`](Self::u8).
    pub fn u64(&self, offset: usize) -> Result<u64, DriverError> {
        let low = self.u32(offset)?;
        Ok(u64::from(self.u32(offset + 4)?) << 32 | u64::from(low))
    }
}

impl Transport {
    /// Reads several fields of the device configuration as they are at one moment: `read` runs
    /// again until `config_generation` is the same before and after.
    ///
    /// # Errors
    /// [`DriverError::ConfigUnstable`], what `read` says, or what the bus says.
    pub fn device_config<T>(
        &self,
        read: impl Fn(&ConfigReader<'_>) -> Result<T, DriverError>,
    ) -> Result<T, DriverError> {
        let reader = ConfigReader { transport: self };
        let mut before = self.config_generation()?;
        for _ in 0..ATTEMPTS {
            let value = read(&reader)?;
            let after = self.config_generation()?;
            if before == after {
                return Ok(value);
            }
            before = after;
            std::thread::yield_now();
        }
        Err(DriverError::ConfigUnstable)
    }

    /// Reads one field of 1, 2, 4 or 8 bytes with its natural width, or an array of bytes of any
    /// other length, as it is at one moment.
    ///
    /// # Errors
    /// As [`device_config`](Self::device_config).
    pub fn device_config_read(&self, offset: usize, data: &mut [u8]) -> Result<(), DriverError> {
        let len = data.len();
        let bytes = self.device_config(|config| {
            Ok(match len {
                2 => config.u16(offset)?.to_le_bytes().to_vec(),
                4 => config.u32(offset)?.to_le_bytes().to_vec(),
                8 => config.u64(offset)?.to_le_bytes().to_vec(),
                _ => (0..len)
                    .map(|index| config.u8(offset.saturating_add(index)))
                    .collect::<Result<_, _>>()?,
            })
        })?;
        data.copy_from_slice(&bytes);
        Ok(())
    }

    /// The number that changes with the device configuration.
    ///
    /// # Errors
    /// What the bus says.
    pub fn config_generation(&self) -> Result<u8, DriverError> {
        self.read8(common!(config_generation))
    }

    /// Reads, and thereby clears, the ISR status ([`spec::pci::isr`]).
    ///
    /// # Errors
    /// What the bus says.
    pub fn isr(&self) -> Result<u8, DriverError> {
        let [byte] = self.caps.isr.read(&*self.bus, 0)?;
        Ok(byte)
    }
}

//! Capabilities that no device type of ours has, added to a function from outside.

use crate::constants::{cfg_type, pci};
use crate::harness::{Stop, arose};
use driver::bus::{Bus, BusError, Interrupt};
use driver::memory::DmaMemory;
use std::sync::Arc;

/// Id of a PCI Express capability. Its place is taken: the function becomes one of conventional
/// PCI, for the first 256 bytes of configuration space hold no more.
const EXPRESS: u8 = 0x10;
const EXPRESS_LEN: u8 = 60;
/// Of nobody's vendor id, and the vendor's data.
const VENDOR_DATA: [u8; 8] = [0xfe, 0xff, b'e', b'x', b't', b'r', b'a', b's'];
const VENDOR_LEN: u8 = 12;
const SHARED_LEN: u8 = 24;
/// Where the regions of shared memory lie in BAR 0, between the structures: whoever reads them
/// reads zeroes.
const SHARED: [u32; 2] = [0x3a00, 0x3c00];
const SHARED_BYTES: u32 = 0x100;

/// A function with one capability of vendor data and two of shared memory besides.
#[derive(Debug)]
pub(super) struct Extras {
    bus: Arc<dyn Bus>,
    at: u16,
    bytes: Vec<u8>,
}

impl Extras {
    /// Adds the capabilities to those of a function.
    ///
    /// # Errors
    /// The bus's; inconclusive if there is no place for them.
    pub(super) fn add(bus: Arc<dyn Bus>) -> Result<Arc<dyn Bus>, Stop> {
        let byte = |at: u8| {
            let mut data = [0];
            bus.config_read(at.into(), &mut data).map(|()| data[0])
        };
        let mut at = byte(u8::try_from(pci::CAPABILITIES).unwrap_or(0))?;
        for _ in 0..pci::CAPABILITIES_END / 4 {
            if at == 0 || byte(at)? == EXPRESS {
                break;
            }
            at = byte(at + 1)?;
        }
        arose(at != 0, || {
            "no PCI Express capability to take the place of".to_owned()
        })?;
        let after = byte(at + 1)?;
        let mut bytes = vec![
            pci::ID_VENDOR,
            at + VENDOR_LEN,
            VENDOR_LEN,
            cfg_type::VENDOR,
        ];
        bytes.extend(VENDOR_DATA);
        let second = at + VENDOR_LEN + SHARED_LEN;
        for (id, (next, offset)) in (1_u8..).zip([second, after].into_iter().zip(SHARED)) {
            let kind = cfg_type::SHARED_MEMORY;
            bytes.extend([pci::ID_VENDOR, next, SHARED_LEN, kind, 0, id, 0, 0]);
            bytes.extend(offset.to_le_bytes());
            bytes.extend(SHARED_BYTES.to_le_bytes());
            // The upper halves of both.
            bytes.extend([0; 8]);
        }
        bytes.resize(EXPRESS_LEN.into(), 0);
        let at = at.into();
        Ok(Arc::new(Self { bus, at, bytes }))
    }
}

impl Bus for Extras {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), BusError> {
        self.bus.config_read(offset, data)?;
        for (place, byte) in (offset..=u16::MAX).zip(data) {
            let mine = place.checked_sub(self.at).map(usize::from);
            if let Some(new) = mine.and_then(|mine| self.bytes.get(mine)) {
                *byte = *new;
            }
        }
        Ok(())
    }
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), BusError> {
        let mine = self.at..self.at.saturating_add(EXPRESS_LEN.into());
        if mine.contains(&offset) {
            return Ok(());
        }
        self.bus.config_write(offset, data)
    }
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        self.bus.bar_read(bar, offset, data)
    }
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError> {
        self.bus.bar_write(bar, offset, data)
    }
    fn dma_alloc(&self, len: u64) -> Result<DmaMemory, BusError> {
        self.bus.dma_alloc(len)
    }
    fn interrupt(&self, vector: u16) -> Result<Arc<dyn Interrupt>, BusError> {
        self.bus.interrupt(vector)
    }
    fn reset(&self) -> Result<(), BusError> {
        self.bus.reset()
    }
}

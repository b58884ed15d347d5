//! Configuration space: 4 KiB of bytes, and which of them software may write.

use crate::transport::caps::{self, Announce};
use crate::transport::registers::{BAR0_SIZE, BAR1_SIZE};
use crate::transport::{number, overlay};
use spec::pci::{DEVICE_ID_BASE, VENDOR_ID};
use std::ops::Range;

#[cfg(test)]
mod tests;

/// Bytes of configuration space (PCI Express).
pub const CONFIG_SIZE: usize = 4096;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BARS: usize = 0x10;
const TOTAL_VFS: usize = caps::SR_IOV + 0x0e;
/// Command bits that exist: memory space, bus master, parity, SERR, INTx disable (bit 10).
const COMMAND_MASK: u16 = 1 << 1 | 1 << 2 | 1 << 6 | 1 << 8 | 1 << 10;
/// Status bits: interrupt status, capability list.
const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;
/// Device Control, bit 15 in its upper byte: initiate function level reset.
const FLR: u8 = 1 << 7;

/// Configuration space of a function.
#[derive(Clone, Debug)]
pub(crate) struct ConfigSpace {
    bytes: Vec<u8>,
    mask: Vec<u8>,
    power_on: Vec<u8>,
}

/// What a write to configuration space asks of the function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// MSI-X message control was written.
    pub(crate) msix: bool,
    /// PASID control was written.
    pub(crate) pasid: bool,
    /// A function level reset.
    pub(crate) flr: bool,
    /// The data of the window was written: carry it out.
    pub(crate) window: bool,
    /// Virtual functions may have come or gone.
    pub(crate) vfs: bool,
}

/// Where the PCI_CFG window points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) bar: u8,
    pub(crate) offset: u64,
    /// 1, 2 or 4.
    pub(crate) length: usize,
    pub(crate) data: [u8; 4],
}

impl ConfigSpace {
    /// After power-on.
    pub(crate) fn new(device_id: u16, class: u32, what: Announce) -> Self {
        let empty = vec![0; CONFIG_SIZE];
        let mut space = Self {
            bytes: empty.clone(),
            mask: empty.clone(),
            power_on: empty,
        };
        let device = DEVICE_ID_BASE.saturating_add(device_id);
        let [interface, sub_class, base_class, _] = class.to_le_bytes();
        space.put(0x00, &VENDOR_ID.to_le_bytes());
        space.put(0x02, &device.to_le_bytes());
        space.writable(COMMAND, &COMMAND_MASK.to_le_bytes());
        space.put(STATUS, &[STATUS_CAPABILITIES, 0]);
        // Revision 1 and subsystem id 0x1100, as QEMU's: at least 1 and at least 0x40 mean "not a
        // legacy device" (VIRTIO 1.4, "PCI Device Discovery").
        space.put(0x08, &[1, interface, sub_class, base_class]);
        space.put(0x2c, &VENDOR_ID.to_le_bytes());
        space.put(0x2e, &0x1100_u16.to_le_bytes());
        space.put(0x34, &[u8::try_from(caps::MSIX).unwrap_or(0)]);
        // Interrupt line is a scratch byte; interrupt pin 0: no INTx.
        space.writable(0x3c, &[0xff]);
        // 32-bit, not prefetchable: the low bits read 0, the rest size the BAR.
        for (bar, size) in [(0, BAR0_SIZE), (1, BAR1_SIZE)] {
            let mask = u32::try_from(size).map_or(0, |size| !(size - 1));
            space.writable(BARS + 4 * bar, &mask.to_le_bytes());
        }
        caps::announce(&mut space, what);
        space.power_on = space.bytes.clone();
        space
    }

    /// Lays down bytes. For building only: `offset` is a constant that fits.
    pub(crate) fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    /// Lets software write the bits that are set in `mask`. For building only.
    pub(crate) fn writable(&mut self, offset: usize, mask: &[u8]) {
        self.mask[offset..offset + mask.len()].copy_from_slice(mask);
    }
    /// Function level reset.
    pub(crate) fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.power_on);
    }

    /// All of it, as it is.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// The first byte that software cannot change and that is another in `bytes`.
    pub(crate) fn differs(&self, bytes: &[u8]) -> Option<usize> {
        // What was read through the window stands in bytes that only the function changes.
        let fixed = |at: &usize| self.mask[*at] != 0xff && !DATA.contains(at);
        (0..CONFIG_SIZE).filter(fixed).find(|at| {
            let other = bytes.get(*at).copied().unwrap_or(!self.bytes[*at]);
            (other ^ self.bytes[*at]) & !self.mask[*at] != 0
        })
    }
    /// Takes what software wrote to another function's, without what writes ask for.
    pub(crate) fn restore(&mut self, bytes: &[u8]) {
        for ((here, mask), there) in self.bytes.iter_mut().zip(&self.mask).zip(bytes) {
            *here = (*here & !mask) | (there & mask);
        }
    }

    /// Any access. Bytes beyond the end read 0xff. `intx` is the interrupt status bit.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8], intx: bool) {
        data.fill(0xff);
        let len = data.len().min(CONFIG_SIZE.saturating_sub(offset));
        if len == 0 {
            return;
        }
        data[..len].copy_from_slice(&self.bytes[offset..offset + len]);
        if intx {
            overlay(
                data,
                offset,
                &[self.bytes[STATUS] | STATUS_INTERRUPT],
                STATUS,
            );
        }
    }

    /// Any access. Only writable bits change; bytes beyond the end are ignored.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) -> Asked {
        let mut asked = Asked::default();
        let (vfs, number) = (self.vfs(), self.num_vfs());
        for (at, byte) in (offset..CONFIG_SIZE).zip(data) {
            let mask = self.mask[at];
            self.bytes[at] = (self.bytes[at] & !mask) | (byte & mask);
            asked.msix |= at == caps::MSIX + 3;
            asked.pasid |= at == caps::PASID + 6 && mask != 0;
            asked.flr |= at == caps::EXPRESS + 9 && byte & FLR != 0;
            asked.window |= DATA.contains(&at);
        }
        // PCI Express: NumVFs stands while VF Enable is set, and is never above TotalVFs. What
        // breaks that has no defined effect; here it has none.
        let total = u16::from_le_bytes([self.bytes[TOTAL_VFS], self.bytes[TOTAL_VFS + 1]]);
        if (vfs != 0 && self.vfs() != 0) || self.num_vfs() > total {
            self.put(caps::NUM_VFS, &number.to_le_bytes());
        }
        asked.vfs = self.vfs() != vfs;
        asked
    }

    fn num_vfs(&self) -> u16 {
        u16::from_le_bytes([self.bytes[caps::NUM_VFS], self.bytes[caps::NUM_VFS + 1]])
    }
    /// Virtual functions that there are: NumVFs while VF Enable is set. Always 0 without SR-IOV.
    pub(crate) fn vfs(&self) -> u16 {
        let enabled = self.bytes[caps::VF_CONTROL] & 1 != 0;
        if enabled { self.num_vfs() } else { 0 }
    }

    /// MSI-X enable and function mask.
    pub(crate) fn msix_control(&self) -> (bool, bool) {
        let control = self.bytes[caps::MSIX + 3];
        (control & 0x80 != 0, control & 0x40 != 0)
    }
    /// Whether PASIDs are in use: the capability is there and enabled.
    pub(crate) fn pasid_enabled(&self) -> bool {
        self.bytes[caps::PASID + 6] & 1 != 0
    }
    /// Where the window points; `None` unless its length is 1, 2 or 4 and its offset a multiple of
    /// that (VIRTIO 1.4, "PCI configuration access capability").
    pub(crate) fn window(&self) -> Option<Window> {
        let cap = &self.bytes[caps::PCI_CFG..DATA.end];
        let offset = number(&cap[8..12])?;
        let length = usize::try_from(number(&cap[12..16])?).ok()?;
        let data = cap[16..].first_chunk().copied()?;
        let aligned = matches!(length, 1 | 2 | 4)
            && usize::try_from(offset).is_ok_and(|offset| offset.is_multiple_of(length));
        aligned.then_some(Window {
            bar: cap[4],
            offset: offset.into(),
            length,
            data,
        })
    }
    /// What was read through the window.
    pub(crate) fn set_window_data(&mut self, data: &[u8]) {
        let len = data.len().min(DATA.len());
        self.put(DATA.start, &data[..len]);
    }
}

/// `pci_cfg_data`. An access to any byte of it carries out the access that the window describes, as
/// QEMU has it.
pub(crate) const DATA: Range<usize> = caps::PCI_CFG + 16..caps::PCI_CFG + 20;

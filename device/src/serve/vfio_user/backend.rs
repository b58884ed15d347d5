//! What each message does to the function.

use super::interrupts::{EventFds, Request};
use super::{RESET_WAIT, region_size};
use crate::function::PciFunction;
use std::fs::File;
use std::io;
use std::sync::Arc;
use vfio_bindings::bindings::vfio::{VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, ServerBackend};
use vm_memory::Permissions;

/// The most data that a client may ask for in one message; the crate announces it.
const DATA_MAX: usize = 1 << 20;

/// One client's hold on the function.
#[derive(Debug)]
pub(super) struct Backend {
    function: Arc<PciFunction>,
    eventfds: Arc<EventFds>,
}

impl Backend {
    pub(super) fn new(function: Arc<PciFunction>, eventfds: Arc<EventFds>) -> Self {
        Self { function, eventfds }
    }
}

/// Whether the access lies within the region; the crate does not look.
fn within(region: u32, offset: u64, len: usize) -> bool {
    let end = u64::try_from(len)
        .ok()
        .and_then(|len| offset.checked_add(len));
    let fits = end.is_some_and(|end| end <= region_size(region));
    if !fits {
        tracing::warn!(region, offset, len, "an access beyond its region");
    }
    fits
}

impl ServerBackend for Backend {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        if !within(region, offset, data.len()) {
            // Zeroes beyond the announced limit: to fill 4 GiB would cost that much memory.
            if data.len() <= DATA_MAX {
                data.fill(0xff);
            }
        } else if region == VFIO_PCI_CONFIG_REGION_INDEX {
            if let Ok(offset) = u16::try_from(offset) {
                self.function.config_read(offset, data);
            }
        } else if let Ok(bar) = u8::try_from(region) {
            self.function.bar_read(bar, offset, data);
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        if !within(region, offset, data.len()) {
        } else if region == VFIO_PCI_CONFIG_REGION_INDEX {
            if let Ok(offset) = u16::try_from(offset) {
                self.function.config_write(offset, data);
            }
        } else if let Ok(bar) = u8::try_from(region) {
            self.function.bar_write(bar, offset, data);
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        let dma = self.function.dma();
        let perm = match (
            flags.contains(DmaMapFlags::READ),
            flags.contains(DmaMapFlags::WRITE),
        ) {
            (true, true) => Permissions::ReadWrite,
            (true, false) => Permissions::Read,
            (false, true) => Permissions::Write,
            (false, false) => Permissions::No,
        };
        let Some(file) = fd.filter(|_| perm != Permissions::No) else {
            // ROM and flash: nothing that a device has business with. Whatever was there is gone.
            tracing::debug!(address, size, "a map without memory");
            dma.unmap(address, size);
            return Ok(());
        };
        if let Err(error) = dma.map(address, size, &file, offset, perm) {
            tracing::warn!(%error, "a map was refused; the range stays without memory");
            // The client thinks that it replaced what was there: better a fault than a write there.
            dma.unmap(address, size);
        }
        Ok(())
    }

    /// Returns when nothing goes through the maps any more: the client may reuse the memory then.
    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        let (address, size) = if flags.contains(DmaUnmapFlags::UNMAP_ALL) {
            (0, u64::MAX)
        } else {
            (address, size)
        };
        self.function.dma().unmap(address, size);
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        if !self.function.reset_and_wait(RESET_WAIT) {
            tracing::warn!("a reset was not finished in {RESET_WAIT:?}; it goes on");
        }
        self.eventfds.forget_pending();
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> io::Result<()> {
        if index != VFIO_PCI_MSIX_IRQ_INDEX {
            tracing::debug!(index, flags, "interrupts that the function does not have");
            return Ok(());
        }
        match Request::parse(flags, start, count) {
            Some(request) => self.eventfds.carry_out(request, fds),
            None => tracing::warn!(flags, start, count, "a SET_IRQS that was not understood"),
        }
        Ok(())
    }
}

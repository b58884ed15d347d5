//! What each message means, judged before it goes to what is served.

use super::served::{IrqRequest, Map, Served};
use super::{CONFIG_SIZE, region_size};
use std::fs::File;
use std::io;
use std::sync::Arc;
use vfio_bindings::bindings::vfio::{VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, ServerBackend};
use vm_memory::Permissions;

/// The most data that a client may ask for in one message; the crate announces it.
const DATA_MAX: usize = 1 << 20;

/// One client's hold on what is served.
#[derive(Debug)]
pub(super) struct Backend(pub(super) Arc<dyn Served>);

impl Backend {
    /// Whether the access lies within the region; the crate does not look.
    fn within(&self, region: u32, offset: u64, len: usize) -> bool {
        let size = region_size(&*self.0, region);
        let end = u64::try_from(len)
            .ok()
            .and_then(|len| offset.checked_add(len));
        let fits = len <= DATA_MAX && end.is_some_and(|end| end <= size);
        if !fits {
            tracing::warn!(region, offset, len, "an access beyond its region");
        }
        fits
    }
}

/// The offset of an access to configuration space that was found to lie within it.
fn config(offset: u64) -> Option<u16> {
    const _: () = assert!(CONFIG_SIZE <= 1 << 16);
    u16::try_from(offset).ok()
}

impl ServerBackend for Backend {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        if !self.within(region, offset, data.len()) {
            // Zeroes beyond the announced limit: to fill 4 GiB would cost that much memory.
            if data.len() <= DATA_MAX {
                data.fill(0xff);
            }
        } else if region == VFIO_PCI_CONFIG_REGION_INDEX {
            if let Some(offset) = config(offset) {
                self.0.config_read(offset, data);
            }
        } else if let Ok(bar) = u8::try_from(region) {
            self.0.bar_read(bar, offset, data);
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        if !self.within(region, offset, data.len()) {
        } else if region == VFIO_PCI_CONFIG_REGION_INDEX {
            if let Some(offset) = config(offset) {
                self.0.config_write(offset, data);
            }
        } else if let Ok(bar) = u8::try_from(region) {
            self.0.bar_write(bar, offset, data);
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
        let perm = match (
            flags.contains(DmaMapFlags::READ),
            flags.contains(DmaMapFlags::WRITE),
        ) {
            (true, true) => Permissions::ReadWrite,
            (true, false) => Permissions::Read,
            (false, true) => Permissions::Write,
            (false, false) => Permissions::No,
        };
        self.0.map(Map {
            iova: address,
            size,
            perm,
            memory: fd
                .filter(|_| perm != Permissions::No)
                .map(|file| (file, offset)),
        });
        Ok(())
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        let (address, size) = if flags.contains(DmaUnmapFlags::UNMAP_ALL) {
            (0, u64::MAX)
        } else {
            (address, size)
        };
        self.0.unmap(address, size);
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.0.reset();
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
        match IrqRequest::parse(flags, start, count) {
            Some(request) => self.0.interrupts(request, fds),
            None => tracing::warn!(flags, start, count, "a SET_IRQS that was not understood"),
        }
        Ok(())
    }
}

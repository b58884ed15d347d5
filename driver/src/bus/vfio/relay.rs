//! Somebody else's memory and interrupts passed on to a function behind VFIO.

use super::{VfioBus, raw, unreachable};
use crate::bus::{Access, Bus, BusError, RelayBus};
use crate::memory::DmaMemory;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::PoisonError;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR5_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};

const MAPPING: &str = "mapping memory";
const UNMAPPING: &str = "unmapping memory";

fn refused(doing: &'static str, source: io::Error) -> BusError {
    BusError::Refused { doing, source }
}

impl RelayBus for VfioBus {
    fn bar_size(&self, bar: u8) -> u64 {
        let region = VFIO_PCI_BAR0_REGION_INDEX + u32::from(bar);
        if region > VFIO_PCI_BAR5_REGION_INDEX {
            return 0;
        }
        self.device.get_region_size(region)
    }

    fn vectors(&self) -> u16 {
        let info = self.device.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX);
        info.map_or(0, |info| u16::try_from(info.count.min(2048)).unwrap_or(0))
    }

    /// Memory that the device may only read is refused: vfio-ioctls maps none so, and a device
    /// that could write there would break a promise.
    fn map(
        &self,
        iova: u64,
        size: u64,
        access: Access,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<(), BusError> {
        let failed = |source| refused(MAPPING, source);
        if access == Access::Read {
            let why = "memory that a device may only read cannot be mapped through VFIO here";
            return Err(failed(io::Error::new(io::ErrorKind::Unsupported, why)));
        }
        // VFIO has no map in place of another.
        self.unmap(iova, size)?;
        let file = file.try_clone_to_owned().map(File::from).map_err(failed)?;
        let memory = DmaMemory::from_file(&file, offset, size, iova).map_err(failed)?;
        let mut held = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        raw::map(&*self.container, &memory).map_err(|error| failed(io::Error::other(error)))?;
        held.relayed.insert(iova, memory);
        Ok(())
    }

    /// Maps are unmapped whole: VFIO cuts none.
    fn unmap(&self, iova: u64, size: u64) -> Result<(), BusError> {
        let end = iova.saturating_add(size);
        let mut held = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let first = held.relayed.range(..iova).next_back();
        let before = first.filter(|(at, memory)| **at + memory.len() > iova);
        let start = before.map_or(iova, |(at, _)| *at);
        let inside: Vec<u64> = held.relayed.range(start..end).map(|(at, _)| *at).collect();
        for at in inside {
            let Some(memory) = held.relayed.get(&at) else {
                continue;
            };
            if at < iova || at + memory.len() > end {
                let why = format!("{memory:?} would be cut, and VFIO cuts no map");
                return Err(refused(UNMAPPING, io::Error::other(why)));
            }
            raw::unmap(&*self.container, memory)
                .map_err(|error| refused(UNMAPPING, io::Error::other(error)))?;
            held.relayed.remove(&at);
        }
        Ok(())
    }

    fn connect_vector(&self, vector: u16, event: Option<BorrowedFd<'_>>) -> Result<(), BusError> {
        let vectors = self.vectors();
        if vector >= vectors {
            return Err(BusError::Exhausted {
                what: format!("interrupt vector {vector}"),
                why: format!("the function has {vectors}"),
            });
        }
        let failed = unreachable("connecting interrupts");
        let mut enabled = self.relaying.lock().unwrap_or_else(PoisonError::into_inner);
        if !*enabled {
            if event.is_none() {
                return Ok(());
            }
            // The first call decides how many there are; older kernels add none later.
            let mut events = vec![None; usize::from(vectors)];
            if let Some(slot) = events.get_mut(usize::from(vector)) {
                *slot = event;
            }
            raw::set_vectors(self.file.as_fd(), 0, &events).map_err(failed)?;
            *enabled = true;
            return Ok(());
        }
        raw::set_vectors(self.file.as_fd(), vector.into(), &[event]).map_err(failed)
    }

    /// A write to a BAR is posted by its nature.
    fn bar_post(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError> {
        self.bar_write(bar, offset, data)
    }

    fn hangup(&self) -> Option<OwnedFd> {
        None
    }
}

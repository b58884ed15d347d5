//! A function behind Linux's VFIO: real hardware, or what a virtual machine takes for it.
//!
//! Regions are read and written at their offsets in the device's descriptor, not through
//! vfio-ioctls' `region_read` and `region_write`, which log what goes wrong and return nothing.

mod iova;
mod msix;
mod open;
mod raw;
mod relay;

pub use open::{Address, OpenError};

use super::{Bus, BusError, Interrupt};
use crate::memory::DmaMemory;
use iova::IovaSpace;
use msix::Vectors;
use rustix::fs::MemfdFlags;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR5_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_ioctls::{VfioDevice, VfioOps};

/// A function bound to `vfio-pci`, in a container of its own.
pub struct VfioBus {
    address: Address,
    /// The device's descriptor. Before the device: while it is open the group cannot be given back.
    file: File,
    device: VfioDevice,
    container: Arc<dyn VfioOps>,
    memory: Mutex<Memory>,
    vectors: Mutex<Option<Vectors>>,
    /// Interrupts are enabled, and go to eventfds of somebody else's.
    relaying: Mutex<bool>,
}

/// What the device reaches.
struct Memory {
    space: IovaSpace,
    /// What is mapped, kept for as long.
    mapped: Vec<DmaMemory>,
    /// What somebody else had mapped, by IOVA.
    relayed: BTreeMap<u64, DmaMemory>,
}

impl fmt::Debug for VfioBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VfioBus({})", self.address)
    }
}

impl VfioBus {
    /// Takes the function at `address` from `vfio-pci`.
    ///
    /// # Errors
    /// [`OpenError`], which says what to do.
    pub fn open(address: Address) -> Result<Arc<Self>, OpenError> {
        Self::open_with(address, 0)
    }

    /// As [`open`](Self::open); memory of the bus's own is mapped from `own` on.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(address: Address, own: u64) -> Result<Arc<Self>, OpenError> {
        let found = open::locate(Path::new("/sys"), Path::new("/dev"), address)?;
        let (device, container) = open::device(&found)?;
        let failed = |doing| move |source| OpenError::System { doing, source };
        let file = raw::duplicate(&device).map_err(failed("keep the device open"))?;
        Ok(Arc::new(Self {
            address,
            file: file.into(),
            device,
            container,
            memory: Mutex::new(Memory {
                space: IovaSpace::from(own, &found.reserved),
                mapped: Vec::new(),
                relayed: BTreeMap::new(),
            }),
            vectors: Mutex::new(None),
            relaying: Mutex::new(false),
        }))
    }

    /// Where the function is.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Offset of an access in the device's descriptor, if it lies within its region and the region
    /// can be accessed so.
    fn locate(&self, region: u32, offset: u64, len: usize, access: u32) -> Option<u64> {
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        let fits = end <= self.device.get_region_size(region)
            && self.device.get_region_flags(region) & access != 0;
        let start = self.device.get_region_offset(region).checked_add(offset);
        start.filter(|_| fits)
    }

    fn bar(&self, bar: u8, offset: u64, len: usize, access: u32) -> Result<u64, BusError> {
        let region = VFIO_PCI_BAR0_REGION_INDEX + u32::from(bar);
        let inside = (region <= VFIO_PCI_BAR5_REGION_INDEX)
            .then(|| self.locate(region, offset, len, access));
        inside
            .flatten()
            .ok_or(BusError::OutOfRange { bar, offset, len })
    }

    fn config(&self, offset: u16, len: usize, access: u32) -> Option<u64> {
        self.locate(VFIO_PCI_CONFIG_REGION_INDEX, u64::from(offset), len, access)
    }
}

fn unreachable(doing: &'static str) -> impl FnOnce(io::Error) -> BusError {
    move |source| BusError::Unreachable { doing, source }
}

impl Bus for VfioBus {
    /// A conventional function has 256 bytes; beyond them everything reads as absent.
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), BusError> {
        match self.config(offset, data.len(), VFIO_REGION_INFO_FLAG_READ) {
            Some(at) => self
                .file
                .read_exact_at(data, at)
                .map_err(unreachable("reading configuration space")),
            None => {
                data.fill(0);
                Ok(())
            }
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), BusError> {
        match self.config(offset, data.len(), VFIO_REGION_INFO_FLAG_WRITE) {
            Some(at) => self
                .file
                .write_all_at(data, at)
                .map_err(unreachable("writing configuration space")),
            None => Ok(()),
        }
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        let at = self.bar(bar, offset, data.len(), VFIO_REGION_INFO_FLAG_READ)?;
        self.file
            .read_exact_at(data, at)
            .map_err(unreachable("reading a BAR"))
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError> {
        let at = self.bar(bar, offset, data.len(), VFIO_REGION_INFO_FLAG_WRITE)?;
        self.file
            .write_all_at(data, at)
            .map_err(unreachable("writing a BAR"))
    }

    /// The memory stays mapped, and pinned, until the bus is dropped.
    fn dma_alloc(&self, len: u64) -> Result<DmaMemory, BusError> {
        let refused = |why: String| BusError::Exhausted {
            what: format!("{len} bytes of memory"),
            why,
        };
        let size = len
            .checked_next_multiple_of(iova::PAGE)
            .filter(|size| *size != 0)
            .ok_or_else(|| refused("at least one byte was expected".to_owned()))?;
        let file = rustix::fs::memfd_create("tidemark-dma", MemfdFlags::CLOEXEC)
            .map(File::from)
            .map_err(|error| refused(error.to_string()))?;
        file.set_len(size)
            .map_err(|error| refused(error.to_string()))?;
        let mut held = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let iova = held
            .space
            .take(size)
            .ok_or_else(|| refused("no IOVA range as long as that is left".to_owned()))?;
        let memory = DmaMemory::from_file(&file, 0, size, iova)
            .map_err(|error| refused(error.to_string()))?;
        raw::map(&*self.container, &memory).map_err(|error| {
            refused(format!(
                "{error}; memory for a device is locked, `ulimit -l unlimited` may be needed"
            ))
        })?;
        held.mapped.push(memory.clone());
        Ok(memory)
    }

    /// All vectors are connected with the first one that is asked for: they can be added one by one
    /// only by taking all of them away for a moment.
    fn interrupt(&self, vector: u16) -> Result<Arc<dyn Interrupt>, BusError> {
        let mut vectors = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
        let connected = match &*vectors {
            Some(connected) => connected,
            None => vectors.insert(Vectors::connect(&self.device)?),
        };
        connected.line(vector)
    }

    /// Interrupts are disconnected first, whatever becomes of the reset: a receiving end from before
    /// it is told of nothing more.
    fn reset(&self) -> Result<(), BusError> {
        let mut vectors = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
        if vectors.take().is_some() {
            self.device
                .disable_irq(VFIO_PCI_MSIX_IRQ_INDEX)
                .map_err(|error| BusError::Refused {
                    doing: "to disconnect interrupts",
                    source: io::Error::other(error.to_string()),
                })?;
        }
        drop(vectors);
        if !open::can_reset(Path::new("/sys"), self.address) {
            return Err(BusError::Exhausted {
                what: "a reset of the function".to_owned(),
                why: format!(
                    "Linux knows no way to reset {} (it has no function level reset); reset the \
                     virtio device instead",
                    self.address
                ),
            });
        }
        // Returns nothing; a function that has gone reads as ones.
        self.device.reset();
        let mut vendor = [0; 2];
        self.config_read(0, &mut vendor)?;
        if vendor == [0xff; 2] {
            let gone = io::Error::other("the function no longer answers");
            return Err(unreachable("resetting the function")(gone));
        }
        Ok(())
    }
}

impl Drop for VfioBus {
    fn drop(&mut self) {
        let held = self
            .memory
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let relayed = std::mem::take(&mut held.relayed).into_values();
        for memory in held.mapped.drain(..).chain(relayed) {
            if let Err(error) = raw::unmap(&*self.container, &memory) {
                tracing::warn!(%error, ?memory, "cannot be unmapped");
            }
        }
    }
}

//! How a driver reaches a PCI function: configuration space, BARs, memory, interrupts, reset.

pub mod vfio;
pub mod vfio_user;

pub use vfio::VfioBus;
pub use vfio_user::VfioUserBus;

use crate::memory::DmaMemory;
use std::fmt::Debug;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// What can go wrong between a driver and its function. None of these is a statement about virtio.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The function or the way to it is gone; nothing further will succeed on this bus.
    #[error("the device cannot be reached while {doing}: {source}")]
    Unreachable {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The function is there and answers that it will not do this. Others may succeed.
    #[error("the device refuses {doing}: {source}")]
    Refused {
        /// What was asked of it.
        doing: &'static str,
        /// The error that it gave.
        source: std::io::Error,
    },
    /// The access does not fit: no such BAR, or beyond its end.
    #[error("BAR {bar} has no {len} bytes at {offset:#x}")]
    OutOfRange {
        /// BAR number.
        bar: u8,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: usize,
    },
    /// The bus cannot give this much memory, or this vector.
    #[error("the bus cannot give {what}: {why}")]
    Exhausted {
        /// What was asked for.
        what: String,
        /// Why not.
        why: String,
    },
}

/// A PCI function as its driver sees it.
///
/// Accesses are little-endian and are carried out as given: a bus neither splits nor widens them.
pub trait Bus: Send + Sync + Debug {
    /// Reads `data.len()` bytes of configuration space (4096 bytes) at `offset`.
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), BusError>;
    /// Writes configuration space.
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), BusError>;
    /// Reads `data.len()` bytes (1, 2, 4 or 8) of BAR `bar` at `offset`.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), BusError>;
    /// Writes to a BAR.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError>;
    /// Gives `len` bytes of zeroed memory that the device can reach, page-aligned.
    fn dma_alloc(&self, len: u64) -> Result<DmaMemory, BusError>;
    /// Gives the receiving end of MSI-X vector `vector`. Programming the function's MSI-X table,
    /// where that is the driver's business, is the bus's business.
    fn interrupt(&self, vector: u16) -> Result<Arc<dyn Interrupt>, BusError>;
    /// Function-level reset; returns when it is complete.
    fn reset(&self) -> Result<(), BusError>;
}

/// The receiving end of one interrupt vector.
pub trait Interrupt: Send + Sync + Debug {
    /// Waits until the vector fires or `timeout` passes; true if it fired since the last call.
    fn wait(&self, timeout: Duration) -> bool;
}

/// What a device may do with memory that is mapped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it only.
    Read,
    /// Write it only.
    Write,
    /// Read and write it.
    ReadWrite,
}

/// What one who stands between a VMM and a function needs besides [`Bus`]: to pass on the VMM's
/// memory and interrupts instead of having its own.
pub trait RelayBus: Bus {
    /// Bytes of a BAR, 0 to 5; 0 if there is none.
    fn bar_size(&self, bar: u8) -> u64;
    /// MSI-X vectors.
    fn vectors(&self) -> u16;
    /// Maps `size` bytes of `file` from `offset` for the device at `iova`.
    ///
    /// # Errors
    /// [`BusError::Refused`] if the device cannot reach it: nothing is mapped there then.
    fn map(
        &self,
        iova: u64,
        size: u64,
        access: Access,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<(), BusError>;
    /// Unmaps what lies in the range; returns when the device does not reach it any more.
    ///
    /// # Errors
    /// As the bus has it; it is not known then what the device reaches.
    fn unmap(&self, iova: u64, size: u64) -> Result<(), BusError>;
    /// Connects an eventfd to an MSI-X vector, or disconnects the one it has.
    ///
    /// # Errors
    /// [`BusError::Exhausted`] if there is no such vector, or as the bus has it.
    fn connect_vector(&self, vector: u16, event: Option<BorrowedFd<'_>>) -> Result<(), BusError>;
    /// Writes to a BAR without waiting for the device, in order with all other accesses: for
    /// doorbells.
    ///
    /// # Errors
    /// [`BusError::Unreachable`]; that the write was lost may show only at the next access.
    fn bar_post(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError>;
    /// A descriptor that polls as hung up once the device has gone, where there is one.
    fn hangup(&self) -> Option<OwnedFd>;
}

//! How a driver reaches a PCI function: configuration space, BARs, memory, interrupts, reset.

pub mod vfio;

pub use vfio::VfioBus;

use crate::memory::DmaMemory;
use std::fmt::Debug;
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

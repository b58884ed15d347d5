//! The one door to guest memory.
//!
//! Nothing in this crate writes guest memory but through here. [`Dma::enter`] opens the door for
//! one burst of work; while the guard lives no map changes, so it is never held across disk I/O.
//! Rings and other small fields go through the guard as vm-memory's `GuestMemory` and are marked as
//! they are written; bulk data goes through [`Burst`], which marks after everything has landed.

use crate::tracker::TrackerConfig;
use std::fs::File;
use std::marker::PhantomData;
use vm_memory::Permissions;

/// Why a map or an access failed.
#[derive(Debug, thiserror::Error)]
pub enum DmaError {
    /// Part of the range is not mapped, or not for this kind of access.
    #[error("no {access:?} access to {len} bytes at IOVA {iova:#x}")]
    Fault {
        /// First address.
        iova: u64,
        /// Bytes.
        len: usize,
        /// What was wanted.
        access: Permissions,
    },
    /// The map cannot be made.
    #[error("cannot map {size:#x} bytes at IOVA {iova:#x}: {why}")]
    BadMap {
        /// First address.
        iova: u64,
        /// Bytes.
        size: u64,
        /// Why not.
        why: String,
    },
}

/// Guest memory as the device reaches it.
#[derive(Debug)]
pub struct Dma {}

impl Dma {
    /// No maps, tracking off.
    pub fn new() -> Self {
        unimplemented!()
    }
    /// Maps `size` bytes of `file` from `offset` at `iova`. Replaces what was mapped there.
    pub fn map(&self, _iova: u64, _size: u64, _file: &File, _offset: u64, _perm: Permissions) -> Result<(), DmaError> {
        unimplemented!()
    }
    /// Removes all maps in the range; returns when nothing goes through them any more.
    pub fn unmap(&self, _iova: u64, _size: u64) {
        unimplemented!()
    }
    /// Opens the door for one burst of work.
    pub fn enter(&self) -> DmaGuard<'_> {
        unimplemented!()
    }
    /// Puts a new tracker configuration in force; returns when no mark of the old one can follow.
    pub fn set_tracker(&self, _config: TrackerConfig) {
        unimplemented!()
    }
}

/// The door, open. Implements vm-memory's `GuestMemory`: writes through that are marked at once.
#[derive(Debug)]
pub struct DmaGuard<'a>(PhantomData<&'a ()>);

impl DmaGuard<'_> {
    /// Copies guest memory out.
    pub fn read(&self, _iova: u64, _into: &mut [u8]) -> Result<(), DmaError> {
        unimplemented!()
    }
    /// Starts a burst of bulk writes.
    pub fn burst(&self) -> Burst<'_> {
        unimplemented!()
    }
}

/// Bulk writes whose marks are set together, after all data has landed: on [`Burst::commit`], or
/// when dropped.
#[derive(Debug)]
pub struct Burst<'a>(PhantomData<&'a ()>);

impl Burst<'_> {
    /// Stores `data` at `iova`. Nothing is stored if any part of the range is not writable.
    pub fn write(&mut self, _iova: u64, _data: &[u8]) -> Result<(), DmaError> {
        unimplemented!()
    }
    /// Stores zeroes.
    pub fn zero(&mut self, _iova: u64, _len: usize) -> Result<(), DmaError> {
        unimplemented!()
    }
    /// Sets the marks. To be called before the used ring is published.
    pub fn commit(self) {}
}

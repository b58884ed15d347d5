//! Guest memory that a frontend shares with its backend.

use super::VhostUserError;
use crate::dirty::PAGE_SIZE;
use crate::memory::DmaMemory;
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

/// One memory file of zeroes at a guest address.
///
/// Clones share the file. It outlives connections: a backend that takes over from another one is
/// given the same memory.
#[derive(Clone, Debug)]
pub struct SharedMemory {
    file: Arc<File>,
    window: DmaMemory,
}

impl SharedMemory {
    /// `len` bytes of zeroes at guest address `address`; both are multiples of
    /// [`PAGE_SIZE`](crate::dirty::PAGE_SIZE).
    ///
    /// # Errors
    /// [`VhostUserError::Address`] for numbers that are none, are not page-grained or wrap;
    /// [`VhostUserError::Setup`] if the system has no such memory.
    pub fn new(address: u64, len: u64) -> Result<Self, VhostUserError> {
        let refused = |why| VhostUserError::Address {
            what: "memory",
            address,
            why,
        };
        if len == 0 || !(len | address).is_multiple_of(PAGE_SIZE) {
            return Err(refused("address and length are to be whole pages"));
        }
        if address.checked_add(len).is_none() {
            return Err(refused("address and length wrap"));
        }
        let make = || -> std::io::Result<_> {
            let file = memory_file("tidemark-guest", len)?;
            let window = DmaMemory::from_file(&file, 0, len, address)?;
            Ok((file, window))
        };
        let (file, window) = make().map_err(|source| VhostUserError::Setup {
            what: "create shared memory",
            source,
        })?;
        Ok(Self {
            file: Arc::new(file),
            window,
        })
    }

    /// All of it.
    pub fn window(&self) -> &DmaMemory {
        &self.window
    }

    /// The guest addresses it has.
    pub fn range(&self) -> Range<u64> {
        // `new` has shown that the sum does not wrap.
        self.window.iova()..self.window.iova().saturating_add(self.window.len())
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// An anonymous file of zeroes.
pub(super) fn memory_file(name: &str, len: u64) -> std::io::Result<File> {
    let file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.set_len(len)?;
    Ok(file)
}

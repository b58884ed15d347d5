//! The vhost log: the same bitmap as the tracker's at 4 KiB, but in a file of its own that the
//! frontend shares, not in guest memory.
//!
//! Bit n % 8 of byte n / 8 stands for the 4 KiB page n from guest physical address 0 on. The log is
//! owned apart from the memory map, so that a new memory table loses no mark.

use super::{Marking, Window};
use crate::mapping::Mapped;
use std::fs::File;
use std::io;

/// Why a log is refused.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log's words would not lie on multiples of 8 in memory.
    #[error("a log at offset {offset:#x} of its file; a multiple of 8 expected")]
    Offset {
        /// Where it was to begin.
        offset: u64,
    },
    /// The file cannot be mapped for writing: it is too short, or its pages are read-only.
    #[error("the log of {size:#x} bytes at offset {offset:#x} cannot be mapped writable: {error}")]
    Map {
        /// Where it was to begin, in bytes.
        offset: u64,
        /// Its bytes.
        size: u64,
        /// What the system said.
        error: io::Error,
    },
}

/// A log, mapped.
#[derive(Debug)]
pub struct DirtyLog {
    mapped: Mapped,
    bytes: u64,
    marking: Marking,
}

impl DirtyLog {
    /// Maps `size` bytes of `file` from `offset` on. Pages beyond its last bit are not marked, and
    /// counted. With [`Marking::Off`] none is marked.
    ///
    /// # Errors
    ///
    /// [`LogError`].
    pub fn open(file: &File, offset: u64, size: u64, marking: Marking) -> Result<Self, LogError> {
        if !offset.is_multiple_of(8) {
            return Err(LogError::Offset { offset });
        }
        let mapped = Mapped::new(file, offset, size).map_err(|error| LogError::Map {
            offset,
            size,
            error,
        })?;
        Ok(Self {
            mapped,
            bytes: size,
            marking,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn marking(&self) -> Marking {
        self.marking
    }

    /// The way to its bytes, for as long as `self` lives.
    pub(super) fn window(&self) -> Option<Window> {
        Window::new(self.mapped.as_ptr(), &self.mapped.slice()?, 0)
    }
}

//! Guest memory straight into and out of a connection.

use driver::memory::DmaMemory;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

/// Writes bytes of guest memory without a copy of them, where it can.
pub trait GatherWrite: Write {
    /// Writes all of `head`, then of `ranges` (offset, length) of `memory`.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for a range outside.
    fn write_gathered(
        &mut self,
        head: &[u8],
        memory: &DmaMemory,
        ranges: &[(u64, usize)],
    ) -> io::Result<()>;
}

/// Reads bytes into guest memory without a copy of them, where it can.
pub trait ScatterRead: Read {
    /// Fills `ranges` (offset, length) of `memory`. Returns the bytes that came: fewer than there is
    /// room for only where the stream ends.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for a range outside.
    fn read_scattered(&mut self, memory: &DmaMemory, ranges: &[(u64, usize)]) -> io::Result<usize>;
}

impl<T: Write + AsFd> GatherWrite for T {
    fn write_gathered(
        &mut self,
        head: &[u8],
        memory: &DmaMemory,
        ranges: &[(u64, usize)],
    ) -> io::Result<()> {
        memory.write_all_to(self.as_fd(), head, ranges)
    }
}

impl<T: Read + AsFd> ScatterRead for T {
    fn read_scattered(&mut self, memory: &DmaMemory, ranges: &[(u64, usize)]) -> io::Result<usize> {
        memory.read_from(self.as_fd(), ranges)
    }
}

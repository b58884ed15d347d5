//! What several of this crate's tests need.

use std::fs::File;

/// An anonymous file of `len` zero bytes.
pub(crate) fn memfd(len: u64) -> File {
    let fd = rustix::fs::memfd_create("driver-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(len).unwrap();
    file
}

/// Zeroed memory that the device would know at `iova`.
pub(crate) fn memory(len: u64, iova: u64) -> crate::memory::DmaMemory {
    crate::memory::DmaMemory::from_file(&memfd(len), 0, len, iova).unwrap()
}

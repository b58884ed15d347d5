//! What the compiler cannot check: descriptors that another crate only shows as numbers, and
//! mapping memory for a device.

#![expect(
    unsafe_code,
    reason = "a device writes memory that it has been given, and vfio-ioctls gives raw descriptors"
)]

use crate::memory::DmaMemory;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use vfio_ioctls::{VfioError, VfioOps};

/// Another descriptor of the same open file.
pub(super) fn duplicate(owner: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: `owner` is a type of vfio-ioctls or vmm-sys-util that owns its descriptor and keeps it
    // open for as long as it lives; it is borrowed for this call, and so is the result.
    let borrowed = unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) };
    borrowed.try_clone_to_owned()
}

/// Lets the device reach `memory` at its IOVA. The caller keeps `memory` until it is unmapped.
pub(super) fn map(container: &dyn VfioOps, memory: &DmaMemory) -> Result<(), VfioError> {
    let size = memory.bytes().len();
    // SAFETY: from here on the device may read and write the memory at any time. That is what a
    // `DmaMemory` is for: it is a shared mapping of a file of which no reference to plain bytes
    // ever exists, only atomics and volatile copies (see `memory/raw.rs`), so nothing in this
    // process assumes that it stays as it is. The range is the window's own, mapped for as long as
    // `memory` lives; should it go earlier, the device keeps the file's pages, which are pinned and
    // given to nobody else.
    unsafe { container.vfio_dma_map(memory.iova(), size, memory.as_ptr()) }
}

/// Takes `memory` from the device.
pub(super) fn unmap(container: &dyn VfioOps, memory: &DmaMemory) -> Result<(), VfioError> {
    container.vfio_dma_unmap(memory.iova(), memory.bytes().len())
}

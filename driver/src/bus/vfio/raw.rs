//! What the compiler cannot check: descriptors that another crate only shows as numbers, mapping
//! memory for a device, and the one call of VFIO that vfio-ioctls does not have in this form.

#![expect(
    unsafe_code,
    reason = "a device writes memory that it has been given, and vfio-ioctls gives raw descriptors"
)]

use crate::memory::DmaMemory;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_MSIX_IRQ_INDEX,
};
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
    // From here on the device may read and write the memory at any time. The range is the window's
    // own, mapped for as long as `memory` lives; should it go earlier, the device keeps the file's
    // pages, which are pinned and given to nobody else.
    //
    // SAFETY: a `DmaMemory` is a shared mapping of a file of which no reference to plain bytes ever
    // exists, only atomics and volatile copies (`memory/raw.rs`): nobody assumes that it stays.
    unsafe { container.vfio_dma_map(memory.iova(), size, memory.as_ptr()) }
}

/// Takes `memory` from the device.
pub(super) fn unmap(container: &dyn VfioOps, memory: &DmaMemory) -> Result<(), VfioError> {
    container.vfio_dma_unmap(memory.iova(), memory.bytes().len())
}

/// `struct vfio_irq_set` with the eventfds of up to [`VECTORS`] vectors behind it.
#[repr(C)]
struct IrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    fds: [i32; VECTORS],
}

/// Most vectors that [`set_vectors`] sets at once: all that MSI-X can have.
const VECTORS: usize = 2048;
/// `_IO(VFIO_TYPE, VFIO_BASE + 10)`.
const SET_IRQS: libc::c_ulong = 0x3b6e;

/// Connects vectors from `start` on to eventfds, or takes those away that they have. The kernel keeps
/// the eventfds by itself.
pub(super) fn set_vectors(
    device: BorrowedFd<'_>,
    start: u32,
    events: &[Option<BorrowedFd<'_>>],
) -> io::Result<()> {
    let mut set = IrqSet {
        argsz: u32::try_from(size_of::<IrqSet>()).unwrap_or(u32::MAX),
        flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
        index: VFIO_PCI_MSIX_IRQ_INDEX,
        start,
        count: u32::try_from(events.len()).unwrap_or(u32::MAX),
        fds: [-1; VECTORS],
    };
    if events.len() > VECTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (fd, event) in set.fds.iter_mut().zip(events) {
        *fd = event.map_or(-1, |event| event.as_raw_fd());
    }
    // SAFETY: the call reads `argsz` bytes, which is the whole of `set`, of which all fields are
    // integers that are set; it writes none. It takes descriptors by number, which are open because
    // they are borrowed, or -1.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), SET_IRQS, &raw const set) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

//! What a server needs of what it serves.

use std::fmt::Debug;
use std::fs::File;
use std::ops::Range;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
};
use vm_memory::Permissions;

/// Memory that a client lets the device reach.
#[derive(Debug)]
pub struct Map {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// What the device may do there.
    pub perm: Permissions,
    /// The memory file, and where in it the range begins. `None` for ROM and flash, whose maps come
    /// without a descriptor: nothing that a device has business with.
    pub memory: Option<(File, u64)>,
}

/// What one SET_IRQS message asks for, of MSI-X. Vectors that do not exist are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IrqRequest {
    /// No vector has an eventfd any more.
    DisableAll,
    /// These vectors get the eventfds of the message; those for which there is none lose theirs.
    Connect(Range<usize>),
    /// Raise these vectors, as if the device had.
    Trigger(Range<usize>),
}

impl IrqRequest {
    /// None if it is none of the forms that VFIO defines for vectors that cannot be masked.
    pub fn parse(flags: u32, start: u32, count: u32) -> Option<Self> {
        const DISABLE_OR_TRIGGER: u32 = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        const CONNECT: u32 = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let start = usize::try_from(start).ok()?;
        let vectors = start..start.checked_add(usize::try_from(count).ok()?)?;
        match (flags, count) {
            (DISABLE_OR_TRIGGER, 0) => Some(Self::DisableAll),
            (DISABLE_OR_TRIGGER, _) => Some(Self::Trigger(vectors)),
            (CONNECT, _) => Some(Self::Connect(vectors)),
            _ => None,
        }
    }
}

/// A PCI function as its client sees it: one call for each message, in the order of the messages.
///
/// The server has judged what it can: accesses lie within their region and are at most a megabyte
/// long. Nothing can be answered with an error, so every call is total.
pub trait Served: Send + Sync + Debug {
    /// Bytes of a BAR, 0 to 5; 0 if there is none. Does not change.
    fn bar_size(&self, bar: u8) -> u64;
    /// MSI-X vectors. Does not change.
    fn vectors(&self) -> u16;
    /// The client has gone, and with it its memory and its eventfds.
    fn end(&self);
    /// Reads configuration space.
    fn config_read(&self, offset: u16, data: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&self, offset: u16, data: &[u8]);
    /// Reads a BAR.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]);
    /// Writes a BAR.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]);
    /// Maps memory in place of what was mapped there; a map that cannot be made leaves nothing
    /// there.
    fn map(&self, map: Map);
    /// Unmaps what there is in the range, which may be nothing and may run past the end of the
    /// address space. Returns when nothing goes through the maps any more: the client may reuse the
    /// memory then.
    fn unmap(&self, iova: u64, size: u64);
    /// Function level reset; returns when it is complete.
    fn reset(&self);
    /// Connects, disconnects or raises interrupts.
    fn interrupts(&self, request: IrqRequest, eventfds: Vec<File>);
}

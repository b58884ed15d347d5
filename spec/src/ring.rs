//! Split virtqueues (VIRTIO 1.4, "Split Virtqueues"): descriptors, flags and ring geometry.

use crate::{Le16, Le32, Le64};
use core::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Descriptor flag: the buffer continues in `next`.
pub const DESC_F_NEXT: u16 = 1;
/// Descriptor flag: the device writes the buffer (otherwise it reads it).
pub const DESC_F_WRITE: u16 = 2;
/// Descriptor flag: the buffer holds a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;
/// `avail.flags`: the driver asks for no used-buffer notifications.
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `used.flags`: the device asks for no available-buffer notifications.
pub const USED_F_NO_NOTIFY: u16 = 1;

/// Largest queue size. VIRTIO 1.4.
pub const QUEUE_SIZE_MAX: u16 = 32768;
/// Alignment of the descriptor table in bytes.
pub const DESC_ALIGN: u64 = 16;
/// Alignment of the available ring in bytes.
pub const AVAIL_ALIGN: u64 = 2;
/// Alignment of the used ring in bytes.
pub const USED_ALIGN: u64 = 4;

/// One descriptor.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Descriptor {
    /// Address of the buffer (IOVA).
    pub addr: Le64,
    /// Length of the buffer in bytes.
    pub len: Le32,
    /// `DESC_F_*`.
    pub flags: Le16,
    /// Next descriptor, if [`DESC_F_NEXT`] is set.
    pub next: Le16,
}

/// One element of the used ring.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UsedElem {
    /// Head descriptor of the chain that was used.
    pub id: Le32,
    /// Bytes the device wrote into the chain.
    pub len: Le32,
}

const _: () = assert!(size_of::<Descriptor>() == 16);
const _: () = assert!(offset_of!(Descriptor, len) == 8);
const _: () = assert!(offset_of!(Descriptor, flags) == 12);
const _: () = assert!(offset_of!(Descriptor, next) == 14);
const _: () = assert!(size_of::<UsedElem>() == 8);

/// Bytes of the descriptor table of a queue of `size` entries.
pub const fn desc_bytes(size: u16) -> u64 {
    16 * size as u64
}

/// Bytes of the available ring, `used_event` included.
pub const fn avail_bytes(size: u16) -> u64 {
    6 + 2 * size as u64
}

/// Bytes of the used ring, `avail_event` included.
pub const fn used_bytes(size: u16) -> u64 {
    6 + 8 * size as u64
}

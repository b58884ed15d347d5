//! Packed virtqueues (VIRTIO 1.4, "Packed Virtqueues"): descriptors, flags, and places in the ring.

use crate::{Le16, Le32, Le64};
use core::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Descriptor flag: made available in a lap whose wrap counter it equals.
pub const DESC_F_AVAIL: u16 = 1 << 7;
/// Descriptor flag: used in a lap whose wrap counter it equals.
pub const DESC_F_USED: u16 = 1 << 15;
/// Event suppression flags: notifications are wanted.
pub const EVENT_ENABLE: u16 = 0;
/// Event suppression flags: no notifications are wanted.
pub const EVENT_DISABLE: u16 = 1;
/// Event suppression flags: a notification is wanted for one descriptor (RING_EVENT_IDX only).
pub const EVENT_DESC: u16 = 2;
/// The bits of the event suppression flags that mean something; the others are reserved.
pub const EVENT_FLAGS: u16 = 3;
/// Bytes of an event suppression structure, of the driver's as of the device's.
pub const EVENT_BYTES: u64 = 4;
/// Alignment of an event suppression structure in bytes.
pub const EVENT_ALIGN: u64 = 4;

/// One descriptor. NEXT, WRITE and INDIRECT are those of [`ring`](crate::ring).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PackedDescriptor {
    /// Address of the buffer (IOVA).
    pub addr: Le64,
    /// Length of the buffer in bytes; of a used one the bytes that the device wrote.
    pub len: Le32,
    /// Buffer id: counts in the last descriptor of a list, and in a used one.
    pub id: Le16,
    /// `DESC_F_*`.
    pub flags: Le16,
}

/// Who wants which notifications: the driver's is for those that the device sends, and the other
/// way round.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EventSuppression {
    /// With [`EVENT_DESC`] the descriptor, as [`Position::to_bits`] has it.
    pub off_wrap: Le16,
    /// `EVENT_*`.
    pub flags: Le16,
}

const _: () = assert!(size_of::<PackedDescriptor>() == 16);
const _: () = assert!(offset_of!(PackedDescriptor, len) == 8);
const _: () = assert!(offset_of!(PackedDescriptor, id) == 12);
const _: () = assert!(offset_of!(PackedDescriptor, flags) == 14);
const _: () = assert!(size_of::<EventSuppression>() == 4);
const _: () = assert!(offset_of!(EventSuppression, flags) == 2);

/// The AVAIL and USED bits of a descriptor that is available in a lap with this wrap counter.
pub const fn available(wrap: bool) -> u16 {
    if wrap { DESC_F_AVAIL } else { DESC_F_USED }
}

/// The AVAIL and USED bits of a descriptor that was used in a lap with this wrap counter.
pub const fn used(wrap: bool) -> u16 {
    if wrap { DESC_F_AVAIL | DESC_F_USED } else { 0 }
}

/// A place in a ring and the lap it is of: what a wrap counter makes of an index.
///
/// A ring of n entries has 2n of them, and then the first comes again. The size is the caller's:
/// every function takes it, and an index below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Entry of the ring.
    pub index: u16,
    /// The wrap counter.
    pub wrap: bool,
}

impl Position {
    /// Where both sides begin: entry 0, wrap counter 1.
    pub const START: Self = Self {
        index: 0,
        wrap: true,
    };

    /// From index in bits 0 to 14 and wrap counter in bit 15, as an event structure, a notification
    /// and a queue's state have it. `None` if a ring of `size` entries has no such index.
    pub const fn from_bits(bits: u16, size: u16) -> Option<Self> {
        let index = bits & 0x7fff;
        if index < size {
            let wrap = bits >> 15 == 1;
            Some(Self { index, wrap })
        } else {
            None
        }
    }

    /// Index in bits 0 to 14, wrap counter in bit 15.
    pub const fn to_bits(self) -> u16 {
        self.index | if self.wrap { 0x8000 } else { 0 }
    }

    /// `count` entries further on, at most a lap.
    #[must_use]
    pub const fn forward(self, count: u16, size: u16) -> Self {
        let Self { index, wrap } = self;
        // Written so that neither side of a comparison can overflow.
        let left = size.saturating_sub(index);
        if count < left {
            let index = index + count;
            Self { index, wrap }
        } else {
            let index = count - left;
            let wrap = !wrap;
            Self { index, wrap }
        }
    }

    /// `count` entries back, at most a lap.
    #[must_use]
    pub const fn back(self, count: u16, size: u16) -> Self {
        let Self { index, wrap } = self;
        if count <= index {
            let index = index - count;
            Self { index, wrap }
        } else {
            let index = size.saturating_sub(count - index);
            let wrap = !wrap;
            Self { index, wrap }
        }
    }

    /// Entries from here forward to `to`: below twice the size.
    pub const fn distance(self, to: Self, size: u16) -> u32 {
        let (from, to_index, size) = (self.index as u32, to.index as u32, size as u32);
        let to = if self.wrap == to.wrap {
            to_index
        } else {
            to_index + size
        };
        if to >= from {
            to - from
        } else {
            to + 2 * size - from
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_go_round_twice() {
        for size in [1, 2, 3, 5, 256, 32767, 32768] {
            let mut at = Position::START;
            let laps = 2 * u32::from(size);
            let stride = u32::from(size).div_ceil(7);
            let mut gone = 0;
            while gone < 3 * laps {
                let lap = gone % laps;
                assert_eq!(u32::from(at.index), lap % u32::from(size));
                assert_eq!(at.wrap, lap < u32::from(size));
                assert_eq!(Position::START.distance(at, size), lap);
                assert_eq!(at.distance(Position::START, size), (laps - lap) % laps);
                assert_eq!(Position::from_bits(at.to_bits(), size), Some(at));
                let stride = u16::try_from(stride).unwrap();
                assert_eq!(at.forward(stride, size).back(stride, size), at);
                assert_eq!(at.forward(size, size).wrap, !at.wrap);
                assert_eq!(at.forward(size, size).back(size, size), at);
                at = at.forward(stride, size);
                gone += u32::from(stride);
            }
        }
        assert_eq!(Position::from_bits(0x8003, 3), None);
        assert_eq!(Position::from_bits(0xffff, 32767), None);
        let last = Position::from_bits(0xffff, 32768).unwrap();
        assert_eq!((last.index, last.wrap), (32767, true));
        assert_eq!(Position::START.to_bits(), 0x8000);
    }

    #[test]
    fn flags_tell_the_laps_apart() {
        assert_eq!((available(true), used(true)), (0x0080, 0x8080));
        assert_eq!((available(false), used(false)), (0x8000, 0));
    }
}

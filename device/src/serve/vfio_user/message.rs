//! The structures of vfio-user 0.1, as they stand on the wire: fields in the host's byte order, no
//! padding. Numbers and layouts are those of the protocol's published text (`vfio-user.rst`) and of
//! Linux' `vfio.h`, which it refers to.

use zerocopy::byteorder::native_endian::{U16, U32, U64};

/// Declares a structure with its bytes, which the text gives.
macro_rules! message {
    ($(#[$doc:meta])* $name:ident: $size:literal { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
        #[derive(zerocopy::KnownLayout, zerocopy::Unaligned)]
        #[repr(C)]
        pub(super) struct $name { $(pub(super) $field: $type),* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

/// Numbers of the commands that a client sends, and of the two that only a server does.
pub(super) mod command {
    pub(in super::super) const VERSION: u16 = 1;
    pub(in super::super) const DMA_MAP: u16 = 2;
    pub(in super::super) const DMA_UNMAP: u16 = 3;
    pub(in super::super) const GET_INFO: u16 = 4;
    pub(in super::super) const GET_REGION_INFO: u16 = 5;
    pub(in super::super) const GET_REGION_IO_FDS: u16 = 6;
    pub(in super::super) const GET_IRQ_INFO: u16 = 7;
    pub(in super::super) const SET_IRQS: u16 = 8;
    pub(in super::super) const REGION_READ: u16 = 9;
    pub(in super::super) const REGION_WRITE: u16 = 10;
    pub(in super::super) const DMA_READ: u16 = 11;
    pub(in super::super) const DMA_WRITE: u16 = 12;
    pub(in super::super) const RESET: u16 = 13;
    pub(in super::super) const REGION_WRITE_MULTI: u16 = 15;
    pub(in super::super) const FEATURE: u16 = 16;
    pub(in super::super) const MIG_DATA_READ: u16 = 17;
    pub(in super::super) const MIG_DATA_WRITE: u16 = 18;
}

/// Bits of a header's `flags`: the low four are the type, 0 a command and 1 a reply.
pub(super) const TYPE: u32 = 0xf;
pub(super) const COMMAND: u32 = 0;
pub(super) const REPLY: u32 = 1;
pub(super) const NO_REPLY: u32 = 1 << 4;
pub(super) const ERROR: u32 = 1 << 5;

message! {
    /// In front of every message. `size` is the whole message's.
    Header: 16 { id: U16, command: U16, size: U32, flags: U32, error: U32 }
}
message! {
    /// VERSION; text may follow, which ends with NUL.
    Version: 4 { major: U16, minor: U16 }
}
message! {
    /// DMA_MAP.
    DmaMap: 32 { argsz: U32, flags: U32, offset: U64, address: U64, size: U64 }
}
message! {
    /// DMA_UNMAP, and its answer.
    DmaUnmap: 24 { argsz: U32, flags: U32, address: U64, size: U64 }
}
message! {
    /// DEVICE_GET_INFO, and its answer.
    Info: 16 { argsz: U32, flags: U32, regions: U32, irqs: U32 }
}
message! {
    /// DEVICE_GET_REGION_INFO, and its answer.
    RegionInfo: 32 { argsz: U32, flags: U32, index: U32, cap_offset: U32, size: U64, offset: U64 }
}
message! {
    /// DEVICE_GET_IRQ_INFO, and its answer.
    IrqInfo: 16 { argsz: U32, flags: U32, index: U32, count: U32 }
}
message! {
    /// DEVICE_SET_IRQS; a byte for each vector may follow.
    SetIrqs: 20 { argsz: U32, flags: U32, index: U32, start: U32, count: U32 }
}
message! {
    /// REGION_READ and REGION_WRITE, and their answers; data may follow.
    RegionAccess: 16 { offset: U64, region: U32, count: U32 }
}
message! {
    /// DEVICE_FEATURE, and its answer; data of the feature follows.
    Feature: 8 { argsz: U32, flags: U32 }
}
message! {
    /// Data of MIG_DEVICE_STATE.
    MigrationState: 8 { state: U32, data_fd: U32 }
}
message! {
    /// Data of DMA_LOGGING_START; ranges follow.
    LogControl: 16 { page_size: U64, num_ranges: U32, reserved: U32 }
}
message! {
    /// A range of DMA_LOGGING_START.
    LogRange: 16 { iova: U64, length: U64 }
}
message! {
    /// Data of DMA_LOGGING_REPORT; the bitmap follows in the answer.
    LogReport: 24 { iova: U64, length: U64, page_size: U64 }
}
message! {
    /// MIG_DATA_READ and MIG_DATA_WRITE; data may follow.
    MigrationData: 8 { argsz: U32, size: U32 }
}

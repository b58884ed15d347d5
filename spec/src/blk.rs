//! The block device (VIRTIO 1.4, "Block Device").

use crate::{Le16, Le32, Le64};
use bitflags::bitflags;
use core::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Virtio device id. PCI device id 0x1042.
pub const DEVICE_ID: u16 = 2;
/// Bytes in a sector, the unit of `capacity` and of every request's position.
pub const SECTOR_SIZE: u64 = 512;
/// Bytes of the string that a GET_ID request returns.
pub const ID_BYTES: usize = 20;

bitflags! {
    /// Feature bits of the block device.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct BlkFeatures: u64 {
        /// `size_max` holds the largest segment.
        const SIZE_MAX = 1 << 1;
        /// `seg_max` holds the largest number of segments in a request.
        const SEG_MAX = 1 << 2;
        /// `geometry` is valid.
        const GEOMETRY = 1 << 4;
        /// The device is read-only.
        const RO = 1 << 5;
        /// `blk_size` is valid.
        const BLK_SIZE = 1 << 6;
        /// FLUSH is supported.
        const FLUSH = 1 << 9;
        /// `topology` is valid.
        const TOPOLOGY = 1 << 10;
        /// The driver can switch between writeback and writethrough.
        const CONFIG_WCE = 1 << 11;
        /// More than one request queue.
        const MQ = 1 << 12;
        /// DISCARD is supported.
        const DISCARD = 1 << 13;
        /// WRITE_ZEROES is supported.
        const WRITE_ZEROES = 1 << 14;
        /// The storage's wear can be read.
        const LIFETIME = 1 << 15;
        /// SECURE_ERASE is supported.
        const SECURE_ERASE = 1 << 16;
        /// The device may have zones ([`crate::zoned`]).
        const ZONED = 1 << 17;
    }
}

/// Request types.
pub mod request {
    /// Read sectors.
    pub const IN: u32 = 0;
    /// Write sectors.
    pub const OUT: u32 = 1;
    /// Make completed writes durable.
    pub const FLUSH: u32 = 4;
    /// Read the device's identity string.
    pub const GET_ID: u32 = 8;
    /// Drop sectors.
    pub const DISCARD: u32 = 11;
    /// Write zeroes.
    pub const WRITE_ZEROES: u32 = 13;
}

/// Status bytes, written by the device as the last byte of a request.
pub mod status {
    /// Success.
    pub const OK: u8 = 0;
    /// The device or the backing file failed, or the request is out of range.
    pub const IOERR: u8 = 1;
    /// The request type is not supported.
    pub const UNSUPP: u8 = 2;
}

/// Flag of a [`DiscardWriteZeroes`] segment: the zeroed sectors may be unmapped.
pub const WRITE_ZEROES_FLAG_UNMAP: u32 = 1;

/// Header of every request, device-readable.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RequestHeader {
    /// One of [`request`].
    pub request_type: Le32,
    /// Reserved.
    pub reserved: Le32,
    /// First sector, in units of [`SECTOR_SIZE`].
    pub sector: Le64,
}

/// One segment of a DISCARD or WRITE_ZEROES request.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscardWriteZeroes {
    /// First sector.
    pub sector: Le64,
    /// Sectors.
    pub num_sectors: Le32,
    /// [`WRITE_ZEROES_FLAG_UNMAP`] or 0; the other bits are reserved.
    pub flags: Le32,
}

/// The device-specific configuration.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlkConfig {
    /// Size of the disk in sectors.
    pub capacity: Le64,
    /// Largest segment in bytes (SIZE_MAX).
    pub size_max: Le32,
    /// Largest number of segments (SEG_MAX).
    pub seg_max: Le32,
    /// Cylinders (GEOMETRY).
    pub cylinders: Le16,
    /// Heads (GEOMETRY).
    pub heads: u8,
    /// Sectors per track (GEOMETRY).
    pub sectors: u8,
    /// Logical block size in bytes (BLK_SIZE).
    pub blk_size: Le32,
    /// log2 of logical blocks per physical block (TOPOLOGY).
    pub physical_block_exp: u8,
    /// Offset of the first aligned logical block (TOPOLOGY).
    pub alignment_offset: u8,
    /// Suggested minimum I/O size in logical blocks (TOPOLOGY).
    pub min_io_size: Le16,
    /// Suggested optimal I/O size in logical blocks (TOPOLOGY).
    pub opt_io_size: Le32,
    /// 0 writethrough, 1 writeback (CONFIG_WCE).
    pub writeback: u8,
    /// Reserved.
    pub unused0: u8,
    /// Number of request queues (MQ).
    pub num_queues: Le16,
    /// Largest DISCARD in sectors.
    pub max_discard_sectors: Le32,
    /// Most segments in a DISCARD.
    pub max_discard_seg: Le32,
    /// Alignment of DISCARD in sectors.
    pub discard_sector_alignment: Le32,
    /// Largest WRITE_ZEROES in sectors.
    pub max_write_zeroes_sectors: Le32,
    /// Most segments in a WRITE_ZEROES.
    pub max_write_zeroes_seg: Le32,
    /// 1 if a WRITE_ZEROES may deallocate.
    pub write_zeroes_may_unmap: u8,
    /// Reserved.
    pub unused1: [u8; 3],
}

const _: () = assert!(size_of::<RequestHeader>() == 16);
const _: () = assert!(offset_of!(RequestHeader, sector) == 8);
const _: () = assert!(size_of::<DiscardWriteZeroes>() == 16);
const _: () = assert!(offset_of!(DiscardWriteZeroes, num_sectors) == 8);
const _: () = assert!(offset_of!(DiscardWriteZeroes, flags) == 12);
const _: () = assert!(offset_of!(BlkConfig, size_max) == 8);
const _: () = assert!(offset_of!(BlkConfig, seg_max) == 12);
const _: () = assert!(offset_of!(BlkConfig, cylinders) == 16);
const _: () = assert!(offset_of!(BlkConfig, blk_size) == 20);
const _: () = assert!(offset_of!(BlkConfig, physical_block_exp) == 24);
const _: () = assert!(offset_of!(BlkConfig, opt_io_size) == 28);
const _: () = assert!(offset_of!(BlkConfig, writeback) == 32);
const _: () = assert!(offset_of!(BlkConfig, num_queues) == 34);
const _: () = assert!(offset_of!(BlkConfig, max_discard_sectors) == 36);
const _: () = assert!(offset_of!(BlkConfig, max_write_zeroes_sectors) == 48);
const _: () = assert!(offset_of!(BlkConfig, write_zeroes_may_unmap) == 56);
const _: () = assert!(size_of::<BlkConfig>() == 60);

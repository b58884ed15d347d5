//! The memory dirty pages tracker capability.
//!
//! **Draft 2023** (quoted): the names of the five fields, `enable == 1` starts tracking, the bitmap
//! is linear with bit 0 for the page at address 0 and is written by the device's DMA, a device may
//! set the whole byte that holds the bit, may raise `gra_power`, and never sets a bit beyond
//! `bitmap_length`. **Project rules**: `cfg_type` 0x0A, every offset and width, the page size
//! formula, `bitmap_addr` being a multiple of 8.

use crate::{Le32, Le64};
use core::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `cfg_type` of the capability that points at a [`TrackerRegs`] block in a BAR. Project rule: the
/// first value after VIRTIO 1.4's last one.
pub const CFG_TYPE: u8 = 0x0a;

/// Legal value of [`TrackerRegs::enable`] that starts tracking. Draft 2023.
pub const ENABLE_ON: u8 = 1;

/// Largest `gra_power`: pages of 1 GiB. Project rule.
pub const GRA_POWER_MAX: u8 = 18;

/// Width of a PASID. PCI Express; the field's upper 12 bits read 0.
pub const PASID_MASK: u32 = 0x000f_ffff;

/// `bitmap_addr` is a multiple of this many bytes, so that a word of 64 bits never straddles a
/// page. Project rule.
pub const BITMAP_ALIGN: u64 = 8;

/// The page size in bytes that a `gra_power` stands for: `2^(12 + gra_power)`. Project rule.
///
/// `None` above [`GRA_POWER_MAX`].
pub const fn page_size(gra_power: u8) -> Option<u64> {
    if gra_power <= GRA_POWER_MAX {
        Some(4096 << gra_power)
    } else {
        None
    }
}

/// Bytes of bitmap that cover addresses `0 .. end` at the page size of `gra_power`.
///
/// `None` above [`GRA_POWER_MAX`].
pub const fn bitmap_length(end: u64, gra_power: u8) -> Option<u64> {
    match page_size(gra_power) {
        Some(size) => Some(end.div_ceil(size).div_ceil(8)),
        None => None,
    }
}

/// The tracker's registers: 32 bytes in a BAR, 4-byte aligned.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TrackerRegs {
    /// 0 off, 1 on; other values are ignored. Read-write.
    pub enable: u8,
    /// Page size exponent above 4 KiB, 0 to 18; the device may read back a larger value.
    pub gra_power: u8,
    /// Reads 0.
    pub reserved0: [u8; 2],
    /// Bits 0 to 19: the PASID whose writes are tracked. Ignored while PASID is absent or off.
    pub pasid: Le32,
    /// DMA address of the bitmap, a multiple of [`BITMAP_ALIGN`]; 0 means no bitmap.
    pub bitmap_addr: Le64,
    /// Length of the bitmap in bytes; 0 means no bitmap.
    pub bitmap_length: Le64,
    /// Reads 0.
    pub reserved1: [u8; 8],
}

const _: () = assert!(size_of::<TrackerRegs>() == 32);
const _: () = assert!(offset_of!(TrackerRegs, enable) == 0);
const _: () = assert!(offset_of!(TrackerRegs, gra_power) == 1);
const _: () = assert!(offset_of!(TrackerRegs, pasid) == 4);
const _: () = assert!(offset_of!(TrackerRegs, bitmap_addr) == 8);
const _: () = assert!(offset_of!(TrackerRegs, bitmap_length) == 16);
const _: () = assert!(offset_of!(TrackerRegs, reserved1) == 24);

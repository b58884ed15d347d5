//! Page-write recording by administration commands.
//!
//! **Project rules** throughout: the series of 2023 that proposed it was never merged, and only its
//! ideas are known (start and stop for ranges of addresses, reads that clear, commands to the owner
//! that survive a reset of the member). The opcodes stand where VIRTIO 1.4 reserves room for
//! commands of this structure. Group types self (member 0) and SR-IOV.

use crate::{Le32, Le64};
use core::mem::{offset_of, size_of};

/// What the device can do; the result is [`Limits`].
pub const CAP_QUERY: u16 = 0x40;
/// Starts recording: [`Start`], then as many [`Extent`]s as it says. Forgets former records.
pub const START: u16 = 0x41;
/// Stops recording. Records stay until they are read.
pub const STOP: u16 = 0x42;
/// Reads records and forgets them: [`Read`]. The result is an array of le64, each the address of a
/// page; its length and more stand in the output, see [`output`].
pub const READ: u16 = 0x43;

wire! {
    /// Result of [`CAP_QUERY`].
    pub struct Limits {
        /// Bit n: pages of 2^n bytes can be recorded.
        pub page_sizes: Le64,
        /// Most ranges of one [`START`].
        pub max_ranges: Le32,
        /// Records that the device surely holds; more may be lost, and [`output::OVERFLOW`] then says so.
        pub max_records: Le32,
    }
}

wire! {
    /// Data of [`START`], before the ranges.
    pub struct Start {
        /// Bytes of a page.
        pub page_size: Le64,
        /// Number of ranges.
        pub count: Le32,
        /// 0.
        pub reserved: Le32,
    }
}

wire! {
    /// A range of addresses, multiples of the page size; ranges do not overlap.
    pub struct Extent {
        /// First address (IOVA).
        pub start: Le64,
        /// Bytes.
        pub length: Le64,
    }
}

wire! {
    /// Data of [`READ`]: the range whose records are wanted; others stay.
    pub struct Read {
        /// First address (IOVA).
        pub start: Le64,
        /// Bytes.
        pub length: Le64,
        /// Bytes of a page: those of [`START`], or 0 for the same.
        pub page_size: Le64,
    }
}

/// The output word of [`READ`], in [`ResultHeader`](crate::admin::ResultHeader).
pub mod output {
    /// Number of records in the result.
    pub const COUNT: u32 = 0x3fff_ffff;
    /// There are more, read again.
    pub const MORE: u32 = 1 << 30;
    /// Since the last read that said so, writes were not recorded for want of room: every page of
    /// all ranges is to be taken for written, whichever range was read.
    pub const OVERFLOW: u32 = 1 << 31;
}

const _: () = assert!(size_of::<Limits>() == 16);
const _: () = assert!(offset_of!(Limits, max_ranges) == 8);
const _: () = assert!(offset_of!(Limits, max_records) == 12);
const _: () = assert!(size_of::<Start>() == 16);
const _: () = assert!(offset_of!(Start, count) == 8);
const _: () = assert!(size_of::<Extent>() == 16);
const _: () = assert!(size_of::<Read>() == 24);
const _: () = assert!(offset_of!(Read, page_size) == 16);

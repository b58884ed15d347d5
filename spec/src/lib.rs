//! The virtio facilities that Tidemark implements, as Rust types.
//!
//! This crate knows nobody and holds no behaviour: wire layouts, bit values and the documents they
//! come from. Every item names its source, which is one of three and never mixed:
//!
//! * **VIRTIO 1.4** — the committee specification of 8 April 2026, cited by section title;
//! * **draft 2023** — what the mail of 6 November 2023 quotes of the never merged tracking series;
//! * **project rule** — chosen by Tidemark where neither says anything.
//!
//! All multi-byte fields are little-endian; offsets are pinned by constant assertions next to each
//! structure, so a layout that drifts does not compile.
//!
//! ```
//! use spec::status::DeviceStatus;
//!
//! let running = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER
//!     | DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK;
//! assert_eq!(running.bits(), 0x0f);
//! ```

#![no_std]
#![forbid(unsafe_code)]

/// Declares a structure as it stands on the wire: little-endian fields and no padding.
macro_rules! wire {
    ($(#[$doc:meta])* pub struct $name:ident { $($fields:tt)* }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromBytes, zerocopy::IntoBytes,
            zerocopy::Immutable, zerocopy::KnownLayout, zerocopy::Unaligned,
        )]
        #[repr(C)]
        pub struct $name { $($fields)* }
    };
}

pub mod admin;
pub mod blk;
pub mod features;
pub mod packed;
pub mod parts;
pub mod pci;
pub mod queue_state;
pub mod records;
pub mod ring;
pub mod rng;
pub mod status;
pub mod tracker;
pub mod zoned;

pub use zerocopy::little_endian::{U16 as Le16, U32 as Le32, U64 as Le64};

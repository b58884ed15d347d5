//! Zoned block devices (VIRTIO 1.4, "Block Device").

use crate::blk::BlkConfig;
use crate::{Le16, Le32, Le64};
use core::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Request types of zoned devices, and those of wear and erasure.
pub mod request {
    /// Read the storage's wear (LIFETIME).
    pub const GET_LIFETIME: u32 = 10;
    /// Erase sectors so that nothing is left of them (SECURE_ERASE).
    pub const SECURE_ERASE: u32 = 14;
    /// Write at a zone's write pointer, wherever that is.
    pub const ZONE_APPEND: u32 = 15;
    /// Read a [`ReportHeader`](super::ReportHeader) and [`Descriptor`](super::Descriptor)s, from
    /// the zone of the request's sector on.
    pub const ZONE_REPORT: u32 = 16;
    /// Open a zone explicitly.
    pub const ZONE_OPEN: u32 = 18;
    /// Close a zone.
    pub const ZONE_CLOSE: u32 = 20;
    /// Make a zone full.
    pub const ZONE_FINISH: u32 = 22;
    /// Make a zone empty.
    pub const ZONE_RESET: u32 = 24;
    /// Make every sequential zone empty.
    pub const ZONE_RESET_ALL: u32 = 26;
}

/// Status bytes of zoned devices, besides those of [`crate::blk::status`].
pub mod status {
    /// A zone cannot do what is asked of it.
    pub const INVALID_CMD: u8 = 3;
    /// A write does not begin at the write pointer.
    pub const UNALIGNED_WP: u8 = 4;
    /// No more zones can be open.
    pub const OPEN_RESOURCE: u8 = 5;
    /// No more zones can be active.
    pub const ACTIVE_RESOURCE: u8 = 6;
}

/// Values of [`Characteristics::model`].
pub mod model {
    /// No zones that a driver has to know of.
    pub const NONE: u8 = 0;
    /// Zones that must be written in sequence.
    pub const HOST_MANAGED: u8 = 1;
    /// Zones that should be written in sequence.
    pub const HOST_AWARE: u8 = 2;
}

/// Values of [`Descriptor::kind`].
pub mod kind {
    /// Conventional: written anywhere.
    pub const CONVENTIONAL: u8 = 1;
    /// Sequential write required.
    pub const SEQUENTIAL_REQUIRED: u8 = 2;
    /// Sequential write preferred.
    pub const SEQUENTIAL_PREFERRED: u8 = 3;
}

/// Values of [`Descriptor::state`].
pub mod state {
    /// No write pointer: a conventional zone.
    pub const NOT_WP: u8 = 0;
    /// Nothing written.
    pub const EMPTY: u8 = 1;
    /// Opened by a write.
    pub const IMPLICITLY_OPEN: u8 = 2;
    /// Opened by a ZONE_OPEN.
    pub const EXPLICITLY_OPEN: u8 = 3;
    /// Written in part, and closed.
    pub const CLOSED: u8 = 4;
    /// Can be read only.
    pub const READ_ONLY: u8 = 13;
    /// Nothing more can be written.
    pub const FULL: u8 = 14;
    /// Can be neither read nor written.
    pub const OFFLINE: u8 = 15;
}

wire! {
    /// What a zoned device is like.
    pub struct Characteristics {
        /// Sectors of every zone but perhaps the last.
        pub zone_sectors: Le32,
        /// Most zones that can be open; 0 for no limit.
        pub max_open_zones: Le32,
        /// Most zones that can be open or closed; 0 for no limit.
        pub max_active_zones: Le32,
        /// Most sectors of a ZONE_APPEND; 0 if there is none.
        pub max_append_sectors: Le32,
        /// Alignment, in bytes, of writes to sequential zones.
        pub write_granularity: Le32,
        /// One of [`model`].
        pub model: u8,
        /// Reserved.
        pub unused2: [u8; 3],
    }
}

/// The whole device-specific configuration.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ZonedConfig {
    /// What every disk has.
    pub disk: BlkConfig,
    /// Largest SECURE_ERASE segment in sectors.
    pub max_secure_erase_sectors: Le32,
    /// Most segments in a SECURE_ERASE.
    pub max_secure_erase_seg: Le32,
    /// Alignment of SECURE_ERASE in sectors.
    pub secure_erase_sector_alignment: Le32,
    /// What a zoned device is like (ZONED).
    pub zoned: Characteristics,
}

wire! {
    /// The beginning of a zone report.
    pub struct ReportHeader {
        /// Descriptors that follow.
        pub nr_zones: Le64,
        /// Reserved.
        pub reserved: [[u8; 8]; 7],
    }
}

wire! {
    /// One zone in a report.
    pub struct Descriptor {
        /// Sectors that can be written when it is empty.
        pub z_cap: Le64,
        /// First sector.
        pub z_start: Le64,
        /// Sector where the next write belongs; of no meaning for conventional, full, read-only and
        /// offline zones.
        pub z_wp: Le64,
        /// One of [`kind`].
        pub kind: u8,
        /// One of [`state`].
        pub state: u8,
        /// Reserved.
        pub reserved: [[u8; 19]; 2],
    }
}

wire! {
    /// What a GET_LIFETIME returns.
    pub struct Lifetime {
        /// Reserved blocks consumed: 0 unknown, 1 below 80 %, 2 from 80 %, 3 from 90 %.
        pub pre_eol_info: Le16,
        /// Wear of SLC cells in tenths of their life, 1 to 10; 0 unknown, 11 beyond it.
        pub device_lifetime_est_typ_a: Le16,
        /// The same of MLC cells.
        pub device_lifetime_est_typ_b: Le16,
    }
}

const _: () = assert!(size_of::<Characteristics>() == 24);
const _: () = assert!(offset_of!(Characteristics, write_granularity) == 16);
const _: () = assert!(offset_of!(Characteristics, model) == 20);
const _: () = assert!(offset_of!(ZonedConfig, max_secure_erase_sectors) == 60);
const _: () = assert!(offset_of!(ZonedConfig, zoned) == 72);
const _: () = assert!(size_of::<ZonedConfig>() == 96);
const _: () = assert!(size_of::<ReportHeader>() == 64);
const _: () = assert!(size_of::<Descriptor>() == 64);
const _: () = assert!(offset_of!(Descriptor, z_wp) == 16);
const _: () = assert!(offset_of!(Descriptor, kind) == 24);
const _: () = assert!(offset_of!(Descriptor, state) == 25);
const _: () = assert!(size_of::<Lifetime>() == 6);

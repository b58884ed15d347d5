//! The block device (VIRTIO 1.4, "Block Device").

/// Virtio device id.
pub const ID: u16 = 2;
/// Bytes of a request's header.
pub const HEADER: u64 = 16;
/// Where in the header the sector is.
pub const SECTOR_AT: u64 = 8;
/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Bytes of what GET_LIFETIME returns: three numbers.
pub const LIFETIME: u64 = 6;
/// Of these, the largest value of the first that is not reserved, and of the others.
pub const LIFETIME_MAX: [u16; 3] = [3, 11, 11];
/// Flag of a segment of DISCARD, SECURE_ERASE and WRITE_ZEROES: it may be unmapped. The other 31
/// are reserved.
pub const UNMAP: u32 = 1;

/// Request type: read.
pub const IN: u32 = 0;
/// Request type: write.
pub const OUT: u32 = 1;
/// Request type: read the storage's wear.
pub const GET_LIFETIME: u32 = 10;
/// Request type: drop sectors.
pub const DISCARD: u32 = 11;
/// Request type: write zeroes.
pub const WRITE_ZEROES: u32 = 13;
/// Request type: erase sectors.
pub const SECURE_ERASE: u32 = 14;
/// Request type: write at a zone's write pointer.
pub const ZONE_APPEND: u32 = 15;
/// Request type: read what zones are like.
pub const ZONE_REPORT: u32 = 16;
/// Request type: open a zone.
pub const ZONE_OPEN: u32 = 18;
/// Request type: close a zone.
pub const ZONE_CLOSE: u32 = 20;
/// Request type: make a zone full.
pub const ZONE_FINISH: u32 = 22;
/// Request type: make a zone empty.
pub const ZONE_RESET: u32 = 24;
/// Request type: make all zones empty.
pub const ZONE_RESET_ALL: u32 = 26;

/// Request status: done.
pub const OK: u8 = 0;
/// Request status: an error of the device or the driver.
pub const IOERR: u8 = 1;
/// Request status: not supported.
pub const UNSUPP: u8 = 2;
/// Request status: a zone cannot do that.
pub const ZONE_INVALID_CMD: u8 = 3;
/// Request status: not at the write pointer.
pub const ZONE_UNALIGNED_WP: u8 = 4;
/// Request status: too many open zones.
pub const ZONE_OPEN_RESOURCE: u8 = 5;
/// Request status: too many active zones.
pub const ZONE_ACTIVE_RESOURCE: u8 = 6;

/// Offset of `capacity`, 8 bytes, in the device configuration.
pub const CAPACITY: usize = 0;
/// Offset of `size_max`, 4 bytes.
pub const SIZE_MAX: usize = 8;
/// Offset of `seg_max`, 4 bytes.
pub const SEG_MAX: usize = 12;
/// Offset of `writeback`.
pub const WRITEBACK: u64 = 32;
/// Offset of the padding after it.
pub const UNUSED0: usize = 33;
/// Offset of `discard_sector_alignment`, 4 bytes.
pub const DISCARD_ALIGNMENT: usize = 44;
/// Offset of `max_write_zeroes_sectors`, 4 bytes.
pub const WRITE_ZEROES_SECTORS: usize = 48;
/// Offset of `max_write_zeroes_seg`, 4 bytes.
pub const WRITE_ZEROES_SEGMENTS: usize = 52;
/// Offset of the three bytes of padding after `write_zeroes_may_unmap`.
pub const UNUSED1: usize = 57;
/// Offset of `secure_erase_sector_alignment`, 4 bytes.
pub const ERASE_ALIGNMENT: usize = 68;

/// Zones: fields of the configuration, and of a report.
pub mod zone {
    /// Offset of the zone fields in the device configuration.
    pub const FIELDS: usize = 72;
    /// Offset of `zone_sectors`, 4 bytes.
    pub const SECTORS: usize = 72;
    /// Offset of `max_open_zones`, 4 bytes.
    pub const MAX_OPEN: usize = 76;
    /// Offset of `max_active_zones`, 4 bytes.
    pub const MAX_ACTIVE: usize = 80;
    /// Offset of `max_append_sectors`, 4 bytes.
    pub const MAX_APPEND: usize = 84;
    /// Offset of `write_granularity`, 4 bytes.
    pub const GRANULARITY: usize = 88;
    /// Offset of `model`, 1 byte.
    pub const MODEL: usize = 92;
    /// Offset of the three bytes of padding after it.
    pub const UNUSED2: usize = 93;
    /// End of the zone fields.
    pub const END: usize = 96;
    /// Model: host-managed.
    pub const HOST_MANAGED: u8 = 1;
    /// Model: host-aware.
    pub const HOST_AWARE: u8 = 2;

    /// Bytes before the first descriptor of a report, and bytes of a descriptor.
    pub const DESCRIPTOR: u64 = 64;
    /// Type: conventional.
    pub const CONVENTIONAL: u8 = 1;
    /// Type: sequential write required.
    pub const REQUIRED: u8 = 2;
    /// Type: sequential write preferred.
    pub const PREFERRED: u8 = 3;
    /// State: empty.
    pub const EMPTY: u8 = 1;
    /// State: implicitly open.
    pub const IMPLICIT: u8 = 2;
    /// State: explicitly open.
    pub const EXPLICIT: u8 = 3;
    /// State: closed.
    pub const CLOSED: u8 = 4;
    /// State: read-only.
    pub const READ_ONLY: u8 = 13;
    /// State: full.
    pub const FULL: u8 = 14;
    /// State: offline.
    pub const OFFLINE: u8 = 15;
}

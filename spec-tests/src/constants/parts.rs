//! Device parts (VIRTIO 1.4, "Device parts").

/// Part: features of the device.
pub const DEV_FEATURES: u16 = 0x100;
/// Part: features that the driver accepted.
pub const DRV_FEATURES: u16 = 0x101;
/// Part: a field of the common configuration; the selector is its offset.
pub const COMMON_CFG: u16 = 0x102;
/// Part: the device status.
pub const DEVICE_STATUS: u16 = 0x103;
/// Part: a queue's size, vector, state and addresses; the selector is its index.
pub const VQ_CFG: u16 = 0x104;
/// Part: a queue's notification data; the selector is its index.
pub const VQ_NOTIFY_CFG: u16 = 0x105;
/// Part: the whole device configuration. The standard names such a part and gives it no number;
/// this is the project's.
pub const DEV_CFG: u16 = 0x1f1;
/// A number that the standard gives to no part.
pub const UNKNOWN: u16 = 0x5ff;
/// Flag of a part: who does not know it leaves it out.
pub const OPTIONAL: u8 = 1;
/// Bytes of a part's header.
pub const HEADER: usize = 16;

/// The order of the standard's table; parts that are not in it have no place. That the features of
/// the device come before those of the driver is not the table's demand.
pub const fn rank(kind: u16) -> Option<u8> {
    Some(match kind {
        DEV_FEATURES | DRV_FEATURES => 0,
        COMMON_CFG => 1,
        DEVICE_STATUS => 2,
        VQ_CFG => 3,
        VQ_NOTIFY_CFG => 4,
        _ => return None,
    })
}

/// METADATA_GET: bytes of all parts.
pub const SIZE: u8 = 0;
/// METADATA_GET: number of parts.
pub const COUNT: u8 = 1;
/// METADATA_GET: headers of parts.
pub const LIST: u8 = 2;
/// PARTS_GET: those whose headers follow.
pub const SELECTED: u8 = 0;
/// PARTS_GET: all.
pub const ALL: u8 = 1;
/// DEV_MODE_SET: the member runs.
pub const RUN: u8 = 0;
/// DEV_MODE_SET: the member is stopped. The standard's macro is the number of the bit.
pub const STOPPED: u8 = 1;

//! Group administration commands (VIRTIO 1.4, "Device groups" and "Administration Virtqueues").
//!
//! A command is a buffer of two parts: what the device reads ([`CommandHeader`], then data that
//! belong to the opcode) and what it writes ([`ResultHeader`], then a result). Both may be longer or
//! shorter than described: what is missing reads 0, what is too much is left alone.
//!
//! Where the standard contradicts itself the item says which reading it is; the numbers D-1 to D-18
//! are those of the project's list of such places.

use crate::{Le16, Le32, Le64};
use core::mem::{offset_of, size_of};

/// Values of `opcode`.
pub mod opcode {
    /// Which commands the device supports for a group type. VIRTIO 1.4.
    pub const LIST_QUERY: u16 = 0x00;
    /// Which commands the driver is going to use for a group type. VIRTIO 1.4.
    pub const LIST_USE: u16 = 0x01;
    /// Which capabilities the device has. Self group. VIRTIO 1.4.
    pub const CAP_ID_LIST_QUERY: u16 = 0x07;
    /// One capability of the device. Self group. VIRTIO 1.4.
    pub const DEVICE_CAP_GET: u16 = 0x08;
    /// What the driver uses of a capability. Self group. VIRTIO 1.4.
    pub const DRIVER_CAP_SET: u16 = 0x09;
    /// Creates a resource object. VIRTIO 1.4.
    pub const RESOURCE_OBJ_CREATE: u16 = 0x0a;
    /// Modifies a resource object. VIRTIO 1.4: 0x0b in the prose, 0x0c in the table (D-1); this is
    /// the prose.
    pub const RESOURCE_OBJ_MODIFY: u16 = 0x0b;
    /// Reads a resource object back. VIRTIO 1.4: 0x0c in the prose, 0x0b in the table (D-1); this is
    /// the prose.
    pub const RESOURCE_OBJ_QUERY: u16 = 0x0c;
    /// Destroys a resource object. VIRTIO 1.4.
    pub const RESOURCE_OBJ_DESTROY: u16 = 0x0d;
    /// Sizes, number or headers of a member's parts. VIRTIO 1.4.
    pub const DEV_PARTS_METADATA_GET: u16 = 0x0e;
    /// A member's parts. VIRTIO 1.4.
    pub const DEV_PARTS_GET: u16 = 0x0f;
    /// Gives parts to a member. VIRTIO 1.4.
    pub const DEV_PARTS_SET: u16 = 0x10;
    /// Stops a member, or lets it go on. VIRTIO 1.4.
    pub const DEV_MODE_SET: u16 = 0x11;
    /// Opcodes from here on may have another structure. VIRTIO 1.4.
    pub const OTHER_STRUCTURE: u16 = 0x8000;

    /// The command's name, those of [`crate::records`] included, without its common beginning.
    pub const fn name(opcode: u16) -> Option<&'static str> {
        Some(match opcode {
            LIST_QUERY => "LIST_QUERY",
            LIST_USE => "LIST_USE",
            CAP_ID_LIST_QUERY => "CAP_ID_LIST_QUERY",
            DEVICE_CAP_GET => "DEVICE_CAP_GET",
            DRIVER_CAP_SET => "DRIVER_CAP_SET",
            RESOURCE_OBJ_CREATE => "RESOURCE_OBJ_CREATE",
            RESOURCE_OBJ_MODIFY => "RESOURCE_OBJ_MODIFY",
            RESOURCE_OBJ_QUERY => "RESOURCE_OBJ_QUERY",
            RESOURCE_OBJ_DESTROY => "RESOURCE_OBJ_DESTROY",
            DEV_PARTS_METADATA_GET => "DEV_PARTS_METADATA_GET",
            DEV_PARTS_GET => "DEV_PARTS_GET",
            DEV_PARTS_SET => "DEV_PARTS_SET",
            DEV_MODE_SET => "DEV_MODE_SET",
            crate::records::CAP_QUERY => "WRITE_RECORD_CAP_QUERY",
            crate::records::START => "WRITE_RECORD_START",
            crate::records::STOP => "WRITE_RECORD_STOP",
            crate::records::READ => "WRITE_RECORDS_READ",
            _ => return None,
        })
    }
}

/// Values of `group_type`.
pub mod group {
    /// The device itself; its member is 0. VIRTIO 1.4.
    pub const SELF: u16 = 0;
    /// The virtual functions of a physical function; members are 1 to NumVFs. VIRTIO 1.4.
    pub const SR_IOV: u16 = 1;
}

/// Values of `status`: those of Linux' error numbers that the standard names.
pub mod status {
    /// Done.
    pub const OK: u16 = 0;
    /// No such capability or resource.
    pub const ENXIO: u16 = 6;
    /// Try again; nothing changed.
    pub const EAGAIN: u16 = 11;
    /// Not enough resources, or not enough room for the result; nothing changed.
    pub const ENOMEM: u16 = 12;
    /// The device is busy with something that excludes this.
    pub const EBUSY: u16 = 16;
    /// There is such an object already. Named by the text and missing in its table (D-4).
    pub const EEXIST: u16 = 17;
    /// The command is invalid; nothing changed.
    pub const EINVAL: u16 = 22;
    /// The device's resources are exhausted.
    pub const ENOSPC: u16 = 28;

    /// The status' name; a reserved one counts as EINVAL (AC-17).
    pub const fn name(status: u16) -> &'static str {
        match status {
            OK => "OK",
            ENXIO => "ENXIO",
            EAGAIN => "EAGAIN",
            ENOMEM => "ENOMEM",
            EBUSY => "EBUSY",
            EEXIST => "EEXIST",
            ENOSPC => "ENOSPC",
            _ => "EINVAL",
        }
    }
}

/// Values of `status_qualifier`.
pub mod qualifier {
    /// With [`status::OK`](super::status::OK).
    pub const OK: u16 = 0;
    /// Nothing more is known.
    pub const INVALID_COMMAND: u16 = 1;
    /// The opcode is unknown, or not in the list that the driver uses.
    pub const INVALID_OPCODE: u16 = 2;
    /// Something in the command's own data.
    pub const INVALID_FIELD: u16 = 3;
    /// There is no such group.
    pub const INVALID_GROUP: u16 = 4;
    /// The group has no such member.
    pub const INVALID_MEMBER: u16 = 5;
    /// Out of resources; to be retried.
    pub const NORESOURCE: u16 = 6;
    /// It would block for too long; to be retried.
    pub const TRYAGAIN: u16 = 7;

    /// The qualifier's name; a reserved one counts as INVALID_COMMAND (AC-17).
    pub const fn name(qualifier: u16) -> &'static str {
        match qualifier {
            OK => "OK",
            INVALID_OPCODE => "INVALID_OPCODE",
            INVALID_FIELD => "INVALID_FIELD",
            INVALID_GROUP => "INVALID_GROUP",
            INVALID_MEMBER => "INVALID_MEMBER",
            NORESOURCE => "NORESOURCE",
            TRYAGAIN => "TRYAGAIN",
            _ => "INVALID_COMMAND",
        }
    }
}

wire! {
    /// The beginning of every device-readable part.
    pub struct CommandHeader {
        /// One of [`opcode`].
        pub opcode: Le16,
        /// One of [`group`].
        pub group_type: Le16,
        /// Ignored by the device.
        pub reserved1: [u8; 12],
        /// The member, where the command is about one.
        pub group_member_id: Le64,
    }
}

wire! {
    /// The beginning of every device-writable part.
    pub struct ResultHeader {
        /// One of [`status`](mod@status).
        pub status: Le16,
        /// One of [`qualifier`].
        pub status_qualifier: Le16,
        /// 0 in VIRTIO 1.4. The output of the recording commands: see [`crate::records`] (project rule).
        pub output: Le32,
    }
}

/// 64-bit words that a list of bits up to and including `max` takes: the prose's reading, and what
/// Linux does. The formula beside it, `DIV_ROUND_UP(max, 64)`, has no room for a multiple of 64
/// (D-3).
pub const fn list_words(max: u16) -> usize {
    max as usize / 64 + 1
}

/// Capabilities (VIRTIO 1.4, "Device and driver capabilities").
pub mod capability {
    use super::{Le16, size_of};

    /// How many device parts objects there can be: [`DevParts`]. VIRTIO 1.4.
    pub const DEV_PARTS: u16 = 0;

    wire! {
        /// Data of DEVICE_CAP_GET, and the beginning of those of DRIVER_CAP_SET.
        pub struct Selector {
            /// Which capability.
            pub id: Le16,
            /// 0.
            pub reserved: [u8; 6],
        }
    }

    wire! {
        /// `struct virtio_dev_parts_cap`.
        pub struct DevParts {
            /// Most objects for getting parts.
            pub get_limit: u8,
            /// Most objects for setting parts.
            pub set_limit: u8,
        }
    }

    const _: () = assert!(size_of::<Selector>() == 8);
    const _: () = assert!(size_of::<DevParts>() == 2);
}

/// Resource objects (VIRTIO 1.4, "Device resource objects").
pub mod resource {
    use super::{Le16, Le32, Le64, offset_of, size_of};

    /// Type of the device parts object: [`DevParts`]. VIRTIO 1.4.
    pub const DEV_PARTS: u16 = 0;

    wire! {
        /// The beginning of every resource command's data.
        pub struct Header {
            /// Type of the object.
            pub object_type: Le16,
            /// 0.
            pub reserved: [u8; 2],
            /// Its number, chosen by the driver, below the limit that the driver set.
            pub id: Le32,
        }
    }

    wire! {
        /// Data of CREATE and MODIFY before the object's own, and of QUERY.
        pub struct WithFlags {
            /// Which object.
            pub header: Header,
            /// 0.
            pub flags: Le64,
        }
    }

    wire! {
        /// `struct virtio_resource_obj_dev_parts`.
        pub struct DevParts {
            /// [`PARTS_GET`] or [`PARTS_SET`].
            pub purpose: u8,
            /// 0.
            pub reserved: [u8; 7],
        }
    }

    /// [`DevParts::purpose`]: to get parts and metadata with.
    pub const PARTS_GET: u8 = 0;
    /// [`DevParts::purpose`]: to set parts with.
    pub const PARTS_SET: u8 = 1;

    const _: () = assert!(size_of::<Header>() == 8);
    const _: () = assert!(offset_of!(Header, id) == 4);
    const _: () = assert!(size_of::<WithFlags>() == 16);
    const _: () = assert!(size_of::<DevParts>() == 8);
}

/// Bit of DEV_MODE_SET's one byte of data: the member is stopped. The standard's macro F_STOPPED is
/// the bit's number, 0. VIRTIO 1.4.
pub const MODE_STOPPED: u8 = 1;

const _: () = assert!(size_of::<CommandHeader>() == 24);
const _: () = assert!(offset_of!(CommandHeader, group_type) == 2);
const _: () = assert!(offset_of!(CommandHeader, group_member_id) == 16);
const _: () = assert!(size_of::<ResultHeader>() == 8);
const _: () = assert!(offset_of!(ResultHeader, status_qualifier) == 2);
const _: () = assert!(offset_of!(ResultHeader, output) == 4);
const _: () = assert!(list_words(0) == 1 && list_words(63) == 1 && list_words(64) == 2);

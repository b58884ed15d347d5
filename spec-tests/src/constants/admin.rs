//! Administration commands (VIRTIO 1.4, "Device groups" and "Administration virtqueues").

/// Group types.
pub mod group {
    /// The function itself.
    pub const SELF: u16 = 0;
    /// The virtual functions of a physical one.
    pub const SR_IOV: u16 = 1;
    /// The first number without a meaning.
    pub const RESERVED: u16 = 2;
}

/// Commands.
pub mod opcode {
    /// Which commands there are.
    pub const LIST_QUERY: u16 = 0x00;
    /// Which of them the driver uses.
    pub const LIST_USE: u16 = 0x01;
    /// Which capabilities there are.
    pub const CAP_ID_LIST_QUERY: u16 = 0x07;
    /// What the device can do by a capability.
    pub const DEVICE_CAP_GET: u16 = 0x08;
    /// What the driver wants of it.
    pub const DRIVER_CAP_SET: u16 = 0x09;
    /// Makes a resource object.
    pub const OBJ_CREATE: u16 = 0x0a;
    /// MODIFY in the prose, QUERY in the table: the text contradicts itself.
    pub const OBJ_MODIFY_OR_QUERY: u16 = 0x0b;
    /// QUERY in the prose, MODIFY in the table.
    pub const OBJ_QUERY_OR_MODIFY: u16 = 0x0c;
    /// Ends a resource object.
    pub const OBJ_DESTROY: u16 = 0x0d;
    /// How much there is of a member's state.
    pub const PARTS_METADATA_GET: u16 = 0x0e;
    /// A member's state.
    pub const PARTS_GET: u16 = 0x0f;
    /// Sets a member's state.
    pub const PARTS_SET: u16 = 0x10;
    /// Stops a member, or lets it go on.
    pub const MODE_SET: u16 = 0x11;
    /// One that neither the standard nor the project gave a meaning, of the same structure.
    pub const UNASSIGNED: u16 = 0x7f00;
}

/// Values of `status`.
pub mod status {
    /// Done.
    pub const OK: u16 = 0;
    /// There is no such thing.
    pub const ENXIO: u16 = 6;
    /// Not now.
    pub const EAGAIN: u16 = 11;
    /// No room.
    pub const ENOMEM: u16 = 12;
    /// In use.
    pub const EBUSY: u16 = 16;
    /// Is there already. The text uses it and its table lacks it; the number is Linux's.
    pub const EEXIST: u16 = 17;
    /// Wrong.
    pub const EINVAL: u16 = 22;
    /// As many as there can be.
    pub const ENOSPC: u16 = 28;
}

/// Values of `status_qualifier`.
pub mod qualifier {
    /// Nothing to add.
    pub const OK: u16 = 0;
    /// The command.
    pub const INVALID_COMMAND: u16 = 1;
    /// The opcode.
    pub const INVALID_OPCODE: u16 = 2;
    /// A field of the command's own.
    pub const INVALID_FIELD: u16 = 3;
    /// The group type.
    pub const INVALID_GROUP: u16 = 4;
    /// The group member.
    pub const INVALID_MEMBER: u16 = 5;
    /// Resources.
    pub const NO_RESOURCE: u16 = 6;
}

/// Bytes of a command before its own data.
pub const COMMAND: usize = 24;
/// Bytes of an answer before its result.
pub const ANSWER: usize = 8;
/// Id of the capability, and type of the resource objects, by which parts are had and set.
pub const DEV_PARTS: u16 = 0;
/// Purpose of such an object: getting parts.
pub const TO_GET: u8 = 0;
/// Purpose of such an object: setting parts.
pub const TO_SET: u8 = 1;

/// The SR-IOV extended capability (PCI Express).
pub mod sr_iov {
    /// Offset of SR-IOV Control.
    pub const CONTROL: u16 = 0x08;
    /// VF Enable.
    pub const ENABLE: u16 = 1;
    /// VF Memory Space Enable.
    pub const MEMORY: u16 = 1 << 3;
    /// Offset of TotalVFs.
    pub const TOTAL: u16 = 0x0e;
    /// Offset of NumVFs.
    pub const NUM: u16 = 0x10;
}

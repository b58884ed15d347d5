//! Numbers of VIRTIO 1.4, of the drafts and of the project, typed again from their texts.
//!
//! Nothing here may come from the crates that are judged (models.md, rule 9).

pub mod admin;
pub mod blk;
pub mod parts;
pub mod records;

/// Device status bits (VIRTIO 1.4, "Device Status Field").
pub mod status {
    /// The guest has found the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest can drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed.
    pub const FEATURES_OK: u8 = 8;
    /// The device is suspended.
    pub const SUSPEND: u8 = 16;
    /// The device met an error.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
    /// ACKNOWLEDGE and DRIVER.
    pub const NEGOTIATING: u8 = 0x03;
    /// As before, and FEATURES_OK.
    pub const AGREED: u8 = 0x0b;
    /// As before, and DRIVER_OK.
    pub const RUNNING: u8 = 0x0f;
    /// What a driver writes to suspend, and again to resume: it may not clear a bit.
    pub const SUSPEND_OR_RESUME: u8 = 0x1f;
    /// What a suspended device presents: SUSPEND without DRIVER_OK.
    pub const SUSPENDED: u8 = 0x1b;
}

/// Feature bits, as masks.
pub mod feature {
    /// VIRTIO_BLK_F_SIZE_MAX (1): segments have a largest size.
    pub const BLK_SIZE_MAX: u64 = 1 << 1;
    /// VIRTIO_BLK_F_SEG_MAX (2): requests have a largest number of segments.
    pub const BLK_SEG_MAX: u64 = 1 << 2;
    /// VIRTIO_BLK_F_RO (5): the disk is read-only.
    pub const BLK_RO: u64 = 1 << 5;
    /// VIRTIO_BLK_F_FLUSH (9): there are flush requests.
    pub const BLK_FLUSH: u64 = 1 << 9;
    /// VIRTIO_BLK_F_CONFIG_WCE (11): the driver may write `writeback`.
    pub const BLK_CONFIG_WCE: u64 = 1 << 11;
    /// VIRTIO_BLK_F_DISCARD (13).
    pub const BLK_DISCARD: u64 = 1 << 13;
    /// VIRTIO_BLK_F_WRITE_ZEROES (14).
    pub const BLK_WRITE_ZEROES: u64 = 1 << 14;
    /// VIRTIO_BLK_F_LIFETIME (15).
    pub const BLK_LIFETIME: u64 = 1 << 15;
    /// VIRTIO_BLK_F_SECURE_ERASE (16).
    pub const BLK_SECURE_ERASE: u64 = 1 << 16;
    /// VIRTIO_BLK_F_ZONED (17).
    pub const BLK_ZONED: u64 = 1 << 17;
    /// VIRTIO_F_INDIRECT_DESC (28).
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX (29).
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1 (32).
    pub const VERSION_1: u64 = 1 << 32;
    /// VIRTIO_F_ACCESS_PLATFORM (33).
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// VIRTIO_F_RING_PACKED (34).
    pub const RING_PACKED: u64 = 1 << 34;
    /// VIRTIO_F_IN_ORDER (35).
    pub const IN_ORDER: u64 = 1 << 35;
    /// VIRTIO_F_ORDER_PLATFORM (36).
    pub const ORDER_PLATFORM: u64 = 1 << 36;
    /// VIRTIO_F_SR_IOV (37).
    pub const SR_IOV: u64 = 1 << 37;
    /// VIRTIO_F_NOTIFICATION_DATA (38).
    pub const NOTIFICATION_DATA: u64 = 1 << 38;
    /// VIRTIO_F_NOTIF_CONFIG_DATA (39).
    pub const NOTIF_CONFIG_DATA: u64 = 1 << 39;
    /// VIRTIO_F_RING_RESET (40).
    pub const RING_RESET: u64 = 1 << 40;
    /// VIRTIO_F_ADMIN_VQ (41).
    pub const ADMIN_VQ: u64 = 1 << 41;
    /// VIRTIO_F_SUSPEND (43).
    pub const SUSPEND: u64 = 1 << 43;
    /// VIRTIO_F_QUEUE_STATE (44): the project's choice, no OASIS number.
    pub const QUEUE_STATE: u64 = 1 << 44;
    /// Bits for which no text known here has a meaning on any transport: 45 to 49. The project
    /// holds 45 back for the tracker and does not use it.
    pub const RESERVED: u64 = 0x1f << 45;

    /// Names of features in profiles, reports and the registry.
    pub const NAMES: [(&str, u64); 24] = [
        ("BLK_SIZE_MAX", BLK_SIZE_MAX),
        ("BLK_SEG_MAX", BLK_SEG_MAX),
        ("BLK_RO", BLK_RO),
        ("BLK_FLUSH", BLK_FLUSH),
        ("BLK_CONFIG_WCE", BLK_CONFIG_WCE),
        ("BLK_DISCARD", BLK_DISCARD),
        ("BLK_WRITE_ZEROES", BLK_WRITE_ZEROES),
        ("BLK_LIFETIME", BLK_LIFETIME),
        ("BLK_SECURE_ERASE", BLK_SECURE_ERASE),
        ("BLK_ZONED", BLK_ZONED),
        ("INDIRECT_DESC", INDIRECT_DESC),
        ("EVENT_IDX", EVENT_IDX),
        ("VERSION_1", VERSION_1),
        ("ACCESS_PLATFORM", ACCESS_PLATFORM),
        ("RING_PACKED", RING_PACKED),
        ("IN_ORDER", IN_ORDER),
        ("ORDER_PLATFORM", ORDER_PLATFORM),
        ("SR_IOV", SR_IOV),
        ("NOTIFICATION_DATA", NOTIFICATION_DATA),
        ("NOTIF_CONFIG_DATA", NOTIF_CONFIG_DATA),
        ("RING_RESET", RING_RESET),
        ("ADMIN_VQ", ADMIN_VQ),
        ("SUSPEND", SUSPEND),
        ("QUEUE_STATE", QUEUE_STATE),
    ];

    /// The names of bits, and the numbers of those without one.
    pub fn names(bits: u64) -> Vec<String> {
        let name = |bit: u32| {
            let known = NAMES.iter().find(|(_, mask)| *mask == 1 << bit);
            known.map_or_else(|| format!("bit {bit}"), |(name, _)| (*name).to_owned())
        };
        (0..64)
            .filter(|bit| bits & 1 << bit != 0)
            .map(name)
            .collect()
    }

    /// The bit of a name, or of "bit N".
    pub fn by_name(name: &str) -> Option<u64> {
        let known = NAMES.iter().find(|(known, _)| *known == name);
        let numbered = || {
            let bit: u32 = name.strip_prefix("bit ")?.parse().ok()?;
            1_u64.checked_shl(bit)
        };
        known.map(|(_, mask)| *mask).or_else(numbered)
    }
}

/// PCI configuration space.
pub mod pci {
    /// Vendor id of virtio.
    pub const VENDOR: u16 = 0x1af4;
    /// Device ids of VIRTIO 1.x: this plus the virtio device id.
    pub const DEVICE_BASE: u16 = 0x1040;
    /// Last of them.
    pub const DEVICE_LAST: u16 = 0x107f;
    /// Offset of the command register.
    pub const COMMAND: u16 = 0x04;
    /// Interrupt disable, in the command register.
    pub const COMMAND_NO_INTX: u32 = 1 << 10;
    /// Memory space and bus mastering enabled, in the command register.
    pub const COMMAND_ENABLED: u16 = 1 << 1 | 1 << 2;
    /// Offset of the status register.
    pub const STATUS: u16 = 0x06;
    /// Interrupt status, in the status register.
    pub const STATUS_INTERRUPT: u16 = 1 << 3;
    /// Capabilities list, in the status register.
    pub const STATUS_CAPABILITIES: u16 = 1 << 4;
    /// Offset of the revision id.
    pub const REVISION: u16 = 0x08;
    /// Offset of the header type: 0 for a function, with bit 7 for several of them.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// Offset of the first base address register.
    pub const BARS: u16 = 0x10;
    /// Offset of the subsystem id.
    pub const SUBSYSTEM: u16 = 0x2e;
    /// Offset of the capabilities pointer.
    pub const CAPABILITIES: u16 = 0x34;
    /// First byte that a capability can have.
    pub const CAPABILITIES_BEGIN: u16 = 0x40;
    /// End of conventional configuration space.
    pub const CAPABILITIES_END: u16 = 0x100;
    /// More capabilities than these have no room.
    pub const CAPABILITIES_MAX: u16 = 48;
    /// Capability id: power management.
    pub const ID_POWER: u8 = 0x01;
    /// Offset of its control and status.
    pub const POWER_CONTROL: u16 = 4;
    /// PME_Status, in that.
    pub const PME_STATUS: u16 = 1 << 15;
    /// Capability id: PCI Express.
    pub const ID_EXPRESS: u8 = 0x10;
    /// Offset of its Device Capabilities.
    pub const EXPRESS_CAPABILITIES: u16 = 4;
    /// The function can reset itself, in those.
    pub const FLR_CAPABLE: u32 = 1 << 28;
    /// Offset of its Device Control.
    pub const EXPRESS_CONTROL: u16 = 8;
    /// Initiate Function Level Reset, in that.
    pub const INITIATE_FLR: u16 = 1 << 15;
    /// Function mask, in the first 32 bits of the MSI-X capability.
    pub const MSIX_MASK: u32 = 1 << 30;
    /// Capability id: vendor specific.
    pub const ID_VENDOR: u8 = 0x09;
    /// Capability id: MSI-X.
    pub const ID_MSIX: u8 = 0x11;
    /// Offset of its message control.
    pub const MSIX_CONTROL: u16 = 2;
    /// MSI-X Enable, in that.
    pub const MSIX_ENABLED: u16 = 1 << 15;
    /// Extended capability id: PASID.
    pub const EXTENDED_PASID: u16 = 0x1b;
    /// Extended capability id: SR-IOV.
    pub const EXTENDED_SR_IOV: u16 = 0x10;
    /// "No vector" of `config_msix_vector` and `queue_msix_vector`.
    pub const NO_VECTOR: u64 = 0xffff;
    /// Most MSI-X vectors that VIRTIO 1.4 advises.
    pub const VECTORS_MAX: u16 = 0x800;
}

/// `cfg_type` of a virtio capability.
pub mod cfg_type {
    /// Common configuration.
    pub const COMMON: u8 = 1;
    /// Notifications.
    pub const NOTIFY: u8 = 2;
    /// ISR status.
    pub const ISR: u8 = 3;
    /// Device configuration.
    pub const DEVICE: u8 = 4;
    /// Window onto the BARs in configuration space.
    pub const PCI: u8 = 5;
    /// Data of the device's vendor.
    pub const VENDOR: u8 = 9;
    /// Shared memory.
    pub const SHARED_MEMORY: u8 = 8;
    /// Memory dirty pages tracker: the project's choice.
    pub const TRACKER: u8 = 0x0a;
}

/// Which structure a register belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The common configuration.
    Common,
    /// The dirty pages tracker.
    Tracker,
}

/// A register: where it is and how wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name in the text.
    pub name: &'static str,
    /// Which structure.
    pub place: Place,
    /// Bytes from the start of the structure.
    pub offset: u64,
    /// Width in bytes: 1, 2 or 4.
    pub width: usize,
}

const fn common(name: &'static str, offset: u64, width: usize) -> Field {
    let place = Place::Common;
    Field {
        name,
        place,
        offset,
        width,
    }
}

const fn tracker(name: &'static str, offset: u64, width: usize) -> Field {
    let place = Place::Tracker;
    Field {
        name,
        place,
        offset,
        width,
    }
}

/// Registers of the common configuration and of the tracker. 64-bit fields stand here as halves.
#[rustfmt::skip]
#[expect(missing_docs, reason = "each carries its name and place in its value")]
pub mod reg {
    use super::{Field, common, tracker};
    pub const DEVICE_FEATURE_SELECT: Field = common("device_feature_select", 0, 4);
    pub const DEVICE_FEATURE: Field = common("device_feature", 4, 4);
    pub const DRIVER_FEATURE_SELECT: Field = common("driver_feature_select", 8, 4);
    pub const DRIVER_FEATURE: Field = common("driver_feature", 12, 4);
    pub const CONFIG_MSIX_VECTOR: Field = common("config_msix_vector", 16, 2);
    pub const NUM_QUEUES: Field = common("num_queues", 18, 2);
    pub const DEVICE_STATUS: Field = common("device_status", 20, 1);
    pub const CONFIG_GENERATION: Field = common("config_generation", 21, 1);
    pub const QUEUE_SELECT: Field = common("queue_select", 22, 2);
    pub const QUEUE_SIZE: Field = common("queue_size", 24, 2);
    pub const QUEUE_MSIX_VECTOR: Field = common("queue_msix_vector", 26, 2);
    pub const QUEUE_ENABLE: Field = common("queue_enable", 28, 2);
    pub const QUEUE_NOTIFY_OFF: Field = common("queue_notify_off", 30, 2);
    pub const QUEUE_DESC: [Field; 2] = [common("queue_desc (low)", 32, 4), common("queue_desc (high)", 36, 4)];
    pub const QUEUE_DRIVER: [Field; 2] = [common("queue_driver (low)", 40, 4), common("queue_driver (high)", 44, 4)];
    pub const QUEUE_DEVICE: [Field; 2] = [common("queue_device (low)", 48, 4), common("queue_device (high)", 52, 4)];
    pub const QUEUE_RESET: Field = common("queue_reset", 58, 2);
    pub const ADMIN_QUEUE_INDEX: Field = common("admin_queue_index", 60, 2);
    pub const ADMIN_QUEUE_NUM: Field = common("admin_queue_num", 62, 2);
    pub const QUEUE_AVAIL_STATE: Field = common("queue_avail_state", 64, 2);
    pub const QUEUE_USED_STATE: Field = common("queue_used_state", 66, 2);
    pub const TRACKER_ENABLE: Field = tracker("enable", 0, 1);
    pub const TRACKER_GRA_POWER: Field = tracker("gra_power", 1, 1);
    pub const TRACKER_RESERVED_2: Field = tracker("reserved at 2", 2, 2);
    pub const TRACKER_PASID: Field = tracker("pasid", 4, 4);
    pub const TRACKER_ADDR: [Field; 2] = [tracker("bitmap_addr (low)", 8, 4), tracker("bitmap_addr (high)", 12, 4)];
    pub const TRACKER_LENGTH: [Field; 2] = [tracker("bitmap_length (low)", 16, 4), tracker("bitmap_length (high)", 20, 4)];
    pub const TRACKER_RESERVED_24: [Field; 2] = [tracker("reserved at 24", 24, 4), tracker("reserved at 28", 28, 4)];
}

/// Bytes of the common configuration up to and with `queue_device`.
pub const COMMON_LEN: u64 = 56;
/// Bytes of the common configuration with the queue state.
pub const COMMON_LEN_QUEUE_STATE: u64 = 68;
/// Bytes of the tracker's registers.
pub const TRACKER_LEN: u64 = 32;
/// Bytes of a page at `gra_power` 0.
pub const PAGE: u64 = 4096;
/// ISR status: a queue has used buffers.
pub const ISR_QUEUE: u8 = 1;
/// ISR status: the device configuration changed.
pub const ISR_CONFIG: u8 = 2;

/// Split rings (VIRTIO 1.4, "Split Virtqueues").
pub mod ring {
    /// Descriptor flag: another follows.
    pub const NEXT: u16 = 1;
    /// Descriptor flag: the device writes.
    pub const WRITE: u16 = 2;
    /// Descriptor flag: it refers to a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// Available ring flag: the driver wants no interrupt.
    pub const NO_INTERRUPT: u16 = 1;
    /// Bytes of a descriptor.
    pub const DESC: u64 = 16;
    /// Bytes of an element of the used ring.
    pub const USED: u64 = 8;
    /// Default of the queue state of a split ring.
    pub const STATE_DEFAULT: u64 = 0;
}

/// Packed rings (VIRTIO 1.4, "Packed Virtqueues"); NEXT, WRITE and INDIRECT are those of [`ring`].
pub mod packed {
    /// Descriptor flag: available in the laps whose wrap counter it equals, unless USED does too.
    pub const AVAIL: u16 = 1 << 7;
    /// Descriptor flag: used in the laps whose wrap counter it and AVAIL equal.
    pub const USED: u16 = 1 << 15;
    /// Event suppression flags: notify.
    pub const ENABLE: u16 = 0;
    /// Event suppression flags: do not notify.
    pub const DISABLE: u16 = 1;
    /// Event suppression flags: notify for the descriptor at the offset.
    pub const DESC_EVENT: u16 = 2;
    /// The bits of the event suppression flags that are not reserved.
    pub const EVENT_FLAGS: u16 = 3;
    /// Bytes of an event suppression structure.
    pub const EVENT: u64 = 4;
    /// Default of the queue state of a packed ring: entry 0, wrap counter 1.
    pub const STATE_DEFAULT: u64 = 0x8000;
}

/// The entropy device.
pub mod rng {
    /// Virtio device id.
    pub const ID: u16 = 4;
}

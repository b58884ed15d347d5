//! Feature bits (VIRTIO 1.4, "Reserved Feature Bits"; device types' own sections).

use bitflags::bitflags;

bitflags! {
    /// The feature word of a device: bits 0 to 63.
    ///
    /// Bits 0 to 23 and 50 to 63 mean something different for each device type; they stand in the
    /// device type's module ([`crate::blk::BlkFeatures`]) and are carried here as unnamed bits.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// Indirect descriptors. VIRTIO 1.4, bit 28.
        const RING_INDIRECT_DESC = 1 << 28;
        /// used_event and avail_event suppression fields. VIRTIO 1.4, bit 29.
        const RING_EVENT_IDX = 1 << 29;
        /// Not a legacy device. VIRTIO 1.4, bit 32; this implementation requires it.
        const VERSION_1 = 1 << 32;
        /// Addresses are translated by the platform (vIOMMU). VIRTIO 1.4, bit 33.
        const ACCESS_PLATFORM = 1 << 33;
        /// Packed virtqueues. VIRTIO 1.4, bit 34.
        const RING_PACKED = 1 << 34;
        /// Buffers are used in the order in which they were made available. VIRTIO 1.4, bit 35.
        const IN_ORDER = 1 << 35;
        /// Memory ordering as the platform prescribes. VIRTIO 1.4, bit 36.
        const ORDER_PLATFORM = 1 << 36;
        /// Single Root I/O Virtualization. VIRTIO 1.4, bit 37.
        const SR_IOV = 1 << 37;
        /// Notifications carry the available index. VIRTIO 1.4, bit 38.
        const NOTIFICATION_DATA = 1 << 38;
        /// Notifications carry a device-supplied value. VIRTIO 1.4, bit 39.
        const NOTIF_CONFIG_DATA = 1 << 39;
        /// Queues can be reset one by one. VIRTIO 1.4, bit 40.
        const RING_RESET = 1 << 40;
        /// The device has administration virtqueues. VIRTIO 1.4, bit 41.
        const ADMIN_VQ = 1 << 41;
        /// The device can be suspended. VIRTIO 1.4, bit 43 (the draft of 2024 used 42).
        const SUSPEND = 1 << 43;
        /// Virtqueue state can be read and written through the common configuration.
        /// **Project rule**: bit 44, reserved in VIRTIO 1.4; the name is of the draft of 2023.
        const QUEUE_STATE = 1 << 44;

        const _ = !0;
    }
}

const _: () = assert!(Features::SUSPEND.bits() == 0x0000_0800_0000_0000);
const _: () = assert!(Features::QUEUE_STATE.bits() == 0x0000_1000_0000_0000);

//! Virtio over PCI (VIRTIO 1.4, "Virtio Over PCI Bus"): ids, capabilities, common configuration.

use crate::{Le16, Le32, Le64};
use core::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// PCI vendor id of every virtio device.
pub const VENDOR_ID: u16 = 0x1af4;
/// PCI device id of device type `n` is this plus `n`.
pub const DEVICE_ID_BASE: u16 = 0x1040;
/// The vector number that means "no vector".
pub const NO_VECTOR: u16 = 0xffff;

/// Values of `cfg_type`.
pub mod cfg_type {
    /// Common configuration.
    pub const COMMON: u8 = 1;
    /// Notifications.
    pub const NOTIFY: u8 = 2;
    /// ISR status.
    pub const ISR: u8 = 3;
    /// Device-specific configuration.
    pub const DEVICE: u8 = 4;
    /// Access to a BAR through configuration space.
    pub const PCI: u8 = 5;
    /// Shared memory region.
    pub const SHARED_MEMORY: u8 = 8;
    /// Vendor-specific data.
    pub const VENDOR: u8 = 9;
    /// Memory dirty pages tracker. Project rule, see [`crate::tracker`].
    pub const TRACKER: u8 = crate::tracker::CFG_TYPE;
}

/// Bits of the ISR status byte.
pub mod isr {
    /// A queue has used buffers.
    pub const QUEUE: u8 = 1;
    /// The device configuration changed, or DEVICE_NEEDS_RESET was set.
    pub const CONFIG: u8 = 2;
}

/// `struct virtio_pci_cap`: a vendor capability that points into a BAR.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct VirtioPciCap {
    /// Capability id, 0x09.
    pub cap_vndr: u8,
    /// Offset of the next capability in configuration space, 0 at the end.
    pub cap_next: u8,
    /// Length of this capability in bytes.
    pub cap_len: u8,
    /// One of [`cfg_type`].
    pub cfg_type: u8,
    /// BAR number, 0 to 5.
    pub bar: u8,
    /// Tells several capabilities of one type apart.
    pub id: u8,
    /// Reserved.
    pub padding: [u8; 2],
    /// Offset within the BAR in bytes.
    pub offset: Le32,
    /// Length of the structure in bytes.
    pub length: Le32,
}

/// `struct virtio_pci_notify_cap`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct VirtioPciNotifyCap {
    /// The common head.
    pub cap: VirtioPciCap,
    /// Bytes between the notification addresses of two queues.
    pub notify_off_multiplier: Le32,
}

/// `struct virtio_pci_cfg_cap`: a window onto BAR space for those who cannot map it.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct VirtioPciCfgCap {
    /// The common head; `bar`, `offset` and `length` are written by the driver.
    pub cap: VirtioPciCap,
    /// The data read from or written to the window.
    pub pci_cfg_data: [u8; 4],
}

/// `struct virtio_pci_common_cfg`, with the project's two queue state fields at its end.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommonCfg {
    /// Selects which 32 device feature bits [`CommonCfg::device_feature`] shows. Read-write.
    pub device_feature_select: Le32,
    /// Device feature bits of the selected half. Read-only.
    pub device_feature: Le32,
    /// Selects which 32 driver feature bits [`CommonCfg::driver_feature`] shows. Read-write.
    pub driver_feature_select: Le32,
    /// Driver feature bits of the selected half. Read-write.
    pub driver_feature: Le32,
    /// MSI-X vector for configuration changes. Read-write.
    pub config_msix_vector: Le16,
    /// Number of queues, administration queues not counted. Read-only.
    pub num_queues: Le16,
    /// [`crate::status::DeviceStatus`]; writing 0 resets the device. Read-write.
    pub device_status: u8,
    /// Changes whenever the device configuration changes. Read-only.
    pub config_generation: u8,
    /// Selects the queue that the following fields belong to. Read-write.
    pub queue_select: Le16,
    /// Queue size in entries; 0 if there is no such queue. Read-write.
    pub queue_size: Le16,
    /// MSI-X vector of the queue. Read-write.
    pub queue_msix_vector: Le16,
    /// 1 while the queue is enabled. Read-write, but the driver never writes 0.
    pub queue_enable: Le16,
    /// Notification offset of the queue, in units of `notify_off_multiplier`. Read-only.
    pub queue_notify_off: Le16,
    /// Address of the descriptor table (IOVA). Read-write in two halves.
    pub queue_desc: Le64,
    /// Address of the available ring (IOVA). Read-write in two halves.
    pub queue_driver: Le64,
    /// Address of the used ring (IOVA). Read-write in two halves.
    pub queue_device: Le64,
    /// Value for notifications (NOTIF_CONFIG_DATA). Read-only.
    pub queue_notif_config_data: Le16,
    /// Writing 1 resets the queue (RING_RESET); reads 1 while that goes on. Read-write.
    pub queue_reset: Le16,
    /// Index of the first administration queue (ADMIN_VQ). Read-only.
    pub admin_queue_index: Le16,
    /// Number of administration queues (ADMIN_VQ). Read-only.
    pub admin_queue_num: Le16,
    /// Available state of the queue, see [`crate::queue_state`]. Read-write. Project rule.
    pub queue_avail_state: Le16,
    /// Used state of the queue, see [`crate::queue_state`]. Read-write. Project rule.
    pub queue_used_state: Le16,
}

const _: () = assert!(size_of::<VirtioPciCap>() == 16);
const _: () = assert!(offset_of!(VirtioPciCap, offset) == 8);
const _: () = assert!(offset_of!(VirtioPciCap, length) == 12);
const _: () = assert!(size_of::<VirtioPciNotifyCap>() == 20);
const _: () = assert!(size_of::<VirtioPciCfgCap>() == 20);
const _: () = assert!(offset_of!(CommonCfg, device_feature_select) == 0);
const _: () = assert!(offset_of!(CommonCfg, device_feature) == 4);
const _: () = assert!(offset_of!(CommonCfg, driver_feature_select) == 8);
const _: () = assert!(offset_of!(CommonCfg, driver_feature) == 12);
const _: () = assert!(offset_of!(CommonCfg, config_msix_vector) == 16);
const _: () = assert!(offset_of!(CommonCfg, num_queues) == 18);
const _: () = assert!(offset_of!(CommonCfg, device_status) == 20);
const _: () = assert!(offset_of!(CommonCfg, config_generation) == 21);
const _: () = assert!(offset_of!(CommonCfg, queue_select) == 22);
const _: () = assert!(offset_of!(CommonCfg, queue_size) == 24);
const _: () = assert!(offset_of!(CommonCfg, queue_msix_vector) == 26);
const _: () = assert!(offset_of!(CommonCfg, queue_enable) == 28);
const _: () = assert!(offset_of!(CommonCfg, queue_notify_off) == 30);
const _: () = assert!(offset_of!(CommonCfg, queue_desc) == 32);
const _: () = assert!(offset_of!(CommonCfg, queue_driver) == 40);
const _: () = assert!(offset_of!(CommonCfg, queue_device) == 48);
const _: () = assert!(offset_of!(CommonCfg, queue_notif_config_data) == 56);
const _: () = assert!(offset_of!(CommonCfg, queue_reset) == 58);
const _: () = assert!(offset_of!(CommonCfg, admin_queue_index) == 60);
const _: () = assert!(offset_of!(CommonCfg, admin_queue_num) == 62);
const _: () = assert!(offset_of!(CommonCfg, queue_avail_state) == 64);
const _: () = assert!(offset_of!(CommonCfg, queue_used_state) == 66);
const _: () = assert!(size_of::<CommonCfg>() == 68);

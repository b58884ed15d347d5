//! The device status field (VIRTIO 1.4, "Device Status Field").

use bitflags::bitflags;

bitflags! {
    /// The device status byte. Zero after reset; the driver only ever sets bits or writes 0.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct DeviceStatus: u8 {
        /// The guest has found the device. VIRTIO 1.4.
        const ACKNOWLEDGE = 1;
        /// The guest knows how to drive the device. VIRTIO 1.4.
        const DRIVER = 2;
        /// The driver is ready; the device is live. VIRTIO 1.4.
        const DRIVER_OK = 4;
        /// Feature negotiation is complete. VIRTIO 1.4.
        const FEATURES_OK = 8;
        /// The device has been suspended by the driver; meaningful when
        /// [`Features::SUSPEND`](crate::features::Features::SUSPEND) is negotiated. VIRTIO 1.4.
        const SUSPEND = 16;
        /// The device met an error from which only a reset recovers. VIRTIO 1.4.
        const DEVICE_NEEDS_RESET = 64;
        /// The guest has given up on the device. VIRTIO 1.4.
        const FAILED = 128;
    }
}

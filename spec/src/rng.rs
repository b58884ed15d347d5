//! The entropy device (VIRTIO 1.4, "Entropy Device"): one request queue, no configuration space.

/// Virtio device id. PCI device id 0x1044.
pub const DEVICE_ID: u16 = 4;
/// Index of the request queue.
pub const REQUEST_QUEUE: u16 = 0;

//! The state of a virtqueue that the device holds and memory does not: where it reads next.
//!
//! **Project rule**, anchored in the 2021 patches that defined `queue_avail_state` and in the
//! series of 2023 that named the feature VIRTIO_F_QUEUE_STATE. VIRTIO 1.4 has none of it.

/// The available state and the used state of one queue, as the common configuration shows them.
///
/// Split ring: both are free-running 16-bit indices, default 0. `used` mirrors the used index in
/// memory; a device ignores a written value that differs from it.
///
/// Packed ring: bits 0 to 14 are a ring index, bit 15 the wrap counter, default `0x8000`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct QueueState {
    /// Where the device reads the next available buffer (`queue_avail_state`).
    pub avail: u16,
    /// Where the device writes the next used buffer (`queue_used_state`).
    pub used: u16,
}

impl QueueState {
    /// The state of a split queue after reset.
    pub const SPLIT_DEFAULT: Self = Self { avail: 0, used: 0 };
    /// The state of a packed queue after reset: index 0, wrap counter 1.
    pub const PACKED_DEFAULT: Self = Self {
        avail: 0x8000,
        used: 0x8000,
    };

    /// The state of a queue after reset.
    pub const fn default_of(packed: bool) -> Self {
        if packed {
            Self::PACKED_DEFAULT
        } else {
            Self::SPLIT_DEFAULT
        }
    }
}

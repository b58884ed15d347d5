//! Virtqueues: popping chains, pushing used buffers, and the state a stopped queue returns.

use spec::queue_state::QueueState;

/// What the driver configured for one queue before it enabled it. Untrusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueConfig {
    /// Entries, a power of two up to 32768.
    pub size: u16,
    /// IOVA of the descriptor table.
    pub desc: u64,
    /// IOVA of the available ring.
    pub driver: u64,
    /// IOVA of the used ring.
    pub device: u64,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// Where to start.
    pub state: QueueState,
}

/// A started queue.
#[derive(Debug)]
pub struct Virtqueue {}

//! What a virtio device type is to the function that carries it.

use crate::dma::Dma;
use crate::queue::Virtqueue;
use std::fmt::Debug;

/// How a step of work on a queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The queue was empty and notifications are enabled: sleep until it is kicked.
    Idle,
    /// There may be more: schedule the queue again.
    More,
}

/// Why a queue cannot start or cannot go on. The device sets DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A ring is not where the driver said, or its memory is not mapped.
    #[error("the {ring} cannot be accessed: {why}")]
    Ring {
        /// Which of the three areas.
        ring: &'static str,
        /// What memory said.
        why: String,
    },
    /// The driver broke the ring's rules; `what` names them.
    #[error("the driver broke the ring: {what}")]
    Broken {
        /// What was expected and what came.
        what: String,
    },
    /// The queue cannot be started now: there is none of this index, it is running, or its stop
    /// has not been answered yet. Nothing changed.
    #[error("queue {index} cannot be started: {why}")]
    NotStartable {
        /// The queue.
        index: u16,
        /// Why not.
        why: &'static str,
    },
}

impl QueueError {
    pub(crate) fn broken(what: impl Into<String>) -> Self {
        Self::Broken { what: what.into() }
    }
}

/// A virtio device type: its identity, its configuration, and what it does with its queues.
///
/// Life, registers, PCI, interrupts and marks are not its business.
pub trait VirtioDevice: Send + Sync + Debug {
    /// Virtio device id (2 block, 4 entropy).
    fn device_id(&self) -> u16;
    /// PCI class code, 24 bits.
    fn pci_class(&self) -> u32;
    /// Device type feature bits offered, 0 to 23 and 50 to 63.
    fn features(&self) -> u64;
    /// Number of queues.
    fn num_queues(&self) -> u16;
    /// Largest size of queue `index`.
    fn queue_max_size(&self, index: u16) -> u16;
    /// Bytes of device configuration.
    fn config_len(&self) -> usize;
    /// The device configuration as it is now, `config_len()` bytes.
    fn config(&self) -> Vec<u8>;
    /// A write to the device configuration that lies within it. Returns true if anything changed.
    fn config_write(&self, offset: usize, data: &[u8]) -> bool;
    /// Whether a driver that wants just these of the offered features can be served. If not,
    /// FEATURES_OK stays clear.
    fn accepts(&self, _features: u64) -> bool {
        true
    }
    /// The negotiated features, told before the first queue starts.
    fn negotiated(&self, features: u64);
    /// Back to the state after power-on. No queue is running.
    fn reset(&self);
    /// Does a bounded amount of the work that waits in queue `index`: pops, carries out, pushes,
    /// in the order of popping. Nothing is in flight when it returns, unless with an error. A
    /// queue that is to stop looks empty, so the work ends as soon as what was popped is done.
    ///
    /// Runs on a worker, for one queue on one worker at a time. Calls `notify`, with no guard held,
    /// each time that the driver is to be told about used buffers, with an error too.
    ///
    /// # Errors
    ///
    /// The queue is broken: chains that came before the cause have been used as far as possible.
    fn process(
        &self,
        index: u16,
        queue: &mut Virtqueue,
        dma: &Dma,
        notify: &mut dyn FnMut(),
    ) -> Result<Progress, QueueError>;
}

//! Virtqueues as the driver builds them.

mod chains;
mod packed;
mod split;

pub use packed::PackedQueue;
pub use split::SplitQueue;

use crate::error::DriverError;
use crate::memory::DmaMemory;
use crate::transport::QueueSetup;
use spec::features::Features;

/// A piece of memory that a request names: address (IOVA) and length in bytes.
pub type Buffer = (u64, u32);

/// A request that the device is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What the caller passed to [`Virtqueue::add`].
    pub token: u64,
    /// Bytes the device says it wrote; at most what was writable.
    pub len: u32,
}

/// One request in flight, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainState {
    /// Its descriptors, head first. Those of a packed queue have no fixed places: they are as many
    /// numbers, of which the first is the buffer's id and of its indirect table.
    pub descriptors: Vec<u16>,
    /// The caller's token.
    pub token: u64,
    /// Bytes the device may write.
    pub writable: u32,
}

/// What a driver knows of its queue and memory does not say, as plain data: with it the driver can
/// be moved with its memory. Possibly from outside: [`Virtqueue::resume`] judges it.
///
/// The three places are free-running indices of a split queue; of a packed one a ring index in bits
/// 0 to 14 and its wrap counter in bit 15.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingState {
    /// Entries.
    pub size: u16,
    /// Where the next request goes.
    pub next_avail: u16,
    /// Up to where requests are available to the device.
    pub published: u16,
    /// Where the next used one is read.
    pub last_used: u16,
    /// Requests in flight.
    pub chains: Vec<ChainState>,
}

/// A queue in the format that was negotiated. What holds for either is said at [`SplitQueue`].
#[derive(Debug)]
pub enum Virtqueue {
    /// Without RING_PACKED.
    Split(SplitQueue),
    /// With it.
    Packed(PackedQueue),
}

impl From<SplitQueue> for Virtqueue {
    fn from(queue: SplitQueue) -> Self {
        Self::Split(queue)
    }
}

impl From<PackedQueue> for Virtqueue {
    fn from(queue: PackedQueue) -> Self {
        Self::Packed(queue)
    }
}

/// The same call for either format.
macro_rules! either {
    ($queue:expr, $name:ident => $call:expr) => {
        match $queue {
            Virtqueue::Split($name) => $call,
            Virtqueue::Packed($name) => $call,
        }
    };
}

impl Virtqueue {
    /// Bytes of memory that a queue of `size` entries takes in either format: a guest is laid out
    /// before anything is negotiated.
    pub fn bytes_needed(size: u16) -> u64 {
        SplitQueue::bytes_needed(size).max(PackedQueue::bytes_needed(size))
    }

    /// An empty queue in `memory`, which must be zeroed, in the format and with the abilities that
    /// `features` (as negotiated) have.
    ///
    /// # Errors
    /// As [`SplitQueue::new`] or [`PackedQueue::new`].
    pub fn new(memory: DmaMemory, size: u16, features: Features) -> Result<Self, DriverError> {
        Ok(if features.contains(Features::RING_PACKED) {
            PackedQueue::new(memory, size, features)?.into()
        } else {
            SplitQueue::new(memory, size, features)?.into()
        })
    }

    /// A queue that goes on where [`state`](Self::state) was taken, over memory with the same
    /// contents.
    ///
    /// # Errors
    /// As [`SplitQueue::resume`] or [`PackedQueue::resume`].
    pub fn resume(
        memory: DmaMemory,
        size: u16,
        features: Features,
        state: &RingState,
    ) -> Result<Self, DriverError> {
        Ok(if features.contains(Features::RING_PACKED) {
            PackedQueue::resume(memory, size, features, state)?.into()
        } else {
            SplitQueue::resume(memory, size, features, state)?.into()
        })
    }

    /// What is needed to go on elsewhere with the same memory contents.
    pub fn state(&self) -> RingState {
        either!(self, queue => queue.state())
    }

    /// What [`Transport::setup_queue`](crate::Transport::setup_queue) wants to know.
    pub fn setup(&self, vector: u16) -> QueueSetup {
        either!(self, queue => queue.setup(vector))
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        either!(self, queue => queue.size())
    }

    /// Requests added and not yet reaped.
    pub fn in_flight(&self) -> u16 {
        either!(self, queue => queue.in_flight())
    }

    /// Requests added that the device has not used, whether the others were reaped or not.
    ///
    /// # Errors
    /// As for [`SplitQueue::unused`].
    pub fn unused(&self) -> Result<u16, DriverError> {
        either!(self, queue => queue.unused())
    }

    /// Descriptors that are free.
    pub fn free_descriptors(&self) -> usize {
        either!(self, queue => queue.free_descriptors())
    }

    /// What a notification with data carries: up to where requests are available.
    pub fn published(&self) -> u16 {
        either!(self, queue => queue.published())
    }

    /// Up to where used requests were reaped: the used state of a device that has used no more.
    pub fn last_used(&self) -> u16 {
        either!(self, queue => queue.last_used())
    }

    /// Builds a request.
    ///
    /// # Errors
    /// As for [`SplitQueue::add`].
    pub fn add(
        &mut self,
        readable: &[Buffer],
        writable: &[Buffer],
        token: u64,
    ) -> Result<(), DriverError> {
        either!(self, queue => queue.add(readable, writable, token))
    }

    /// Makes the requests added since the last call available; true if the device wants to be
    /// notified.
    ///
    /// # Errors
    /// As for [`SplitQueue::publish`].
    pub fn publish(&mut self) -> Result<bool, DriverError> {
        either!(self, queue => queue.publish())
    }

    /// Takes the next request that the device is done with.
    ///
    /// # Errors
    /// As for [`SplitQueue::reap`] or [`PackedQueue::reap`].
    pub fn reap(&mut self) -> Result<Option<Used>, DriverError> {
        either!(self, queue => queue.reap())
    }

    /// Asks for an interrupt when the next request is done; true if one is done already.
    ///
    /// # Errors
    /// As for [`SplitQueue::enable_interrupts`].
    pub fn enable_interrupts(&mut self) -> Result<bool, DriverError> {
        either!(self, queue => queue.enable_interrupts())
    }

    /// Asks for no interrupts; the device may send some nevertheless.
    ///
    /// # Errors
    /// As for [`SplitQueue::disable_interrupts`].
    pub fn disable_interrupts(&mut self) -> Result<(), DriverError> {
        either!(self, queue => queue.disable_interrupts())
    }
}

#[cfg(test)]
mod tests;

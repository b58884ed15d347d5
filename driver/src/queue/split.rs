//! The driver's end of a split virtqueue (VIRTIO 1.4, "Split Virtqueues").
//!
//! Memory is written and never believed: which descriptors belong to which request is kept here,
//! so a device that scribbles over the tables cannot lead the driver anywhere.

use super::chains::{Chains, INDIRECT_BYTES, Request, bad};
use super::{Buffer, RingState, Used};
use crate::dirty::PAGE_SIZE;
use crate::error::DriverError;
use crate::memory::DmaMemory;
use crate::transport::QueueSetup;
use spec::features::Features;
use spec::ring::{
    self, AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor,
    QUEUE_SIZE_MAX, USED_F_NO_NOTIFY,
};
use std::sync::atomic::{Ordering, fence};
use zerocopy::IntoBytes;

/// Where the parts lie within the memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    avail: u64,
    used: u64,
    indirect: u64,
    end: u64,
}

impl Layout {
    /// What the device writes, the used ring, has pages of its own: a page that both sides write
    /// would be reported by the CPU's log whenever the device's tracker forgets it.
    fn new(size: u16) -> Self {
        let avail = ring::desc_bytes(size);
        let used = (avail + ring::avail_bytes(size)).next_multiple_of(PAGE_SIZE);
        let indirect = (used + ring::used_bytes(size)).next_multiple_of(PAGE_SIZE);
        Self {
            avail,
            used,
            indirect,
            end: indirect + u64::from(size) * INDIRECT_BYTES,
        }
    }
}

/// The driver's end of a split queue.
#[derive(Debug)]
pub struct SplitQueue {
    memory: DmaMemory,
    size: u16,
    layout: Layout,
    event_idx: bool,
    indirect: bool,
    chains: Chains,
    next_avail: u16,
    published: u16,
    last_used: u16,
    /// Whether used_event follows what is reaped.
    interrupts: bool,
}

impl SplitQueue {
    /// Bytes of memory that a queue of `size` entries takes, indirect tables included.
    pub fn bytes_needed(size: u16) -> u64 {
        Layout::new(size).end
    }

    /// An empty queue in `memory`, which must be zeroed; it uses RING_EVENT_IDX and
    /// RING_INDIRECT_DESC if `features` (as negotiated) have them.
    ///
    /// # Errors
    /// [`DriverError::QueueSize`] unless `size` is a power of two up to 32768;
    /// [`DriverError::Memory`] if the memory is shorter than [`bytes_needed`](Self::bytes_needed);
    /// [`DriverError::QueueAddress`] if it is not 16-aligned; [`DriverError::NotNegotiated`] if the
    /// queues are packed.
    pub fn new(memory: DmaMemory, size: u16, features: Features) -> Result<Self, DriverError> {
        let state = RingState {
            size,
            ..RingState::default()
        };
        Self::resume(memory, size, features, &state)
    }

    /// A queue that goes on where [`state`](Self::state) was taken, over memory with the same
    /// contents.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`DriverError::BadState`] names the field that cannot be.
    pub fn resume(
        memory: DmaMemory,
        size: u16,
        features: Features,
        state: &RingState,
    ) -> Result<Self, DriverError> {
        if !size.is_power_of_two() || size > QUEUE_SIZE_MAX {
            return Err(DriverError::QueueSize {
                queue: 0,
                size,
                max: QUEUE_SIZE_MAX,
            });
        }
        let layout = Layout::new(size);
        let memory = memory.slice(0, layout.end)?;
        memory.words()?;
        if !memory.iova().is_multiple_of(ring::DESC_ALIGN) {
            return Err(DriverError::QueueAddress {
                queue: 0,
                part: "desc",
                address: memory.iova(),
            });
        }
        if features.contains(Features::RING_PACKED) {
            return Err(DriverError::NotNegotiated(Features::RING_PACKED));
        }
        let chains = Self::adopt(size, state)?;
        Ok(Self {
            memory,
            size,
            layout,
            event_idx: features.contains(Features::RING_EVENT_IDX),
            indirect: features.contains(Features::RING_INDIRECT_DESC),
            chains,
            next_avail: state.next_avail,
            published: state.published,
            last_used: state.last_used,
            interrupts: true,
        })
    }

    fn adopt(size: u16, state: &RingState) -> Result<Chains, DriverError> {
        if state.size != size {
            return Err(bad("size", format!("{}, expected {size}", state.size)));
        }
        let in_flight = state.next_avail.wrapping_sub(state.last_used);
        if in_flight > size || usize::from(in_flight) != state.chains.len() {
            let why = format!("{in_flight} by the indices, {} listed", state.chains.len());
            return Err(bad("chains", why));
        }
        if state.next_avail.wrapping_sub(state.published) > in_flight {
            let why = format!("{} after {}", state.published, state.next_avail);
            return Err(bad("published", why));
        }
        Chains::adopt(size, &state.chains)
    }

    /// What is needed to go on elsewhere with the same memory contents.
    pub fn state(&self) -> RingState {
        RingState {
            size: self.size,
            next_avail: self.next_avail,
            published: self.published,
            last_used: self.last_used,
            chains: self.chains.list(),
        }
    }

    /// What [`Transport::setup_queue`](crate::Transport::setup_queue) wants to know.
    pub fn setup(&self, vector: u16) -> QueueSetup {
        let base = self.memory.iova();
        QueueSetup {
            size: self.size,
            vector,
            desc: base,
            driver: base + self.layout.avail,
            device: base + self.layout.used,
        }
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Requests added and not yet reaped.
    pub fn in_flight(&self) -> u16 {
        self.chains.in_flight()
    }

    /// Descriptors that are free. A request takes one for each buffer, or one altogether with
    /// RING_INDIRECT_DESC.
    pub fn free_descriptors(&self) -> usize {
        self.chains.free()
    }

    /// The available index that the device sees: what a notification with data carries.
    pub fn published(&self) -> u16 {
        self.published
    }

    /// Requests added that the device has not used, whether the others were reaped or not.
    ///
    /// # Errors
    /// None that memory of the right size can cause.
    pub fn unused(&self) -> Result<u16, DriverError> {
        Ok(self.next_avail.wrapping_sub(self.device_used()?))
    }

    /// The used index as memory holds it: up to where the device has given requests back, reaped
    /// or not. Where a device starts that takes over from one that died.
    ///
    /// # Errors
    /// None that memory of the right size can cause.
    pub fn device_used(&self) -> Result<u16, DriverError> {
        let idx = self.layout.used + 2;
        Ok(self.memory.load_u16(idx, Ordering::Acquire)?)
    }

    /// Up to where used requests were reaped: the used state of a device that has used no more.
    pub fn last_used(&self) -> u16 {
        self.last_used
    }

    /// Builds a request of buffers that the device reads, then buffers that it writes. It becomes
    /// visible with [`publish`](Self::publish). `token` comes back with it.
    ///
    /// # Errors
    /// [`DriverError::QueueFull`]: reap and try again. [`DriverError::BadChain`] if it can never
    /// fit: no buffer at all, one of length 0, more than the queue has entries, 4 GiB or more.
    pub fn add(
        &mut self,
        readable: &[Buffer],
        writable: &[Buffer],
        token: u64,
    ) -> Result<(), DriverError> {
        let request = Request::new(readable, writable, self.size)?;
        let Request { buffers, .. } = request;
        let use_table = self.indirect && request.fits_table();
        let (head, descriptors) = self.chains.next(if use_table { 1 } else { buffers })?;
        let readable = readable.iter().map(|buffer| (buffer, 0));
        let all = readable.chain(writable.iter().map(|buffer| (buffer, DESC_F_WRITE)));
        if use_table {
            let table = self.layout.indirect + u64::from(head) * INDIRECT_BYTES;
            let mut len = 0_u32;
            for (index, (buffer, flags)) in (0_u16..).zip(all) {
                let last = usize::from(index) + 1 == buffers;
                let next = (!last).then_some(index + 1);
                self.describe(table, index, *buffer, flags, next)?;
                len += 16;
            }
            let buffer = (self.memory.iova() + table, len);
            self.describe(0, head, buffer, DESC_F_INDIRECT, None)?;
        } else {
            let nexts = descriptors.iter().skip(1).copied().map(Some);
            let chain = descriptors.iter().zip(nexts.chain([None]));
            for ((index, next), (buffer, flags)) in chain.zip(all) {
                self.describe(0, *index, *buffer, flags, next)?;
            }
        }
        let entry = self.layout.avail + 4 + 2 * u64::from(self.next_avail & (self.size - 1));
        self.memory.store_u16(entry, head, Ordering::Relaxed)?;
        // From here on nothing fails.
        self.chains.add(descriptors, token, request.writable);
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(())
    }

    fn describe(
        &self,
        table: u64,
        index: u16,
        (addr, len): Buffer,
        flags: u16,
        next: Option<u16>,
    ) -> Result<(), DriverError> {
        let descriptor = Descriptor {
            addr: addr.into(),
            len: len.into(),
            flags: (flags | next.map_or(0, |_| DESC_F_NEXT)).into(),
            next: next.unwrap_or(0).into(),
        };
        let at = table + 16 * u64::from(index);
        Ok(self.memory.write(at, descriptor.as_bytes())?)
    }

    /// Makes the requests added since the last call available; true if the device wants to be
    /// notified.
    ///
    /// # Errors
    /// None that memory of the right size can cause.
    pub fn publish(&mut self) -> Result<bool, DriverError> {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return Ok(false);
        }
        let idx = self.layout.avail + 2;
        self.memory.store_u16(idx, new, Ordering::Release)?;
        self.published = new;
        // The store before the load: otherwise driver and device may each miss the other's.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.layout.used + 4 + 8 * u64::from(self.size);
            let event = self.memory.load_u16(event, Ordering::Relaxed)?;
            // VIRTIO 1.4, "Available Buffer Notification Suppression".
            Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
        } else {
            let flags = self.memory.load_u16(self.layout.used, Ordering::Relaxed)?;
            Ok(flags & USED_F_NO_NOTIFY == 0)
        }
    }

    /// Takes the next request that the device is done with.
    ///
    /// # Errors
    /// [`DriverError::UsedIndex`], [`DriverError::UsedId`] or [`DriverError::UsedLength`] if the
    /// device breaks the rules. Nothing has been taken then, and nothing more can be: reset it.
    pub fn reap(&mut self) -> Result<Option<Used>, DriverError> {
        let idx = self.layout.used + 2;
        let used = self.memory.load_u16(idx, Ordering::Acquire)?;
        let ready = used.wrapping_sub(self.last_used);
        if ready == 0 {
            return Ok(None);
        }
        // What was not published cannot have been used.
        if ready > self.published.wrapping_sub(self.last_used) {
            return Err(DriverError::UsedIndex {
                used,
                last: self.last_used,
                in_flight: self.in_flight(),
            });
        }
        let entry = self.layout.used + 4 + 8 * u64::from(self.last_used & (self.size - 1));
        let id = self.memory.load_u32(entry, Ordering::Relaxed)?;
        let len = self.memory.load_u32(entry + 4, Ordering::Relaxed)?;
        let done = self.chains.finish(id, len)?;
        self.last_used = self.last_used.wrapping_add(1);
        if self.event_idx && self.interrupts {
            self.store_used_event(self.last_used)?;
            // Before the next look at the index, or an element that comes now is neither seen nor
            // announced.
            fence(Ordering::SeqCst);
        }
        Ok(Some(done))
    }

    /// Asks for an interrupt when the next request is done; true if one is done already, so that
    /// the caller reaps instead of waiting.
    ///
    /// # Errors
    /// None that memory of the right size can cause.
    pub fn enable_interrupts(&mut self) -> Result<bool, DriverError> {
        self.interrupts = true;
        if self.event_idx {
            self.store_used_event(self.last_used)?;
        } else {
            self.memory
                .store_u16(self.layout.avail, 0, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        let idx = self.layout.used + 2;
        Ok(self.memory.load_u16(idx, Ordering::Acquire)? != self.last_used)
    }

    /// Asks for no interrupts; the device may send some nevertheless.
    ///
    /// # Errors
    /// None that memory of the right size can cause.
    pub fn disable_interrupts(&mut self) -> Result<(), DriverError> {
        self.interrupts = false;
        if self.event_idx {
            // An index that the device has just passed and will not reach again soon.
            self.store_used_event(self.last_used.wrapping_sub(1))
        } else {
            let flags = self.layout.avail;
            let value = AVAIL_F_NO_INTERRUPT;
            Ok(self.memory.store_u16(flags, value, Ordering::Relaxed)?)
        }
    }

    fn store_used_event(&self, index: u16) -> Result<(), DriverError> {
        let event = self.layout.avail + 4 + 2 * u64::from(self.size);
        Ok(self.memory.store_u16(event, index, Ordering::Relaxed)?)
    }
}

#[cfg(test)]
mod tests;

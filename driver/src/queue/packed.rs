//! The driver's end of a packed virtqueue (VIRTIO 1.4, "Packed Virtqueues").
//!
//! Memory is written and hardly believed: the device says by an id which request it has used, and
//! what belongs to that id is kept here. Each request takes as many ids as descriptors, so that one
//! list of free ids counts the free entries too; the first of them names it.

use super::chains::{Chains, INDIRECT_BYTES, Request, bad};
use super::{Buffer, RingState, Used};
use crate::dirty::PAGE_SIZE;
use crate::error::DriverError;
use crate::memory::DmaMemory;
use crate::transport::QueueSetup;
use spec::features::Features;
use spec::packed::{
    self, DESC_F_AVAIL, DESC_F_USED, EVENT_BYTES, EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE,
    EVENT_FLAGS, PackedDescriptor, Position,
};
use spec::ring::{self, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, QUEUE_SIZE_MAX};
use std::mem::offset_of;
use std::sync::atomic::{Ordering, fence};
use zerocopy::IntoBytes;

/// The bits that say whose a descriptor is.
const OWNER: u16 = DESC_F_AVAIL | DESC_F_USED;
const AT_LEN: u64 = offset_of!(PackedDescriptor, len) as u64;
const AT_ID: u64 = offset_of!(PackedDescriptor, id) as u64;
const AT_FLAGS: u64 = offset_of!(PackedDescriptor, flags) as u64;

/// Where the parts lie within the memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    driver: u64,
    device: u64,
    indirect: u64,
    end: u64,
}

impl Layout {
    /// Both sides write the ring's pages; what only the device writes has a page of its own.
    fn new(size: u16) -> Self {
        let driver = ring::desc_bytes(size);
        let device = (driver + EVENT_BYTES).next_multiple_of(PAGE_SIZE);
        let indirect = (device + EVENT_BYTES).next_multiple_of(PAGE_SIZE);
        Self {
            driver,
            device,
            indirect,
            end: indirect + u64::from(size) * INDIRECT_BYTES,
        }
    }
}

/// The driver's end of a packed queue. Its interface is that of
/// [`SplitQueue`](super::SplitQueue).
#[derive(Debug)]
pub struct PackedQueue {
    memory: DmaMemory,
    size: u16,
    layout: Layout,
    event_idx: bool,
    indirect: bool,
    chains: Chains,
    next_avail: Position,
    published: Position,
    last_used: Position,
    /// Whether the driver event structure follows what is reaped.
    interrupts: bool,
}

impl PackedQueue {
    /// Bytes of memory that a queue of `size` entries takes, indirect tables included.
    pub fn bytes_needed(size: u16) -> u64 {
        Layout::new(size).end
    }

    /// An empty queue in `memory`, which must be zeroed; it uses RING_EVENT_IDX and
    /// RING_INDIRECT_DESC if `features` (as negotiated) have them.
    ///
    /// # Errors
    /// [`DriverError::QueueSize`] unless `size` is 1 to 32768; [`DriverError::Memory`] if the memory
    /// is shorter than [`bytes_needed`](Self::bytes_needed); [`DriverError::QueueAddress`] if it is
    /// not 16-aligned; [`DriverError::NotNegotiated`] if the queues are split.
    pub fn new(memory: DmaMemory, size: u16, features: Features) -> Result<Self, DriverError> {
        let start = Position::START.to_bits();
        let state = RingState {
            size,
            next_avail: start,
            published: start,
            last_used: start,
            chains: Vec::new(),
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
        if size == 0 || size > QUEUE_SIZE_MAX {
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
        if !features.contains(Features::RING_PACKED) {
            return Err(DriverError::NotNegotiated(Features::RING_PACKED));
        }
        if state.size != size {
            return Err(bad("size", format!("{}, expected {size}", state.size)));
        }
        let position = |field: &str, bits: u16| {
            Position::from_bits(bits, size)
                .ok_or_else(|| bad(field, format!("{bits:#06x} in a ring of {size}")))
        };
        let next_avail = position("next_avail", state.next_avail)?;
        let published = position("published", state.published)?;
        let last_used = position("last_used", state.last_used)?;
        let taken = last_used.distance(next_avail, size);
        let listed = state.chains.iter().map(|chain| chain.descriptors.len());
        let listed: usize = listed.fold(0, usize::saturating_add);
        if taken > u32::from(size) || usize::try_from(taken) != Ok(listed) {
            let why = format!("{taken} descriptors by the places, {listed} listed");
            return Err(bad("chains", why));
        }
        if published.distance(next_avail, size) > taken {
            let why = format!("{:#06x} after {:#06x}", state.published, state.next_avail);
            return Err(bad("published", why));
        }
        Ok(Self {
            memory,
            size,
            layout,
            event_idx: features.contains(Features::RING_EVENT_IDX),
            indirect: features.contains(Features::RING_INDIRECT_DESC),
            chains: Chains::adopt(size, &state.chains)?,
            next_avail,
            published,
            last_used,
            interrupts: true,
        })
    }

    /// What is needed to go on elsewhere with the same memory contents.
    pub fn state(&self) -> RingState {
        RingState {
            size: self.size,
            next_avail: self.next_avail.to_bits(),
            published: self.published.to_bits(),
            last_used: self.last_used.to_bits(),
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
            driver: base + self.layout.driver,
            device: base + self.layout.device,
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

    /// Requests added that the device has not used, whether the others were reaped or not.
    ///
    /// # Errors
    /// None that memory of the right size can cause.
    pub fn unused(&self) -> Result<u16, DriverError> {
        let mut at = self.last_used;
        let mut unused = self.in_flight();
        // A device that names what it was not given is found out when that is reaped.
        while let Some((id, _)) = self.used_at(at)?
            && let Some((entries, _)) = self.found(at, id)
        {
            at = at.forward(entries, self.size);
            unused = unused.saturating_sub(1);
        }
        Ok(unused)
    }

    /// Descriptors that are free. A request takes one for each buffer, or one altogether with
    /// RING_INDIRECT_DESC.
    pub fn free_descriptors(&self) -> usize {
        self.chains.free()
    }

    /// Where the next request becomes available: what a notification with data carries.
    pub fn published(&self) -> u16 {
        self.published.to_bits()
    }

    /// Up to where used requests were reaped: the used state of a device that has used no more.
    pub fn last_used(&self) -> u16 {
        self.last_used.to_bits()
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
        let use_table = self.indirect && request.fits_table();
        let needed = if use_table { 1 } else { request.buffers };
        let (id, descriptors) = self.chains.next(needed)?;
        let readable = readable.iter().map(|buffer| (*buffer, 0));
        let all = readable.chain(writable.iter().map(|buffer| (*buffer, DESC_F_WRITE)));
        let mut next = self.next_avail;
        if use_table {
            let table = self.layout.indirect + u64::from(id) * INDIRECT_BYTES;
            let mut len = 0_u32;
            for (buffer, flags) in all {
                self.describe(table + u64::from(len), buffer, 0, flags)?;
                len += 16;
            }
            let buffer = (self.memory.iova() + table, len);
            self.offer(next, buffer, id, DESC_F_INDIRECT)?;
            next = next.forward(1, self.size);
        } else {
            for (place, (buffer, flags)) in (1..).zip(all) {
                let more = if place < request.buffers {
                    DESC_F_NEXT
                } else {
                    0
                };
                self.offer(next, buffer, id, flags | more)?;
                next = next.forward(1, self.size);
            }
        }
        // From here on nothing fails.
        self.chains.add(descriptors, token, request.writable);
        self.next_avail = next;
        Ok(())
    }

    /// Writes a descriptor of the ring: available, but for the first since the last publication.
    /// The device comes no further than that one.
    fn offer(&self, at: Position, buffer: Buffer, id: u16, flags: u16) -> Result<(), DriverError> {
        let owner = if at == self.published {
            // As a used one of the lap before, which is no news to either side.
            packed::used(!at.wrap)
        } else {
            packed::available(at.wrap)
        };
        self.describe(16 * u64::from(at.index), buffer, id, flags | owner)
    }

    fn describe(
        &self,
        at: u64,
        (addr, len): Buffer,
        id: u16,
        flags: u16,
    ) -> Result<(), DriverError> {
        let descriptor = PackedDescriptor {
            addr: addr.into(),
            len: len.into(),
            id: id.into(),
            flags: flags.into(),
        };
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
        // Of these flags nothing depends for this side: a device that changed them has itself to
        // answer for what it finds.
        let at = 16 * u64::from(old.index) + AT_FLAGS;
        let flags = self.memory.load_u16(at, Ordering::Relaxed)? & !OWNER;
        let flags = flags | packed::available(old.wrap);
        self.memory.store_u16(at, flags, Ordering::Release)?;
        self.published = new;
        // The store before the load: otherwise driver and device may each miss the other's.
        fence(Ordering::SeqCst);
        let word = self
            .memory
            .load_u32(self.layout.device, Ordering::Relaxed)?;
        let [off_low, off_high, low, high] = word.to_le_bytes();
        let off_wrap = u16::from_le_bytes([off_low, off_high]);
        Ok(match u16::from_le_bytes([low, high]) & EVENT_FLAGS {
            EVENT_DISABLE => false,
            EVENT_DESC if self.event_idx => {
                Position::from_bits(off_wrap, self.size).is_none_or(|wanted| {
                    old.distance(wanted, self.size) < old.distance(new, self.size)
                })
            }
            _ => true,
        })
    }

    /// Takes the next request that the device is done with.
    ///
    /// # Errors
    /// [`DriverError::UsedId`] or [`DriverError::UsedLength`] if the device breaks the rules.
    /// Nothing has been taken then, and nothing more can be: reset it.
    pub fn reap(&mut self) -> Result<Option<Used>, DriverError> {
        let Some((id, flags)) = self.used_at(self.last_used)? else {
            return Ok(None);
        };
        let unknown = DriverError::UsedId { id: id.into() };
        let (entries, writable) = self.found(self.last_used, id).ok_or(unknown)?;
        let at = 16 * u64::from(self.last_used.index) + AT_LEN;
        let len = self.memory.load_u32(at, Ordering::Relaxed)?;
        // Without the flag the length means nothing to the standard; QEMU sets it all the same.
        let says = flags & DESC_F_WRITE != 0 || len <= writable;
        let done = self.chains.finish(id.into(), if says { len } else { 0 })?;
        self.last_used = self.last_used.forward(entries, self.size);
        if self.event_idx && self.interrupts {
            self.ask(self.last_used.to_bits(), EVENT_DESC)?;
            // Before the next look at the ring, or a descriptor that is used now is neither seen
            // nor announced.
            fence(Ordering::SeqCst);
        }
        Ok(Some(done))
    }

    /// Id and flags of the used descriptor at `at`, if there is one.
    fn used_at(&self, at: Position) -> Result<Option<(u16, u16)>, DriverError> {
        // What was not published cannot have been used.
        if at == self.published {
            return Ok(None);
        }
        let offset = 16 * u64::from(at.index);
        let flags = self.memory.load_u16(offset + AT_FLAGS, Ordering::Acquire)?;
        if flags & OWNER != packed::used(at.wrap) {
            return Ok(None);
        }
        let id = self.memory.load_u16(offset + AT_ID, Ordering::Relaxed)?;
        Ok(Some((id, flags)))
    }

    /// How many descriptors the request named `id` takes from `at` on and how many bytes are
    /// writable, if it can have been used there.
    fn found(&self, at: Position, id: u16) -> Option<(u16, u32)> {
        let left = at.distance(self.published, self.size);
        let found = self.chains.find(id);
        found.filter(|&(entries, _)| u32::from(entries) <= left)
    }

    /// Asks for an interrupt when the next request is done; true if one is done already, so that
    /// the caller reaps instead of waiting.
    ///
    /// # Errors
    /// None that memory of the right size can cause.
    pub fn enable_interrupts(&mut self) -> Result<bool, DriverError> {
        self.interrupts = true;
        if self.event_idx {
            self.ask(self.last_used.to_bits(), EVENT_DESC)?;
        } else {
            self.ask(0, EVENT_ENABLE)?;
        }
        fence(Ordering::SeqCst);
        Ok(self.used_at(self.last_used)?.is_some())
    }

    /// Asks for no interrupts; the device may send some nevertheless.
    ///
    /// # Errors
    /// None that memory of the right size can cause.
    pub fn disable_interrupts(&mut self) -> Result<(), DriverError> {
        self.interrupts = false;
        self.ask(0, EVENT_DISABLE)
    }

    fn ask(&self, off_wrap: u16, flags: u16) -> Result<(), DriverError> {
        // As one word, so that the device never sees the one without the other.
        let word = u32::from(off_wrap) | u32::from(flags) << 16;
        let at = self.layout.driver;
        Ok(self.memory.store_u32(at, word, Ordering::Relaxed)?)
    }
}

#[cfg(test)]
mod tests;

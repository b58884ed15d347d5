//! The packed ring (VIRTIO 1.4, "Packed Virtqueues").
//!
//! One table of descriptors that both sides write: a descriptor's AVAIL and USED bits, held against
//! a wrap counter, say whose it is. The device reads where `next_avail` stands and writes where
//! `next_used` stands; a chain that takes n descriptors moves either on by n, so with chains used
//! in the order in which they were popped the used one overwrites the chain's own first descriptor.
//!
//! Buffer ids are the driver's affair: the standard gives them no range, and nothing here is looked
//! up by one. They are handed back as they came.

use super::chain::{self, Walk, table_entries};
use super::ring::check_area;
use super::{Chain, QueueConfig};
use crate::dma::DmaGuard;
use crate::virtio::QueueError;
use spec::packed::{
    self, DESC_F_AVAIL, DESC_F_USED, EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, EVENT_FLAGS,
    PackedDescriptor, Position,
};
use spec::queue_state::QueueState;
use spec::ring::{self, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};
use std::collections::VecDeque;
use std::fmt::Display;
use std::mem::offset_of;
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, GuestAddress, Permissions};

const RING: &str = "descriptor ring";
const DRIVER: &str = "driver event suppression structure";
const DEVICE: &str = "device event suppression structure";

/// A chain that was popped and not pushed.
#[derive(Clone, Copy, Debug)]
struct Flying {
    id: u16,
    /// Descriptors that it takes of the ring.
    entries: u16,
}

#[derive(Debug)]
pub(super) struct PackedRing {
    size: u16,
    /// IOVAs of the three areas.
    desc: u64,
    driver: u64,
    device: u64,
    event_idx: bool,
    next_avail: Position,
    next_used: Position,
    /// Popped and not pushed, the oldest first.
    flying: VecDeque<Flying>,
    /// Entries that another device consumed and never used.
    lost: u16,
    /// Entries used since the driver was last considered for a notification.
    used_since: u32,
    /// What the device event suppression structure says, if this device has written it.
    asked: Option<u32>,
}

/// An event suppression structure as the one word that it is read and written as.
fn event(off_wrap: u16, flags: u16) -> u32 {
    u32::from(off_wrap) | u32::from(flags) << 16
}

fn unreachable(ring: &'static str, why: impl Display) -> QueueError {
    QueueError::Ring {
        ring,
        why: why.to_string(),
    }
}

impl PackedRing {
    pub(super) fn start(config: QueueConfig, mem: &DmaGuard<'_>) -> Result<Self, QueueError> {
        let QueueConfig { size, state, .. } = config;
        if size == 0 || size > ring::QUEUE_SIZE_MAX {
            return Err(QueueError::broken(format!(
                "a queue size of {size}; 1 to {} expected",
                ring::QUEUE_SIZE_MAX
            )));
        }
        let (bytes, align) = (ring::desc_bytes(size), ring::DESC_ALIGN);
        check_area(mem, RING, config.desc, bytes, align, Permissions::ReadWrite)?;
        let (bytes, align) = (packed::EVENT_BYTES, packed::EVENT_ALIGN);
        check_area(mem, DRIVER, config.driver, bytes, align, Permissions::Read)?;
        let access = Permissions::ReadWrite;
        check_area(mem, DEVICE, config.device, bytes, align, access)?;

        let position = |which, bits| {
            Position::from_bits(bits, size).ok_or_else(|| {
                QueueError::broken(format!(
                    "{which} state {bits:#06x} in a packed ring of {size} entries"
                ))
            })
        };
        let next_avail = position("available", state.avail)?;
        let next_used = position("used", state.used)?;
        let ahead = next_used.distance(next_avail, size);
        let lost = u16::try_from(ahead).ok().filter(|&ahead| ahead <= size);
        let lost = lost.ok_or_else(|| {
            QueueError::broken(format!(
                "an available state of {:#06x} that is {ahead} ahead of the used state {:#06x} in \
                 a packed ring of {size} entries",
                state.avail, state.used
            ))
        })?;
        Ok(Self {
            size,
            desc: config.desc,
            driver: config.driver,
            device: config.device,
            event_idx: config.event_idx,
            next_avail,
            next_used,
            flying: VecDeque::new(),
            lost,
            used_since: 0,
            asked: None,
        })
    }

    /// Where the flags of entry `index` are.
    fn flags_at(&self, index: u16) -> GuestAddress {
        const AT: u64 = offset_of!(PackedDescriptor, flags) as u64;
        // Start has seen that the ring does not wrap around the address space.
        GuestAddress(self.desc + 16 * u64::from(index) + AT)
    }

    /// The flags of the next descriptor to be popped, if it is available.
    fn available(&self, mem: &DmaGuard<'_>) -> Result<Option<u16>, QueueError> {
        let Position { index, wrap } = self.next_avail;
        // Whatever else belongs to the chain was written before.
        let flags: u16 = mem
            .load(self.flags_at(index), Ordering::Acquire)
            .map_err(|error| unreachable(RING, error))?;
        let flags = u16::from_le(flags);
        Ok(offered(flags, wrap).then_some(flags))
    }

    pub(super) fn pop(&mut self, mem: &DmaGuard<'_>) -> Result<Option<Chain>, QueueError> {
        let Some(flags) = self.available(mem)? else {
            return Ok(None);
        };
        let (chain, entries) = self.walk(mem, flags)?;
        self.flying.push_back(Flying {
            id: chain.head,
            entries,
        });
        self.next_avail = self.next_avail.forward(entries, self.size);
        Ok(Some(chain))
    }

    /// The chain that begins where the next is expected, with the first descriptor's `flags` as
    /// they were read, and how many entries it takes.
    fn walk(&self, mem: &DmaGuard<'_>, flags: u16) -> Result<(Chain, u16), QueueError> {
        let first = self.next_avail.index;
        let bad = |what: String| QueueError::broken(format!("chain at {first}: {what}"));
        let in_flight = self.entries_in_flight();
        let free = self.size.saturating_sub(in_flight);
        let mut chain = Walk::default();
        let mut flags = flags;
        let mut entries = 0;
        loop {
            // The driver would have chains in flight without bound, or one that is a loop.
            if entries == free {
                return Err(bad(format!(
                    "longer than the {free} entries that are free in a ring of {}",
                    self.size
                )));
            }
            let Position { index, wrap } = self.next_avail.forward(entries, self.size);
            chain.visited();
            let desc: PackedDescriptor =
                chain::read(mem, self.desc, index).map_err(|error| unreachable(RING, error))?;
            if entries != 0 {
                flags = desc.flags.get();
            }
            // The first descriptor was judged by whoever found it.
            if entries != 0 && !offered(flags, wrap) {
                return Err(bad(format!(
                    "descriptor {index} with flags {flags:#06x}, not available"
                )));
            }
            let (addr, len) = (desc.addr.get(), desc.len.get());
            entries += 1;
            if flags & DESC_F_INDIRECT != 0 {
                if flags & DESC_F_NEXT != 0 || entries != 1 {
                    return Err(bad(format!("descriptor {index} has INDIRECT in a list")));
                }
                let count = table_entries(len).map_err(&bad)?;
                for inner in 0..count {
                    chain.visited();
                    let inner_desc: PackedDescriptor = chain::read(mem, addr, inner)
                        .map_err(|error| bad(format!("descriptor {inner}: {error}")))?;
                    // All flags but WRITE are reserved here, and the device ignores them.
                    let write = inner_desc.flags.get() & DESC_F_WRITE;
                    let (addr, len) = (inner_desc.addr.get(), inner_desc.len.get());
                    chain.add(addr, len, write).map_err(&bad)?;
                }
            } else {
                chain.add(addr, len, flags).map_err(&bad)?;
            }
            if flags & DESC_F_NEXT == 0 {
                return Ok((chain.end(desc.id.get()), entries));
            }
        }
    }

    pub(super) fn unpop(&mut self) {
        if let Some(last) = self.flying.pop_back() {
            self.next_avail = self.next_avail.back(last.entries, self.size);
        }
    }

    pub(super) fn push(
        &mut self,
        mem: &DmaGuard<'_>,
        head: u16,
        len: u32,
    ) -> Result<(), QueueError> {
        let oldest = self.flying.front().copied();
        let Some(Flying { entries, .. }) = oldest.filter(|oldest| oldest.id == head) else {
            return Err(QueueError::broken(format!(
                "none by the driver: buffer {head} pushed before {oldest:?}"
            )));
        };
        let Position { index, wrap } = self.next_used;
        let written = if len == 0 { 0 } else { DESC_F_WRITE };
        let flags = packed::used(wrap) | written;
        let flags_at = self.flags_at(index);
        let ring = mem.ring(self.desc);
        let [a, b, c, d] = len.to_le_bytes();
        let [e, f] = head.to_le_bytes();
        let len_at = GuestAddress(flags_at.0 - 6);
        // The flags last: they make it the driver's.
        ring.write_slice(&[a, b, c, d, e, f], len_at)
            .and_then(|()| ring.store(flags.to_le(), flags_at, Ordering::Release))
            .map_err(|error| unreachable(RING, error))?;
        self.flying.pop_front();
        self.next_used = self.next_used.forward(entries, self.size);
        self.used_since = self.used_since.saturating_add(entries.into());
        Ok(())
    }

    pub(super) fn needs_notification(&mut self, mem: &DmaGuard<'_>) -> Result<bool, QueueError> {
        // The used descriptors are published before the structure is read; the driver does it the
        // other way round when it enables interrupts.
        fence(Ordering::SeqCst);
        let word: u32 = mem
            .load(GuestAddress(self.driver), Ordering::Relaxed)
            .map_err(|error| unreachable(DRIVER, error))?;
        let [off_low, off_high, low, high] = u32::from_le(word).to_le_bytes();
        let off_wrap = u16::from_le_bytes([off_low, off_high]);
        let since = std::mem::take(&mut self.used_since);
        Ok(match u16::from_le_bytes([low, high]) & EVENT_FLAGS {
            EVENT_DISABLE => false,
            // Notify if the entry asked for is one of the last `since`. A place that is none is the
            // driver's mistake, and a notification too many harms nobody.
            EVENT_DESC if self.event_idx => {
                Position::from_bits(off_wrap, self.size).is_none_or(|wanted| {
                    let back = wanted.distance(self.next_used, self.size);
                    since >= 2 * u32::from(self.size) || (back != 0 && back <= since)
                })
            }
            _ => true,
        })
    }

    pub(super) fn enable_notification(&mut self, mem: &DmaGuard<'_>) -> Result<bool, QueueError> {
        self.ask(
            mem,
            if self.event_idx {
                event(self.next_avail.to_bits(), EVENT_DESC)
            } else {
                event(0, EVENT_ENABLE)
            },
        )?;
        // Before the look at the ring: otherwise device and driver may each miss the other's.
        fence(Ordering::SeqCst);
        Ok(self.available(mem)?.is_some())
    }

    pub(super) fn disable_notification(&mut self, mem: &DmaGuard<'_>) -> Result<(), QueueError> {
        self.ask(mem, event(0, EVENT_DISABLE))
    }

    fn ask(&mut self, mem: &DmaGuard<'_>, word: u32) -> Result<(), QueueError> {
        if self.asked != Some(word) {
            self.asked = None;
            mem.ring(self.device)
                .store(word.to_le(), GuestAddress(self.device), Ordering::Relaxed)
                .map_err(|error| unreachable(DEVICE, error))?;
            self.asked = Some(word);
        }
        Ok(())
    }

    fn entries_in_flight(&self) -> u16 {
        let ahead = self.next_used.distance(self.next_avail, self.size);
        u16::try_from(ahead).unwrap_or(u16::MAX)
    }

    /// Chains, and entries of those that another device lost.
    pub(super) fn in_flight(&self) -> u16 {
        let here = u16::try_from(self.flying.len()).unwrap_or(u16::MAX);
        here.saturating_add(self.lost)
    }

    /// With all that is popped and not pushed given back.
    pub(super) fn state(&self) -> QueueState {
        let popped = self.flying.iter().map(|chain| chain.entries).sum();
        QueueState {
            avail: self.next_avail.back(popped, self.size).to_bits(),
            used: self.next_used.to_bits(),
        }
    }
}

/// Whether a descriptor with these flags is available in a lap with this wrap counter.
fn offered(flags: u16, wrap: bool) -> bool {
    flags & (DESC_F_AVAIL | DESC_F_USED) == packed::available(wrap)
}

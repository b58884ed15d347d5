//! The split ring, over virtio-queue's `Queue`.
//!
//! That crate keeps the rings; three things stand here instead, because it cannot tell them: the
//! walk of a chain (its iterator ends early where a chain is malformed, and accepts INDIRECT with
//! NEXT), VRING_AVAIL_F_NO_INTERRUPT (it ignores it), and chains in flight.

use super::ring::check_area;
use super::{Chain, QueueConfig};
use crate::dma::{DmaGuard, RingMem};
use crate::virtio::QueueError;
use spec::queue_state::QueueState;
use spec::ring;
use std::sync::atomic::{Ordering, fence};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, Permissions};

const AVAIL: &str = "available ring";
const USED: &str = "used ring";

#[derive(Debug)]
pub(super) struct SplitRing {
    queue: Queue,
    /// `used.flags` as last written; without VIRTIO_F_EVENT_IDX.
    notify_off: bool,
}

impl SplitRing {
    pub(super) fn start(config: QueueConfig, mem: &DmaGuard<'_>) -> Result<Self, QueueError> {
        let QueueConfig { size, state, .. } = config;
        let mut queue = Queue::new(size).map_err(|_| {
            QueueError::broken(format!(
                "a queue size of {size}; a power of two up to {} expected",
                ring::QUEUE_SIZE_MAX
            ))
        })?;
        let areas = [
            (
                "descriptor table",
                config.desc,
                ring::desc_bytes(size),
                ring::DESC_ALIGN,
                Permissions::Read,
            ),
            (
                AVAIL,
                config.driver,
                ring::avail_bytes(size),
                ring::AVAIL_ALIGN,
                Permissions::Read,
            ),
            (
                USED,
                config.device,
                ring::used_bytes(size),
                ring::USED_ALIGN,
                Permissions::ReadWrite,
            ),
        ];
        for (area, at, bytes, align, access) in areas {
            check_area(mem, area, at, bytes, align, access)?;
        }
        let mem = &mem.ring(config.device);
        if config.driver == 0 {
            // virtio-queue takes this address for a queue that was never configured.
            return Err(QueueError::broken("an available ring at IOVA 0"));
        }
        queue
            .try_set_desc_table_address(GuestAddress(config.desc))
            .map_err(|error| ring_error("descriptor table", &error))?;
        queue
            .try_set_avail_ring_address(GuestAddress(config.driver))
            .map_err(|error| ring_error(AVAIL, &error))?;
        queue
            .try_set_used_ring_address(GuestAddress(config.device))
            .map_err(|error| ring_error(USED, &error))?;
        queue.set_event_idx(config.event_idx);
        queue.set_ready(true);

        if state != QueueState::SPLIT_DEFAULT {
            let used = queue
                .used_idx(mem, Ordering::Acquire)
                .map_err(|error| ring_error(USED, &error))?
                .0;
            if state.avail.wrapping_sub(used) > size {
                return Err(QueueError::broken(format!(
                    "an available state of {} with {used} in the used ring of {size} entries",
                    state.avail
                )));
            }
            queue.set_next_avail(state.avail);
            queue.set_next_used(used);
        }
        Ok(Self {
            queue,
            notify_off: false,
        })
    }

    /// Goes on after another device that had used `used` and left `flying` chains behind, which it
    /// had popped (in-flight table of vhost-user).
    pub(super) fn resume(
        &mut self,
        mem: &DmaGuard<'_>,
        used: u16,
        flying: u16,
    ) -> Result<(), QueueError> {
        let ahead = self.avail_idx(mem)?.wrapping_sub(used);
        let size = self.queue.size();
        if ahead > size || flying > ahead {
            return Err(QueueError::broken(format!(
                "{flying} chains in flight with {ahead} available and not used in a ring of {size}"
            )));
        }
        self.queue.set_next_avail(used.wrapping_add(flying));
        self.queue.set_next_used(used);
        Ok(())
    }

    /// The used index as it stands in memory.
    pub(super) fn used_idx(&self, mem: &DmaGuard<'_>) -> Result<u16, QueueError> {
        let used = self.queue.used_idx(&self.ring(mem), Ordering::Acquire);
        Ok(used.map_err(|error| ring_error(USED, &error))?.0)
    }

    /// The used index as this device has counted it.
    pub(super) fn next_used(&self) -> u16 {
        self.queue.next_used()
    }

    fn avail_idx(&self, mem: &DmaGuard<'_>) -> Result<u16, QueueError> {
        let avail = self.queue.avail_idx(&self.ring(mem), Ordering::Acquire);
        Ok(avail.map_err(|error| ring_error(AVAIL, &error))?.0)
    }

    /// Memory with the used ring's own way of being marked.
    fn ring<'a>(&self, mem: &'a DmaGuard<'_>) -> RingMem<'a> {
        mem.ring(self.queue.used_ring())
    }

    /// The chain at `head`.
    pub(super) fn chain(&self, mem: &DmaGuard<'_>, head: u16) -> Result<Chain, QueueError> {
        Chain::walk(mem, self.queue.desc_table(), self.queue.size(), head)
    }

    pub(super) fn pop(&mut self, mem: &DmaGuard<'_>) -> Result<Option<Chain>, QueueError> {
        let avail = self.avail_idx(mem)?;
        if avail == self.queue.next_avail() {
            return Ok(None);
        }
        // Judged against what is used, not what is consumed: a driver that offers an entry again
        // before it got it back would have chains in flight without bound.
        let ahead = avail.wrapping_sub(self.queue.next_used());
        let size = self.queue.size();
        if ahead > size || self.in_flight() >= size {
            return Err(QueueError::broken(format!(
                "the available index is {ahead} ahead of the used index in a ring of {size}"
            )));
        }
        let ring = self.ring(mem);
        let head = self
            .queue
            .iter(&ring)
            .map_err(|error| ring_error(AVAIL, &error))?
            .next()
            .ok_or_else(|| QueueError::broken("the available index went back"))?
            .head_index();
        let chain = self.chain(mem, head);
        if chain.is_err() {
            self.queue.go_to_previous_position();
        }
        chain.map(Some)
    }

    pub(super) fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    pub(super) fn push(
        &mut self,
        mem: &DmaGuard<'_>,
        head: u16,
        len: u32,
    ) -> Result<(), QueueError> {
        let before = self.queue.next_used();
        let ring = self.ring(mem);
        self.queue.add_used(&ring, head, len).map_err(|error| {
            // It counts the entry even if it could not publish it.
            self.queue.set_next_used(before);
            ring_error(USED, &error)
        })
    }

    pub(super) fn needs_notification(&mut self, mem: &DmaGuard<'_>) -> Result<bool, QueueError> {
        let mem = self.ring(mem);
        if self.queue.event_idx_enabled() {
            return self
                .queue
                .needs_notification(&mem)
                .map_err(|error| ring_error(AVAIL, &error));
        }
        // The used index is published before the flags are read; the driver does it the other way
        // round when it enables interrupts.
        fence(Ordering::SeqCst);
        let flags: u16 = mem
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(|error| QueueError::Ring {
                ring: AVAIL,
                why: error.to_string(),
            })?;
        Ok(u16::from_le(flags) & ring::AVAIL_F_NO_INTERRUPT == 0)
    }

    pub(super) fn enable_notification(&mut self, mem: &DmaGuard<'_>) -> Result<bool, QueueError> {
        self.notify_off = false;
        let ring = self.ring(mem);
        self.queue
            .enable_notification(&ring)
            .map_err(|error| ring_error(USED, &error))
    }

    pub(super) fn disable_notification(&mut self, mem: &DmaGuard<'_>) -> Result<(), QueueError> {
        if !std::mem::replace(&mut self.notify_off, true) {
            let ring = self.ring(mem);
            self.queue
                .disable_notification(&ring)
                .map_err(|error| ring_error(USED, &error))?;
        }
        Ok(())
    }

    pub(super) fn in_flight(&self) -> u16 {
        self.queue.next_avail().wrapping_sub(self.queue.next_used())
    }

    /// With the last `unused` chains given back.
    pub(super) fn state(&self, unused: u16) -> QueueState {
        QueueState {
            avail: self.queue.next_avail().wrapping_sub(unused),
            used: self.queue.next_used(),
        }
    }
}

fn ring_error(ring: &'static str, error: &virtio_queue::Error) -> QueueError {
    match error {
        virtio_queue::Error::GuestMemory(why) => QueueError::Ring {
            ring,
            why: why.to_string(),
        },
        other => QueueError::broken(format!("{ring}: {other}")),
    }
}

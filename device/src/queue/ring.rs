//! A ring of either format: what the queue's rules are applied to.

use super::packed::PackedRing;
use super::split::SplitRing;
use super::{Chain, QueueConfig};
use crate::dma::DmaGuard;
use crate::virtio::QueueError;
use spec::queue_state::QueueState;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

/// The ring, as the negotiated features have it.
#[derive(Debug)]
pub(super) enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

/// The same call for either format.
macro_rules! either {
    ($ring:expr, $name:ident => $call:expr) => {
        match $ring {
            Ring::Split($name) => $call,
            Ring::Packed($name) => $call,
        }
    };
}

impl Ring {
    pub(super) fn start(config: QueueConfig, mem: &DmaGuard<'_>) -> Result<Self, QueueError> {
        Ok(if config.packed {
            Self::Packed(PackedRing::start(config, mem)?)
        } else {
            Self::Split(SplitRing::start(config, mem)?)
        })
    }

    /// The split ring that a table of what is in flight is for.
    pub(super) fn split(&mut self) -> Result<&mut SplitRing, QueueError> {
        match self {
            Self::Split(ring) => Ok(ring),
            Self::Packed(_) => Err(QueueError::broken(
                "packed, and its device keeps a table of what is in flight, which is for split ones",
            )),
        }
    }

    pub(super) fn pop(&mut self, mem: &DmaGuard<'_>) -> Result<Option<Chain>, QueueError> {
        either!(self, ring => ring.pop(mem))
    }

    pub(super) fn unpop(&mut self) {
        either!(self, ring => ring.unpop());
    }

    pub(super) fn push(
        &mut self,
        mem: &DmaGuard<'_>,
        head: u16,
        len: u32,
    ) -> Result<(), QueueError> {
        either!(self, ring => ring.push(mem, head, len))
    }

    pub(super) fn needs_notification(&mut self, mem: &DmaGuard<'_>) -> Result<bool, QueueError> {
        either!(self, ring => ring.needs_notification(mem))
    }

    pub(super) fn enable_notification(&mut self, mem: &DmaGuard<'_>) -> Result<bool, QueueError> {
        either!(self, ring => ring.enable_notification(mem))
    }

    pub(super) fn disable_notification(&mut self, mem: &DmaGuard<'_>) -> Result<(), QueueError> {
        either!(self, ring => ring.disable_notification(mem))
    }

    pub(super) fn in_flight(&self) -> u16 {
        either!(self, ring => ring.in_flight())
    }

    /// With the last `unused` chains, which are all that were popped and not pushed, given back.
    pub(super) fn state(&self, unused: u16) -> QueueState {
        match self {
            Self::Split(ring) => ring.state(unused),
            Self::Packed(ring) => ring.state(),
        }
    }
}

/// Whether a part of a ring is where it may be, and mapped for what the device does with it.
pub(super) fn check_area(
    mem: &DmaGuard<'_>,
    area: &'static str,
    at: u64,
    bytes: u64,
    align: u64,
    access: Permissions,
) -> Result<(), QueueError> {
    if !at.is_multiple_of(align) {
        return Err(QueueError::broken(format!(
            "the {area} at {at:#x}, not aligned to {align}"
        )));
    }
    if at.checked_add(bytes).is_none() {
        return Err(QueueError::broken(format!(
            "the {area} at {at:#x} wraps around the address space"
        )));
    }
    let len = usize::try_from(bytes).unwrap_or(usize::MAX);
    if !mem.check_range(GuestAddress(at), len, access) {
        return Err(QueueError::Ring {
            ring: area,
            why: format!("{bytes} bytes at {at:#x} are not mapped for {access:?}"),
        });
    }
    Ok(())
}

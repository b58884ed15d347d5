//! Virtqueues: popping chains, pushing used buffers, and the state a stopped queue returns.
//!
//! [`Virtqueue`] holds the rules that every ring format shares; the formats are its children. What
//! a driver wrote is read once and then judged. A queue that met a broken rule stays broken: it
//! pops no more, though what was popped before can still be pushed.

mod chain;
mod inflight;
mod packed;
#[cfg(test)]
mod packed_tests;
mod ring;
mod split;
#[cfg(test)]
pub(crate) mod test_packed;
#[cfg(test)]
pub(crate) mod test_ring;
#[cfg(test)]
mod tests;

pub use chain::{Chain, Cursor};
pub use inflight::{InflightError, InflightQueue, InflightShape, InflightTable};

use crate::dma::DmaGuard;
use crate::virtio::QueueError;
use probe::probe;
use ring::Ring;
use spec::queue_state::QueueState;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the driver configured for one queue before it enabled it. Untrusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueConfig {
    /// Entries, up to 32768; of a split ring a power of two.
    pub size: u16,
    /// IOVA of the descriptor table or the packed descriptor ring, a multiple of 16.
    pub desc: u64,
    /// IOVA of the available ring, a multiple of 2 and not 0; of a packed ring that of the driver
    /// event suppression structure, a multiple of 4.
    pub driver: u64,
    /// IOVA of the used ring or the device event suppression structure, a multiple of 4.
    pub device: u64,
    /// VIRTIO_F_RING_PACKED was negotiated.
    pub packed: bool,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// Where to start. The default of the ring's format is a fresh queue; anything else continues
    /// where another device stood.
    pub state: QueueState,
}

/// Ends the popping of a queue that somebody else works on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<AtomicBool>);

impl Gate {
    /// From now on the queue looks empty, but for what it inherited. What was popped before can still be pushed.
    pub(crate) fn close(&self) {
        // Nothing is passed along with it; the queue's next look may just as well be its last.
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_closed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A started queue.
///
/// Whoever runs it calls [`pop`](Self::pop) until it is empty, [`push`](Self::push) for every
/// chain **in the order of popping**, then [`needs_notification`](Self::needs_notification) once,
/// and [`enable_notification`](Self::enable_notification) before it sleeps.
#[derive(Debug)]
pub struct Virtqueue {
    ring: Ring,
    /// What probes tell it by: its number, and IOVA of its descriptors.
    number: u16,
    desc: u64,
    /// Chains popped here and not pushed yet.
    outstanding: u16,
    /// Buffers were used since the driver was last considered for a notification.
    used_since: bool,
    /// Continues another device's work: what that device used last may not have been notified.
    resumed: bool,
    broken: bool,
    /// Where chains in flight are noted, for a device that comes after this one is killed.
    inflight: Option<InflightQueue>,
    /// Heads that the device before this one had in flight when it was killed, the next one last.
    inherited: Vec<u16>,
    /// Closed, nothing but those is popped any more.
    gate: Gate,
}

impl Virtqueue {
    /// Starts a queue, or continues one, from an untrusted configuration.
    ///
    /// With the default state both indices start at 0, whatever memory says. Otherwise the
    /// available index is `config.state.avail`, and the used index is read from the used ring:
    /// a `config.state.used` that differs from it is ignored (project rule). A packed ring has no
    /// used index in memory, so both are as the state says. Buffers between the two were lost by
    /// the device that came before; they stay in flight for ever.
    ///
    /// # Errors
    ///
    /// [`QueueError::Broken`] for a size, alignment, range or state that no driver may set;
    /// [`QueueError::Ring`] if one of the areas is not mapped for what the device does with it.
    pub fn start(config: QueueConfig, mem: &DmaGuard<'_>) -> Result<Self, QueueError> {
        Ok(Self {
            ring: Ring::start(config, mem)?,
            number: 0,
            desc: config.desc,
            outstanding: 0,
            used_since: false,
            resumed: config.state != QueueState::default_of(config.packed),
            broken: false,
            inflight: None,
            inherited: Vec::new(),
            gate: Gate::default(),
        })
    }

    /// Starts a queue that notes in `inflight` what it has in flight, and pops first, in their
    /// order, the chains that were in flight there when another device was killed.
    ///
    /// The table and the used ring say where the queue stands; `config.state` is not looked at.
    ///
    /// # Errors
    ///
    /// As for [`Virtqueue::start`], and [`QueueError::Broken`] if the table cannot be this ring's:
    /// of a packed ring there is none.
    pub fn start_noted(
        config: QueueConfig,
        mut inflight: InflightQueue,
        mem: &DmaGuard<'_>,
    ) -> Result<Self, QueueError> {
        let state = QueueState::SPLIT_DEFAULT;
        let mut queue = Self::start(QueueConfig { state, ..config }, mem)?;
        let ring = queue.ring.split()?;
        let used = ring.used_idx(mem)?;
        let mut heads = inflight.recover(config.size, used)?;
        let flying = u16::try_from(heads.len()).unwrap_or(u16::MAX);
        ring.resume(mem, used, flying)?;
        heads.reverse();
        queue.resumed = used != 0 || flying != 0;
        queue.inherited = heads;
        queue.inflight = Some(inflight);
        Ok(queue)
    }

    /// Starts a queue from `config.state` as [`Virtqueue::start`] does, and notes in `inflight` what
    /// it has in flight.
    ///
    /// The state says what the table means (project rule). Nothing between the two indices is
    /// nothing in flight: the table is cleared, whatever an earlier life left in it. If there are
    /// chains between them, the table must name exactly as many; those are popped first.
    ///
    /// # Errors
    ///
    /// As for [`Virtqueue::start`], and [`QueueError::Broken`] if the table cannot be this ring's.
    pub fn start_from(
        config: QueueConfig,
        mut inflight: InflightQueue,
        mem: &DmaGuard<'_>,
    ) -> Result<Self, QueueError> {
        let mut queue = Self::start(config, mem)?;
        let flying = queue.in_flight();
        let used = queue.ring.split()?.next_used();
        if flying == 0 {
            inflight.clear(used);
        } else {
            let mut heads = inflight.recover(config.size, used)?;
            if heads.len() != usize::from(flying) {
                return Err(QueueError::broken(format!(
                    "the in-flight table: {} chains in flight, the queue's state says {flying}",
                    heads.len()
                )));
            }
            heads.reverse();
            queue.inherited = heads;
        }
        queue.inflight = Some(inflight);
        Ok(queue)
    }

    /// Says which queue of its device it is; 0 by default. Only for those who watch.
    #[must_use]
    pub(crate) fn numbered(self, number: u16) -> Self {
        Self { number, ..self }
    }

    /// Chains of another device that are still to be popped. A queue that has some cannot stop: no
    /// index would say where it stood.
    pub fn inherited(&self) -> usize {
        self.inherited.len()
    }

    /// What ends popping while the queue is elsewhere: closed, only what [`Virtqueue::inherited`]
    /// counts is popped.
    pub(crate) fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// Takes the next available chain, or `None` if there is none, or the queue is to stop.
    ///
    /// The chain is walked once, here: what is returned does not change if the driver rewrites its
    /// descriptors. A malformed chain costs at most one step per descriptor of its table and is
    /// not consumed: the queue's state stands before it.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: the queue is broken, now and from now on, unless it
    /// [`outlasts`](Self::outlasts) the error.
    pub fn pop(&mut self, mem: &DmaGuard<'_>) -> Result<Option<Chain>, QueueError> {
        if self.broken {
            return Err(QueueError::broken("the queue was broken before"));
        }
        let popped = match self.inherited.last() {
            Some(&head) => {
                let ring = self.ring.split();
                ring.and_then(|ring| ring.chain(mem, head)).map(Some)
            }
            None if self.gate.is_closed() => Ok(None),
            None => self.ring.pop(mem),
        };
        match &popped {
            Ok(Some(chain)) => {
                probe!(
                    tidemark,
                    queue_pop,
                    self.desc,
                    self.number,
                    chain.head,
                    chain.descriptors
                );
                // Cannot overflow: the ring refuses more chains in flight than it has entries.
                self.outstanding = self.outstanding.saturating_add(1);
                if self.inherited.pop().is_none()
                    && let Some(inflight) = &mut self.inflight
                {
                    inflight.popped(chain.head);
                }
            }
            Ok(None) => {}
            Err(error) => self.broken = !self.outlasts(error),
        }
        popped
    }

    /// Whether the queue can go on after `error` once its rings are mapped again: a ring could not
    /// be reached, and nothing is in flight that would be lost by waiting.
    ///
    /// A VMM that changes its guest's memory map takes maps away and makes them anew. A driver that
    /// has got all its buffers back may cause that at any time, while the device still looks whether
    /// there are more (SeaBIOS does, when it makes its own memory read-only).
    pub fn outlasts(&self, error: &QueueError) -> bool {
        let unreachable = matches!(error, QueueError::Ring { .. });
        unreachable && !self.broken && self.outstanding == 0 && self.inherited.is_empty()
    }

    /// Gives the chain that was popped last back, as if it had not been popped. Nothing popped
    /// before it is affected; a queue that notes what is in flight gives nothing back.
    pub fn unpop(&mut self) {
        if let Some(left) = self.outstanding.checked_sub(1)
            && self.inflight.is_none()
        {
            self.ring.unpop();
            self.outstanding = left;
        }
    }

    /// Uses a chain: publishes its head with `len`, the bytes written from the chain's first
    /// writable byte on without a gap (VIRTIO 1.4, "The Virtqueue Used Ring").
    ///
    /// All data of the chain has been stored and marked before.
    ///
    /// # Errors
    ///
    /// [`QueueError::Ring`] if the used ring cannot be written: the queue is broken and the chain
    /// counts as not consumed. [`QueueError::Broken`] if nothing popped is left to be pushed.
    pub fn push(&mut self, mem: &DmaGuard<'_>, head: u16, len: u32) -> Result<(), QueueError> {
        let Some(left) = self.outstanding.checked_sub(1) else {
            self.broken = true;
            return Err(QueueError::broken("more chains pushed than were popped"));
        };
        if let Some(inflight) = &self.inflight {
            inflight.publishing(head);
        }
        if let Err(error) = self.ring.push(mem, head, len) {
            self.broken = true;
            return Err(error);
        }
        if let Some(inflight) = &self.inflight {
            inflight.published(head, self.ring.split()?.next_used());
        }
        self.outstanding = left;
        self.used_since = true;
        probe!(tidemark, queue_push, self.desc, self.number, head, len);
        Ok(())
    }

    /// Whether the driver is to be notified of what was pushed since the last call.
    ///
    /// Follows `used_event`, or VRING_AVAIL_F_NO_INTERRUPT without VIRTIO_F_EVENT_IDX; of a packed
    /// ring the driver event suppression structure. The first
    /// call after a start from another device's state says yes: whether that device's last
    /// interrupt arrived is not known (project rule; a spurious notification is harmless).
    ///
    /// # Errors
    ///
    /// [`QueueError::Ring`] if the available ring cannot be read.
    pub fn needs_notification(&mut self, mem: &DmaGuard<'_>) -> Result<bool, QueueError> {
        let resumed = std::mem::take(&mut self.resumed);
        if !std::mem::take(&mut self.used_since) {
            return Ok(resumed);
        }
        let needed = self.ring.needs_notification(mem);
        // What could not be found out is owed: a notification too many is harmless.
        self.resumed = needed.is_err();
        Ok(needed? || resumed)
    }

    /// Asks the driver for notifications. True if chains are available already, for which no
    /// notification may come.
    ///
    /// # Errors
    ///
    /// [`QueueError::Ring`] if a ring cannot be accessed.
    pub fn enable_notification(&mut self, mem: &DmaGuard<'_>) -> Result<bool, QueueError> {
        self.ring.enable_notification(mem)
    }

    /// Tells the driver that notifications are not needed while the queue is being worked on.
    ///
    /// # Errors
    ///
    /// [`QueueError::Ring`] if the used ring cannot be written.
    pub fn disable_notification(&mut self, mem: &DmaGuard<'_>) -> Result<(), QueueError> {
        self.ring.disable_notification(mem)
    }

    /// Buffers consumed and not used: next available minus next used. Those that another device
    /// consumed and lost are among them; of a packed ring the descriptors that they take.
    pub fn in_flight(&self) -> u16 {
        self.ring.in_flight()
    }

    /// Where the queue stands. Chains popped and not pushed count as not consumed, which is exact
    /// because pushes follow the order of pops.
    pub fn state(&self) -> QueueState {
        self.ring.state(self.outstanding)
    }

    /// Ends the queue and says where it stood.
    pub fn stop(self) -> QueueState {
        self.state()
    }
}

//! Queues: how they are set up, what is exposed in them, and when it is answered.

pub(super) mod packed;
pub(super) mod split;

use super::chain::Chain;
use super::function::Inner;
use super::ledger::{Ledger, rules};
use super::life::{self, Run, SUSPEND_BUFFERS};
use super::memory::Memory;
use super::plan::Plan;
use super::{common, model, notify};
use crate::clause;
use crate::constants::feature;
use packed::Packed;
use split::Split;

rules! {
    LEAVES = clause!(cleanup "R1"), "leaves_exposed_entries": "descriptors and ring entries of exposed buffers are compared with what they were, before each buffer is used";
    TAKES_AWAY = clause!(cleanup "R2"), "resets_before_taking_away": "buffers are exposed: they must stay reachable until they are used or the device or queue is reset";
    PHYSICAL = clause!(reserved "R4"), "gives_physical_addresses": "without ACCESS_PLATFORM, every address of rings and buffers must be one of memory";
}

/// Rings of either layout.
#[derive(Debug)]
pub(super) enum Ring {
    Split(Split),
    Packed(Packed),
}

/// What a ring needs to look at its memory and to say what it sees.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) book: &'a mut Ledger,
    pub(super) memory: &'a Memory,
    pub(super) features: u64,
    /// Most descriptors that the device takes in a chain.
    pub(super) limit: usize,
}

impl View<'_> {
    pub(super) fn has(&self, bits: u64) -> bool {
        self.features & bits != 0
    }
}

/// One queue.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) index: u16,
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) vector_unread: bool,
    pub(super) enabled: bool,
    pub(super) was_reset: bool,
    /// How many reads still show that a reset is under way.
    pub(super) resetting: Option<u32>,
    addresses: [u64; 3],
    written: [bool; 3],
    restored: Option<u16>,
    ring: Option<Ring>,
    held: Vec<Chain>,
}

impl Queue {
    pub(super) fn new(index: u16, plan: &Plan) -> Self {
        Self {
            index,
            size: plan.queue_size,
            vector: u16::MAX,
            vector_unread: false,
            enabled: false,
            was_reset: false,
            resetting: None,
            addresses: [0; 3],
            written: [false; 3],
            restored: None,
            ring: None,
            held: Vec::new(),
        }
    }

    pub(super) fn reset(&mut self, plan: &Plan) {
        *self = Self {
            was_reset: true,
            ..Self::new(self.index, plan)
        };
    }

    pub(super) fn configured(&self) -> bool {
        self.written == [true; 3]
    }

    fn place(offset: u64) -> (usize, u32) {
        let at = usize::try_from(offset.saturating_sub(32) / 8)
            .unwrap_or(0)
            .min(2);
        (at, if offset.is_multiple_of(8) { 0 } else { 32 })
    }

    pub(super) fn half(&self, offset: u64) -> u64 {
        let (at, shift) = Self::place(offset);
        self.addresses[at] >> shift & 0xffff_ffff
    }

    pub(super) fn set_half(&mut self, offset: u64, value: u64) {
        let (at, shift) = Self::place(offset);
        let kept = self.addresses[at] & !(0xffff_ffff << shift);
        self.addresses[at] = kept | value << shift;
        self.written[at] |= shift == 0;
    }

    /// Available and used state.
    pub(super) fn state(&self) -> (u16, u16) {
        match &self.ring {
            Some(Ring::Split(ring)) => ring.state(),
            Some(Ring::Packed(ring)) => ring.state(),
            None => (self.restored.unwrap_or(0), self.restored.unwrap_or(0)),
        }
    }

    pub(super) fn restore(&mut self, state: u16) {
        self.restored = Some(state);
    }
}

/// Splits what a queue's judgement needs from the rest of the function.
macro_rules! view {
    ($inner:expr, $index:expr, |$queue:ident, $view:ident| $body:expr) => {{
        let inner: &mut Inner = $inner;
        let limit = model::chain_limit(inner, $index);
        let features = inner.life.features;
        match inner.queues.get_mut(usize::from($index)) {
            Some($queue) => {
                let mut $view = View {
                    book: &mut inner.book,
                    memory: &inner.memory,
                    features,
                    limit,
                };
                Some($body)
            }
            None => None,
        }
    }};
}

/// The driver enables a queue.
pub(super) fn enable(inner: &mut Inner, index: u16) {
    let lie = inner.plan.lie_in_used_ring;
    view!(inner, index, |queue, view| {
        queue.enabled = true;
        let packed = view.has(feature::RING_PACKED);
        let sizes = if packed {
            packed::sizes(queue.size)
        } else {
            split::sizes(queue.size)
        };
        let reaches = queue
            .addresses
            .iter()
            .zip(sizes)
            .all(|(at, len)| view.memory.reaches(*at, len));
        if !view.has(feature::ACCESS_PLATFORM) {
            let addresses = queue.addresses;
            view.book
                .check(&PHYSICAL, reaches, || format!("rings at {addresses:#x?}"));
        }
        queue.ring = Some(if packed {
            Ring::Packed(Packed::new(
                queue.addresses,
                queue.size,
                queue.restored,
                &mut view,
            ))
        } else {
            Ring::Split(Split::new(
                queue.addresses,
                queue.size,
                queue.restored,
                lie,
                &mut view,
            ))
        });
    });
}

/// DRIVER_OK was set.
pub(super) fn driver_ok(inner: &mut Inner) {
    common::driver_ok(inner);
}

/// The driver notified a queue; `next` is where it says the next buffer goes.
pub(super) fn notified(inner: &mut Inner, index: u16, next: Option<u16>) {
    if inner.life.live() {
        poll(inner, index, Some(next));
    }
}

/// Takes what is newly exposed. `told` if there was a notification for it.
fn poll(inner: &mut Inner, index: u16, told: Option<Option<u16>>) -> usize {
    let found = view!(inner, index, |queue, view| {
        let outstanding = queue.held.iter().map(|chain| chain.slots).sum();
        let chains = match &mut queue.ring {
            Some(Ring::Split(ring)) => {
                let mut chains = ring.poll(&mut view, told);
                // What came while the device was about to ask for a notification may be without
                // one. Who exposes more than the ring holds is broken, and is not followed.
                for _ in 0..queue.size {
                    let late = ring.poll(&mut view, None);
                    if late.is_empty() {
                        break;
                    }
                    chains.extend(late);
                }
                chains
            }
            Some(Ring::Packed(ring)) => ring.poll(&mut view, told, outstanding),
            None => Vec::new(),
        };
        for chain in &chains {
            if !view.has(feature::ACCESS_PLATFORM) {
                let reachable = chain.reachable(view.memory);
                view.book
                    .check(&PHYSICAL, reachable, || format!("buffer {chain:?}"));
            }
        }
        let count = chains.len();
        queue.held.extend(chains);
        count
    });
    let found = found.unwrap_or(0);
    if found > 0 {
        notify::went_on(inner);
    }
    found
}

impl Inner {
    /// Answers what is exposed; see [`super::Judge::settle`].
    pub(super) fn settle(&mut self, idle: bool) {
        for index in 0..u16::try_from(self.queues.len()).unwrap_or(0) {
            if !self.life.live() {
                return;
            }
            if idle {
                let missed = view!(self, index, |queue, view| match &mut queue.ring {
                    Some(Ring::Split(ring)) => ring.idle(&mut view),
                    Some(Ring::Packed(ring)) => ring.idle(&mut view),
                    None => false,
                });
                if missed == Some(true) {
                    poll(self, index, None);
                }
            }
            self.answer(index);
        }
    }

    fn answer(&mut self, index: u16) {
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return;
        };
        let mut held = std::mem::take(&mut queue.held);
        if held.is_empty() {
            return;
        }
        let in_order = self.life.has(feature::IN_ORDER);
        let data = index < self.plan.queues.clamp(1, 8);
        if self.plan.reorder && !in_order && data {
            held.reverse();
        }
        // All of them before the first is used: that is written over packed descriptors.
        for chain in &held {
            let left = chain.changed(&self.memory);
            self.book.check(&LEAVES, left.is_none(), || match left {
                Some(at) => format!("what is at {at:#x} has changed while its buffer was exposed"),
                None => "nothing has changed while a buffer was exposed".to_owned(),
            });
            if self.life.has(feature::RING_PACKED) {
                packed::compared(&mut self.book, left);
            }
        }
        let mut notifies = false;
        for chain in held {
            if !self.life.live() {
                // Exposed for good: DEVICE_NEEDS_RESET has come in between.
                if let Some(queue) = self.queues.get_mut(usize::from(index)) {
                    queue.held.push(chain);
                }
                continue;
            }
            if !chain.reachable(&self.memory) {
                self.book.broke(
                    &TAKES_AWAY,
                    "an exposed buffer is no longer reachable, and the queue is live",
                );
                continue;
            }
            let written = model::process(self, index, &chain);
            self.answered += 1;
            notifies |= view!(self, index, |queue, view| match &mut queue.ring {
                Some(Ring::Split(ring)) => ring.push(&mut view, &chain, written),
                Some(Ring::Packed(ring)) => ring.push(&mut view, &chain, written),
                None => false,
            })
            .unwrap_or(false);
            if chain.slots > 1 && self.life.has(feature::RING_PACKED) {
                packed::used_as_one(self);
            }
        }
        if notifies {
            notify::used(self, index);
        }
        notify::provoke(self, index);
    }
}

/// SUSPEND was written: from here on the driver exposes nothing.
pub(super) fn suspended(inner: &mut Inner) {
    for queue in &mut inner.queues {
        match &mut queue.ring {
            Some(Ring::Split(ring)) => ring.mark(&inner.memory),
            Some(Ring::Packed(ring)) => ring.mark(&inner.memory),
            None => {}
        }
    }
}

/// Whether anything was exposed since.
pub(super) fn exposed_while_suspended(inner: &mut Inner) {
    let memory = &inner.memory;
    let more = inner.queues.iter().any(|queue| match &queue.ring {
        Some(Ring::Split(ring)) => ring.moved(memory),
        Some(Ring::Packed(ring)) => ring.moved(memory),
        None => false,
    });
    if more && matches!(inner.life.run, Run::Suspending(_) | Run::Suspended) {
        life::acted(inner, &SUSPEND_BUFFERS, "buffers were made available");
    }
}

/// Whether buffers are exposed that nobody looked at.
pub(super) fn exposed(inner: &Inner) -> bool {
    inner.queues.iter().any(|queue| match &queue.ring {
        Some(Ring::Split(ring)) => ring.waiting(&inner.memory),
        Some(Ring::Packed(ring)) => ring.waiting(&inner.memory),
        None => false,
    })
}

/// The device is about to be reset.
pub(super) fn taken_away(inner: &mut Inner) {
    if inner
        .queues
        .iter()
        .any(|queue| !queue.held.is_empty() || queue.ring.is_some())
    {
        inner
            .book
            .kept(&TAKES_AWAY, "the device was reset while queues were live");
    }
}

/// A queue was reset.
pub(super) fn was_reset(inner: &mut Inner) {
    inner
        .book
        .kept(&TAKES_AWAY, "a queue was reset while it was live");
}

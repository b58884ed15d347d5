//! What the frontend configured for a ring, and how the ring is heard by the driver.

use super::kicks::nonblocking;
use super::{Counters, Refused};
use crate::engine::EngineEvents;
use crate::virtio::QueueError;
use spec::queue_state::QueueState;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The three areas of a ring, by guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Areas {
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

/// A ring as the frontend configured it.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub size: u16,
    pub areas: Option<Areas>,
    /// Where to go on, or where it stopped; `None` is the beginning.
    pub base: Option<Base>,
    pub enabled: bool,
    /// The frontend said how it will kick: the ring may start.
    pub kicked: bool,
    pub running: bool,
}

/// Where a ring stands, as messages have it: of a split ring the available index; of a packed one
/// the available state in the lower half and the used state in the upper half, index and wrap
/// counter each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Base(pub u32);

impl Base {
    pub(super) fn of(state: QueueState, packed: bool) -> Self {
        let (avail, used) = (u32::from(state.avail), u32::from(state.used));
        Self(if packed { avail | used << 16 } else { avail })
    }

    /// `None` if no split ring can stand there. The used index of one is in its memory.
    pub(super) fn state(self, packed: bool) -> Option<QueueState> {
        let [a, b, c, d] = self.0.to_le_bytes();
        let (low, high) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        if packed {
            let (avail, used) = (low, high);
            return Some(QueueState { avail, used });
        }
        (high == 0).then_some(QueueState {
            avail: low,
            used: low,
        })
    }
}

/// What the frontend is told of one ring.
#[derive(Debug, Default)]
struct Outlet {
    call: Option<Arc<File>>,
    error: Option<Arc<File>>,
    /// Where the ring stood when it stopped, until somebody has taken it.
    stopped: Option<QueueState>,
}

/// The ways from the rings to the frontend.
#[derive(Debug)]
pub(super) struct Outlets {
    rings: Mutex<Vec<Outlet>>,
    stopped: Condvar,
    counters: Arc<Counters>,
}

impl Outlets {
    pub(super) fn new(rings: usize, counters: Arc<Counters>) -> Self {
        Self {
            rings: Mutex::new((0..rings).map(|_| Outlet::default()).collect()),
            stopped: Condvar::new(),
            counters,
        }
    }

    /// Tells of used buffers through `file` from now on; without one the driver polls.
    ///
    /// One call is made at once: what was used while the frontend had no descriptor there, or when
    /// a backend before this one was killed, may not have been told.
    pub(super) fn set_call(&self, index: usize, file: Option<File>) -> Result<(), Refused> {
        let file = event(index, "calls", file)?;
        if let Some(ring) = self.lock().get_mut(index) {
            ring.call.clone_from(&file);
        }
        signal(file.as_deref());
        Ok(())
    }

    /// Tells of a broken ring through `file` from now on.
    pub(super) fn set_error(&self, index: usize, file: Option<File>) -> Result<(), Refused> {
        let file = event(index, "errors", file)?;
        if let Some(ring) = self.lock().get_mut(index) {
            ring.error = file;
        }
        Ok(())
    }

    /// Where ring `index` stood, as soon as it has stopped; `None` if it did not within `wait`.
    pub(super) fn wait_stopped(&self, index: usize, wait: Duration) -> Option<QueueState> {
        let deadline = Instant::now() + wait;
        let mut rings = self.lock();
        loop {
            if let Some(state) = rings.get_mut(index)?.stopped.take() {
                return Some(state);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let waited = self.stopped.wait_timeout(rings, left);
            rings = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Outlet>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, index: u16, read: impl FnOnce(&mut Outlet) -> Option<T>) -> Option<T> {
        self.lock().get_mut(usize::from(index)).and_then(read)
    }
}

impl EngineEvents for Outlets {
    fn queue_stopped(&self, index: u16, state: QueueState) {
        self.with(index, |ring| ring.stopped.replace(state));
        self.stopped.notify_all();
    }

    fn queue_used(&self, index: u16) {
        signal(self.with(index, |ring| ring.call.clone()).as_deref());
    }

    fn queue_broken(&self, index: u16, _error: QueueError) {
        Counters::add(&self.counters.rings_broken, 1);
        signal(self.with(index, |ring| ring.error.clone()).as_deref());
    }
}

fn event(
    index: usize,
    what: &'static str,
    file: Option<File>,
) -> Result<Option<Arc<File>>, Refused> {
    if let Some(file) = &file {
        nonblocking(file).map_err(|error| Refused::Event { index, what, error })?;
    }
    Ok(file.map(Arc::new))
}

/// An event that is not taken from a full descriptor has been told before.
fn signal(file: Option<&File>) {
    if let Some(mut file) = file {
        let _ = file.write(&1u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_tells_where_either_ring_stands() {
        let state = |avail, used| QueueState { avail, used };
        assert_eq!(
            Base(0x8000_8000).state(true),
            Some(QueueState::PACKED_DEFAULT)
        );
        assert_eq!(Base(0x0003_8005).state(true), Some(state(0x8005, 3)));
        assert_eq!(Base::of(state(0x8005, 3), true), Base(0x0003_8005));
        assert_eq!(Base(0xffff).state(false), Some(state(0xffff, 0xffff)));
        assert_eq!(Base(0x1_0000).state(false), None);
        assert_eq!(Base::of(state(7, 7), false), Base(7));
    }
}

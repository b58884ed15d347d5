//! Who waits for the next map.

use std::fmt::Debug;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Somebody who met an address that was not mapped, and can go on when it is.
pub(crate) trait MapWaiter: Send + Sync + Debug {
    /// Something was mapped. Called with no lock of the door held, and not from within a burst.
    fn mapped(self: Arc<Self>);
}

#[derive(Debug, Default)]
pub(super) struct Waiters(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Times that something was mapped.
    made: u64,
    waiting: Vec<Weak<dyn MapWaiter>>,
}

impl Waiters {
    pub(super) fn made(&self) -> u64 {
        self.lock().made
    }

    /// Tells `waiter` of the next map after the first `seen`, which may have been made already.
    pub(super) fn wait(&self, seen: u64, waiter: Arc<dyn MapWaiter>) {
        let mut state = self.lock();
        if state.made == seen {
            state.waiting.push(Arc::downgrade(&waiter));
            return;
        }
        drop(state);
        waiter.mapped();
    }

    pub(super) fn tell(&self) {
        let waiting = {
            let mut state = self.lock();
            state.made = state.made.wrapping_add(1);
            mem::take(&mut state.waiting)
        };
        for waiter in waiting.iter().filter_map(Weak::upgrade) {
            waiter.mapped();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

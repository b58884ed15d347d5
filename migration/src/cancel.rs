//! Cancelling a migration from outside, at any time before the hand-over.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The handle by which anyone cancels a migration.
///
/// A migration that waits for its connection does not look at flags; whoever opened the connection
/// says here how that wait is ended ([`on_cancel`](Self::on_cancel)).
#[derive(Default)]
pub struct Cancel(Mutex<State>);

#[derive(Default)]
struct State {
    cancelled: bool,
    committed: bool,
    hooks: Vec<Box<dyn FnOnce() + Send>>,
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Cancel")
            .field("cancelled", &state.cancelled)
            .field("committed", &state.committed)
            .finish_non_exhaustive()
    }
}

impl Cancel {
    /// Cancels the migration. False if it is too late: the destination has been told to run the
    /// guest, or will be.
    pub fn cancel(&self) -> bool {
        let hooks = {
            let mut state = self.lock();
            if state.committed {
                return false;
            }
            state.cancelled = true;
            std::mem::take(&mut state.hooks)
        };
        for hook in hooks {
            hook();
        }
        true
    }

    /// Whether it has been cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// Calls `hook` when the migration is cancelled, at once if it has been. It is to end whatever
    /// the migration waits for, by hanging up for instance.
    pub fn on_cancel(&self, hook: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        if !state.cancelled {
            state.hooks.push(Box::new(hook));
            return;
        }
        drop(state);
        hook();
    }

    /// From here on nobody can cancel. False if somebody has.
    pub(crate) fn commit(&self) -> bool {
        let mut state = self.lock();
        state.committed = !state.cancelled;
        state.committed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn either_it_is_cancelled_or_committed() {
        let calls = Arc::new(AtomicU32::new(0));
        let hook = || {
            let calls = Arc::clone(&calls);
            move || {
                calls.fetch_add(1, Ordering::Relaxed);
            }
        };
        let cancel = Cancel::default();
        cancel.on_cancel(hook());
        assert!(!cancel.is_cancelled());
        assert!(cancel.cancel() && cancel.cancel());
        assert_eq!(calls.load(Ordering::Relaxed), 1, "a hook is called once");
        cancel.on_cancel(hook());
        assert_eq!(calls.load(Ordering::Relaxed), 2, "or at once");
        assert!(cancel.is_cancelled() && !cancel.commit());

        let cancel = Cancel::default();
        cancel.on_cancel(hook());
        assert!(cancel.commit());
        assert!(!cancel.cancel() && !cancel.is_cancelled());
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }
}

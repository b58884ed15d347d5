//! The set, a type for each of its states.

use crate::lock::coordinator::Coordinator;
use crate::lock::{Failure, Remotes, Report, Terms};
use std::fmt;
use std::marker::PhantomData;

/// All are locked, and nothing of ours is pending.
#[derive(Debug)]
pub enum Locked {}

/// All are locked and have taken a change.
#[derive(Debug)]
pub enum Staged {}

/// All are locked and run what was staged.
#[derive(Debug)]
pub enum Applied {}

/// Remotes that are locked together. Dropping it rolls back what is pending and releases all; that
/// waits for the answers, as long as the limits say.
pub struct LockedSet<C, S> {
    coordinator: Coordinator<C>,
    state: PhantomData<S>,
}

/// In any state.
impl<C, S> LockedSet<C, S> {
    /// The names of the remotes, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.coordinator.names()
    }

    /// What became of every remote so far.
    pub fn report(&self) -> Report {
        self.coordinator.report()
    }

    /// Rolls back what is pending, releases all and says what became of that.
    pub fn release(self) -> Report {
        self.coordinator.end()
    }

    /// Two sets in the state of this one: those that are to be kept, and the others. What becomes of one
    /// has nothing to do with the other any more.
    #[must_use]
    pub fn part(mut self, keep: impl Fn(&str) -> bool) -> (Self, Self) {
        let others = self.coordinator.part(keep);
        (self, Self::of(others))
    }

    /// Gives every remote its change, all at once. `change` makes it from the remote's name, or says why
    /// it cannot; then nobody is asked. On any failure all are rolled back and released, those that
    /// succeeded included. What was staged before is replaced.
    pub fn for_each(
        self,
        change: impl FnMut(&str) -> Result<C, String>,
    ) -> Result<LockedSet<C, Staged>, Failure> {
        let changes = self.names().map(change).collect();
        self.coordinator.stage(changes).map(LockedSet::of)
    }

    fn of(coordinator: Coordinator<C>) -> Self {
        Self {
            coordinator,
            state: PhantomData,
        }
    }
}

impl<C> LockedSet<C, Locked> {
    /// Locks all, or none. Where another manager has some, it is waited for up to the limit; the
    /// report of the failure then says who has what since when.
    pub fn lock(remotes: Remotes<C>, terms: Terms) -> Result<Self, Failure> {
        Coordinator::new(remotes, terms).lock().map(Self::of)
    }
}

impl<C> LockedSet<C, Staged> {
    /// Applies on all. From the first that begins there is no way back: all that began are waited for,
    /// asked again in growing intervals, and it is `Ok` only if every remote came to the end of it. If
    /// none began, all are rolled back.
    pub fn apply(self) -> Result<LockedSet<C, Applied>, Failure> {
        self.coordinator.apply().map(LockedSet::of)
    }
}

impl<C, S> fmt::Debug for LockedSet<C, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.names().collect();
        f.debug_struct("LockedSet")
            .field("remotes", &names)
            .finish_non_exhaustive()
    }
}

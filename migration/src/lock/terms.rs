//! On what terms remotes are locked together.

use crate::lock::{Cancel, Claimant, Clock, SystemClock};
use std::sync::Arc;
use std::time::Duration;

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until all locks are had, waiting for other managers included.
    pub lock: Duration,
    /// One request, to its answer.
    pub request: Duration,
    /// Until all have come to the end of their apply.
    pub apply: Duration,
    /// Until all are released, with retries.
    pub release: Duration,
    /// The first pause before anything is asked again. Each is twice as long as the one before.
    pub shortest_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lock: Duration::from_secs(10),
            request: Duration::from_secs(2),
            apply: Duration::from_secs(60),
            release: Duration::from_secs(5),
            shortest_pause: Duration::from_millis(10),
            longest_pause: Duration::from_secs(3),
        }
    }
}

/// On what terms a set is locked.
#[derive(Clone)]
pub struct Terms {
    /// Who locks it.
    pub claimant: Claimant,
    /// How long that may take.
    pub limits: Limits,
    /// Ends the waiting.
    pub cancel: Cancel,
    /// Measures it.
    pub clock: Arc<dyn Clock>,
}

impl Terms {
    /// The defaults, in real time, for a claimant of this name.
    pub fn new(who: impl Into<String>) -> Self {
        Self {
            claimant: Claimant::new(who),
            limits: Limits::default(),
            cancel: Cancel::default(),
            clock: Arc::new(SystemClock::default()),
        }
    }
}

impl std::fmt::Debug for Terms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terms")
            .field("claimant", &self.claimant)
            .field("limits", &self.limits)
            .field("cancel", &self.cancel)
            .finish_non_exhaustive()
    }
}

//! Time and events: what the coordinator waits for, and how it can be told to stop.

use crate::lock::{Answer, RemoteError};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Which request an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(pub(super) u64);

/// Something that a coordinator waits for.
#[derive(Debug)]
pub struct Event(pub(super) Happened);

#[derive(Debug)]
pub(super) enum Happened {
    Answered(Ticket, Result<Answer, RemoteError>),
    Cancelled,
}

impl Event {
    pub(super) fn answer(ticket: Ticket, answer: Result<Answer, RemoteError>) -> Self {
        Self(Happened::Answered(ticket, answer))
    }
}

/// The events of one coordinator.
#[derive(Debug)]
pub struct Inbox(Receiver<Event>);

impl Inbox {
    pub(super) fn new() -> (Sender<Event>, Self) {
        let (sender, receiver) = channel();
        (sender, Self(receiver))
    }

    /// The next event, if it is there.
    pub fn try_take(&self) -> Option<Event> {
        self.0.try_recv().ok()
    }

    /// The next event, waited for at most so long.
    pub fn take_within(&self, at_most: Duration) -> Option<Event> {
        // The coordinator holds a sender itself, so that only time ends this in vain.
        self.0.recv_timeout(at_most).ok()
    }
}

/// What time it is, and waiting.
pub trait Clock: Send + Sync {
    /// Since a beginning that is the clock's own.
    fn now(&self) -> Duration;

    /// Waits for the next event, until this time at most; `None` when that has come first.
    fn wait(&self, inbox: &Inbox, until: Duration) -> Option<Event>;
}

/// The system's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    began: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self {
            began: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn wait(&self, inbox: &Inbox, until: Duration) -> Option<Event> {
        inbox.take_within(until.saturating_sub(self.now()))
    }
}

/// Ends a coordinator's waiting, from any thread. Before the point of no return that means back to
/// where all was; after it, that nobody is waited for any more.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Shared>);

#[derive(Default)]
struct Shared {
    cancelled: AtomicBool,
    waiting: Mutex<Vec<Sender<Event>>>,
}

impl Cancel {
    /// Cancels every set that was made with this or a clone of it, and all to come.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        let mut waiting = self
            .0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for sender in waiting.drain(..) {
            let _ = sender.send(Event(Happened::Cancelled));
        }
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    pub(super) fn wake(&self, sender: &Sender<Event>) {
        let mut waiting = self
            .0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        waiting.push(sender.clone());
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}

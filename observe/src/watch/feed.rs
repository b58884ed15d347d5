//! Where a view's contents come from.

use super::view::Round;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

/// Updates that may wait to be shown. A device that is told of by more waits for the view.
pub(super) const WAITING: usize = 256;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// How many pages of memory there are.
    Memory {
        /// Pages of 4 KiB.
        pages: u64,
    },
    /// The device works.
    Moves {
        /// Requests made available so far, over all rounds.
        requests: u64,
        /// Entries and requests in flight of each queue.
        queues: Vec<(u16, u64)>,
    },
    /// It was suspended.
    Suspended {
        /// Names of its status bits then.
        status: String,
        /// Number, entries, available and used state of each queue.
        indices: Vec<(u16, u16, u16, u16)>,
    },
    /// A round is over.
    Round(Round),
    /// A line that tells nothing of this.
    Other(String),
    /// Nothing follows; and why, if it did not end well.
    Ended(Option<String>),
}

/// What happens, as it happens, on a thread of its own.
#[derive(Debug)]
pub struct Feed {
    pub(super) updates: Receiver<Update>,
    pub(super) stop: Arc<AtomicBool>,
    /// Whether it ends soon after it was asked to, and is to be waited for: a device that is left
    /// as it is found.
    pub(super) ends: bool,
}

impl Feed {
    /// Asks it to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

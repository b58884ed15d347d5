//! One eventfd per MSI-X vector, as the client sends them.

use super::served::IrqRequest;
use crate::function::InterruptSink;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct Vector {
    eventfd: Option<File>,
    /// Raised while there was no eventfd. QEMU takes all of them away for a moment when it enables
    /// one vector more, and an interrupt lost then would leave the guest waiting for ever.
    pending: bool,
}

impl Vector {
    fn raise(&mut self) {
        self.pending = true;
        self.deliver();
    }

    fn deliver(&mut self) {
        let Some(eventfd) = self.eventfd.as_mut().filter(|_| self.pending) else {
            return;
        };
        self.pending = false;
        match eventfd.write_all(&1_u64.to_ne_bytes()) {
            Ok(()) => {}
            // The counter is full: the client has been told often enough.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => tracing::warn!(%error, "an interrupt could not be sent"),
        }
    }
}

/// The vectors of one client.
#[derive(Debug)]
pub(super) struct EventFds(Mutex<Vec<Vector>>);

impl EventFds {
    pub(super) fn new(vectors: u16) -> Self {
        Self(Mutex::new(
            (0..vectors).map(|_| Vector::default()).collect(),
        ))
    }

    fn vectors(&self) -> MutexGuard<'_, Vec<Vector>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn carry_out(&self, request: IrqRequest, fds: Vec<File>) {
        let mut vectors = self.vectors();
        match request {
            IrqRequest::DisableAll => vectors.iter_mut().for_each(|vector| vector.eventfd = None),
            IrqRequest::Trigger(range) => selected(&mut vectors, range).for_each(Vector::raise),
            IrqRequest::Connect(range) => {
                let mut fds = fds.into_iter();
                for vector in selected(&mut vectors, range) {
                    vector.eventfd = fds.next();
                    vector.deliver();
                }
            }
        }
    }

    /// After a reset nothing is left to be told.
    pub(super) fn forget_pending(&self) {
        for vector in self.vectors().iter_mut() {
            vector.pending = false;
        }
    }

    /// Drops all eventfds, and what they were not told.
    pub(super) fn clear(&self) {
        self.vectors().fill_with(Vector::default);
    }
}

impl InterruptSink for EventFds {
    fn signal(&self, vector: u16) {
        if let Some(vector) = self.vectors().get_mut(usize::from(vector)) {
            vector.raise();
        }
    }
}

/// The vectors in `range` that exist.
fn selected(vectors: &mut [Vector], range: Range<usize>) -> impl Iterator<Item = &mut Vector> {
    let len = range.len();
    vectors.iter_mut().skip(range.start).take(len)
}

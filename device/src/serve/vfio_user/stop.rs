//! How a server is stopped from another thread.

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Set once, for good.
#[derive(Debug)]
pub(super) struct Stop {
    set: AtomicBool,
    /// Readable from when it is set.
    event: OwnedFd,
    /// The connection that is to be shut down.
    client: Mutex<Option<Arc<UnixStream>>>,
}

impl Stop {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Self {
            set: AtomicBool::new(false),
            event: eventfd(0, flags)?,
            client: Mutex::default(),
        })
    }

    pub(super) fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    pub(super) fn set(&self) {
        self.set.store(true, Ordering::SeqCst);
        // Its counter can only be full of earlier stops.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        if let Some(client) = &*self.client() {
            // Both ends learn of it; whoever reads or writes there stops waiting.
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Has `client` shut down by a stop from now on. False if that has come already.
    pub(super) fn watch(&self, client: &Arc<UnixStream>) -> bool {
        let mut watched = self.client();
        // A stop that comes after this look waits for the lock, and finds the client.
        if self.is_set() {
            return false;
        }
        *watched = Some(Arc::clone(client));
        true
    }

    /// The client is gone.
    pub(super) fn forget(&self) {
        *self.client() = None;
    }

    /// Waits until `what` can be read. False if it is stopped before, or was.
    pub(super) fn wait_for(&self, what: &impl AsFd) -> io::Result<bool> {
        loop {
            let mut fds = [
                PollFd::new(&self.event, PollFlags::IN),
                PollFd::new(what, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) if self.is_set() => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn client(&self) -> MutexGuard<'_, Option<Arc<UnixStream>>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Ends a connection whose backend does not answer.
//!
//! The protocol's crate reads a reply for as long as it takes, socket timeouts notwithstanding. A
//! backend that hangs would hang its frontend; here a thread of its own shuts the socket down when
//! a request's time is over, and the read ends.

use super::VhostUserError;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    timeout: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// When the request under way is over; none is under way.
    deadline: Option<Instant>,
    bitten: bool,
    closing: bool,
}

impl Watchdog {
    pub(super) fn new(socket: UnixStream, timeout: Duration) -> Result<Self, VhostUserError> {
        let shared = Arc::<Shared>::default();
        let watched = Arc::clone(&shared);
        let thread = thread::Builder::new().name("vhost-user-watchdog".to_owned());
        let thread = thread
            .spawn(move || watched.watch(&socket))
            .map_err(|source| VhostUserError::Setup {
                what: "start a thread",
                source,
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            timeout,
        })
    }

    /// Carries out a request, for at most the time a request has.
    pub(super) fn guard<T>(
        &self,
        request: &'static str,
        carry_out: impl FnOnce() -> vhost::Result<T>,
    ) -> Result<T, VhostUserError> {
        self.set(Instant::now().checked_add(self.timeout));
        let done = carry_out();
        self.set(None);
        done.map_err(|source| {
            if self.shared.lock().bitten {
                let waited = self.timeout;
                return VhostUserError::Silent { request, waited };
            }
            VhostUserError::Request { request, source }
        })
    }

    fn set(&self, deadline: Option<Instant>) {
        self.shared.lock().deadline = deadline;
        self.shared.changed.notify_one();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It has nothing to return, and a panic in it has been printed.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, socket: &UnixStream) {
        let mut state = self.lock();
        while !state.closing {
            let left = state
                .deadline
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => {
                    state.deadline = None;
                    state.bitten = true;
                    if let Err(error) = socket.shutdown(Shutdown::Both) {
                        tracing::debug!(%error, "the connection has ended already");
                    }
                    state
                }
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.changed.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }
}

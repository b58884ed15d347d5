//! The two event descriptors of a queue.

use super::VhostUserError;
use crate::bus::Interrupt;
use std::fmt::{self, Debug};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How a driver notifies a queue of the backend ([`kick`](Self::kick)) and hears from it
/// ([`Interrupt`]).
pub struct QueueEvents {
    pub(super) kick: EventFd,
    pub(super) call: EventFd,
    called: Epoll,
}

impl Debug for QueueEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueEvents")
            .field("kick", &self.kick)
            .field("call", &self.call)
            .finish_non_exhaustive()
    }
}

impl QueueEvents {
    pub(super) fn new() -> Result<Self, VhostUserError> {
        let make = || -> io::Result<_> {
            let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
            let (kick, call, called) = (event()?, event()?, Epoll::new()?);
            let readable = EpollEvent::new(EventSet::IN, 0);
            called.ctl(ControlOperation::Add, call.as_raw_fd(), readable)?;
            Ok(Self { kick, call, called })
        };
        make().map_err(|source| VhostUserError::Setup {
            what: "create event descriptors",
            source,
        })
    }

    /// Tells the backend that buffers are available.
    ///
    /// # Errors
    /// What the system says, which has no reason to refuse.
    pub fn kick(&self) -> io::Result<()> {
        match self.kick.write(1) {
            // The counter is full: the backend has been told, often enough.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            done => done,
        }
    }
}

impl Interrupt for QueueEvents {
    fn wait(&self, timeout: Duration) -> bool {
        let until = Instant::now().checked_add(timeout);
        loop {
            if self.call.read().is_ok() {
                return true;
            }
            let left = until.map_or(timeout, |u| u.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            // Rounded up, so that the last part of a millisecond is not spent in a loop.
            let ms = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
            match self.called.wait(ms, &mut [EpollEvent::default()]) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return false,
                _ => {}
            }
        }
    }
}

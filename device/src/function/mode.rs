//! What an owner makes of a member: stopped, or running (VIRTIO 1.4, DEV_MODE_SET).
//!
//! The mode is beside the device's life and says nothing in its status: the member's driver does not
//! know of it. SUSPEND and the mode are latched independently (D-18). Project rule: a function level
//! reset makes a member active, because Linux' VFIO driver takes it for running after one; a reset
//! by the status leaves the mode as it is.

use super::inner::{Core, Registers, lock};
use crate::status::State;
use std::sync::{PoisonError, Weak};
use std::time::{Duration, Instant};

/// How far an owner has stopped the function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mode {
    phase: Phase,
    /// A configuration change was not announced because of the mode.
    owed: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Active,
    /// Queues are still draining.
    Stopping,
    Stopped,
}

impl Mode {
    pub(super) fn is_active(self) -> bool {
        self.phase == Phase::Active
    }

    pub(super) fn is_stopped(self) -> bool {
        self.phase == Phase::Stopped
    }

    /// Whether a configuration change may be announced now (DP-11); if not, it is once it may be.
    pub(super) fn may_notify(&mut self) -> bool {
        self.owed |= self.phase == Phase::Stopped;
        self.phase != Phase::Stopped
    }

    /// No queue runs any more. True if that was waited for.
    pub(super) fn drained(&mut self) -> bool {
        let waited = self.phase == Phase::Stopping;
        if waited {
            self.phase = Phase::Stopped;
        }
        waited
    }
}

impl Core {
    /// Stops the function, or lets it go on. False if that is not done yet, because a reset goes on
    /// (DP-12) or because queues are draining (DP-7): the owner is told when it is worth asking
    /// again, which is harmless at any time (DP-13).
    pub(crate) fn set_stopped(&self, stop: bool) -> bool {
        let _door = lock(&self.door);
        {
            let mut registers = self.registers();
            if matches!(registers.state, State::Resetting { .. }) {
                return false;
            }
            match (registers.mode.phase, stop) {
                (Phase::Active, false) | (Phase::Stopped, true) => return true,
                // A resume finds a stop under way: one after the other.
                (Phase::Stopping, _) => return false,
                (Phase::Active, true) => registers.mode.phase = Phase::Stopping,
                (Phase::Stopped, false) => {
                    registers.mode.phase = Phase::Active;
                    if std::mem::take(&mut registers.mode.owed) && registers.state == State::Running
                    {
                        lock(&self.interrupts).notify_config();
                    }
                }
            }
        }
        if !stop {
            self.start_queues();
            return true;
        }
        self.stop_queues();
        self.registers().mode.is_stopped()
    }

    /// As [`set_stopped`](Self::set_stopped), and waits until it is so. False if it is not within
    /// `timeout`.
    pub(super) fn set_stopped_and_wait(&self, stop: bool, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        while !self.set_stopped(stop) {
            let left = until.saturating_duration_since(Instant::now());
            let under_way = |registers: &mut Registers| {
                let resetting = matches!(registers.state, State::Resetting { .. });
                resetting || registers.mode.phase == Phase::Stopping
            };
            let registers = self.registers();
            let waited = self.moved.wait_timeout_while(registers, left, under_way);
            if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
                return false;
            }
        }
        true
    }

    /// Virtual functions that there are.
    pub(crate) fn vfs(&self) -> u16 {
        self.registers().pci.vfs()
    }

    /// Resets the members that are there no longer.
    pub(super) fn follow_vfs(&self) {
        if let Some(admin) = &self.admin {
            admin.follow_vfs(self.vfs());
        }
    }

    /// Has an administration queue look again at a command that had to wait.
    pub(crate) fn wake(&self, queue: u16) {
        self.machinery.kick(queue);
    }

    /// Tells the owner that something has changed that a command may wait for.
    pub(super) fn tell_owner(&self) {
        if let Some(owner) = self.owner.get().and_then(Weak::upgrade) {
            owner.member_moved();
        }
    }
}

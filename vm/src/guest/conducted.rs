//! A guest whose devices are started, suspended and let go on by their agents: all, or none.

use super::EmulatedGuest;
use crate::error::VmError;
use crate::seat::Seat;
use driver::suspend;
use migration::agent::{End, Ensemble};
use std::ops::Range;
use std::sync::Arc;

/// What agents are to a guest: the places where they reach its devices, and their set if they conduct
/// them.
#[derive(Debug, Default)]
pub(super) struct Conducted {
    seats: Vec<Arc<Seat>>,
    ensemble: Option<Ensemble>,
}

fn broken(error: impl std::fmt::Display) -> VmError {
    VmError::Agents(error.to_string())
}

impl EmulatedGuest {
    /// Lets agents reach its devices, one place for each in their order. Whoever holds such a place, the
    /// guest has its devices.
    pub fn seat(&mut self, seats: &[Arc<Seat>]) {
        for (device, (seat, tracker)) in self.devices.iter().zip(seats.iter().zip(&self.trackers)) {
            seat.take(&device.transport, tracker.clone());
        }
        self.conducted.seats = seats.to_vec();
    }

    /// From now on its devices are started, suspended and let go on by this, together or not at all.
    pub fn conduct(&mut self, ensemble: Ensemble) {
        for tracker in &self.trackers {
            tracker.set_conducted(true);
        }
        self.conducted.ensemble = Some(ensemble);
    }

    /// What conducts its devices, and what became of that.
    pub fn ensemble(&self) -> Option<&Ensemble> {
        self.conducted.ensemble.as_ref()
    }

    /// Whether somebody conducts its devices.
    pub(super) fn is_conducted(&self) -> bool {
        self.conducted.ensemble.is_some()
    }

    /// Lets go of its devices' agents. Whoever may run the guest elsewhere has left; otherwise its devices
    /// are what they were before.
    ///
    /// # Errors
    /// In words, what could not be made what it was, not even without agents.
    pub fn end_conduct(&mut self, end: End) -> Result<(), String> {
        let Some(ensemble) = &mut self.conducted.ensemble else {
            return Ok(());
        };
        if end == End::Left {
            // Before anyone else can have their locks.
            self.conducted.seats.iter().for_each(|seat| seat.leave());
        }
        let Err(error) = ensemble.end(end) else {
            return Ok(());
        };
        tracing::warn!(%error, "the guest takes its devices back from their agents");
        self.take_back().map_err(|error| error.to_string())
    }

    pub(super) fn conducted_track(
        &mut self,
        ranges: &[Range<u64>],
        granularity: u64,
    ) -> Result<(), VmError> {
        let Some(ensemble) = &mut self.conducted.ensemble else {
            return Ok(());
        };
        ensemble.track(ranges, granularity).map_err(broken)
    }

    /// Makes the suspension ready, while the guest still runs.
    pub(super) fn prepare_to_suspend(&mut self) -> Result<(), VmError> {
        let ensemble = self.conducted.ensemble.as_mut();
        ensemble.map_or(Ok(()), |ensemble| ensemble.stage_switch().map_err(broken))
    }

    /// Suspends all devices, and sees that they are.
    pub(super) fn conducted_suspend(&mut self) -> Result<(), VmError> {
        let Some(ensemble) = &mut self.conducted.ensemble else {
            return Ok(());
        };
        ensemble.switch().map_err(broken)?;
        self.see(true)
    }

    /// Lets all devices go on, by their agents or, if not all of those can be had, without them.
    pub(super) fn conducted_resume(&mut self, suspended: bool) -> Result<(), VmError> {
        let Some(ensemble) = &mut self.conducted.ensemble else {
            return Ok(());
        };
        match (ensemble.holds(), ensemble.changed()) {
            (true, _) if suspended => {}
            (false, true) => return self.take_back(),
            // They run, and are tracked or as they were.
            _ => return Ok(()),
        }
        let resumed = ensemble.resume().map_err(broken);
        match resumed.and_then(|()| self.see(false)) {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, "the guest takes its devices back from their agents");
                self.take_back()
            }
        }
    }

    /// The guest's devices are its own again: they run, untracked, and nothing that agents were told
    /// before holds any more.
    fn take_back(&self) -> Result<(), VmError> {
        let backs = self.conducted.seats.iter().map(|seat| seat.take_back());
        backs.fold(Ok(()), Result::and).map_err(broken)
    }

    /// What an agent says is its word; what the device presents is so.
    fn see(&self, suspended: bool) -> Result<(), VmError> {
        for (number, device) in self.devices.iter().enumerate() {
            let status = device.transport.status();
            let status = status.map_err(VmError::driver("reading a device's status"))?;
            if suspend::is_suspended(status) != suspended {
                let wanted = if suspended { "suspended" } else { "running" };
                return Err(broken(format!(
                    "device {number} was to be {wanted}, and presents {status:?}"
                )));
            }
        }
        Ok(())
    }

    /// How each of its devices is, by its own registers: whether it tracks, and whether it is suspended.
    ///
    /// # Errors
    /// What the bus says.
    pub fn device_states(&self) -> Result<Vec<(bool, bool)>, VmError> {
        let state = |device: &super::Device| {
            let failed = VmError::driver("reading a device's registers");
            let tracker = device.transport.tracker_registers().map_err(failed)?;
            let failed = VmError::driver("reading a device's status");
            let status = device.transport.status().map_err(failed)?;
            Ok((tracker.enable != 0, suspend::is_suspended(status)))
        };
        self.devices.iter().map(state).collect()
    }
}

#[cfg(test)]
impl EmulatedGuest {
    /// Resets a device as its driver may at any time.
    pub(crate) fn reset_device(&self, number: usize) -> Result<(), VmError> {
        let reset = self.devices[number]
            .transport
            .reset(std::time::Duration::from_secs(10));
        reset.map_err(VmError::driver("resetting a device"))
    }
}

impl Drop for Conducted {
    fn drop(&mut self) {
        self.seats.iter().for_each(|seat| seat.leave());
    }
}

//! The guest as one side of a checkpointed pair sees it.

use super::journal::Journal;
use super::{EmulatedGuest, moving};
use crate::error::VmError;
use crate::held::HeldDisk;
use driver::dirty::{DirtyError, DirtySet, PAGE_SIZE};
use migration::checkpoint::{Protected, Switch, Witness};
use migration::{DeviceRecord, GuestError, NamedSource};
use std::io;
use std::sync::Arc;

/// Lanes of outputs: a virtual CPU's completions have its number, and the blocks of a disk follow
/// this one, those of each device so many after those of the one before.
const DISK_LANES: u64 = 1 << 63;
const LANES_OF_DISK: u64 = 1 << 48;

fn storage(error: io::Error) -> GuestError {
    GuestError::new("writing what was held", error)
}

impl EmulatedGuest {
    /// Lets its disks ask for a checkpoint when a FLUSH waits for one, or a write for room.
    pub fn ask_for_checkpoints(&self, switch: &Switch) {
        for held in &self.machine.held {
            let switch = switch.clone();
            held.on_pressure(move || switch.ask());
        }
    }

    /// Tells somebody of what its devices put out from the next run on: the writes to its disks
    /// while they are held, and what its requests come to. For guests that are stopped.
    pub fn tell(&mut self, witness: Option<Arc<dyn Witness>>) {
        for (number, held) in (0..).zip(&self.machine.held) {
            held.tell(witness.clone(), DISK_LANES + number * LANES_OF_DISK);
        }
        self.witness = witness;
    }

    /// Bytes that its disks hold.
    pub fn held(&self) -> u64 {
        self.machine.held.iter().map(HeldDisk::held).sum()
    }

    /// Puts devices and CPUs, none of which runs, into a state that fits its memory; devices up to,
    /// not including, DRIVER_OK.
    pub(crate) fn reload(&mut self, records: &[DeviceRecord]) -> Result<(), VmError> {
        self.stopped("load a state into it")?;
        let (devices, mut cpus) = moving::rebuild(&self.machine, &self.devices, records)?;
        if let super::Cpus::Stopped(old) = &mut self.cpus {
            for (new, old) in cpus.iter_mut().zip(old) {
                let mut journal = old.take_journal();
                // Whatever ran here until now has never happened.
                journal.as_mut().map_or(Ok(()), Journal::restart)?;
                new.keep_journal(journal);
            }
        }
        self.devices = devices;
        self.cpus = super::Cpus::Stopped(cpus);
        self.suspended = false;
        Ok(())
    }

    /// Leaves as evidence what it is now, while nothing runs.
    pub(crate) fn leave_mark(&mut self) -> Result<(), VmError> {
        let vcpus = u64::try_from(self.machine.layout.places.len()).unwrap_or(u64::MAX);
        let marks = self.marks.as_mut();
        marks.map_or(Ok(()), |marks| marks.add(&self.machine.memory, vcpus))
    }

    /// Tracks what is written from now on.
    pub(crate) fn track(&mut self) -> Result<(), VmError> {
        let whole = 0..self.ram().len();
        for NamedSource { source, .. } in &mut self.sources {
            match source.stop() {
                Ok(()) | Err(DirtyError::NotStarted) => {}
                Err(error) => return Err(error.into()),
            }
            source.start(std::slice::from_ref(&whole), PAGE_SIZE)?;
        }
        Ok(())
    }

    /// What was written since the last report.
    pub(crate) fn written(&mut self, into: &mut DirtySet) -> Result<(), VmError> {
        let end = self.ram().len();
        for NamedSource { source, .. } in &mut self.sources {
            source.report(0..end, into)?;
        }
        Ok(())
    }
}

impl Protected for EmulatedGuest {
    fn hold(&mut self) -> Result<(), GuestError> {
        if self.machine.held.is_empty() {
            return Err(GuestError(
                "holding output: this guest's disks cannot hold writes; boot it with a limit for \
                 what is held"
                    .to_owned(),
            ));
        }
        self.machine.held.iter().for_each(HeldDisk::hold);
        Ok(())
    }

    fn owes(&self) -> bool {
        self.machine.held.iter().any(HeldDisk::owes)
    }

    fn make_true(&mut self) -> Result<(), GuestError> {
        let done = self.machine.held.iter().try_for_each(HeldDisk::make_true);
        done.map_err(storage)
    }

    fn release(&mut self) -> Result<(), GuestError> {
        let released = self.machine.held.iter().try_for_each(HeldDisk::release);
        released.map_err(storage)
    }

    fn let_out(&mut self) -> Result<(), GuestError> {
        self.tell(None);
        let let_out = self.machine.held.iter().try_for_each(HeldDisk::let_out);
        let_out.map_err(storage)
    }
}

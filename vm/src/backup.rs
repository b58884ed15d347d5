//! The place of a guest's last whole checkpoint.

use crate::emulated_bus::memory_file;
use crate::error::VmError;
use crate::guest::EmulatedGuest;
use crate::incoming::make_room;
use crate::machine::{Hosting, Machine};
use crate::seat::Seat;
use driver::dirty::DirtySet;
use driver::memory::DmaMemory;
use migration::checkpoint::{Standby, Witness};
use migration::stream::SectionKind;
use migration::{DeviceRecord, Guest, GuestError};
use std::sync::Arc;

/// Keeps a guest's last whole checkpoint, over disks of its own or the primary's.
#[derive(Debug)]
pub struct Backup {
    hosting: Hosting,
    /// Most bytes of memory that a guest may ask for.
    memory_max: u64,
    /// The guest's copy runs between checkpoints; what it writes is undone.
    runs: bool,
    /// Before the first load.
    machine: Option<Machine>,
    guest: Option<EmulatedGuest>,
    /// Writes of the last checkpoint that are not on the disks yet, by device.
    owed: Vec<(usize, Vec<u8>)>,
    /// Is told of what the guest's copy puts out, if that is compared.
    witness: Option<Arc<dyn Witness>>,
    /// Where agents reach its devices.
    seats: Vec<Arc<Seat>>,
}

impl Backup {
    /// A place for a guest of at most `memory_max` bytes of memory. With `runs` its copy runs as
    /// well, and is brought back to the primary's at each checkpoint; its disks must be able to hold
    /// writes either way.
    pub fn new(hosting: Hosting, memory_max: u64, runs: bool) -> Self {
        Self {
            hosting,
            memory_max,
            runs,
            machine: None,
            guest: None,
            owed: Vec::new(),
            witness: None,
            seats: Vec::new(),
        }
    }

    /// Lets agents reach the devices, one place for each in their order: held until the guest is taken
    /// over, and its own from then on.
    #[must_use]
    pub fn seated(mut self, seats: Vec<Arc<Seat>>) -> Self {
        self.seats = seats;
        self
    }

    /// Tells somebody of what the guest's copy puts out between checkpoints.
    #[must_use]
    pub fn telling(mut self, witness: Arc<dyn Witness>) -> Self {
        self.witness = Some(witness);
        self
    }

    /// The guest, once a checkpoint has come.
    pub fn guest(&mut self) -> Option<&mut EmulatedGuest> {
        self.guest.as_mut()
    }

    /// The guest itself.
    pub fn into_guest(self) -> Option<EmulatedGuest> {
        self.guest
    }

    fn try_load(&mut self, records: &[DeviceRecord]) -> Result<(), VmError> {
        match (&mut self.guest, self.machine.take()) {
            (Some(guest), _) => guest.reload(records)?,
            (None, Some(machine)) => {
                let mut guest = EmulatedGuest::restore(machine, records, &self.hosting)?;
                guest.tell(self.witness.clone());
                self.guest = Some(guest);
            }
            (None, None) => {
                return Err(VmError::Wrong {
                    is: "not described",
                    operation: "load it",
                });
            }
        }
        let disks = self.guest.iter().flat_map(|guest| guest.disks());
        self.owed.clear();
        for (number, disk) in disks.enumerate() {
            let record = records
                .iter()
                .find(|r| usize::try_from(r.id) == Ok(number + 1));
            let writes = record.and_then(|r| r.context.section(SectionKind::Writes));
            let writes = writes.unwrap_or_default();
            disk.check(writes)
                .map_err(VmError::system("take held writes"))?;
            self.owed.push((number, writes.to_vec()));
        }
        if let Some(witness) = &self.witness {
            witness.checkpoint();
        }
        Ok(())
    }

    /// Puts the last checkpoint's writes where the primary may or may not have put them: the same
    /// bytes at the same place.
    ///
    /// # Errors
    /// What a disk says.
    pub fn pay(&mut self) -> Result<(), GuestError> {
        self.try_pay().map_err(failed("writing what was held"))
    }

    fn try_pay(&mut self) -> Result<(), VmError> {
        let Some(guest) = &self.guest else {
            return Ok(());
        };
        for (number, writes) in &self.owed {
            if let Some(disk) = guest.disks().nth(*number) {
                disk.apply(writes)
                    .map_err(VmError::system("write what was held"))?;
            }
        }
        self.owed.clear();
        Ok(())
    }

    fn try_settle(&mut self) -> Result<(), VmError> {
        self.try_pay()?;
        if let Some(guest) = self.guest.as_mut().filter(|_| self.runs) {
            for disk in guest.disks() {
                disk.hold();
            }
            // Before the devices are live: they find requests in their rings.
            guest.track()?;
            guest.go_live()?;
        }
        Ok(())
    }

    fn try_take_over(&mut self) -> Result<(), VmError> {
        self.try_pay()?;
        let guest = self.guest.as_mut().ok_or(VmError::Wrong {
            is: "not there",
            operation: "run it",
        })?;
        for disk in guest.disks() {
            let out = disk.let_out().and_then(|()| device::blk::Disk::flush(disk));
            out.map_err(VmError::system("make the disk durable"))?;
        }
        guest.tell(None);
        guest.leave_mark()?;
        // Whoever held them was the primary's, which is lost.
        guest.seat(&self.seats);
        guest.go_live()
    }
}

fn failed(doing: &str) -> impl FnOnce(VmError) -> GuestError {
    move |error| GuestError::new(doing, error)
}

impl Standby for Backup {
    fn prepare(&mut self, description: &[u8]) -> Result<(), GuestError> {
        self.guest = None;
        self.owed.clear();
        let machine = make_room(description, self.memory_max, &self.hosting);
        self.machine = Some(machine.map_err(failed("making room"))?);
        Ok(())
    }

    fn memory(&self) -> Vec<DmaMemory> {
        let machine = self.machine.iter().map(|machine| machine.memory.clone());
        let guest = self.guest.iter().map(|guest| guest.ram().clone());
        machine.chain(guest).collect()
    }

    fn cache(&self) -> Result<Option<DmaMemory>, GuestError> {
        let [memory] = self
            .memory()
            .try_into()
            .map_err(|_| GuestError("no memory".to_owned()))?;
        if !self.runs {
            return Ok(None);
        }
        let made = memory_file("tidemark-cache", memory.len())
            .and_then(|file| DmaMemory::from_file(&file, 0, memory.len(), memory.iova()));
        made.map(Some)
            .map_err(|error| GuestError::new("making room for a cache", error))
    }

    fn stop(&mut self, own: &mut DirtySet) -> Result<(), GuestError> {
        let Some(guest) = self.guest.as_mut().filter(|guest| guest.is_live()) else {
            return Ok(());
        };
        guest.pause()?;
        guest
            .written(own)
            .map_err(failed("collecting what the copy wrote"))?;
        for disk in guest.disks() {
            disk.forget();
        }
        Ok(())
    }

    fn load(&mut self, records: &[DeviceRecord]) -> Result<(), GuestError> {
        self.try_load(records)
            .map_err(failed("loading a checkpoint"))
    }

    fn settle(&mut self) -> Result<(), GuestError> {
        self.try_settle()
            .map_err(failed("settling after a checkpoint"))
    }

    fn take_over(&mut self) -> Result<(), GuestError> {
        self.try_take_over().map_err(failed("taking over"))
    }
}

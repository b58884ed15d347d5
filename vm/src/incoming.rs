//! A guest that arrives.

use crate::error::VmError;
use crate::evidence;
use crate::guest::{Description, EmulatedGuest, decode};
use crate::machine::{Hosting, Machine};
use crate::seat::Seat;
use driver::memory::DmaMemory;
use migration::{DeviceRecord, GuestError, Incoming};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the destination fills memory with before anything has come.
const POISON: u8 = 0xa5;
const CHUNK: usize = 1 << 20;

/// The place where a guest arrives, and the guest once it has.
#[derive(Debug)]
pub struct Arrival {
    hosting: Hosting,
    /// Most bytes of memory that a guest may ask for.
    memory_max: u64,
    machine: Option<Machine>,
    records: Vec<DeviceRecord>,
    guest: Option<EmulatedGuest>,
    /// Where agents reach its devices.
    seats: Vec<Arc<Seat>>,
}

/// What became of the guest after its arrival; left as evidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// Requests completed here.
    pub completed: u64,
    /// Whether every request had completed at the end.
    pub drained: bool,
}

impl Arrival {
    /// A place for a guest of at most `memory_max` bytes of memory.
    pub fn new(hosting: Hosting, memory_max: u64) -> Self {
        Self {
            hosting,
            memory_max,
            machine: None,
            records: Vec::new(),
            guest: None,
            seats: Vec::new(),
        }
    }

    /// Lets agents reach the devices, one place for each in their order, before and after the guest
    /// arrives: it goes on only if none of these is held then.
    #[must_use]
    pub fn seated(mut self, seats: Vec<Arc<Seat>>) -> Self {
        self.seats = seats;
        self
    }

    /// Lets the arrived guest go on for `requests` requests or `limit`, whichever comes first,
    /// then drains it and leaves the evidence.
    ///
    /// # Errors
    /// [`VmError`], also if no guest has arrived.
    pub fn finish(&mut self, requests: u64, limit: Duration) -> Result<After, VmError> {
        let guest = self.guest.as_mut().ok_or(VmError::Wrong {
            is: "not there",
            operation: "let it go on",
        })?;
        guest.run_for(requests, limit)?;
        let drained = guest.drain();
        let after = After {
            completed: guest.progress().completed,
            drained: drained.is_ok(),
        };
        if let Some(folder) = &self.hosting.evidence {
            evidence::leave_after(folder, &after)?;
        }
        drained.map(|()| after)
    }

    fn try_ready(&mut self) -> Result<Duration, VmError> {
        let machine = self.machine.take().ok_or(VmError::Wrong {
            is: "not described",
            operation: "put it together",
        })?;
        let memory = machine.memory.clone();
        let guest = EmulatedGuest::restore(machine, &self.records, &self.hosting)?;
        // The dump follows the restoring, so that it shows what the guest starts from.
        let begin = Instant::now();
        if let Some(folder) = &self.hosting.evidence {
            evidence::dump_memory(&memory, folder)?;
        }
        self.guest = Some(guest);
        Ok(begin.elapsed())
    }
}

/// A machine for the guest that `description`, which is from outside, describes.
pub(crate) fn make_room(
    description: &[u8],
    memory_max: u64,
    hosting: &Hosting,
) -> Result<Machine, VmError> {
    let description: Description = decode("the guest's shape", description)?;
    let shape = &description.shape;
    if shape.memory > memory_max {
        return Err(VmError::shape(
            "memory",
            format!("at most {} bytes here", memory_max),
            shape.memory,
        ));
    }
    let machine = Machine::build(shape, hosting)?;
    // Now, while the guest still runs at its source and nothing has been copied.
    match (&machine.owner, description.parts()?) {
        (Some(owner), Some(parts)) => owner.can_take(&parts)?,
        (_, None) if !shape.means.parts => {}
        _ => {
            return Err(VmError::BadState {
                what: "a device".to_owned(),
                why: "expected its parts exactly if it moves in parts".to_owned(),
            });
        }
    }
    Ok(machine)
}

impl Incoming for Arrival {
    fn prepare(&mut self, description: &[u8]) -> Result<(), GuestError> {
        let machine = make_room(description, self.memory_max, &self.hosting);
        self.machine = Some(machine.map_err(|error| GuestError::new("making room", error))?);
        Ok(())
    }

    fn memory(&self) -> Vec<DmaMemory> {
        self.machine.iter().map(|m| m.memory.clone()).collect()
    }

    fn poison(&mut self) -> Result<(), GuestError> {
        let poison = vec![POISON; CHUNK];
        for memory in self.memory() {
            let mut at = 0;
            while at < memory.len() {
                let left = usize::try_from(memory.len() - at).unwrap_or(CHUNK);
                let part = poison.get(..left.min(CHUNK)).unwrap_or(&poison);
                let stored = memory.write(at, part);
                stored.map_err(|error| GuestError::new("clearing memory", error))?;
                at += u64::try_from(part.len()).unwrap_or(u64::MAX);
            }
        }
        Ok(())
    }

    fn restore(&mut self, record: DeviceRecord) -> Result<(), GuestError> {
        let most = self.machine.as_ref().map_or(0, |m| m.buses.len() + 1);
        if self.records.len() >= most {
            return Err(GuestError(format!(
                "taking the state of device {}: expected {most} states, got more",
                record.id
            )));
        }
        self.records.push(record);
        Ok(())
    }

    fn ready(&mut self) -> Result<Duration, GuestError> {
        self.try_ready()
            .map_err(|error| GuestError::new("putting the guest together", error))
    }

    fn go(&mut self) -> Result<(), GuestError> {
        let guest = self.guest.as_mut();
        let guest = guest.ok_or_else(|| GuestError("there is no guest to run".to_owned()))?;
        if let Some(number) = self.seats.iter().position(|seat| seat.is_held()) {
            return Err(GuestError(format!(
                "running the guest: the place of device {number} is held, and its agent has not let it go"
            )));
        }
        guest.seat(&self.seats);
        let live = guest.go_live();
        live.map_err(|error| GuestError::new("running the guest", error))
    }
}

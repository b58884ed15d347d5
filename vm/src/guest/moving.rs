//! The guest as migration sees it, and how it is put together again elsewhere.

use super::vcpu::{Order, Vcpu};
use super::{
    Cpus, Description, Device, EmulatedGuest, SavedDevice, SavedVcpu, decode, device_of, encode,
    transport, vector_of,
};
use crate::error::VmError;
use crate::held::HeldDisk;
use crate::hypervisor::Owner;
use crate::machine::{Hosting, Machine};
use driver::bus::Bus;
use driver::memory::DmaMemory;
use driver::parts::Parts;
use driver::{state, suspend};
use migration::stream::{Context, SectionKind};
use migration::{DeviceRecord, Guest, GuestError, NamedSource, Paused};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The option that names a device in a stream.
const NAME_KEY: &str = "name";
/// What block devices are called there, before their number.
const BLOCK_NAME: &str = "virtio-blk";
/// How often the guest is let go again because it had nothing in flight.
const RETRIES: u32 = 20;
/// How long a device may take to suspend or to resume.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How much a guest is to do before another attempt.
const AGAIN: u64 = 200;

fn failed(doing: &str) -> impl FnOnce(VmError) -> GuestError {
    move |error| GuestError::new(doing, error)
}

impl EmulatedGuest {
    fn in_flight(&self) -> Result<u64, VmError> {
        let mut sum = 0;
        for vcpu in self.stopped("count what is in flight")? {
            sum += u64::from(vcpu.in_flight()?);
        }
        Ok(sum)
    }

    fn try_pause(&mut self) -> Result<Paused, VmError> {
        let begin = Instant::now();
        let mut retries = 0;
        self.prepare_to_suspend()?;
        let in_flight = loop {
            self.stop(Order::Pause)?;
            let in_flight = self.in_flight()?;
            // A checkpoint is worth the same with nothing in flight, and may not take long.
            if in_flight > 0 || retries == RETRIES || !self.machine.held.is_empty() {
                break in_flight;
            }
            retries += 1;
            self.run_for(AGAIN, Duration::from_secs(1))?;
        };
        // Set first: whatever fails from here on is undone by a resume.
        self.suspended = true;
        self.disks().for_each(HeldDisk::boundary);
        match self.mover() {
            _ if self.is_conducted() => self.conducted_suspend()?,
            Some(owner) => {
                for (number, _) in self.devices.iter().enumerate() {
                    owner.stop(number)?;
                }
            }
            None => {
                for device in &self.devices {
                    suspend::suspend(&device.transport, SUSPEND_TIMEOUT)
                        .map_err(VmError::driver("suspending a device"))?;
                }
            }
        }
        Ok(Paused {
            in_flight,
            carried: self.in_flight()?,
            retries,
            elapsed: begin.elapsed(),
        })
    }

    fn try_resume(&mut self) -> Result<(), VmError> {
        self.disks().for_each(HeldDisk::go_on);
        let suspended = std::mem::take(&mut self.suspended);
        if self.is_conducted() {
            self.conducted_resume(suspended)?;
        } else if suspended {
            for (number, device) in self.devices.iter().enumerate() {
                match self.mover() {
                    Some(owner) => owner.resume(number)?,
                    None => suspend::resume(&device.transport, SUSPEND_TIMEOUT)
                        .map_err(VmError::driver("resuming a device"))?,
                }
            }
        }
        self.run()
    }

    /// The devices' owner, if it moves them.
    fn mover(&self) -> Option<&Owner> {
        let owner = self.machine.owner.as_ref();
        owner.filter(|_| self.shape().means.parts)
    }

    fn try_save(&self) -> Result<Vec<DeviceRecord>, VmError> {
        let cpus: Vec<SavedVcpu> = self.stopped("save it")?.iter().map(Vcpu::save).collect();
        let mut records = vec![DeviceRecord {
            id: 0,
            options: Vec::new(),
            context: Context::of(SectionKind::Cpu, encode("the CPU", &cpus)?),
        }];
        for (id, device) in (1..).zip(&self.devices) {
            let context = match self.mover() {
                Some(owner) => {
                    let parts = owner.get(records.len() - 1)?;
                    Context::of(SectionKind::Parts, parts.to_bytes())
                }
                None => {
                    let state = state::save(&device.transport);
                    let state = state.map_err(VmError::driver("saving a device"))?;
                    let state = encode("a device", &SavedDevice::from(&state))?;
                    Context::of(SectionKind::Registers, state)
                }
            };
            let written = self.disks().nth(records.len() - 1).and_then(HeldDisk::seal);
            let context = match written {
                Some(written) => context.with(SectionKind::Writes, written),
                None => context,
            };
            let name = format!("{BLOCK_NAME}{}", id - 1);
            records.push(DeviceRecord {
                id,
                options: vec![(NAME_KEY.to_owned(), name)],
                context,
            });
        }
        Ok(records)
    }

    /// Puts a guest together from its memory and its states; devices are restored up to, not
    /// including, DRIVER_OK. The states come from outside.
    pub(crate) fn restore(
        machine: Machine,
        records: &[DeviceRecord],
        hosting: &Hosting,
    ) -> Result<Self, VmError> {
        let (devices, cpus) = rebuild(&machine, &[], records)?;
        Self::assemble(machine, devices, cpus, hosting)
    }

    /// Makes restored devices live and runs the guest.
    pub(crate) fn go_live(&mut self) -> Result<(), VmError> {
        for (number, device) in self.devices.iter().enumerate() {
            if let Some(owner) = self.mover() {
                owner.resume(number)?;
            }
            // A device that was moved in parts presents DRIVER_OK already, or needs a reset.
            let live = device.transport.driver_ok();
            live.map_err(VmError::driver("starting a device"))?;
        }
        self.run()
    }

    /// Its disks, if they can hold writes.
    pub(crate) fn disks(&self) -> impl Iterator<Item = &HeldDisk> {
        self.machine.held.iter()
    }

    /// Whether its CPUs run.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.cpus, Cpus::Running(_))
    }
}

/// Devices and CPUs from their states, over the machine's memory, which is of the same moment.
/// Devices are restored up to, not including, DRIVER_OK, through what is known of them already, if
/// anything is. The states come from outside.
pub(super) fn rebuild(
    machine: &Machine,
    known: &[Device],
    records: &[DeviceRecord],
) -> Result<(Vec<Device>, Vec<Vcpu>), VmError> {
    let layout = Arc::clone(&machine.layout);
    let state_of = |id: u32, kind: SectionKind, what: &str| {
        let bad = |why: String| VmError::BadState {
            what: what.to_owned(),
            why,
        };
        let mut found = records.iter().filter(|record| record.id == id);
        let (Some(record), None) = (found.next(), found.next()) else {
            return Err(bad(format!("expected exactly one record {id}")));
        };
        let section = record.context.section(kind);
        section.ok_or_else(|| bad(format!("expected {} in record {id}", kind.name())))
    };
    if records.len() != machine.buses.len() + 1 {
        return Err(VmError::BadState {
            what: "the guest".to_owned(),
            why: format!(
                "expected {} records, got {}",
                machine.buses.len() + 1,
                records.len()
            ),
        });
    }
    let saved: Vec<SavedVcpu> = decode("the CPU", state_of(0, SectionKind::Cpu, "the CPU")?)?;
    if saved.len() != layout.places.len() {
        return Err(VmError::BadState {
            what: "the CPU".to_owned(),
            why: format!(
                "expected {} of them, got {}",
                layout.places.len(),
                saved.len()
            ),
        });
    }
    let mut devices = Vec::new();
    for (id, (index, bus)) in (1..).zip((0..).zip(&machine.buses)) {
        let saved = |kind| state_of(id, kind, "a device");
        let transport = match known.get(devices.len()) {
            Some(Device { transport, .. }) => {
                // What a suspended device offers says nothing.
                let reset = transport.reset(SUSPEND_TIMEOUT);
                reset.map_err(VmError::driver("resetting a device"))?;
                Arc::clone(transport)
            }
            None => transport(Arc::clone(bus) as Arc<dyn Bus>)?,
        };
        match machine.owner.as_ref().filter(|_| layout.shape.means.parts) {
            Some(owner) => {
                let number = devices.len();
                let parts = Parts::parse(saved(SectionKind::Parts)?);
                let parts = parts.map_err(VmError::driver("reading a device"))?;
                owner.stop(number)?;
                owner.set(number, &parts)?;
                // Its driver is the guest's, which goes on as if nothing had happened.
                transport
                    .adopt()
                    .map_err(VmError::driver("taking over a device"))?;
            }
            None => {
                let saved = saved(SectionKind::Registers)?;
                let saved: SavedDevice = decode("a device", saved)?;
                state::restore(&transport, &(&saved).into())
                    .map_err(VmError::driver("restoring a device"))?;
            }
        }
        devices.push(Device::new(machine, index, transport)?);
    }
    let mut cpus = Vec::new();
    for (place, saved) in layout.places.iter().zip(&saved) {
        let device = device_of(&devices, place)?;
        device.transport.bus().interrupt(vector_of(place))?;
        let features = device.transport.features();
        cpus.push(Vcpu::restore(
            &layout,
            *place,
            &machine.memory,
            features,
            saved,
        )?);
    }
    Ok((devices, cpus))
}

impl Guest for EmulatedGuest {
    fn describe(&self) -> Vec<u8> {
        // What cannot be read is found out when the guest is saved; here it would only be too early.
        let all = |owner: &Owner| {
            let numbers = 0..self.devices.len();
            numbers.map(|number| owner.get(number).ok()).collect()
        };
        let parts: Option<Vec<Parts>> = self.mover().and_then(all);
        let description = Description::new(self.shape().clone(), parts.as_deref());
        encode("the guest's shape", &description).unwrap_or_default()
    }

    fn memory(&self) -> Vec<DmaMemory> {
        vec![self.ram().clone()]
    }

    fn sources(&mut self) -> &mut [NamedSource] {
        &mut self.sources
    }

    fn begin_tracking(
        &mut self,
        ranges: &[Range<u64>],
        granularity: u64,
    ) -> Result<(), GuestError> {
        self.conducted_track(ranges, granularity)
            .map_err(failed("tracking the guest's devices"))
    }

    fn pause(&mut self) -> Result<Paused, GuestError> {
        self.try_pause().map_err(failed("pausing the guest"))
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.try_resume().map_err(failed("resuming the guest"))
    }

    fn throttle(&mut self, percent: u8) -> Result<(), GuestError> {
        self.gate.throttle(percent);
        Ok(())
    }

    fn save(&mut self) -> Result<Vec<DeviceRecord>, GuestError> {
        if !matches!(self.cpus, Cpus::Stopped(_)) || !self.suspended {
            return Err(GuestError("saving the guest: it is not paused".to_owned()));
        }
        let saved = self.try_save().and_then(|saved| {
            self.leave_mark()?;
            if let Some(witness) = &self.witness {
                witness.checkpoint();
            }
            Ok(saved)
        });
        saved.map_err(failed("saving the guest"))
    }
}

//! The owner of a guest's devices: what a hypervisor holds and no guest sees. Through it devices are
//! stopped, moved in parts and recorded, whatever their own drivers negotiated or do.

use crate::emulated_bus::EmulatedBus;
use crate::error::VmError;
use driver::admin::{AdminQueue, Subject};
use driver::bus::Bus;
use driver::dirty::{RecordsSource, records};
use driver::parts::{MemberParts, Parts};
use driver::{DriverError, Transport, sriov};
use serde::{Deserialize, Serialize};
use spec::admin::group;
use spec::features::Features;
use std::sync::{Arc, Mutex};

/// How a guest's devices are tracked and moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Means {
    /// Written pages are had as records from an owner, which surely holds so many of each device;
    /// without, from the device's own bitmap.
    pub records: Option<u32>,
    /// Devices are stopped by an owner and their state moves in device parts; without, they are
    /// suspended and it moves as their registers show it.
    pub parts: bool,
}

impl Means {
    /// Whether the devices have an owner.
    pub fn owned(self) -> bool {
        self.records.is_some() || self.parts
    }
}

/// What a host's devices lack: for tests of what happens then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Features that they do not offer.
    pub features_off: Features,
    /// Most entries of a queue, if fewer than the guest's.
    pub queue_size_max: Option<u16>,
    /// Their owner knows no device parts: an older one.
    pub no_parts: bool,
}

/// The owner, with its driver.
#[derive(Debug)]
pub(crate) struct Owner {
    queue: Arc<Mutex<AdminQueue>>,
    /// One for each device, if they move in parts.
    parts: Vec<MemberParts>,
    /// Dropped last: the queue is on it.
    bus: Arc<EmulatedBus>,
}

impl Owner {
    /// Brings the owner up and makes its virtual functions.
    pub(crate) fn boot(bus: Arc<EmulatedBus>, members: u16, means: Means) -> Result<Self, VmError> {
        let boot = || -> Result<(AdminQueue, Arc<Transport>), DriverError> {
            let transport = Arc::new(Transport::new(Arc::clone(&bus) as Arc<dyn Bus>)?);
            let needed = Features::ADMIN_VQ | Features::SR_IOV;
            transport.negotiate(needed | Features::RING_EVENT_IDX, needed)?;
            let mut queue = AdminQueue::new(Arc::clone(&transport), 0)?;
            transport.driver_ok()?;
            sriov::enable(&*bus, members)?;
            let records: &[u16] = if means.records.is_some() {
                &records::COMMANDS
            } else {
                &[]
            };
            if means.parts {
                MemberParts::prepare(&mut queue, records)?;
            } else {
                queue.use_commands(group::SR_IOV, records)?;
            }
            Ok((queue, transport))
        };
        let (queue, _) = boot().map_err(VmError::driver("bringing up the devices' owner"))?;
        let queue = Arc::new(Mutex::new(queue));
        let mut parts = Vec::new();
        for member in (1..=u64::from(members)).filter(|_| means.parts) {
            let member = MemberParts::new(Arc::clone(&queue), member);
            parts.push(member.map_err(VmError::driver("making device parts objects"))?);
        }
        Ok(Self { queue, parts, bus })
    }

    /// The records of device `number`, counted from 0.
    pub(crate) fn records(&self, number: u64) -> RecordsSource {
        let subject = Subject::virtual_function(number.saturating_add(1));
        RecordsSource::new(Arc::clone(&self.queue), subject)
    }

    fn device(&self, number: usize) -> Result<&MemberParts, VmError> {
        self.parts.get(number).ok_or(VmError::Wrong {
            is: "not one that moves in parts",
            operation: "reach its devices so",
        })
    }

    pub(crate) fn stop(&self, number: usize) -> Result<(), VmError> {
        let stopped = self.device(number)?.stop();
        stopped.map_err(VmError::driver("stopping a device"))
    }

    pub(crate) fn resume(&self, number: usize) -> Result<(), VmError> {
        let resumed = self.device(number)?.resume();
        resumed.map_err(VmError::driver("letting a device go on"))
    }

    pub(crate) fn get(&self, number: usize) -> Result<Parts, VmError> {
        let parts = self.device(number)?.get();
        parts.map_err(VmError::driver("reading device parts"))
    }

    pub(crate) fn set(&self, number: usize, parts: &Parts) -> Result<(), VmError> {
        let set = self.device(number)?.set(parts);
        set.map_err(VmError::driver("setting device parts"))
    }

    /// Whether the devices, which are fresh, can take what those of another host show: all of them,
    /// or the first that cannot is named.
    pub(crate) fn can_take(&self, theirs: &[Parts]) -> Result<(), VmError> {
        if theirs.len() != self.parts.len() {
            let (mine, theirs) = (self.parts.len(), theirs.len());
            return Err(VmError::BadState {
                what: "the devices".to_owned(),
                why: format!("the parts of {theirs} came, there are {mine}"),
            });
        }
        for (number, theirs) in theirs.iter().enumerate() {
            self.get(number)?.can_take(theirs).map_err(|error| {
                let (field, why) = match error {
                    DriverError::BadState { field, why } => (field, why),
                    other => ("parts".to_owned(), other.to_string()),
                };
                let what = format!("device {number}, {field}");
                VmError::BadState { what, why }
            })?;
        }
        Ok(())
    }

    /// How often a device was told to stop.
    pub(crate) fn stops(&self) -> u64 {
        let answers = self.bus.function().admin_answers();
        let modes = answers
            .iter()
            .filter(|(answer, _)| answer.opcode == Some(spec::admin::opcode::DEV_MODE_SET));
        modes.map(|(_, count)| count).sum()
    }
}

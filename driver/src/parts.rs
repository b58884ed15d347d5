//! A member's device parts, had and set through its owner (VIRTIO 1.4, "Device parts").

use crate::admin::{AdminQueue, RESULT_BYTES, Subject};
use crate::error::DriverError;
use spec::admin::capability::{self, DevParts as Limits};
use spec::admin::resource::{self, DevParts, Header, WithFlags};
use spec::admin::{MODE_STOPPED, group, opcode};
use spec::features::Features;
use spec::parts::{self, GET_ALL, PartHeader, Reader, VqCfg, Wanted};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// One part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub header: PartHeader,
    /// Its bytes.
    pub value: Vec<u8>,
}

/// Parts in the order in which a device gave them. Possibly from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts(pub Vec<Part>);

fn bad(field: impl Into<String>, why: impl Into<String>) -> DriverError {
    DriverError::BadState {
        field: field.into(),
        why: why.into(),
    }
}

impl Parts {
    /// From bytes of any origin.
    ///
    /// # Errors
    /// [`DriverError::BadState`] names the part that is cut off.
    pub fn parse(bytes: &[u8]) -> Result<Self, DriverError> {
        let mut all = Vec::new();
        for part in Reader::new(bytes) {
            let (header, value) = part.map_err(|broken| bad("parts", broken.to_string()))?;
            let value = value.to_vec();
            all.push(Part { header, value });
        }
        Ok(Self(all))
    }

    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in &self.0 {
            bytes.extend_from_slice(part.header.as_bytes());
            bytes.extend_from_slice(&part.value);
        }
        bytes
    }

    fn find(&self, header: &PartHeader) -> Option<&Part> {
        let same = |part: &&Part| {
            part.header.part_type == header.part_type && part.header.selector == header.selector
        };
        self.0.iter().find(same)
    }

    fn features(&self, part_type: u16) -> Option<Features> {
        let of_type = |part: &&Part| part.header.part_type.get() == part_type;
        let bytes = self.0.iter().find(of_type)?.value.first_chunk()?;
        Some(Features::from_bits_retain(u64::from_le_bytes(*bytes)))
    }

    /// Whether a device that shows these parts after a reset can take `theirs`, which another device
    /// shows: what cannot be taken is named. To be asked before the other device is stopped.
    ///
    /// # Errors
    /// [`DriverError::BadState`] names the first part that does not fit.
    pub fn can_take(&self, theirs: &Self) -> Result<(), DriverError> {
        // What an older device does not tell would stay here as it is after a reset.
        let optional = |part: &Part| part.header.flags & parts::OPTIONAL != 0;
        let untold = |part: &&Part| !optional(part) && theirs.find(&part.header).is_none();
        if let Some(part) = self.0.iter().find(untold) {
            let why = "mandatory here, and unknown to the other device";
            return Err(bad(part.header.to_string(), why));
        }
        for part in &theirs.0 {
            let header = &part.header;
            // An optional part is skipped by those who do not know it.
            let Some(mine) = self.find(header) else {
                if optional(part) {
                    continue;
                }
                return Err(bad(
                    header.to_string(),
                    "mandatory, and unknown to this device",
                ));
            };
            if mine.value.len() != part.value.len() {
                let (mine, theirs) = (mine.value.len(), part.value.len());
                return Err(bad(
                    header.to_string(),
                    format!("{theirs} bytes, {mine} here"),
                ));
            }
            match header.part_type.get() {
                parts::DEV_FEATURES if mine.value != part.value => {
                    let (mine, theirs) = (
                        self.features(parts::DEV_FEATURES).unwrap_or_default(),
                        theirs.features(parts::DEV_FEATURES).unwrap_or_default(),
                    );
                    let lacking = theirs - mine;
                    let beyond = mine - theirs;
                    let why = format!("{lacking:?} is not offered here, {beyond:?} is not there");
                    return Err(bad(header.to_string(), why));
                }
                parts::DRV_FEATURES => {
                    let accepted = theirs.features(parts::DRV_FEATURES).unwrap_or_default();
                    let offered = self.features(parts::DEV_FEATURES).unwrap_or_default();
                    let lacking = accepted - offered;
                    if !lacking.is_empty() {
                        return Err(bad(
                            header.to_string(),
                            format!("{lacking:?} not offered here"),
                        ));
                    }
                }
                parts::VQ_CFG => {
                    let size = |value: &[u8]| {
                        VqCfg::read_from_bytes(value).map_or(0, |cfg| cfg.queue_size.get())
                    };
                    // After a reset a queue shows the largest size it can have.
                    let (max, size) = (size(&mine.value), size(&part.value));
                    if size > max {
                        return Err(bad(
                            header.to_string(),
                            format!("{size} entries, {max} here"),
                        ));
                    }
                }
                parts::DEV_CFG if mine.value != part.value => {
                    let mut both = mine.value.iter().zip(&part.value);
                    let at = both.position(|(mine, theirs)| mine != theirs);
                    let why = format!("not as here, from offset {} on", at.unwrap_or(0));
                    return Err(bad(header.to_string(), why));
                }
                parts::VQ_NOTIFY_CFG if mine.value != part.value => {
                    return Err(bad(header.to_string(), "another doorbell"));
                }
                parts::PCI_COMMON_CFG
                    if header.offset() == NUM_QUEUES && mine.value != part.value =>
                {
                    let why = format!("{:?}, {:?} here", part.value, mine.value);
                    return Err(bad("num_queues", why));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

const NUM_QUEUES: u32 = 18;
const _: () = assert!(std::mem::offset_of!(spec::pci::CommonCfg, num_queues) == 18);

/// Commands that moving members by parts takes.
const OF_ITSELF: [u16; 3] = [
    opcode::CAP_ID_LIST_QUERY,
    opcode::DEVICE_CAP_GET,
    opcode::DRIVER_CAP_SET,
];
const OF_MEMBERS: [u16; 6] = [
    opcode::RESOURCE_OBJ_CREATE,
    opcode::RESOURCE_OBJ_DESTROY,
    opcode::DEV_PARTS_METADATA_GET,
    opcode::DEV_PARTS_GET,
    opcode::DEV_PARTS_SET,
    opcode::DEV_MODE_SET,
];

/// Which commands an owner's driver is to use, for itself and for its members, to have and set
/// parts.
pub const fn commands() -> (&'static [u16], &'static [u16]) {
    (&OF_ITSELF, &OF_MEMBERS)
}

/// Tells the device that as many objects as it allows will be used. Once, before any
/// [`MemberParts`].
///
/// # Errors
/// [`DriverError::NoCapability`] if it knows no device parts; as [`AdminQueue::command`].
pub fn use_parts(queue: &mut AdminQueue) -> Result<(), DriverError> {
    let itself = Subject::ITSELF;
    let list = queue.command(opcode::CAP_ID_LIST_QUERY, itself, &[], 64)?;
    if list.result.first().is_none_or(|byte| byte & 1 == 0) {
        return Err(DriverError::NoCapability("device parts"));
    }
    let selector = capability::Selector {
        id: capability::DEV_PARTS.into(),
        reserved: [0; 6],
    };
    let got = queue.command(opcode::DEVICE_CAP_GET, itself, selector.as_bytes(), 8)?;
    let limits: Limits = got.read();
    let data = [selector.as_bytes(), limits.as_bytes()].concat();
    queue.command(opcode::DRIVER_CAP_SET, itself, &data, 0)?;
    Ok(())
}

/// One member, as its owner's driver has it. Dropped, it gives its objects back.
#[derive(Debug)]
pub struct MemberParts {
    queue: Arc<Mutex<AdminQueue>>,
    member: Subject,
}

/// Numbers of the two objects that each member has.
const GETS: u32 = 0;
const SETS: u32 = 1;

fn object(id: u32) -> Header {
    Header {
        object_type: resource::DEV_PARTS.into(),
        reserved: [0; 2],
        id: id.into(),
    }
}

impl MemberParts {
    /// Creates the objects of virtual function `member`. The commands are in use, and
    /// [`use_parts`] was called.
    ///
    /// # Errors
    /// As [`AdminQueue::command`].
    pub fn new(queue: Arc<Mutex<AdminQueue>>, member: u64) -> Result<Self, DriverError> {
        let this = Self {
            queue,
            member: Subject::virtual_function(member),
        };
        for (id, purpose) in [(GETS, resource::PARTS_GET), (SETS, resource::PARTS_SET)] {
            let start = WithFlags {
                header: object(id),
                flags: 0.into(),
            };
            let parts = DevParts {
                purpose,
                ..DevParts::default()
            };
            let data = [start.as_bytes(), parts.as_bytes()].concat();
            let mut queue = this.queue();
            queue.command(opcode::RESOURCE_OBJ_CREATE, this.member, &data, 0)?;
        }
        Ok(this)
    }

    fn queue(&self) -> MutexGuard<'_, AdminQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the member: when this returns nothing of it is in flight, all its marks and records are
    /// made, and it touches no memory and interrupts nobody until it is resumed. Its driver does not
    /// notice. One that is stopped stays so.
    ///
    /// # Errors
    /// As [`AdminQueue::command`].
    pub fn stop(&self) -> Result<(), DriverError> {
        self.mode(MODE_STOPPED)
    }

    /// Lets the member go on, with the parts it was given.
    ///
    /// # Errors
    /// As [`AdminQueue::command`].
    pub fn resume(&self) -> Result<(), DriverError> {
        self.mode(0)
    }

    fn mode(&self, flags: u8) -> Result<(), DriverError> {
        let mut queue = self.queue();
        queue.command(opcode::DEV_MODE_SET, self.member, &[flags], 0)?;
        Ok(())
    }

    /// All parts, as they are now.
    ///
    /// # Errors
    /// As [`AdminQueue::command`], and [`Parts::parse`].
    pub fn get(&self) -> Result<Parts, DriverError> {
        let mut queue = self.queue();
        let mut wanted = Wanted::new_zeroed();
        let ask = |wanted: &Wanted| [object(GETS).as_bytes(), wanted.as_bytes()].concat();
        wanted.what = parts::METADATA_SIZE;
        let size = queue.command(
            opcode::DEV_PARTS_METADATA_GET,
            self.member,
            &ask(&wanted),
            8,
        )?;
        let size = size.read::<parts::Metadata>().value.get();
        let room = usize::try_from(size).map_or(RESULT_BYTES, |size| size.min(RESULT_BYTES));
        wanted.what = GET_ALL;
        let answer = queue.command(opcode::DEV_PARTS_GET, self.member, &ask(&wanted), room)?;
        Parts::parse(answer.result)
    }

    /// Gives the member parts, all or none. It is stopped; they count from when it is resumed.
    ///
    /// # Errors
    /// As [`AdminQueue::command`].
    pub fn set(&self, parts: &Parts) -> Result<(), DriverError> {
        let data = [object(SETS).as_bytes(), &parts.to_bytes()].concat();
        let mut queue = self.queue();
        queue.command(opcode::DEV_PARTS_SET, self.member, &data, 0)?;
        Ok(())
    }

    /// What the owner's driver needs for all of this, in the right order: lists, then limits.
    ///
    /// # Errors
    /// [`DriverError::CommandMissing`] names what an older device does not have; as
    /// [`AdminQueue::command`].
    pub fn prepare(queue: &mut AdminQueue, also: &[u16]) -> Result<(), DriverError> {
        let (itself, members) = commands();
        queue.use_commands(group::SELF, itself)?;
        queue.use_commands(group::SR_IOV, &[members, also].concat())?;
        use_parts(queue)
    }
}

impl Drop for MemberParts {
    fn drop(&mut self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        for id in [GETS, SETS] {
            let data = object(id);
            let gone = queue.command(
                opcode::RESOURCE_OBJ_DESTROY,
                self.member,
                data.as_bytes(),
                0,
            );
            if let Err(error) = gone {
                tracing::debug!(%error, "an object stays until the owner is reset");
            }
        }
    }
}

#[cfg(test)]
mod tests;

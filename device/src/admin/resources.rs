//! Resource objects (VIRTIO 1.4, "Device resource objects"): the one type there is allows a driver
//! to get or set a member's parts.
//!
//! Left open, and decided here: numbers are unique for each member, which is a device of its own;
//! the limits of getting and of setting hold for all members together; a number is below the sum of
//! both.

use super::command::take;
use super::{Admin, Command, Refusal, Reply};
use spec::admin::capability::DevParts as Limits;
use spec::admin::resource::{DEV_PARTS, DevParts, Header, PARTS_GET, PARTS_SET, WithFlags};
use spec::admin::{qualifier, status};
use std::collections::BTreeMap;
use zerocopy::IntoBytes;

/// Device parts objects by member and number: what each is for.
#[derive(Debug, Default)]
pub(super) struct Objects(BTreeMap<(u64, u32), u8>);

const NONE: Refusal = Refusal::Status(status::ENXIO, qualifier::INVALID_FIELD);

impl Objects {
    fn count(&self, purpose: u8) -> usize {
        self.0.values().filter(|other| **other == purpose).count()
    }

    /// Whether what exists is within these limits.
    pub(super) fn fit(&self, limits: Limits) -> bool {
        let sum = u32::from(limits.get_limit) + u32::from(limits.set_limit);
        self.count(PARTS_GET) <= usize::from(limits.get_limit)
            && self.count(PARTS_SET) <= usize::from(limits.set_limit)
            && self.0.keys().all(|(_, id)| *id < sum)
    }

    fn room(&self, purpose: u8, limits: Limits) -> bool {
        let limit = if purpose == PARTS_GET {
            limits.get_limit
        } else {
            limits.set_limit
        };
        self.count(purpose) < usize::from(limit)
    }
}

/// What an object is for, if it is an object that a driver may have.
fn purpose(data: &[u8]) -> Result<u8, Refusal> {
    let (object, _) = take::<DevParts>(data);
    match object.purpose {
        PARTS_GET | PARTS_SET => Ok(object.purpose),
        _ => Err(Refusal::FIELD),
    }
}

/// The type is one that exists; which one of it is meant.
fn number(header: &Header) -> Result<u32, Refusal> {
    if header.object_type.get() == DEV_PARTS {
        Ok(header.id.get())
    } else {
        Err(NONE)
    }
}

impl Admin {
    pub(super) fn create(&self, command: &Command<'_>) -> Result<Reply, Refusal> {
        let (start, data) = take::<WithFlags>(command.data);
        let id = number(&start.header)?;
        let purpose = purpose(data)?;
        let mut state = self.state();
        let limits = state.limits;
        if id >= u32::from(limits.get_limit) + u32::from(limits.set_limit) {
            return Err(Refusal::FIELD);
        }
        if state.objects.0.contains_key(&(command.member, id)) {
            return Err(Refusal::Status(status::EEXIST, qualifier::INVALID_FIELD));
        }
        if !state.objects.room(purpose, limits) {
            return Err(Refusal::Status(status::ENOSPC, qualifier::NORESOURCE));
        }
        state.objects.0.insert((command.member, id), purpose);
        Ok(Reply::default())
    }

    pub(super) fn modify(&self, command: &Command<'_>) -> Result<Reply, Refusal> {
        let (start, data) = take::<WithFlags>(command.data);
        let key = (command.member, number(&start.header)?);
        let wanted = purpose(data);
        let mut state = self.state();
        let limits = state.limits;
        let now = *state.objects.0.get(&key).ok_or(NONE)?;
        let wanted = wanted?;
        if now != wanted && !state.objects.room(wanted, limits) {
            return Err(Refusal::Status(status::ENOSPC, qualifier::NORESOURCE));
        }
        state.objects.0.insert(key, wanted);
        Ok(Reply::default())
    }

    pub(super) fn query(&self, command: &Command<'_>) -> Result<Reply, Refusal> {
        let (start, _) = take::<WithFlags>(command.data);
        let purpose = self.object(command, &start.header)?;
        let object = DevParts {
            purpose,
            ..DevParts::default()
        };
        Ok(Reply::with(object.as_bytes().to_vec()))
    }

    pub(super) fn destroy(&self, command: &Command<'_>) -> Result<Reply, Refusal> {
        let (header, _) = take::<Header>(command.data);
        let key = (command.member, number(&header)?);
        self.state().objects.0.remove(&key).ok_or(NONE)?;
        Ok(Reply::default())
    }

    /// What the object that a command names is for.
    pub(super) fn object(&self, command: &Command<'_>, header: &Header) -> Result<u8, Refusal> {
        let key = (command.member, number(header)?);
        self.state().objects.0.get(&key).copied().ok_or(NONE)
    }
}

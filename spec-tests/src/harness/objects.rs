//! Capabilities and resource objects: the one kind that a virtio-pci device of any type may have,
//! by which members' parts are had and set.

use super::admin::{Admin, Answer, Command};
use super::outcome::{Absent, Stop, arose};
use crate::constants::admin::{DEV_PARTS, TO_GET, TO_SET, group, opcode};

/// What stands before an object's own data.
pub(super) fn header(id: u32) -> Vec<u8> {
    let mut bytes = DEV_PARTS.to_le_bytes().to_vec();
    bytes.extend([0; 2]);
    bytes.extend(id.to_le_bytes());
    bytes
}

/// The same with flags, and the purpose of the object.
fn content(id: u32, purpose: u8) -> Vec<u8> {
    let mut bytes = header(id);
    bytes.extend([0; 8]);
    bytes.push(purpose);
    bytes.extend([0; 7]);
    bytes
}

/// What goes before everything about a capability.
pub fn selector(id: u16) -> Vec<u8> {
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.extend([0; 6]);
    bytes
}

/// The command that sets how many objects of each purpose the driver may have.
pub fn limit(get: u8, set: u8) -> Command {
    let mut data = selector(DEV_PARTS);
    data.extend([get, set, 0, 0, 0, 0, 0, 0]);
    Command::new(opcode::DRIVER_CAP_SET, group::SELF).with(data)
}

/// The command that makes an object.
pub fn create(member: u64, id: u32, purpose: u8) -> Command {
    let command = Command::new(opcode::OBJ_CREATE, group::SR_IOV).about(member);
    command.with(content(id, purpose))
}

/// The command that ends an object.
pub fn destroy(member: u64, id: u32) -> Command {
    let command = Command::new(opcode::OBJ_DESTROY, group::SR_IOV).about(member);
    command.with(header(id))
}

/// Which opcodes MODIFY and QUERY have: the prose and the table of VIRTIO 1.4 contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    modify: u16,
    query: u16,
}

impl Reading {
    /// In words, for the report.
    pub fn name(self) -> &'static str {
        if self.query == opcode::OBJ_QUERY_OR_MODIFY {
            "QUERY is 0x0c, as in the prose"
        } else {
            "QUERY is 0x0b, as in the table"
        }
    }

    /// The command that changes an object.
    pub fn modify(self, member: u64, id: u32, purpose: u8) -> Command {
        let command = Command::new(self.modify, group::SR_IOV).about(member);
        command.with(content(id, purpose))
    }

    /// The command that asks for an object.
    pub fn query(self, member: u64, id: u32) -> Command {
        let mut data = header(id);
        data.extend([0; 8]);
        let command = Command::new(self.query, group::SR_IOV).about(member);
        command.with(data)
    }

    /// The purpose that the answer to a query says, if it says one.
    pub fn purpose(answer: &Answer) -> Option<u8> {
        answer.result().first().copied()
    }
}

impl Admin<'_> {
    /// Makes `members` members be there, all commands be in use, and so many objects of each
    /// purpose be allowed.
    ///
    /// # Errors
    /// Not applicable if the device has no such objects.
    pub fn with_objects(&self, members: u16, get: u8, set: u8) -> Result<(), Stop> {
        self.own(members, &[opcode::OBJ_CREATE, opcode::OBJ_DESTROY])?;
        let capabilities = self.must(&Command::new(opcode::CAP_ID_LIST_QUERY, group::SELF))?;
        if !capabilities.result().is_empty() && !capabilities.list().contains(&DEV_PARTS) {
            return Err(Stop::NotApplicable(Absent::Command(opcode::OBJ_CREATE)));
        }
        self.must(&limit(get, set))?;
        Ok(())
    }

    /// Finds out which opcodes MODIFY and QUERY have, by an object of number `id` of member 1 that
    /// is made for this and ended again: only a query has a result.
    ///
    /// # Errors
    /// Not applicable without the commands; inconclusive if neither or both answer with a result.
    pub fn reading(&self, id: u32) -> Result<Reading, Stop> {
        let either = [opcode::OBJ_MODIFY_OR_QUERY, opcode::OBJ_QUERY_OR_MODIFY];
        self.must(&create(1, id, TO_GET))?;
        let mut query = Vec::new();
        for opcode in either {
            let command = Command::new(opcode, group::SR_IOV).about(1);
            // To a MODIFY this says what the object is already.
            let answer = self.must(&command.with(content(id, TO_GET)))?;
            if !answer.result().is_empty() {
                query.push(opcode);
            }
        }
        self.must(&destroy(1, id))?;
        arose(query.len() == 1, || {
            format!("of MODIFY and QUERY {query:x?} answer with a result")
        })?;
        let [first, second] = either;
        Ok(if query.contains(&first) {
            Reading {
                modify: second,
                query: first,
            }
        } else {
            Reading {
                modify: first,
                query: second,
            }
        })
    }

    /// An object of a member to get its parts by, number 0, and one to set them by, number 1.
    ///
    /// # Errors
    /// Inconclusive if they cannot be made.
    pub fn objects_for_parts(&self, member: u64) -> Result<(), Stop> {
        self.must(&create(member, 0, TO_GET))?;
        self.must(&create(member, 1, TO_SET))?;
        Ok(())
    }
}

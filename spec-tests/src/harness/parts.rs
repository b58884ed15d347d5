//! Device parts and modes of a member: the commands of "Device parts", by hand.

use super::admin::{Admin, Answer, Command, Ticket};
use super::bench::Bench;
use super::objects::header;
use super::outcome::{Stop, arose};
use crate::constants::admin::{group, opcode};
use crate::constants::feature;
use crate::constants::parts::{ALL, HEADER, LIST, RUN, SELECTED, STOPPED};

/// Bytes of an answer that holds all parts of a function with a handful of queues.
const ROOM: usize = 8 << 10;
/// Bytes of an answer without a result.
const BARE: usize = 8;

/// One device part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// `part_type`.
    pub kind: u16,
    /// `flags`.
    pub flags: u8,
    /// Which one of its type.
    pub selector: [u8; 8],
    /// What follows the header.
    pub value: Vec<u8>,
}

impl Part {
    /// The part as a command carries it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.kind.to_le_bytes().to_vec();
        bytes.extend([self.flags, 0]);
        bytes.extend(self.selector);
        bytes.extend(u32::try_from(self.value.len()).unwrap_or(0).to_le_bytes());
        bytes.extend(&self.value);
        bytes
    }

    /// The selector's first 16 bits: a queue's index, or an offset.
    pub fn number(&self) -> u16 {
        u16::from_le_bytes([self.selector[0], self.selector[1]])
    }

    /// The parts at the beginning of these bytes: all of a result, which is padded.
    ///
    /// # Errors
    /// Inconclusive if a part is cut off.
    pub fn all(mut bytes: &[u8]) -> Result<Vec<Self>, Stop> {
        let mut parts = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() {
            let (mut part, length) = Self::headed(header);
            let value = usize::try_from(length).ok();
            let value = value.and_then(|length| rest.split_at_checked(length));
            let Some((value, rest)) = value else {
                let kind = part.kind;
                return Err(Stop::Inconclusive(format!(
                    "part {kind:#x} says that it has {length} bytes, and {} follow",
                    rest.len()
                )));
            };
            part.value = value.to_vec();
            parts.push(part);
            bytes = rest;
        }
        Ok(parts)
    }

    /// The part without its value, and the length of that.
    fn headed(header: &[u8; HEADER]) -> (Self, u32) {
        let [a, b, flags, _, selector @ .., w, x, y, z] = *header;
        let part = Self {
            kind: u16::from_le_bytes([a, b]),
            flags,
            selector,
            value: Vec::new(),
        };
        (part, u32::from_le_bytes([w, x, y, z]))
    }
}

/// A member in the hands of a case: its driver, and its owner's.
#[derive(Debug)]
pub struct Owned<'a> {
    /// The owner's commands.
    pub admin: Admin<'a>,
    /// The way of its own driver.
    pub member: Bench,
}

/// Which member it is.
const NUMBER: u16 = 1;
/// Its objects to get and to set its parts with.
const GETS: u32 = 0;
const SETS: u32 = 1;

fn about(opcode: u16, data: Vec<u8>) -> Command {
    let command = Command::new(opcode, group::SR_IOV);
    command.about(u64::from(NUMBER)).with(data)
}

impl<'a> Owned<'a> {
    /// The owner with all commands in use, and member 1 with an object to get its parts with and one
    /// to set them with.
    ///
    /// # Errors
    /// Not applicable without members or without device parts, inconclusive if an object cannot be
    /// made.
    pub fn new(bench: &'a Bench) -> Result<Self, Stop> {
        const NEED: [u16; 4] = [
            opcode::PARTS_METADATA_GET,
            opcode::PARTS_GET,
            opcode::PARTS_SET,
            opcode::MODE_SET,
        ];
        let owned = Self::with(bench, &NEED)?;
        owned.admin.with_objects(NUMBER, 1, 1)?;
        owned.admin.objects_for_parts(u64::from(NUMBER))?;
        Ok(owned)
    }

    /// The owner with all commands in use, `need` among them, and member 1.
    ///
    /// # Errors
    /// Not applicable without members or without one of the commands.
    pub fn with(bench: &'a Bench, need: &[u16]) -> Result<Self, Stop> {
        let admin = bench.administer(feature::SR_IOV)?;
        admin.own(NUMBER, need)?;
        let member = bench.member(NUMBER)?;
        Ok(Self { admin, member })
    }

    /// Carries a command about the member out, with so many bytes for the answer.
    ///
    /// # Errors
    /// Those of the queue.
    pub fn command(&self, opcode: u16, data: Vec<u8>, room: usize) -> Result<Answer, Stop> {
        self.admin.run_in(0, &about(opcode, data), room)
    }

    /// Puts a command about the member that has no result into the queue.
    ///
    /// # Errors
    /// Those of the queue.
    pub fn post(&self, opcode: u16, data: Vec<u8>) -> Result<Ticket, Stop> {
        self.admin.post(0, &about(opcode, data), BARE)
    }

    /// Writes the mode.
    ///
    /// # Errors
    /// Those of the queue.
    pub fn mode(&self, flags: u8) -> Result<Answer, Stop> {
        self.command(opcode::MODE_SET, vec![flags], BARE)
    }

    /// Stops the member.
    ///
    /// # Errors
    /// Inconclusive if that fails.
    pub fn stop(&self) -> Result<(), Stop> {
        succeeds(&self.mode(STOPPED)?, "stopping the member")
    }

    /// Lets the member go on.
    ///
    /// # Errors
    /// Inconclusive if that fails.
    pub fn go_on(&self) -> Result<(), Stop> {
        succeeds(&self.mode(RUN)?, "letting the member go on")
    }

    /// Asks for all parts.
    ///
    /// # Errors
    /// Those of the queue.
    pub fn get(&self) -> Result<Answer, Stop> {
        let data = [header(GETS), vec![ALL, 0, 0, 0, 0, 0, 0, 0]].concat();
        self.command(opcode::PARTS_GET, data, ROOM)
    }

    /// All parts.
    ///
    /// # Errors
    /// Inconclusive if they cannot be had.
    pub fn parts(&self) -> Result<Vec<Part>, Stop> {
        let answer = self.get()?;
        succeeds(&answer, "getting all parts")?;
        Part::all(answer.result())
    }

    /// The parts of these types and selectors, asked for in this order.
    ///
    /// # Errors
    /// Inconclusive if they cannot be had.
    pub fn selected(&self, which: &[Part]) -> Result<Vec<Part>, Stop> {
        let mut data = [header(GETS), vec![SELECTED, 0, 0, 0, 0, 0, 0, 0]].concat();
        for part in which {
            data.extend(part.bytes().iter().take(HEADER));
        }
        let answer = self.command(opcode::PARTS_GET, data, ROOM)?;
        succeeds(&answer, "getting selected parts")?;
        Part::all(answer.result())
    }

    /// The headers of all parts, as parts without values.
    ///
    /// # Errors
    /// Inconclusive if they cannot be had.
    pub fn headers(&self) -> Result<Vec<Part>, Stop> {
        let data = [header(GETS), vec![LIST, 0, 0, 0, 0, 0, 0, 0]].concat();
        let answer = self.command(opcode::PARTS_METADATA_GET, data, ROOM)?;
        succeeds(&answer, "getting the list of parts")?;
        let (count, headers) = answer
            .result()
            .split_first_chunk::<8>()
            .unwrap_or((&[0; 8], &[]));
        let [a, b, c, d, ..] = *count;
        let count = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let (headers, _) = headers.as_chunks::<HEADER>();
        arose(headers.len() == count, || {
            format!("{count} parts and {} headers", headers.len())
        })?;
        Ok(headers
            .iter()
            .map(|header| Part::headed(header).0)
            .collect())
    }

    /// Sets parts.
    ///
    /// # Errors
    /// Those of the queue.
    pub fn set(&self, parts: &[Part]) -> Result<Answer, Stop> {
        self.command(opcode::PARTS_SET, setting(parts), BARE)
    }
}

/// What PARTS_SET says to set these parts of the member.
pub fn setting(parts: &[Part]) -> Vec<u8> {
    let mut data = header(SETS);
    for part in parts {
        data.extend(part.bytes());
    }
    data
}

/// The situation that a command succeeded.
fn succeeds(answer: &Answer, what: &str) -> Result<(), Stop> {
    arose(answer.is_ok(), || {
        format!("{what}: status and qualifier {:?}", answer.codes())
    })
}

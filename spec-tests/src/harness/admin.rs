//! Administration queues by hand: commands byte by byte, in buffers of any shape, and answers as
//! they stand in memory.

use super::bench::Bench;
use super::memory::Span;
use super::outcome::{Absent, Stop, arose};
use super::ring::{Ring, Segment};
use crate::constants::admin::{ANSWER, group, opcode, qualifier, status};
use crate::constants::{feature, reg};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

/// What buffers hold before the device writes them, unless a case says otherwise.
const FILL: u8 = 0x5a;
/// Bytes behind a buffer that the device must leave alone.
const GUARD: usize = 64;
/// Bytes for the commands of a queue, and as many for their answers.
const ARENA: u64 = 128 << 10;
/// Bytes for the answer to a command for which nothing else is said.
const ROOM: usize = 2048;
/// Queues that are set up, of those that there are.
const QUEUES: u64 = 2;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// `opcode`.
    pub opcode: u16,
    /// `group_type`.
    pub group: u16,
    /// `group_member_id`.
    pub member: u64,
    /// `command_specific_data`.
    pub data: Vec<u8>,
}

/// An answer, in the memory that it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Bytes that the device says it has written.
    pub used: usize,
    /// All of the buffer, with what it was filled with where the device wrote nothing.
    pub bytes: Vec<u8>,
    /// The device wrote behind the buffer.
    pub spilled: bool,
    fill: u8,
}

/// A command that was put into a queue.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    /// Which queue, counted from the first administration queue on.
    pub queue: usize,
    head: u16,
    /// Used index of the queue before.
    since: u16,
    /// The buffer and what is behind it.
    room: Span,
    fill: u8,
}

/// The administration queues of a running device.
#[derive(Debug)]
pub struct Admin<'a> {
    bench: &'a Bench,
    lanes: RefCell<Vec<Lane>>,
    fill: Cell<u8>,
}

#[derive(Debug)]
struct Lane {
    queue: u16,
    ring: Ring,
    commands: Arena,
    answers: Arena,
    /// The next free descriptor.
    next: u16,
}

/// Memory that is given out in a circle.
#[derive(Debug)]
struct Arena {
    all: Span,
    at: u64,
}

impl Arena {
    fn take(&mut self, len: usize) -> Result<Span, Stop> {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        arose(len <= self.all.len, || format!("{len} bytes of a command"))?;
        if self.at + len > self.all.len {
            self.at = 0;
        }
        let span = self.all.part(self.at, len);
        self.at += len.next_multiple_of(64);
        Ok(span)
    }
}

impl Command {
    /// A command to a group, about member 0 and without data.
    pub fn new(opcode: u16, group: u16) -> Self {
        Self {
            opcode,
            group,
            member: 0,
            data: Vec::new(),
        }
    }

    /// The same about this member.
    #[must_use]
    pub fn about(mut self, member: u64) -> Self {
        self.member = member;
        self
    }

    /// The same with this data.
    #[must_use]
    pub fn with(mut self, data: impl Into<Vec<u8>>) -> Self {
        self.data = data.into();
        self
    }

    /// The device-readable part.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.opcode.to_le_bytes().to_vec();
        bytes.extend(self.group.to_le_bytes());
        bytes.extend([0; 12]);
        bytes.extend(self.member.to_le_bytes());
        bytes.extend(&self.data);
        bytes
    }
}

impl Answer {
    /// `status` and `status_qualifier`. What was not written counts as 0.
    pub fn codes(&self) -> (u16, u16) {
        let byte = |at| self.written().get(at).copied().unwrap_or(0);
        let word = |at| u16::from_le_bytes([byte(at), byte(at + 1)]);
        (word(0), word(2))
    }

    /// Whether `status` is OK.
    pub fn is_ok(&self) -> bool {
        self.codes().0 == status::OK
    }

    /// What the device says that it has written.
    pub fn written(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or(&self.bytes)
    }

    /// `command_specific_result`, as far as it was written.
    pub fn result(&self) -> &[u8] {
        self.written().get(ANSWER..).unwrap_or_default()
    }

    /// Bytes from the beginning on up to the last that differs from the filling.
    pub fn touched(&self) -> usize {
        let last = self.bytes.iter().rposition(|byte| *byte != self.fill);
        last.map_or(0, |last| last + 1)
    }

    /// The result as a list of bits.
    pub fn list(&self) -> BTreeSet<u16> {
        let bit = |at: usize| u16::try_from(at).ok();
        let bits = self.result().iter().enumerate().flat_map(|(at, byte)| {
            let set = (0..8).filter(move |bit| byte & (1 << bit) != 0);
            set.map(move |bit| at * 8 + bit)
        });
        bits.filter_map(bit).collect()
    }
}

/// A list of bits as 64-bit words, as long as the largest needs.
pub fn words(bits: &BTreeSet<u16>) -> Vec<u8> {
    let largest = bits.last().copied().map_or(0, usize::from);
    let mut bytes = vec![0; (largest / 64 + 1) * 8];
    for bit in bits {
        bytes[usize::from(bit / 8)] |= 1 << (bit % 8);
    }
    bytes
}

impl Bench {
    /// Initialises the device up to DRIVER_OK with VERSION_1, ADMIN_VQ and `need`, and with its
    /// first two administration queues. No command was given yet.
    ///
    /// # Errors
    /// Not applicable without the features, inconclusive if there are no such queues.
    pub fn administer(&self, need: u64) -> Result<Admin<'_>, Stop> {
        self.to_features_ok(feature::ADMIN_VQ | need)?;
        let admin = self.admin_queues()?;
        self.driver_ok()?;
        Ok(admin)
    }

    /// Enables the first two administration queues of a device whose features are agreed on.
    ///
    /// # Errors
    /// Inconclusive if there are none, or they cannot be enabled.
    pub fn admin_queues(&self) -> Result<Admin<'_>, Stop> {
        let first = self.get(reg::ADMIN_QUEUE_INDEX)?;
        let count = self.get(reg::ADMIN_QUEUE_NUM)?;
        arose(count != 0, || "there are no admin queues".to_owned())?;
        let mut lanes = Vec::new();
        for index in first..first + count.min(QUEUES) {
            let queue = u16::try_from(index).unwrap_or(u16::MAX);
            let ring = self.ring(queue)?;
            self.enable(queue, &ring)?;
            let arena = || -> Result<Arena, Stop> {
                let all = self.take(ARENA)?;
                Ok(Arena { all, at: 0 })
            };
            let (commands, answers) = (arena()?, arena()?);
            lanes.push(Lane {
                queue,
                ring,
                commands,
                answers,
                next: 0,
            });
        }
        let lanes = RefCell::new(lanes);
        Ok(Admin {
            bench: self,
            lanes,
            fill: Cell::new(FILL),
        })
    }
}

impl Admin<'_> {
    /// What buffers hold, from now on, before the device writes them.
    pub fn fill_with(&self, byte: u8) {
        self.fill.set(byte);
    }

    /// How many queues are set up: 1 or 2.
    pub fn queues(&self) -> usize {
        self.lanes.borrow().len()
    }

    /// Writes a command into a queue, in buffers of these sizes: as many bytes of `command` as
    /// `parts` has room for, and the answer. The device is not told: [`Admin::publish`] does that.
    ///
    /// # Errors
    /// Inconclusive if there is no such queue, or no room in it.
    pub fn stage(
        &self,
        queue: usize,
        command: &[u8],
        parts: &[usize],
        room: &[usize],
    ) -> Result<Ticket, Stop> {
        let memory = self.bench.memory();
        let mut lanes = self.lanes.borrow_mut();
        let Some(lane) = lanes.get_mut(queue) else {
            return Err(Stop::NotApplicable(Absent::Queues(2)));
        };
        let readable = lane.commands.take(parts.iter().sum())?;
        let writable = lane.answers.take(room.iter().sum::<usize>() + GUARD)?;
        let fill = self.fill.get();
        let len = command.len().min(parts.iter().sum());
        let zeroes = vec![0; usize::try_from(readable.len).unwrap_or(0)];
        memory.write(readable.offset, &zeroes)?;
        memory.write(readable.offset, command.get(..len).unwrap_or(command))?;
        let filling = vec![fill; usize::try_from(writable.len).unwrap_or(0)];
        memory.write(writable.offset, &filling)?;
        let mut chain = Vec::new();
        for (span, sizes, writable) in [(readable, parts, false), (writable, room, true)] {
            let mut iova = span.iova;
            for size in sizes {
                let len = u32::try_from(*size).unwrap_or(0);
                chain.push(Segment {
                    iova,
                    len,
                    writable,
                });
                iova += u64::from(len);
            }
        }
        let length = u16::try_from(chain.len()).unwrap_or(u16::MAX);
        arose((1..=lane.ring.size).contains(&length), || {
            format!("a chain of {length} in a ring of {}", lane.ring.size)
        })?;
        if lane.ring.size - lane.next < length {
            lane.next = 0;
        }
        let head = lane.next;
        lane.next += length;
        let since = lane.ring.used_index()?;
        lane.ring.stage(head, &chain)?;
        Ok(Ticket {
            queue,
            head,
            since,
            room: writable,
            fill,
        })
    }

    /// Makes all that was staged available, and notifies the queue.
    ///
    /// # Errors
    /// The bus's.
    pub fn publish(&self, queue: usize) -> Result<(), Stop> {
        let lanes = self.lanes.borrow();
        let Some(lane) = lanes.get(queue) else {
            return Err(Stop::NotApplicable(Absent::Queues(2)));
        };
        lane.ring.publish(lane.ring.next)?;
        self.bench.kick(lane.queue)
    }

    /// Puts a command into a queue, readable and writable parts in one buffer each.
    ///
    /// # Errors
    /// As [`Admin::stage`] and [`Admin::publish`].
    pub fn post(&self, queue: usize, command: &Command, room: usize) -> Result<Ticket, Stop> {
        let bytes = command.bytes();
        self.bench.step(format!(
            "admin queue {queue}: opcode {:#06x}, group {}, member {}, {} bytes of data, room for {room}",
            command.opcode,
            command.group,
            command.member,
            command.data.len()
        ));
        let ticket = self.stage(queue, &bytes, &[bytes.len()], &[room])?;
        self.publish(queue)?;
        Ok(ticket)
    }

    /// The answer, if it has come: where it stands among the used elements, and what it is.
    ///
    /// # Errors
    /// The memory's.
    pub fn peek(&self, ticket: Ticket) -> Result<Option<(u16, Answer)>, Stop> {
        let lanes = self.lanes.borrow();
        let Some(lane) = lanes.get(ticket.queue) else {
            return Ok(None);
        };
        let now = lane.ring.used_index()?;
        let mut at = ticket.since;
        while at != now {
            let (head, len) = lane.ring.used_element(at)?;
            if head == u32::from(ticket.head) {
                let mut bytes = vec![0; usize::try_from(ticket.room.len).unwrap_or(0)];
                self.bench.memory().read(ticket.room.offset, &mut bytes)?;
                let behind = bytes.split_off(bytes.len().saturating_sub(GUARD));
                let answer = Answer {
                    used: usize::try_from(len).unwrap_or(usize::MAX),
                    bytes,
                    spilled: behind.iter().any(|byte| *byte != ticket.fill),
                    fill: ticket.fill,
                };
                return Ok(Some((at, answer)));
            }
            at = at.wrapping_add(1);
        }
        Ok(None)
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// Inconclusive if it does not come.
    pub fn finish(&self, ticket: Ticket) -> Result<Answer, Stop> {
        let mut found = None;
        self.bench.wait(self.bench.limit, || {
            found = self.peek(ticket)?;
            Ok(found.is_some())
        })?;
        let Some((_, answer)) = found else {
            let status = self.bench.status()?;
            return Err(Stop::Inconclusive(format!(
                "a command is not answered, status {status:#04x}"
            )));
        };
        self.bench.step(format!(
            "answer: status and qualifier {:?}, {} bytes",
            answer.codes(),
            answer.used
        ));
        Ok(answer)
    }

    /// Carries a command out on the first queue.
    ///
    /// # Errors
    /// As [`Admin::post`] and [`Admin::finish`].
    pub fn run(&self, command: &Command) -> Result<Answer, Stop> {
        self.run_in(0, command, ROOM)
    }

    /// Carries a command out on a queue, with so many bytes for the answer.
    ///
    /// # Errors
    /// As [`Admin::post`] and [`Admin::finish`].
    pub fn run_in(&self, queue: usize, command: &Command, room: usize) -> Result<Answer, Stop> {
        let ticket = self.post(queue, command, room)?;
        self.finish(ticket)
    }

    /// As [`Admin::run`] for what a case stands on and does not judge.
    ///
    /// # Errors
    /// Inconclusive if it does not end in OK.
    pub fn must(&self, command: &Command) -> Result<Answer, Stop> {
        let answer = self.run(command)?;
        arose(answer.is_ok(), || {
            let codes = answer.codes();
            format!("command {:#06x} ends in {codes:?}", command.opcode)
        })?;
        Ok(answer)
    }

    /// The commands that the device supports for a group.
    ///
    /// # Errors
    /// Inconclusive if it does not say.
    pub fn supported(&self, group: u16) -> Result<BTreeSet<u16>, Stop> {
        let answer = self.listed(Command::new(opcode::LIST_QUERY, group))?;
        let codes = answer.codes();
        arose(answer.is_ok(), || format!("LIST_QUERY ends in {codes:?}"))?;
        Ok(answer.list())
    }

    /// Carries out a command of lists. Whether a member must be named, which it does not use, can be
    /// read both ways: one is, if the device wants it.
    ///
    /// # Errors
    /// As [`Admin::run`].
    pub fn listed(&self, command: Command) -> Result<Answer, Stop> {
        let answer = self.run(&command)?;
        if answer.codes() == (status::EINVAL, qualifier::INVALID_MEMBER) {
            return self.run(&command.about(1));
        }
        Ok(answer)
    }

    /// Makes these commands the ones in use.
    ///
    /// # Errors
    /// Inconclusive if the device refuses.
    pub fn adopt(&self, group: u16, list: &BTreeSet<u16>) -> Result<(), Stop> {
        let answer = self.listed(Command::new(opcode::LIST_USE, group).with(words(list)))?;
        arose(answer.is_ok(), || {
            let codes = answer.codes();
            format!("LIST_USE of {list:x?} ends in {codes:?}")
        })
    }

    /// Makes everything that the device supports for a group be in use, and these among it.
    ///
    /// # Errors
    /// Not applicable if one of `need` is not supported.
    pub fn adopt_all(&self, group: u16, need: &[u16]) -> Result<BTreeSet<u16>, Stop> {
        let list = self.supported(group)?;
        if let Some(absent) = need.iter().find(|opcode| !list.contains(opcode)) {
            return Err(Stop::NotApplicable(Absent::Command(*absent)));
        }
        self.adopt(group, &list)?;
        Ok(list)
    }

    /// Makes members be there and all commands for them and for the function itself be in use.
    ///
    /// # Errors
    /// Not applicable if there are fewer members, or one of `need` is not supported for them.
    pub fn own(&self, members: u16, need: &[u16]) -> Result<(), Stop> {
        self.bench.enable_members(members)?;
        self.adopt_all(group::SELF, &[])?;
        self.adopt_all(group::SR_IOV, need)?;
        Ok(())
    }
}

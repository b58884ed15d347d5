//! What a mutant sees of administration commands on their way, and how it meddles with them.

use super::frame::{Access, Function};
use driver::bus::BusError;
use spec_tests::constants::admin::{ANSWER, COMMAND, opcode};
use spec_tests::constants::{reg, ring};
use std::time::{Duration, Instant};

/// How long an answer is waited for.
const USE: Duration = Duration::from_millis(200);
/// Bytes of an answer that say something of the command, before the result.
const CODES: u32 = 8;

/// A command in the memory of the case, and its answer once it has one.
pub struct Command<'a> {
    at: &'a Function,
    used: u64,
    size: u64,
    head: u16,
    /// Where its entry in the available ring stands.
    slot: u64,
    readable: Vec<(u64, u64)>,
    writable: Vec<(u64, u64)>,
}

/// The address of byte `offset` of some buffers.
fn place(buffers: &[(u64, u64)], mut offset: u64) -> Option<u64> {
    for (iova, len) in buffers {
        if offset < *len {
            return Some(iova + offset);
        }
        offset -= len;
    }
    None
}

impl Command<'_> {
    fn byte(&self, offset: usize) -> u8 {
        let offset = u64::try_from(offset).unwrap();
        place(&self.readable, offset).map_or(0, |iova| self.at.mind.peek::<1>(iova)[0])
    }

    fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.byte(offset), self.byte(offset + 1)])
    }

    /// `opcode`.
    pub fn opcode(&self) -> u16 {
        self.word(0)
    }
    /// `group_type`.
    pub fn group(&self) -> u16 {
        self.word(2)
    }
    /// `group_member_id`.
    pub fn member(&self) -> u64 {
        u64::from_le_bytes([16, 17, 18, 19, 20, 21, 22, 23].map(|at| self.byte(at)))
    }
    /// Byte `offset` of `command_specific_data`.
    pub fn data(&self, offset: usize) -> u8 {
        self.byte(COMMAND + offset)
    }
    /// The first word of a list in `command_specific_data`.
    pub fn list(&self) -> u64 {
        u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|at| self.data(at)))
    }
    /// The number of the resource object that it is about.
    pub fn object(&self) -> u32 {
        u32::from_le_bytes([4, 5, 6, 7].map(|at| self.data(at)))
    }
    /// Bytes of the device-readable part.
    pub fn len(&self) -> u64 {
        self.readable.iter().map(|(_, len)| len).sum()
    }
    /// Bytes of the device-writable part.
    pub fn room(&self) -> u64 {
        self.writable.iter().map(|(_, len)| len).sum()
    }

    /// Changes bytes of the device-readable part.
    pub fn rewrite(&self, offset: usize, bytes: &[u8]) {
        for (offset, byte) in (u64::try_from(offset).unwrap()..).zip(bytes) {
            if let Some(iova) = place(&self.readable, offset) {
                self.at.scribble(iova, *byte);
            }
        }
    }
    /// Makes it another command.
    pub fn becomes(&self, opcode: u16) {
        self.rewrite(0, &opcode.to_le_bytes());
    }
    /// Makes it one of another group.
    pub fn moves_to(&self, group: u16) {
        self.rewrite(2, &group.to_le_bytes());
    }
    /// Makes it one that is surely refused; the answer is to be changed afterwards.
    pub fn stops(&self) {
        self.becomes(opcode::UNASSIGNED);
    }

    /// Byte `offset` of the answer.
    pub fn answered(&self, offset: u64) -> u8 {
        place(&self.writable, offset).map_or(0, |iova| self.at.mind.peek::<1>(iova)[0])
    }
    /// `status` and `status_qualifier`.
    pub fn codes(&self) -> (u16, u16) {
        let word = |at| u16::from_le_bytes([self.answered(at), self.answered(at + 1)]);
        (word(0), word(2))
    }
    /// Changes bytes of the answer.
    pub fn answers(&self, offset: u64, bytes: &[u8]) {
        for (offset, byte) in (offset..).zip(bytes) {
            if let Some(iova) = place(&self.writable, offset) {
                self.at.scribble(iova, *byte);
            }
        }
    }
    /// Ends it in other codes, and without a result.
    pub fn ends_in(&self, status: u16, qualifier: u16) {
        self.answers(0, &status.to_le_bytes());
        self.answers(2, &qualifier.to_le_bytes());
        self.says_written(CODES);
    }
    /// Undoes what was written from byte `from` to byte `to` of the answer.
    pub fn leaves(&self, from: u64, to: u64) {
        let Some(end) = self.writable.last().map(|(iova, len)| iova + len) else {
            return;
        };
        // What is behind the buffer is what was in it.
        let filling: [u8; 1] = self.at.mind.peek(end);
        for offset in from..to {
            self.answers(offset, &filling);
        }
    }
    /// Writes a byte behind the answer's buffer.
    pub fn spills(&self) {
        if let Some((iova, len)) = self.writable.last() {
            self.at.scribble(iova + len, 0);
        }
    }
    /// Says in the used element that so many bytes were written.
    pub fn says_written(&self, bytes: u32) {
        for slot in 0..self.size {
            let at = self.used + 4 + ring::USED * slot;
            if self.at.mind.peek(at) == u32::from(self.head).to_le_bytes() {
                for (at, byte) in (at + 4..).zip(bytes.to_le_bytes()) {
                    self.at.scribble(at, byte);
                }
            }
        }
    }
    /// Puts it in the other's place in its queue, and the other in its own.
    pub fn swaps_with(&self, other: &Self) {
        for (slot, head) in [(self.slot, other.head), (other.slot, self.head)] {
            for (at, byte) in (slot..).zip(head.to_le_bytes()) {
                self.at.scribble(at, byte);
            }
        }
    }
    /// Whether it ended well.
    pub fn succeeded(&self) -> bool {
        self.codes().0 == 0
    }
}

/// The commands that stand in the selected queue from index `from` to index `to`.
fn commands(at: &Function, from: u16, to: u16) -> Result<Vec<Command<'_>>, BusError> {
    let (desc, avail) = (at.wide(reg::QUEUE_DESC)?, at.wide(reg::QUEUE_DRIVER)?);
    let (used, size) = (at.wide(reg::QUEUE_DEVICE)?, at.get(reg::QUEUE_SIZE)?);
    let mut all = Vec::new();
    let mut index = from;
    while index != to {
        let slot = avail + 4 + 2 * (u64::from(index) % size.max(1));
        let head = u16::from_le_bytes(at.mind.peek(slot));
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let mut next = head;
        for _ in 0..size {
            let entry = desc + ring::DESC * u64::from(next);
            let buffer = (
                u64::from_le_bytes(at.mind.peek(entry)),
                u64::from(u32::from_le_bytes(at.mind.peek(entry + 8))),
            );
            let flags = u16::from_le_bytes(at.mind.peek(entry + 12));
            if flags & ring::WRITE == 0 {
                readable.push(buffer);
            } else {
                writable.push(buffer);
            }
            if flags & ring::NEXT == 0 {
                break;
            }
            next = u16::from_le_bytes(at.mind.peek(entry + 14));
        }
        all.push(Command {
            at,
            used,
            size,
            head,
            slot,
            readable,
            writable,
        });
        index = index.wrapping_add(1);
    }
    Ok(all)
}

/// The indices of the selected queue's available and used rings.
fn indices(at: &Function) -> Result<[u16; 2], BusError> {
    let rings = [at.wide(reg::QUEUE_DRIVER)?, at.wide(reg::QUEUE_DEVICE)?];
    Ok(rings.map(|ring| u16::from_le_bytes(at.mind.peek(ring + 2))))
}

/// Whether an access notifies an administration queue. Cases select the queue before.
fn notifies(at: &Function, access: Access) -> Result<bool, BusError> {
    if !at.kicked(access) {
        return Ok(false);
    }
    let queue = at.get(reg::QUEUE_SELECT)?;
    let first = at.get(reg::ADMIN_QUEUE_INDEX)?;
    Ok((first..first + at.get(reg::ADMIN_QUEUE_NUM)?).contains(&queue))
}

/// Shows all commands that a notification is about, before the device looks at them.
pub fn batch(
    at: &Function,
    access: Access,
    what: impl Fn(&[Command<'_>]),
) -> Result<bool, BusError> {
    if notifies(at, access)? {
        let [avail, used] = indices(at)?;
        at.remember("commands from", u64::from(used));
        what(&commands(at, used, avail)?);
    }
    Ok(true)
}

/// Shows each command before the device looks at it.
pub fn before(
    at: &Function,
    access: Access,
    what: impl Fn(&Command<'_>),
) -> Result<bool, BusError> {
    batch(at, access, |commands| commands.iter().for_each(&what))
}

/// Changes nothing before: [`after`] needs to have seen what comes.
pub fn watch(at: &Function, access: Access, _: u64) -> Result<bool, BusError> {
    batch(at, access, |_| ())
}

/// Shows each command with its answer, before the case sees it.
pub fn after(at: &Function, access: Access, what: impl Fn(&Command<'_>)) -> Result<(), BusError> {
    if !notifies(at, access)? {
        return Ok(());
    }
    let from = at.recall("commands from").unwrap_or(0);
    let from = u16::try_from(from).unwrap_or(0);
    let [avail, mut used] = indices(at)?;
    let begun = Instant::now();
    while used != avail && begun.elapsed() < USE {
        std::thread::yield_now();
        [_, used] = indices(at)?;
    }
    commands(at, from, used)?.iter().for_each(what);
    Ok(())
}

/// Where the result stands in an answer.
pub const RESULT: u64 = ANSWER as u64;

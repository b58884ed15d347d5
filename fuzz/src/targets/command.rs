//! Administration commands as a driver with pencil and paper sends them.

use crate::rig::{PAGE, Rig, Rings, status};

/// Where commands are built.
pub const COMMAND: u64 = 18 * PAGE;
/// Where results go, three pages.
pub const RESULT: u64 = 37 * PAGE;
/// Bytes for results.
pub const ROOM: u32 = 3 * 4096;
/// The queue's index, after one request queue.
pub const QUEUE: u16 = 1;
/// Entries.
pub const SIZE: u16 = 8;
/// What is there before a result.
pub const BLANK: u8 = 0xee;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The driver's end of the administration queue.
#[derive(Debug, Default)]
pub struct AdminQueue {
    available: u16,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Bytes that the device says it wrote.
    pub used: u32,
    /// The first bytes of the room for results.
    pub bytes: Vec<u8>,
}

impl Answer {
    /// `status` of the result's header.
    pub fn status(&self) -> u16 {
        u16::from_le_bytes([self.bytes[0], self.bytes[1]])
    }

    /// `status_qualifier`.
    pub fn qualifier(&self) -> u16 {
        u16::from_le_bytes([self.bytes[2], self.bytes[3]])
    }

    /// The output word of recording commands.
    pub fn output(&self) -> u32 {
        u32::from_le_bytes([self.bytes[4], self.bytes[5], self.bytes[6], self.bytes[7]])
    }
}

impl AdminQueue {
    /// Gives the queue to the device; before DRIVER_OK.
    pub fn enable(rig: &mut Rig) -> Self {
        let rings = Rings::of_queue(QUEUE, SIZE);
        rig.put(rings.desc, &[0; 0x1000]);
        rig.enable(QUEUE, rings);
        Self::default()
    }

    /// Sends a command with `room` bytes for its result, cut into two buffers at `cut`; `None` if the
    /// device broke the queue.
    ///
    /// # Panics
    ///
    /// `oracle progress`, `oracle answers`.
    pub fn send(&mut self, rig: &mut Rig, command: &[u8], room: u32, cut: u32) -> Option<Answer> {
        let rings = Rings::of_queue(QUEUE, SIZE);
        let blank = vec![BLANK; usize::try_from(ROOM).unwrap_or(0)];
        rig.put(RESULT, &blank);
        rig.put(COMMAND, command);
        let bytes = u32::try_from(command.len()).unwrap_or(0);
        let cut = cut.min(bytes);
        let room = room.min(ROOM);
        let mut pieces = vec![
            (COMMAND, cut, 0),
            (COMMAND + u64::from(cut), bytes - cut, 0),
        ];
        pieces.retain(|&(_, len, _)| len != 0);
        if room != 0 {
            pieces.push((RESULT, room, WRITE));
        }
        if pieces.is_empty() {
            return None;
        }
        for (index, &(at, len, flags)) in (0_u16..).zip(&pieces) {
            let last = usize::from(index) + 1 == pieces.len();
            let flags = if last { flags } else { flags | NEXT };
            let mut bytes = at.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend((index + 1).to_le_bytes());
            rig.put(rings.desc + 16 * u64::from(index), &bytes);
        }
        let slot = u64::from(self.available % SIZE);
        self.available = self.available.wrapping_add(1);
        rig.put(rings.driver + 4 + 2 * slot, &[0, 0]);
        rig.put(rings.driver + 2, &self.available.to_le_bytes());
        rig.kick(QUEUE);
        let wanted = self.available;
        let broken = |rig: &Rig| rig.status() & 0x5f != 0x0f;
        let over = rig.wait(|rig| broken(rig) || rig.memory.get16(rings.device + 2) == wanted);
        assert!(
            over,
            "oracle progress: an administration command is not answered: {:02x?}",
            &command[..command.len().min(48)]
        );
        if rig.memory.get16(rings.device + 2) != wanted {
            return None;
        }
        let element: [u8; 8] = rig.memory.get(rings.device + 4 + 8 * slot);
        let [_, _, _, _, len @ ..] = element;
        let used = u32::from_le_bytes(len);
        let mut bytes = rig.memory.now();
        bytes.drain(..usize::try_from(RESULT).unwrap_or(0));
        bytes.truncate(blank.len());
        assert!(
            used <= room,
            "oracle answers: {used} bytes of a result in a room of {room}"
        );
        let untouched = usize::try_from(used).unwrap_or(0);
        assert!(
            bytes[untouched..].iter().all(|&byte| byte == BLANK),
            "oracle answers: more was written than the {used} bytes that the device says"
        );
        Some(Answer { used, bytes })
    }
}

/// Whether the device says that it is broken.
pub fn is_broken(rig: &Rig) -> bool {
    rig.status() & status::NEEDS_RESET != 0
}

/// A command's bytes: header, then data.
pub fn command(opcode: u16, group: u16, member: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = opcode.to_le_bytes().to_vec();
    bytes.extend(group.to_le_bytes());
    bytes.extend([0; 12]);
    bytes.extend(member.to_le_bytes());
    bytes.extend(data);
    bytes
}

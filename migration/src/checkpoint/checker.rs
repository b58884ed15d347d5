//! Judges a conversation that others have: for a proxy between them, and for recorded traces.
//!
//! The checker is fed the bytes of both directions in the order in which they pass. What lies
//! between the messages it passes over: the initial stream until READY, the memory after SEND until
//! its own end mark, and as many bytes of device state as SIZE says.

use super::message::{Kind, Message, Side};
use super::order::{Early, Got, ProtocolError, Step, early};

/// Where the memory of a checkpoint ends, which only its own format knows.
pub trait MemoryEnd {
    /// Takes the next bytes of one checkpoint's memory. Once the end is among them, gives how many
    /// of these belong to it, and is ready for the next checkpoint.
    ///
    /// # Errors
    /// In words, why this is no memory.
    fn pass(&mut self, bytes: &[u8]) -> Result<Option<usize>, String>;
}

/// Memory as records of Xen's libxc format, to the CHECKPOINT record: what this project sends.
#[derive(Debug, Default)]
pub struct LibxcMemory {
    head: Vec<u8>,
    /// Bytes of the record's body and padding that are still to come.
    left: u64,
    last: bool,
}

/// The libxc record that ends an epoch.
const CHECKPOINT: u32 = 0x0e;
/// The longest record of the format, in bytes.
const RECORD_MAX: u64 = 128 << 20;

impl MemoryEnd for LibxcMemory {
    fn pass(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.left == 0 {
                let need = 8 - self.head.len();
                let (now, later) = rest.split_at(need.min(rest.len()));
                self.head.extend(now);
                rest = later;
                let Ok([a, b, c, d, e, f, g, h]) = <[u8; 8]>::try_from(self.head.as_slice()) else {
                    continue;
                };
                self.head.clear();
                self.last = u32::from_le_bytes([a, b, c, d]) == CHECKPOINT;
                self.left = u64::from(u32::from_le_bytes([e, f, g, h])).next_multiple_of(8);
                if self.left > RECORD_MAX {
                    return Err(format!("a record of {} bytes", self.left));
                }
            }
            let now = usize::try_from(self.left).map_or(rest.len(), |l| l.min(rest.len()));
            self.left -= u64::try_from(now).unwrap_or(self.left);
            rest = rest.get(now..).unwrap_or_default();
            if self.left == 0 && self.last {
                self.last = false;
                return Ok(Some(bytes.len() - rest.len()));
            }
        }
        Ok(None)
    }
}

/// Something the checker saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The message.
    pub message: Message,
    /// Bytes of this direction before its first byte.
    pub at: u64,
    /// Which of its kind it is, counted from 1.
    pub nth: u64,
}

/// What is wrong with a conversation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Verdict {
    /// A message that does not belong there.
    #[error("at byte {at} from the {}: {error}", .error.from)]
    Protocol {
        /// Bytes of this direction before it.
        at: u64,
        /// What is wrong.
        error: ProtocolError,
    },
    /// The memory after SEND cannot be followed.
    #[error("at byte {at} from the primary: expected a checkpoint's memory, got {got}")]
    Memory {
        /// Bytes of this direction before the place.
        at: u64,
        /// What was there.
        got: String,
    },
}

#[derive(Debug, Default)]
struct Stream {
    /// Bytes seen.
    at: u64,
    /// The beginning of a word or of a count.
    partial: Vec<u8>,
    /// Bytes to pass over: of a return-path message, or of device state.
    skip: u64,
    counts: [u64; Kind::ALL.len()],
}

/// Judges a conversation.
#[derive(Debug)]
pub struct Checker<M> {
    step: Step,
    memory: M,
    in_memory: bool,
    primary: Stream,
    secondary: Stream,
}

impl<M: MemoryEnd> Checker<M> {
    /// For a conversation that starts with the initial stream.
    pub fn new(memory: M) -> Self {
        Self {
            step: Step::default(),
            memory,
            in_memory: false,
            primary: Stream::default(),
            secondary: Stream::default(),
        }
    }

    /// What was said last.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Takes bytes of one direction; tells the messages that are complete with them.
    ///
    /// # Errors
    /// [`Verdict`]; the conversation cannot be followed from there on.
    pub fn feed(&mut self, from: Side, bytes: &[u8]) -> Result<Vec<Seen>, Verdict> {
        let mut rest = bytes;
        let mut seen = Vec::new();
        while !rest.is_empty() {
            let used = self.one(from, rest, &mut seen)?;
            rest = rest.get(used..).unwrap_or_default();
            let stream = self.stream(from);
            stream.at = stream.at.saturating_add(widen(used));
        }
        Ok(seen)
    }

    /// One direction has come to its end.
    ///
    /// # Errors
    /// [`Verdict`] unless it ends between two checkpoints.
    pub fn end(&mut self, from: Side) -> Result<(), Verdict> {
        let (step, stream) = (self.step, self.stream(from));
        if step == Step::Idle && stream.partial.is_empty() {
            return Ok(());
        }
        let (at, error) = (stream.at, step.refuse(from, Got::End));
        Err(Verdict::Protocol { at, error })
    }

    fn stream(&mut self, from: Side) -> &mut Stream {
        match from {
            Side::Primary => &mut self.primary,
            Side::Secondary => &mut self.secondary,
        }
    }

    /// Takes at least one byte; gives how many.
    fn one(&mut self, from: Side, bytes: &[u8], seen: &mut Vec<Seen>) -> Result<usize, Verdict> {
        if from == Side::Primary && self.step == Step::Initial {
            return Ok(bytes.len());
        }
        if from == Side::Primary && self.in_memory {
            let at = self.primary.at;
            let passed = self.memory.pass(bytes);
            let end = passed.map_err(|got| Verdict::Memory { at, got })?;
            self.in_memory = end.is_none();
            return Ok(end.unwrap_or(bytes.len()));
        }
        let step = self.step;
        let stream = self.stream(from);
        if stream.skip > 0 {
            let now = usize::try_from(stream.skip).map_or(bytes.len(), |s| s.min(bytes.len()));
            stream.skip -= widen(now);
            return Ok(now);
        }
        let start = stream.at - widen(stream.partial.len());
        let fault = |error| Verdict::Protocol { at: start, error };
        // A word first; a count behind it where one belongs.
        let sizing = stream.partial.len() >= 4;
        let whole = if sizing { 12 } else { 4 };
        let now = bytes.len().min(whole - stream.partial.len());
        stream.partial.extend(bytes.iter().take(now));
        if stream.partial.len() < whole {
            return Ok(now);
        }
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n: u64, b| n << 8 | u64::from(*b));
        let (word, count) = stream.partial.split_at(4);
        let (word, count) = (number(word), number(count));
        let mut word = u32::try_from(word).unwrap_or(u32::MAX);
        if step == Step::Initial {
            match early(word).map_err(fault)? {
                Early::Word(same) => word = same,
                Early::ReturnPath(length) => {
                    stream.skip = length.into();
                    stream.partial.clear();
                    return Ok(now);
                }
            }
        }
        let kind = Kind::from_number(word);
        let kind = kind.ok_or_else(|| fault(step.refuse(from, Got::Number(word))))?;
        let message = match kind {
            Kind::Size => Message::Size(count),
            other => Message::Plain(other),
        };
        let next = step.take(from, message).map_err(fault)?;
        if kind == Kind::Size && !sizing {
            return Ok(now);
        }
        stream.partial.clear();
        stream.skip = count;
        let index = usize::try_from(kind.number()).unwrap_or(0);
        let nth = stream.counts.get_mut(index).map_or(0, |n| {
            *n += 1;
            *n
        });
        seen.push(Seen {
            message,
            at: start,
            nth,
        });
        self.step = next;
        self.in_memory = kind == Kind::Send;
        Ok(now)
    }
}

fn widen(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;

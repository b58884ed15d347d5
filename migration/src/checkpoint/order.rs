//! Which message may come next. One table for both sides, and for whoever listens between them.

use super::message::{Kind, Message, Side};
use std::fmt;

/// Longest body of a message of the migration's return path, as QEMU has it.
pub(super) const RETURN_PATH_MAX: u16 = 512;
/// The return path's message types are 1 to this.
const RETURN_PATH_TYPES: u16 = 7;

/// What came instead of what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// Another message.
    Message(Kind),
    /// A word that is no message.
    Number(u32),
    /// A message of the migration's return path: its type and the length of its body.
    ReturnPath(u16, u16),
    /// A count of bytes that the receiver does not take.
    Count(u64),
    /// The end of the connection.
    End,
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(kind) => write!(f, "{kind}"),
            Self::Number(number) => write!(f, "{number:#x}, which is no message"),
            Self::ReturnPath(kind, length) => write!(
                f,
                "a return-path message of type {kind} with {length} bytes; switch the return-path \
                 capability off"
            ),
            Self::Count(count) => write!(f, "a count of {count} bytes"),
            Self::End => f.write_str("the end of the connection"),
        }
    }
}

/// What was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// This message.
    Message(Kind),
    /// A count of at most so many bytes.
    CountBelow(u64),
    /// So many bytes more of what was announced.
    Bytes(u64),
    /// Nothing: it is not this side's turn.
    Silence,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(kind) => write!(f, "{kind}"),
            Self::CountBelow(most) => write!(f, "a count of 1 to {most} bytes"),
            Self::Bytes(count) => write!(f, "{count} more bytes"),
            Self::Silence => f.write_str("nothing"),
        }
    }
}

/// Somebody said what the protocol does not have at this place. Never the end of a process: the
/// other side may go on alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("checkpoint protocol: expected {expected} from the {from}, got {got}")]
pub struct ProtocolError {
    /// Who said it.
    pub from: Side,
    /// What belongs there.
    pub expected: Expected,
    /// What was there.
    pub got: Got,
}

/// Where a pair stands: what has been said last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Step {
    /// The guest is on its way to the secondary for the first time.
    #[default]
    Initial,
    /// Both hold the same checkpoint and none is under way.
    Idle,
    /// A checkpoint was requested.
    Requested,
    /// The secondary's guest is stopped.
    Replied,
    /// Memory is on its way.
    Sending,
    /// Memory has come, device state is on its way.
    Sized,
    /// Everything has come, and is being loaded.
    Received,
}

impl Step {
    /// Every step.
    pub const ALL: [Self; 7] = [
        Self::Initial,
        Self::Idle,
        Self::Requested,
        Self::Replied,
        Self::Sending,
        Self::Sized,
        Self::Received,
    ];

    /// The one message that may come next.
    pub fn next(self) -> Kind {
        match self {
            Self::Initial => Kind::Ready,
            Self::Idle => Kind::Request,
            Self::Requested => Kind::Reply,
            Self::Replied => Kind::Send,
            Self::Sending => Kind::Size,
            Self::Sized => Kind::Received,
            Self::Received => Kind::Loaded,
        }
    }

    /// The step after the message that may come next.
    fn after(self) -> Self {
        match self {
            Self::Initial | Self::Received => Self::Idle,
            Self::Idle => Self::Requested,
            Self::Requested => Self::Replied,
            Self::Replied => Self::Sending,
            Self::Sending => Self::Sized,
            Self::Sized => Self::Received,
        }
    }

    /// Takes a message that `from` sends.
    ///
    /// # Errors
    /// [`ProtocolError`] if it is not its turn, or this is not the message.
    pub fn take(self, from: Side, message: Message) -> Result<Self, ProtocolError> {
        let next = self.next();
        if from == next.sender() && message.kind() == next {
            return Ok(self.after());
        }
        Err(self.refuse(from, Got::Message(message.kind())))
    }

    /// The error for anything else that `from` sends here.
    pub fn refuse(self, from: Side, got: Got) -> ProtocolError {
        let next = self.next();
        let expected = if from == next.sender() {
            Expected::Message(next)
        } else {
            Expected::Silence
        };
        ProtocolError {
            from,
            expected,
            got,
        }
    }
}

/// What a word from the secondary is before READY, where the migration's return path may still
/// speak: {u16 type, u16 length}, big-endian. READY itself is a word of zeroes, and no type is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Early {
    /// A word of the protocol.
    Word(u32),
    /// A message whose body of so many bytes is to be passed over.
    ReturnPath(u16),
}

/// Judges a word from the secondary at [`Step::Initial`].
pub(super) fn early(word: u32) -> Result<Early, ProtocolError> {
    let [a, b, c, d] = word.to_be_bytes();
    let (kind, length) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    if kind == 0 {
        return Ok(Early::Word(word));
    }
    if kind <= RETURN_PATH_TYPES && length <= RETURN_PATH_MAX {
        return Ok(Early::ReturnPath(length));
    }
    Err(Step::Initial.refuse(Side::Secondary, Got::ReturnPath(kind, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: Kind) -> Message {
        match kind {
            Kind::Size => Message::Size(1),
            other => Message::Plain(other),
        }
    }

    #[test]
    fn one_checkpoint_goes_round() {
        let mut step = Step::Initial;
        for number in [0, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6] {
            let kind = Kind::from_number(number).unwrap();
            step = step.take(kind.sender(), message(kind)).unwrap();
        }
        assert_eq!(step, Step::Idle);
    }

    #[test]
    fn at_every_step_each_other_message_of_each_side_is_named_and_refused() {
        for step in Step::ALL {
            for kind in Kind::ALL {
                for from in [Side::Primary, Side::Secondary] {
                    let taken = step.take(from, message(kind));
                    if kind == step.next() && from == kind.sender() {
                        assert!(taken.is_ok());
                        continue;
                    }
                    let error = taken.unwrap_err();
                    assert_eq!(error.got, Got::Message(kind));
                    let text = error.to_string();
                    assert!(text.contains(kind.name()), "{text}");
                    let turn = from == step.next().sender();
                    assert!(!turn || text.contains(step.next().name()), "{text}");
                }
            }
        }
    }

    #[test]
    fn the_return_path_may_speak_before_ready_and_is_bounded() {
        assert_eq!(early(0), Ok(Early::Word(0)));
        // As captured: a PONG.
        assert_eq!(early(0x0002_0004), Ok(Early::ReturnPath(4)));
        assert_eq!(early(0x0005_0200), Ok(Early::ReturnPath(512)));
        for word in [0x0005_0201, 0x0008_0000, u32::MAX] {
            assert!(early(word).unwrap_err().to_string().contains("return-path"));
        }
        // A word below 0x10000 is a word of the protocol, and its number is judged there.
        assert_eq!(early(7), Ok(Early::Word(7)));
    }
}

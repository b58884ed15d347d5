//! A client that judges every answer: `oracle answers`, and of frames that lie `oracle soundness`.

use super::wire::{self, ERROR, HEADER, Message, REPLY, TYPE, command, numbers, word};
use crate::Plant;
use device::serve::vfio_user::{MESSAGE_MAX, ProtocolError, Served, Session};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// It was carried out; the answer's payload.
    Done(Vec<u8>),
    /// It was not, for this errno.
    Refused(u32),
    /// Whoever wants no answer does not know.
    Posted,
    /// The session is over.
    Over,
}

/// A session and its client.
#[derive(Debug)]
pub struct Client {
    served: Arc<dyn Served>,
    session: Session,
    id: u16,
    /// VERSION was carried out.
    pub agreed: bool,
    /// Nothing more is to be said.
    pub over: bool,
    plant: Option<Plant>,
    kept: Vec<OwnedFd>,
}

impl Client {
    /// Before VERSION.
    pub fn new(served: Arc<dyn Served>, plant: Option<Plant>) -> Self {
        Self {
            session: Session::new(Arc::clone(&served)),
            served,
            id: 0x1230,
            agreed: false,
            over: false,
            plant,
            kept: Vec::new(),
        }
    }

    /// Agrees on version 0.1.
    pub fn greet(&mut self) {
        let body = numbers(&[(0, 2), (1, 2)]);
        self.expect(Message::new(command::VERSION, body));
    }

    /// Sends a message, and judges what comes.
    ///
    /// # Panics
    ///
    /// The oracles'.
    pub fn send(&mut self, mut message: Message) -> Heard {
        self.id = self.id.wrapping_add(1);
        let bytes = message.bytes(self.id);
        let fds = std::mem::take(&mut message.fds);
        let first = fds.first().map(|fd| fd.as_fd().try_clone_to_owned());
        let told = self.session.message(&bytes, fds);
        let silent =
            self.plant == Some(Plant::NoAnswer) && message.command == command::GET_IRQ_INFO;
        let answer = if silent { &[] } else { self.session.answer() };
        let heard = judge(&bytes, self.agreed, &told, answer);
        if let (Some(Plant::Descriptors), Heard::Refused(_), Some(Ok(fd))) =
            (self.plant, &heard, first)
        {
            self.kept.push(fd);
        }
        self.over |= heard == Heard::Over;
        self.agreed |=
            message.command == command::VERSION && matches!(heard, Heard::Done(_) | Heard::Posted);
        heard
    }

    /// Sends what nobody may refuse, and what nothing follows from; its answer's payload.
    ///
    /// # Panics
    ///
    /// The oracles'.
    pub fn expect(&mut self, message: Message) -> Vec<u8> {
        let number = message.command;
        match self.send(message) {
            Heard::Done(payload) => payload,
            heard => panic!("oracle soundness: command {number} is sound, and came to {heard:?}"),
        }
    }

    /// Writes a register of BAR 0.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut body = wire::access(wire::BAR0, offset, data.len());
        body.extend_from_slice(data);
        self.expect(Message::new(command::REGION_WRITE, body));
    }

    /// Reads the device's status.
    pub fn status(&mut self) -> u8 {
        let body = wire::access(wire::BAR0, crate::rig::reg::STATUS, 1);
        let answer = self.expect(Message::new(command::REGION_READ, body));
        answer.last().copied().unwrap_or(0xff)
    }

    /// Goes, and the next one comes. What a plant has kept is still there.
    pub fn next(&mut self) -> Vec<OwnedFd> {
        self.session = Session::new(Arc::clone(&self.served));
        (self.agreed, self.over) = (false, false);
        std::mem::take(&mut self.kept)
    }
}

/// What a message came to, given what the session said of it and its answer.
///
/// # Panics
///
/// The oracles'.
pub(super) fn judge(
    message: &[u8],
    agreed: bool,
    told: &Result<(), ProtocolError>,
    answer: &[u8],
) -> Heard {
    let number = u16::try_from(word(message, 0) >> 16).unwrap_or(0);
    let (size, flags) = (word(message, 4), word(message, 8));
    let whole = usize::try_from(size) == Ok(message.len()) && message.len() <= MESSAGE_MAX;
    let framed = whole && flags & TYPE == 0;
    let version = number == command::VERSION && !agreed;
    match told {
        Ok(()) => assert!(
            framed,
            "oracle soundness: a frame of {} bytes that says {size}, flags {flags:#x}, is taken",
            message.len()
        ),
        Err(ProtocolError::Version(_)) if framed && version => {}
        Err(error) => {
            assert!(
                !framed,
                "oracle answers: command {number} is well framed, and ends the session: {error}"
            );
            assert!(answer.is_empty(), "oracle answers: one to no message");
            return Heard::Over;
        }
    }
    if flags & wire::NO_REPLY != 0 {
        assert!(
            answer.is_empty(),
            "oracle answers: {} bytes to command {number}, which wants none",
            answer.len()
        );
        return told.as_ref().map_or(Heard::Over, |()| Heard::Posted);
    }
    let head = answer.len() >= HEADER && answer[..4] == message[..4];
    assert!(
        head && usize::try_from(word(answer, 4)) == Ok(answer.len()),
        "oracle answers: {} bytes that are none to command {number}: {:x?}",
        answer.len(),
        &answer[..answer.len().min(HEADER)]
    );
    let payload = &answer[HEADER..];
    match (word(answer, 8), word(answer, 12)) {
        (flags, errno) if flags == REPLY | ERROR && errno != 0 && payload.is_empty() => {
            assert_ne!(
                i32::try_from(errno),
                Ok(Errno::TIMEDOUT.raw_os_error()),
                "oracle reset: command {number} is not carried out in the time there is"
            );
            told.as_ref()
                .map_or(Heard::Over, |()| Heard::Refused(errno))
        }
        (REPLY, 0) if told.is_ok() => {
            judge_length(number, &message[HEADER..], payload);
            Heard::Done(payload.to_vec())
        }
        (flags, errno) => panic!(
            "oracle answers: flags {flags:#x}, error {errno}, {} bytes to command {number}",
            payload.len()
        ),
    }
}

/// As much as was asked for, and no more than there was room for.
fn judge_length(number: u16, asked: &[u8], payload: &[u8]) {
    let size = |at| usize::try_from(word(asked, at)).unwrap_or(usize::MAX);
    let argsz = size(0);
    let lengths = match number {
        command::VERSION => 4..=1024,
        command::DMA_MAP | command::SET_IRQS | command::RESET | command::MIG_DATA_WRITE => 0..=0,
        command::DMA_UNMAP => 24..=argsz.min(24),
        command::GET_INFO | command::GET_IRQ_INFO => 16..=argsz.min(16),
        command::GET_REGION_INFO => 32..=argsz.min(32),
        command::REGION_READ => 16 + size(12)..=16 + size(12),
        command::REGION_WRITE => 16..=16,
        // Eight bytes say how much room is needed; what is set comes back as it was sent.
        command::FEATURE => 8..=argsz.max(asked.len()),
        command::MIG_DATA_READ => 8..=argsz.min(size(4).saturating_add(8)),
        _ => panic!("oracle soundness: command {number} is carried out, and there is none"),
    };
    assert!(
        lengths.contains(&payload.len()) && payload.len() <= MESSAGE_MAX,
        "oracle answers: {} bytes to command {number}, {lengths:?} expected",
        payload.len()
    );
}

//! A session spoken to in bytes, as a client that keeps to nothing could. Numbers are typed again
//! from the protocol's text.

use super::super::{ProtocolError, Served, Session};
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub const NO_REPLY: u32 = 1 << 4;
/// Flags of an answer: REPLY, and REPLY with ERROR.
const ANSWERED: u32 = 1;
const REFUSED: u32 = 1 | 1 << 5;

/// A whole message with its header.
pub fn message(command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(16 + payload.len()).unwrap();
    let mut bytes = vec![0x34, 0x12];
    bytes.extend(command.to_ne_bytes());
    bytes.extend(size.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

/// A payload of numbers, each of as many bytes as is said.
pub fn numbers(fields: &[(u64, usize)]) -> Vec<u8> {
    let bytes = fields
        .iter()
        .map(|(value, width)| value.to_le_bytes()[..*width].to_vec());
    bytes.collect::<Vec<_>>().concat()
}

pub fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn quad(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// An answer's payload, or its errno.
pub fn judge(command: u16, answer: &[u8]) -> Result<Vec<u8>, u32> {
    assert!(answer.len() >= 16, "{answer:?}");
    assert_eq!(answer[..2], [0x34, 0x12], "the id is the command's");
    assert_eq!(answer[2..4], command.to_ne_bytes());
    assert_eq!(usize::try_from(word(answer, 4)), Ok(answer.len()));
    match (word(answer, 8), word(answer, 12)) {
        (ANSWERED, 0) => Ok(answer[16..].to_vec()),
        (REFUSED, errno) => {
            assert_eq!(answer.len(), 16, "an error is a header alone");
            assert_ne!(errno, 0);
            Err(errno)
        }
        other => panic!("flags and error {other:x?}"),
    }
}

#[derive(Debug)]
pub struct Talk(pub Session);

impl Talk {
    pub fn silent(served: Arc<dyn Served>) -> Self {
        Self(Session::new(served))
    }

    /// After VERSION.
    pub fn new(served: Arc<dyn Served>) -> Self {
        let mut talk = Self::silent(served);
        let version = talk.ask(1, &[0, 0, 1, 0]).unwrap();
        assert_eq!(version[..4], [0, 0, 1, 0]);
        talk
    }

    pub fn ask(&mut self, command: u16, payload: &[u8]) -> Result<Vec<u8>, u32> {
        self.ask_with(command, payload, Vec::new())
    }

    pub fn ask_with(
        &mut self,
        command: u16,
        payload: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<Vec<u8>, u32> {
        self.0.message(&message(command, 0, payload), fds).unwrap();
        judge(command, self.0.answer())
    }

    /// Any bytes; what they end with.
    pub fn say(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        self.0.message(bytes, Vec::new())
    }

    pub fn read(&mut self, region: u32, offset: u64, count: u32) -> Result<Vec<u8>, u32> {
        let ask = access(region, offset, count);
        self.ask(9, &ask).map(|answer| {
            assert_eq!(answer[..16], ask);
            answer[16..].to_vec()
        })
    }

    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), u32> {
        let ask = access(region, offset, u32::try_from(data.len()).unwrap());
        self.ask(10, &[&ask, data].concat())
            .map(|answer| assert_eq!(answer, ask))
    }

    pub fn map(&mut self, iova: u64, size: u64, fd: Option<OwnedFd>) -> Result<(), u32> {
        let ask = numbers(&[(32, 4), (3, 4), (0, 8), (iova, 8), (size, 8)]);
        let fds = fd.into_iter().collect();
        self.ask_with(2, &ask, fds)
            .map(|answer| assert!(answer.is_empty()))
    }

    /// DEVICE_FEATURE with room for any answer.
    pub fn feature(&mut self, flags: u32, data: &[u8]) -> Result<Vec<u8>, u32> {
        let ask = numbers(&[(1 << 21, 4), (flags.into(), 4)]);
        self.ask(16, &[&ask, data].concat())
    }
}

fn access(region: u32, offset: u64, count: u32) -> Vec<u8> {
    numbers(&[(offset, 8), (region.into(), 4), (count.into(), 4)])
}

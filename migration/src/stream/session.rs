//! What two processes say to each other around a stream, and never in it.
//!
//! The stream travels one way and has no place for answers, nor for the hand-over. So the way back
//! carries messages, and so does the way forth where no record stands: after the stream's END, and
//! once, for measuring, between the guest's description and its image. A message has the shape of a
//! record's head, {u32 type, u32 length}, and a type that no record has in either layer: whoever
//! takes it for a record refuses it. That is why a source that gives up says so with a message in
//! the place of a record: what it began is no stream any more.

use super::framing::{HEAD_BYTES, Head};

/// All types are above this: "TD" in the upper half.
const SPACE: u32 = 0x5444_0000;

/// Longest refusal, in bytes.
pub(super) const REFUSAL_MAX: usize = 4 << 10;

/// A message's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Forth. Body: u64, how many bytes that mean nothing follow it.
    Plain,
    /// Forth, after END: run the guest.
    Go,
    /// Forth: forget the guest.
    Abort,
    /// Back: there is room for the guest.
    Opened,
    /// Back: all plain bytes are here.
    PlainCopied,
    /// Back: a record of pages has been taken. Body: a bit for each of its pages, set if its bytes
    /// were here before; zero bytes at the end are left out.
    Taken,
    /// Back: the guest could run. Body: u64, nanoseconds taken for evidence.
    Ready,
    /// Back: the guest runs.
    Running,
    /// Back: it cannot be done. Body: why, in UTF-8.
    Refused,
    /// Forth, first of all, on each of several connections: which source it is of (16 bytes), which
    /// of its connections (u32), and how many there are (u32).
    Join,
}

impl Message {
    const ALL: [Self; 10] = [
        Self::Plain,
        Self::Go,
        Self::Abort,
        Self::Opened,
        Self::PlainCopied,
        Self::Taken,
        Self::Ready,
        Self::Running,
        Self::Refused,
        Self::Join,
    ];

    fn number(self) -> u32 {
        let places = Self::ALL.into_iter().zip(SPACE + 1..);
        places
            .filter(|(known, _)| *known == self)
            .map(|(_, n)| n)
            .sum()
    }

    /// What a head announces, if it is a message's.
    pub(super) fn of(head: Head) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| known.number() == head.kind)
    }

    /// Its name, for errors.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Go => "GO",
            Self::Abort => "ABORT",
            Self::Opened => "OPENED",
            Self::PlainCopied => "PLAIN_COPIED",
            Self::Taken => "TAKEN",
            Self::Ready => "READY",
            Self::Running => "RUNNING",
            Self::Refused => "REFUSED",
            Self::Join => "JOIN",
        }
    }

    /// The shortest and the longest body it may have.
    pub(super) fn lengths(self) -> (usize, usize) {
        match self {
            Self::Plain | Self::Ready => (8, 8),
            Self::Join => (24, 24),
            Self::Taken => (0, super::BATCH_PAGES / 8),
            Self::Refused => (0, REFUSAL_MAX),
            _ => (0, 0),
        }
    }

    /// The message as bytes.
    pub(super) fn bytes(self, body: &[u8]) -> Vec<u8> {
        let head = Head {
            kind: self.number(),
            length: u32::try_from(body.len()).unwrap_or(u32::MAX),
        };
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
        bytes.extend(head.to_bytes());
        bytes.extend(body);
        bytes
    }
}

/// The bits of those of `pages` that are among `unchanged`. Both ascend.
pub(super) fn bits(pages: &[u64], unchanged: &[u64]) -> Vec<u8> {
    let mut bits = vec![0_u8; pages.len().div_ceil(8)];
    let mut unchanged = unchanged.iter().peekable();
    for (place, page) in pages.iter().enumerate() {
        if unchanged.next_if_eq(&page).is_some()
            && let Some(byte) = bits.get_mut(place / 8)
        {
            *byte |= 1 << (place % 8);
        }
    }
    while bits.last() == Some(&0) {
        bits.pop();
    }
    bits
}

/// The pages whose bits are set. `None` if there are bits for more pages than there are.
pub(super) fn of_bits(pages: &[u64], bits: &[u8]) -> Option<Vec<u64>> {
    let set = |place: usize| {
        bits.get(place / 8)
            .is_some_and(|b| b >> (place % 8) & 1 == 1)
    };
    if (pages.len()..bits.len() * 8).any(set) {
        return None;
    }
    let places = pages.iter().enumerate();
    Some(
        places
            .filter(|(place, _)| set(*place))
            .map(|(_, page)| *page)
            .collect(),
    )
}

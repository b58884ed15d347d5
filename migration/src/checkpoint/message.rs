//! The seven messages of a checkpoint, as QEMU's COLO has them on the wire: one big-endian word
//! each, and behind one of them a count.

use std::fmt;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Runs the guest, and speaks to the secondary.
    Primary,
    /// Holds the last checkpoint, and speaks to the primary.
    Secondary,
}

impl Side {
    /// The one who listens.
    pub fn other(self) -> Self {
        match self {
            Self::Primary => Self::Secondary,
            Self::Secondary => Self::Primary,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        })
    }
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The secondary has loaded what came before the first checkpoint.
    Ready,
    /// The primary wants a checkpoint.
    Request,
    /// The secondary's guest is stopped.
    Reply,
    /// The primary's guest is stopped, and its memory follows.
    Send,
    /// The memory has been sent, and so many bytes of device state follow.
    Size,
    /// The secondary has everything, and begins to load it.
    Received,
    /// The secondary has loaded it: the checkpoint is whole.
    Loaded,
}

impl Kind {
    /// All of them, each at the place that is its number on the wire.
    pub const ALL: [Self; 7] = [
        Self::Ready,
        Self::Request,
        Self::Reply,
        Self::Send,
        Self::Size,
        Self::Received,
        Self::Loaded,
    ];

    /// Its number on the wire.
    pub fn number(self) -> u32 {
        match self {
            Self::Ready => 0,
            Self::Request => 1,
            Self::Reply => 2,
            Self::Send => 3,
            Self::Size => 4,
            Self::Received => 5,
            Self::Loaded => 6,
        }
    }

    /// What a number means; nothing from 7 on.
    pub fn from_number(number: u32) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|kind| kind.number() == number)
    }

    /// Who sends it.
    pub fn sender(self) -> Side {
        match self {
            Self::Request | Self::Send | Self::Size => Side::Primary,
            Self::Ready | Self::Reply | Self::Received | Self::Loaded => Side::Secondary,
        }
    }

    /// The `control_id` that Xen's CHECKPOINT_STATE record has for the same thing, if it has one.
    pub fn xen_control_id(self) -> Option<u32> {
        match self {
            Self::Request => Some(0),
            Self::Reply => Some(1),
            Self::Ready => Some(2),
            Self::Loaded => Some(3),
            Self::Send | Self::Size | Self::Received => None,
        }
    }

    /// Its name, QEMU's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "checkpoint-ready",
            Self::Request => "checkpoint-request",
            Self::Reply => "checkpoint-reply",
            Self::Send => "vmstate-send",
            Self::Size => "vmstate-size",
            Self::Received => "vmstate-received",
            Self::Loaded => "vmstate-loaded",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A word alone; of any kind but [`Kind::Size`], which has a count.
    Plain(Kind),
    /// [`Kind::Size`]: the count of bytes that follow.
    Size(u64),
}

impl Message {
    /// What it is.
    pub fn kind(self) -> Kind {
        match self {
            Self::Plain(kind) => kind,
            Self::Size(_) => Kind::Size,
        }
    }

    /// As bytes: 4, or 12 with a count.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = self.kind().number().to_be_bytes().to_vec();
        if let Self::Size(count) = self {
            bytes.extend(count.to_be_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_names_and_senders_are_the_documented_ones() {
        let table: Vec<_> = Kind::ALL
            .into_iter()
            .map(|kind| {
                (
                    kind.number(),
                    kind.name(),
                    kind.sender(),
                    kind.xen_control_id(),
                )
            })
            .collect();
        let (p, s) = (Side::Primary, Side::Secondary);
        assert_eq!(
            table,
            [
                (0, "checkpoint-ready", s, Some(2)),
                (1, "checkpoint-request", p, Some(0)),
                (2, "checkpoint-reply", s, Some(1)),
                (3, "vmstate-send", p, None),
                (4, "vmstate-size", p, None),
                (5, "vmstate-received", s, None),
                (6, "vmstate-loaded", s, Some(3)),
            ]
        );
    }

    #[test]
    fn every_number_round_trips_and_no_other_means_anything() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind.number()), Some(kind));
        }
        for number in [7, 8, 0x46, 0x100, u32::MAX] {
            assert_eq!(Kind::from_number(number), None);
        }
    }

    #[test]
    fn bytes_are_big_endian() {
        assert_eq!(Message::Plain(Kind::Loaded).to_bytes(), [0, 0, 0, 6]);
        assert_eq!(
            Message::Size(12889).to_bytes(),
            [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0x32, 0x59]
        );
    }
}

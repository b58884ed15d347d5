//! What both layers have in common: record heads, padding, the cap, and how a fault is told.

use std::io;

/// Longest record in bytes, padding included. Xen's libxc reader has this limit, its libxl reader
/// has none; here it holds in both layers, before anything is allocated.
pub const RECORD_MAX: u64 = 128 << 20;

/// Bytes of a record's head.
pub(super) const HEAD_BYTES: usize = 8;

/// Record types with this bit set may be skipped by who does not know them.
const OPTIONAL: u32 = 1 << 31;

/// What to do about bytes that no writer makes.
pub(super) const DAMAGED: &str = "the stream is damaged or not one of these: take it again from \
                                  its source";
/// What to do about something that a later version may have added.
pub(super) const NEWER: &str = "read it with the version that wrote it, or a later one";

/// The two layers of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layer {
    /// The outer one: devices, names, checkpoints.
    Libxl,
    /// The inner one: memory.
    Libxc,
}

impl Layer {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Libxl => "libxl",
            Self::Libxc => "libxc",
        }
    }

    /// The name of a record type in this layer, if it has one.
    pub fn record_name(self, kind: u32) -> Option<&'static str> {
        match self {
            Self::Libxl => super::libxl::name(kind),
            Self::Libxc => super::libxc::name(kind),
        }
    }

    /// What messages call a record: its layer, its name or its number.
    pub(super) fn record(self, kind: u32) -> String {
        match self.record_name(kind) {
            Some(name) => format!("{} record {name}", self.name()),
            None => format!("{} record {kind:#x}", self.name()),
        }
    }
}

/// The eight bytes that every record starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The record's type, in its layer.
    pub kind: u32,
    /// Bytes of body, padding not included.
    pub length: u32,
}

impl Head {
    /// From its bytes.
    pub fn from_bytes([a, b, c, d, e, f, g, h]: [u8; HEAD_BYTES]) -> Self {
        Self {
            kind: u32::from_le_bytes([a, b, c, d]),
            length: u32::from_le_bytes([e, f, g, h]),
        }
    }

    /// As bytes.
    pub fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let value = u64::from(self.kind) | u64::from(self.length) << 32;
        value.to_le_bytes()
    }

    /// Zero bytes that follow the body: up to the next multiple of 8, counted from the body alone.
    pub fn padding(self) -> u32 {
        self.length.wrapping_neg() % 8
    }

    /// Bytes of body and padding.
    pub fn padded(self) -> u64 {
        u64::from(self.length) + u64::from(self.padding())
    }

    /// Whether a reader that does not know the type may go on.
    pub fn optional(self) -> bool {
        self.kind & OPTIONAL != 0
    }
}

/// Bytes that the format forbids: where, and what stands there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed stream at byte {offset}, in {record}: expected {expected}, got {got}; {advice}")]
pub struct Malformed {
    /// Bytes of the stream before the field at fault.
    pub offset: u64,
    /// The record or header it is in.
    pub record: String,
    /// What the format demands there.
    pub expected: String,
    /// What was there.
    pub got: String,
    /// What to do about it.
    pub advice: &'static str,
}

/// Why a stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The bytes are not what the format allows.
    #[error(transparent)]
    Malformed(Box<Malformed>),
    /// The stream ends before its END record.
    #[error(
        "the stream ends at byte {offset}, in {record}: expected {missing} more bytes of it, got \
         none; the stream was cut: discard what it brought and take it again from its source"
    )]
    Cut {
        /// Bytes of the stream: all that there are.
        offset: u64,
        /// The record or header that is cut.
        record: String,
        /// Bytes that are missing in what was being read.
        missing: u64,
    },
    /// The system failed to read.
    #[error("reading the stream at byte {offset}, in {record}: {source}")]
    Broken {
        /// Bytes of the stream taken before.
        offset: u64,
        /// The record or header being read.
        record: String,
        /// What the system said.
        source: io::Error,
    },
}

impl From<Malformed> for StreamError {
    fn from(fault: Malformed) -> Self {
        Self::Malformed(Box::new(fault))
    }
}

/// A fault of a field, before it is known where in the stream its record stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bad {
    /// Bytes between the start of the body and the field.
    pub(super) at: usize,
    pub(super) expected: String,
    pub(super) got: String,
    pub(super) advice: &'static str,
}

impl Bad {
    pub(super) fn new(at: usize, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self {
            at,
            expected: expected.into(),
            got: got.into(),
            advice: DAMAGED,
        }
    }

    pub(super) fn advising(self, advice: &'static str) -> Self {
        Self { advice, ..self }
    }

    pub(super) fn located(self, body: u64, record: String) -> Malformed {
        Malformed {
            offset: body.saturating_add(widen(self.at)),
            record,
            expected: self.expected,
            got: self.got,
            advice: self.advice,
        }
    }
}

/// The fields of a body, in order.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { body, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Bad> {
        let rest = self.body.get(self.at..).unwrap_or_default();
        let Some(field) = rest.first_chunk::<N>() else {
            return Err(Bad::new(
                self.at,
                format!("a field of {N} bytes"),
                format!("{} bytes of body left", rest.len()),
            ));
        };
        self.at += N;
        Ok(*field)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Bad> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Bad> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A reserved field. Xen's readers ignore what is in it; nobody writes anything but zero.
    pub(super) fn zero(&mut self) -> Result<(), Bad> {
        match self.u32()? {
            0 => Ok(()),
            other => Err(Bad::new(
                self.at - 4,
                "0 in a reserved field",
                format!("{other:#x}"),
            )),
        }
    }

    pub(super) fn slice(&mut self, length: u32) -> Result<&'a [u8], Bad> {
        let rest = self.body.get(self.at..).unwrap_or_default();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(field) = rest.get(..length) else {
            let got = format!("{} bytes of body left", rest.len());
            return Err(Bad::new(self.at, format!("{length} bytes"), got));
        };
        self.at += length;
        Ok(field)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        let rest = self.body.get(self.at..).unwrap_or_default();
        self.at = self.body.len();
        rest
    }

    /// The rest as whole elements of `N` bytes.
    pub(super) fn elements<const N: usize>(&mut self) -> Result<&'a [[u8; N]], Bad> {
        let at = self.at;
        let (whole, part) = self.rest().as_chunks::<N>();
        if part.is_empty() {
            return Ok(whole);
        }
        Err(Bad::new(
            at + whole.len() * N,
            format!("whole elements of {N} bytes"),
            format!("{} bytes", part.len()),
        ))
    }

    pub(super) fn done(&mut self) -> Result<(), Bad> {
        let at = self.at;
        match self.rest().len() {
            0 => Ok(()),
            more => Err(Bad::new(
                at,
                "the end of the body",
                format!("{more} more bytes"),
            )),
        }
    }
}

pub(super) fn widen(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

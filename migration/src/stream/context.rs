//! What is inside our EMULATOR_CONTEXT records: the state of a device, as sections that say what
//! they are.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | "TIDEMARK" |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | number of sections |
//! | 16 | | the sections, in ascending order of their kind, each once |
//!
//! A section is {u32 kind, u32 length}, so many bytes, and zeros up to the next multiple of 8. All
//! integers are little-endian. A reader skips a kind that it does not know if bit 31 is set, and
//! refuses it otherwise.

use super::framing::{Bad, Fields, Head, Malformed, NEWER};

const MAGIC: [u8; 8] = *b"TIDEMARK";
const VERSION: u32 = 1;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SectionKind {
    /// 1: the guest's processors, as JSON.
    Cpu,
    /// 2: a device as its registers show it, queue state included, as JSON.
    Registers,
    /// 3: a device as its device parts, in their own format: queue state and, where the device
    /// has one, the tracker's configuration are among them.
    Parts,
    /// 4: writes to a disk that are held until a checkpoint is whole: for each u64 offset, u64
    /// length, in bytes, and the data.
    Writes,
}

impl SectionKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Registers, Self::Parts, Self::Writes];

    /// Its number in a stream.
    pub fn value(self) -> u32 {
        match self {
            Self::Cpu => 1,
            Self::Registers => 2,
            Self::Parts => 3,
            Self::Writes => 4,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Registers => "registers",
            Self::Parts => "device parts",
            Self::Writes => "held writes",
        }
    }
}

/// The state of a device, or of the guest's processors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Ascending by kind, each kind once.
    sections: Vec<(SectionKind, Vec<u8>)>,
}

impl Context {
    /// State of one section.
    pub fn of(kind: SectionKind, bytes: Vec<u8>) -> Self {
        Self::default().with(kind, bytes)
    }

    /// With a section more; one of the same kind is replaced.
    #[must_use]
    pub fn with(mut self, kind: SectionKind, bytes: Vec<u8>) -> Self {
        self.sections.retain(|(known, _)| *known != kind);
        self.sections.push((kind, bytes));
        self.sections.sort_by_key(|(kind, _)| *kind);
        self
    }

    /// The section of a kind.
    pub fn section(&self, kind: SectionKind) -> Option<&[u8]> {
        let mut sections = self.sections.iter();
        sections
            .find(|(known, _)| *known == kind)
            .map(|(_, bytes)| bytes.as_slice())
    }

    /// All sections.
    pub fn sections(&self) -> impl Iterator<Item = (SectionKind, &[u8])> {
        let sections = self.sections.iter();
        sections.map(|(kind, bytes)| (*kind, bytes.as_slice()))
    }

    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        let count = u32::try_from(self.sections.len()).unwrap_or(u32::MAX);
        bytes.extend(count.to_le_bytes());
        for (kind, section) in &self.sections {
            let head = Head {
                kind: kind.value(),
                length: u32::try_from(section.len()).unwrap_or(u32::MAX),
            };
            bytes.extend(head.to_bytes());
            bytes.extend(section);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes
    }

    /// From bytes of any origin.
    ///
    /// # Errors
    /// [`Malformed`], with the offset counted from the blob's start.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        Self::parse(bytes).map_err(|bad| bad.located(0, "a device's state".to_owned()))
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Bad> {
        let mut fields = Fields::new(bytes);
        let magic = fields.bytes::<8>()?;
        if magic != MAGIC {
            let bad = Bad::new(
                0,
                format!("the magic {MAGIC:02x?}"),
                format!("{magic:02x?}"),
            );
            return Err(bad.advising("it is the state of another program's device"));
        }
        let version = fields.u32()?;
        if version != VERSION {
            let bad = Bad::new(
                8,
                format!("version {VERSION}"),
                format!("version {version}"),
            );
            return Err(bad.advising(NEWER));
        }
        let count = fields.u32()?;
        let mut sections: Vec<(SectionKind, Vec<u8>)> = Vec::new();
        let mut last = 0;
        for _ in 0..count {
            let at = fields.at();
            let head = Head::from_bytes(fields.bytes()?);
            if head.kind <= last {
                let expected = format!("a section kind above {last}");
                return Err(Bad::new(at, expected, head.kind.to_string()));
            }
            last = head.kind;
            let section = fields.slice(head.length)?;
            let padding = fields.slice(head.padding())?;
            if padding.iter().any(|byte| *byte != 0) {
                let at = fields.at() - padding.len();
                return Err(Bad::new(
                    at,
                    "zero bytes of padding",
                    format!("{padding:02x?}"),
                ));
            }
            match SectionKind::ALL
                .into_iter()
                .find(|k| k.value() == head.kind)
            {
                Some(kind) => sections.push((kind, section.to_vec())),
                None if head.optional() => {}
                None => {
                    let got = format!("section kind {:#x}", head.kind);
                    return Err(Bad::new(at, "a known section", got).advising(NEWER));
                }
            }
        }
        fields.done()?;
        Ok(Self { sections })
    }

    /// Whether bytes are meant to be such a blob.
    pub(super) fn is_ours(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }
}

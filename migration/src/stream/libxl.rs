//! The outer layer: devices as EMULATOR_CONTEXT, names as EMULATOR_XENSTORE_DATA, and where the
//! memory stands between them.

use super::framing::{Bad, Fields, NEWER};

/// "LibxlFmt".
const IDENT: u64 = 0x4c69_6278_6c46_6d74;
/// The one version.
const VERSION: u32 = 2;
const BIG_ENDIAN: u32 = 1 << 0;
const CONVERTED: u32 = 1 << 1;

/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = 16;

const END: u32 = 0;
const LIBXC_CONTEXT: u32 = 1;
const EMULATOR_XENSTORE_DATA: u32 = 2;
const EMULATOR_CONTEXT: u32 = 3;
const CHECKPOINT_END: u32 = 4;
const CHECKPOINT_STATE: u32 = 5;

/// The name of a record type.
pub(super) fn name(kind: u32) -> Option<&'static str> {
    Some(match kind {
        END => "END",
        LIBXC_CONTEXT => "LIBXC_CONTEXT",
        EMULATOR_XENSTORE_DATA => "EMULATOR_XENSTORE_DATA",
        EMULATOR_CONTEXT => "EMULATOR_CONTEXT",
        CHECKPOINT_END => "CHECKPOINT_END",
        CHECKPOINT_STATE => "CHECKPOINT_STATE",
        _ => return None,
    })
}

/// The header of the outer layer. Its integers are big-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The stream was converted from Xen's legacy format.
    pub converted: bool,
}

impl Header {
    /// As bytes.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let options = if self.converted { CONVERTED } else { 0 };
        let low = u64::from(VERSION) << 32 | u64::from(options);
        (u128::from(IDENT) << 64 | u128::from(low)).to_be_bytes()
    }

    pub(super) fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Self, Bad> {
        let mut fields = Fields::new(&bytes);
        let ident = fields.bytes().map(u64::from_be_bytes)?;
        if ident != IDENT {
            let bad = Bad::new(0, format!("the ident {IDENT:#x}"), format!("{ident:#x}"));
            return Err(match crate::tls::is_tls(&bytes) {
                true => bad.advising(crate::tls::TLS_CAME),
                false => bad,
            });
        }
        let version = fields.bytes().map(u32::from_be_bytes)?;
        if version != VERSION {
            let bad = Bad::new(
                8,
                format!("version {VERSION}"),
                format!("version {version}"),
            );
            return Err(bad.advising(NEWER));
        }
        let options = fields.bytes().map(u32::from_be_bytes)?;
        if options & BIG_ENDIAN != 0 {
            return Err(Bad::new(12, "a little-endian stream", "a big-endian one")
                .advising("convert it on a machine of its own kind"));
        }
        if options & !CONVERTED != 0 {
            return Err(Bad::new(
                12,
                "no reserved option",
                format!("options {options:#x}"),
            ));
        }
        Ok(Self {
            converted: options & CONVERTED != 0,
        })
    }
}

/// The kinds of emulators that the format knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EmulatorId {
    /// 0: not known.
    Unknown,
    /// 1: QEMU as Xen once forked it.
    QemuTraditional,
    /// 2: QEMU, and everybody else: ours.
    QemuUpstream,
}

impl EmulatorId {
    fn value(self) -> u32 {
        match self {
            Self::Unknown => 0,
            Self::QemuTraditional => 1,
            Self::QemuUpstream => 2,
        }
    }
}

/// Which emulator a record belongs to. One record of a type for each, in each epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Emulator {
    /// Its kind.
    pub id: EmulatorId,
    /// Its number.
    pub index: u32,
}

impl Emulator {
    /// One of ours.
    pub fn ours(index: u32) -> Self {
        Self {
            id: EmulatorId::QemuUpstream,
            index,
        }
    }

    fn parse(fields: &mut Fields<'_>) -> Result<Self, Bad> {
        let at = fields.at();
        let id = match fields.u32()? {
            0 => EmulatorId::Unknown,
            1 => EmulatorId::QemuTraditional,
            2 => EmulatorId::QemuUpstream,
            other => {
                return Err(
                    Bad::new(at, "emulator id 0, 1 or 2", other.to_string()).advising(NEWER)
                );
            }
        };
        Ok(Self {
            id,
            index: fields.u32()?,
        })
    }

    fn put(self, body: &mut Vec<u8>) {
        body.extend(self.id.value().to_le_bytes());
        body.extend(self.index.to_le_bytes());
    }
}

/// What one side of a checkpointed pair tells the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// 0: primary to secondary: start a checkpoint.
    New,
    /// 1: secondary to primary: its machine is suspended.
    Suspended,
    /// 2: secondary to primary: the checkpoint has been taken.
    Ready,
    /// 3: secondary to primary: its machine runs again.
    Resumed,
}

impl Control {
    const ALL: [Self; 4] = [Self::New, Self::Suspended, Self::Ready, Self::Resumed];
}

/// Key and value of an option, in the order they were written.
pub type Options = Vec<(String, String)>;

/// A record of the outer layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Nothing follows.
    End,
    /// The next bytes are a whole image: its headers, and its records through its own END.
    LibxcContext,
    /// Names and options of an emulator.
    EmulatorXenstoreData(Emulator, Options),
    /// The state of an emulator; to this layer, bytes.
    EmulatorContext(Emulator, Vec<u8>),
    /// All of a checkpoint's records of this layer have come.
    CheckpointEnd,
    /// A word between the sides of a checkpointed pair.
    CheckpointState(Control),
}

impl Record {
    /// Its type.
    pub fn kind(&self) -> u32 {
        match self {
            Self::End => END,
            Self::LibxcContext => LIBXC_CONTEXT,
            Self::EmulatorXenstoreData(..) => EMULATOR_XENSTORE_DATA,
            Self::EmulatorContext(..) => EMULATOR_CONTEXT,
            Self::CheckpointEnd => CHECKPOINT_END,
            Self::CheckpointState(_) => CHECKPOINT_STATE,
        }
    }

    /// Its body, without padding.
    pub fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Self::End | Self::LibxcContext | Self::CheckpointEnd => {}
            Self::EmulatorXenstoreData(emulator, options) => {
                emulator.put(&mut body);
                for text in options.iter().flat_map(|(key, value)| [key, value]) {
                    body.extend(text.as_bytes());
                    body.push(0);
                }
            }
            Self::EmulatorContext(emulator, blob) => {
                body.reserve_exact(8 + blob.len());
                emulator.put(&mut body);
                body.extend(blob);
            }
            Self::CheckpointState(control) => {
                let places = Control::ALL.iter().zip(0_u32..);
                let id = places
                    .filter(|(known, _)| *known == control)
                    .map(|(_, id)| id);
                body.extend(id.sum::<u32>().to_le_bytes());
                body.extend([0; 4]);
            }
        }
        body
    }

    /// From a type and a body. `None` for a type that this layer does not have.
    pub(super) fn parse(kind: u32, body: &[u8]) -> Result<Option<Self>, Bad> {
        let mut fields = Fields::new(body);
        let record = match kind {
            END => Self::End,
            LIBXC_CONTEXT => Self::LibxcContext,
            EMULATOR_XENSTORE_DATA => {
                let emulator = Emulator::parse(&mut fields)?;
                let at = fields.at();
                Self::EmulatorXenstoreData(emulator, parse_options(at, fields.rest())?)
            }
            EMULATOR_CONTEXT => {
                let emulator = Emulator::parse(&mut fields)?;
                Self::EmulatorContext(emulator, fields.rest().to_vec())
            }
            CHECKPOINT_END => Self::CheckpointEnd,
            CHECKPOINT_STATE => {
                let id = fields.u32()?;
                let known = usize::try_from(id).ok().and_then(|id| Control::ALL.get(id));
                let Some(control) = known else {
                    return Err(
                        Bad::new(0, "a control id of 0 to 3", id.to_string()).advising(NEWER)
                    );
                };
                fields.zero()?;
                Self::CheckpointState(*control)
            }
            _ => return Ok(None),
        };
        fields.done()?;
        Ok(Some(record))
    }
}

/// Whether a writer may put this option into a stream: a relative key of the characters that Xen's
/// store allows, a value without a NUL.
pub fn is_option(key: &str, value: &str) -> bool {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "/_@-".contains(letter);
    !key.is_empty() && !key.starts_with('/') && key.chars().all(allowed) && !value.contains('\0')
}

fn parse_options(at: usize, bytes: &[u8]) -> Result<Options, Bad> {
    let Some((last, texts)) = bytes.split_last() else {
        return Ok(Vec::new());
    };
    let bad = |expected: &str, got: String| Err(Bad::new(at, expected, got));
    if *last != 0 {
        return bad(
            "text that ends in NUL",
            format!("{last:#x} as its last byte"),
        );
    }
    let Ok(texts) = std::str::from_utf8(texts) else {
        return bad("UTF-8", "other bytes".to_owned());
    };
    let mut options = Vec::new();
    let mut texts = texts.split('\0');
    while let Some(key) = texts.next() {
        let Some(value) = texts.next() else {
            return bad("a value for each key", format!("the key '{key:.64}' alone"));
        };
        if !is_option(key, value) {
            return bad(
                "a relative key of letters, digits and /_@-",
                format!("'{}'", key.escape_debug().take(64).collect::<String>()),
            );
        }
        options.push((key.to_owned(), value.to_owned()));
    }
    Ok(options)
}

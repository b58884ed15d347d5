//! The simple format's bytes. All integers are little-endian.
//!
//! A stream is a [`Prologue`] and then records, each a [`Head`] and `length` bytes of body. The
//! other way, answers have the same shape.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first eight bytes of a stream.
pub(super) const MAGIC: [u8; 8] = *b"TIDEMARK";
/// The one version there is.
pub(super) const VERSION: u32 = 1;

/// Longest description of a guest, in bytes.
pub(super) const DESCRIPTION_MAX: u64 = 1 << 20;
/// Longest state of a device, in bytes.
pub(super) const DEVICE_MAX: u64 = 64 << 20;
/// Longest refusal, in bytes.
pub(super) const REFUSAL_MAX: u64 = 4 << 10;

/// Record and answer types.
pub(super) mod kind {
    /// Body: the guest's description.
    pub(in crate::stream) const OPEN: u32 = 1;
    /// Body: bytes that mean nothing.
    pub(in crate::stream) const PLAIN: u32 = 2;
    /// Body: page numbers, `arg` of them, 8 bytes each, then their data.
    pub(in crate::stream) const PAGES: u32 = 3;
    /// `arg`: the round. No body.
    pub(in crate::stream) const ROUND: u32 = 4;
    /// `arg`: the device. Body: its state.
    pub(in crate::stream) const DEVICE: u32 = 5;
    /// No body.
    pub(in crate::stream) const END: u32 = 6;
    /// No body.
    pub(in crate::stream) const GO: u32 = 7;
    /// No body.
    pub(in crate::stream) const ABORT: u32 = 8;
    /// No body.
    pub(in crate::stream) const OPENED: u32 = 0x101;
    /// No body.
    pub(in crate::stream) const PLAIN_COPIED: u32 = 0x102;
    /// `arg`: the round. Body: page numbers, 8 bytes each.
    pub(in crate::stream) const ROUND_TAKEN: u32 = 0x103;
    /// Body: 8 bytes, nanoseconds taken for evidence.
    pub(in crate::stream) const READY: u32 = 0x104;
    /// No body.
    pub(in crate::stream) const RUNNING: u32 = 0x105;
    /// Body: why, in UTF-8.
    pub(in crate::stream) const REFUSED: u32 = 0x106;
}

/// What a stream starts with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Prologue {
    pub(super) magic: [u8; 8],
    pub(super) version: U32,
    /// 0.
    pub(super) reserved: U32,
}

/// What every record and every answer starts with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Head {
    /// One of [`kind`].
    pub(super) kind: U32,
    /// Meaning depends on the kind; 0 where it has none.
    pub(super) arg: U32,
    /// Bytes of body.
    pub(super) length: U64,
}

/// Bytes of a [`Head`].
pub(super) const HEAD_BYTES: u64 = 16;

const _: () = assert!(size_of::<Prologue>() == 16);
const _: () = assert!(size_of::<Head>() == 16);

impl Head {
    pub(super) fn new(kind: u32, arg: u32, length: u64) -> Self {
        Self {
            kind: kind.into(),
            arg: arg.into(),
            length: length.into(),
        }
    }
}

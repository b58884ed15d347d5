//! What the objects of a checkpoint look like inside: its root, and the indexes of its pages.
//!
//! All integers are little-endian. References are 64 bytes each, as [`super::record`] has them.
//!
//! A root: "TMKROOT1", u32 number of indexes, u32 number of packs, u64 pages, u64 bytes of the rest;
//! the references; and the rest: the guest's stream without its pages. Indexes come in the order
//! in which they were made; of a page that several know, the last says where it is. The packs are
//! all that any of the indexes refers to: what gc must spare.
//!
//! An index: "TMKINDX1", u32 number of packs, u32 zero, u64 number of pages; the references of the
//! packs; and for each page, ascending, u64 its number, u32 which pack, u32 its place there in pages,
//! and the SHA-256 of its bytes.

use super::error::{StoreError, damaged};
use super::record::{Hash, Kind, Reference, StoredReference};
use std::fmt;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// The number of no page: the stream's format has 52 bits for one.
const PAGES_END: u64 = 1 << 52;

const ROOT_MAGIC: [u8; 8] = *b"TMKROOT1";
const INDEX_MAGIC: [u8; 8] = *b"TMKINDX1";

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RootHead {
    magic: [u8; 8],
    indexes: U32,
    packs: U32,
    pages: U64,
    rest: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct IndexHead {
    magic: [u8; 8],
    packs: U32,
    zero: U32,
    pages: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct StoredEntry {
    page: U64,
    pack: U32,
    place: U32,
    hash: Hash,
}

/// What a checkpoint consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) indexes: Vec<Reference>,
    pub(super) packs: Vec<Reference>,
    pub(super) pages: u64,
    /// The guest's stream without its pages.
    pub(super) rest: Vec<u8>,
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) page: u64,
    /// Among the packs that are known with it.
    pub(super) pack: u32,
    /// Pages of the pack before it.
    pub(super) place: u32,
    pub(super) hash: Hash,
}

/// Where some pages are, ascending by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) packs: Vec<Reference>,
    pub(super) entries: Vec<Entry>,
}

fn count(of: usize) -> U32 {
    u32::try_from(of).unwrap_or(u32::MAX).into()
}

fn size(of: usize) -> U64 {
    u64::try_from(of).unwrap_or(u64::MAX).into()
}

fn put(bytes: &mut Vec<u8>, references: &[Reference]) {
    for reference in references {
        bytes.extend(StoredReference::from(reference).as_bytes());
    }
}

/// Takes `count` elements off the front.
fn elements<'a, T: FromBytes + Immutable + KnownLayout + Unaligned>(
    what: &dyn fmt::Display,
    bytes: &'a [u8],
    count: U32,
) -> Result<(&'a [T], &'a [u8]), StoreError> {
    let count = usize::try_from(count.get()).unwrap_or(usize::MAX);
    <[T]>::ref_from_prefix_with_elems(bytes, count).map_err(|_| {
        let expected = format!("{count} elements of {} bytes", size_of::<T>());
        damaged(what, expected, format!("{} bytes", bytes.len()))
    })
}

fn head<'a, T: FromBytes + Immutable + KnownLayout + Unaligned>(
    what: &dyn fmt::Display,
    bytes: &'a [u8],
    magic: [u8; 8],
) -> Result<(T, &'a [u8]), StoreError> {
    if !bytes.starts_with(&magic) {
        let got: Vec<u8> = bytes.iter().take(8).copied().collect();
        return Err(damaged(
            what,
            magic.escape_ascii(),
            format!("'{}'", got.escape_ascii()),
        ));
    }
    T::read_from_prefix(bytes)
        .map_err(|_| damaged(what, "a head", format!("{} bytes", bytes.len())))
}

impl Root {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let head = RootHead {
            magic: ROOT_MAGIC,
            indexes: count(self.indexes.len()),
            packs: count(self.packs.len()),
            pages: self.pages.into(),
            rest: size(self.rest.len()),
        };
        let mut bytes = head.as_bytes().to_vec();
        put(&mut bytes, &self.indexes);
        put(&mut bytes, &self.packs);
        bytes.extend(&self.rest);
        bytes
    }

    pub(super) fn from_bytes(what: &dyn fmt::Display, bytes: &[u8]) -> Result<Self, StoreError> {
        let (head, rest): (RootHead, _) = head(what, bytes, ROOT_MAGIC)?;
        let (indexes, rest) = elements::<StoredReference>(what, rest, head.indexes)?;
        let (packs, rest) = elements::<StoredReference>(what, rest, head.packs)?;
        if u64::try_from(rest.len()) != Ok(head.rest.get()) {
            let expected = format!("{} bytes of stream", head.rest);
            return Err(damaged(what, expected, format!("{} bytes", rest.len())));
        }
        let read = |kind| move |stored: &StoredReference| stored.read(what, kind);
        Ok(Self {
            indexes: indexes
                .iter()
                .map(read(Kind::Index))
                .collect::<Result<_, _>>()?,
            packs: packs
                .iter()
                .map(read(Kind::Pack))
                .collect::<Result<_, _>>()?,
            pages: head.pages.get(),
            rest: rest.to_vec(),
        })
    }
}

impl Index {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let head = IndexHead {
            magic: INDEX_MAGIC,
            packs: count(self.packs.len()),
            zero: U32::ZERO,
            pages: size(self.entries.len()),
        };
        let mut bytes = head.as_bytes().to_vec();
        put(&mut bytes, &self.packs);
        for entry in &self.entries {
            let stored = StoredEntry {
                page: entry.page.into(),
                pack: entry.pack.into(),
                place: entry.place.into(),
                hash: entry.hash,
            };
            bytes.extend(stored.as_bytes());
        }
        bytes
    }

    pub(super) fn from_bytes(what: &dyn fmt::Display, bytes: &[u8]) -> Result<Self, StoreError> {
        let (head, rest): (IndexHead, _) = head(what, bytes, INDEX_MAGIC)?;
        let (packs, rest) = elements::<StoredReference>(what, rest, head.packs)?;
        let stored = <[StoredEntry]>::ref_from_bytes(rest).ok();
        let stored = stored.filter(|all| {
            u64::try_from(all.len()) == Ok(head.pages.get()) && head.zero == U32::ZERO
        });
        let Some(stored) = stored else {
            let expected = format!("{} entries of 48 bytes", head.pages);
            return Err(damaged(what, expected, format!("{} bytes", rest.len())));
        };
        let packs: Vec<Reference> = packs
            .iter()
            .map(|stored| stored.read(what, Kind::Pack))
            .collect::<Result<_, _>>()?;
        let mut entries = Vec::with_capacity(stored.len());
        let mut next = 0;
        for entry in stored {
            let entry = Entry {
                page: entry.page.get(),
                pack: entry.pack.get(),
                place: entry.place.get(),
                hash: entry.hash,
            };
            if !(next..PAGES_END).contains(&entry.page) {
                let expected = format!("a page from {next:#x} to {PAGES_END:#x}");
                return Err(damaged(what, expected, format!("{:#x}", entry.page)));
            }
            next = entry.page + 1;
            let pack = usize::try_from(entry.pack)
                .ok()
                .and_then(|at| packs.get(at));
            let end = (u64::from(entry.place) + 1) * 4096;
            if pack.is_none_or(|pack| end > pack.bytes) {
                let expected =
                    format!("page {:#x} within one of {} packs", entry.page, packs.len());
                let got = format!("place {} of pack {}", entry.place, entry.pack);
                return Err(damaged(what, expected, got));
            }
            entries.push(entry);
        }
        Ok(Self { packs, entries })
    }
}

//! What stands behind a name, and what refers to an object: fixed structs, sealed by a digest.

use super::error::{StoreError, damaged};
use crate::names::Name;
use sha2::{Digest, Sha256};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A SHA-256.
pub type Hash = [u8; 32];

/// The SHA-256 of some bytes.
pub fn hash(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// What an object holds; the ending of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// 1: pages, one after the other.
    Pack,
    /// 2: where pages are.
    Index,
    /// 3: what a checkpoint consists of.
    Root,
}

impl Kind {
    const ALL: [(Self, u32, &'static str); 3] = [
        (Self::Pack, 1, "pack"),
        (Self::Index, 2, "index"),
        (Self::Root, 3, "root"),
    ];

    fn value(self) -> u32 {
        let found = Self::ALL.iter().find(|(kind, ..)| *kind == self);
        found.map_or(0, |(_, value, _)| *value)
    }

    fn ending(self) -> &'static str {
        let found = Self::ALL.iter().find(|(kind, ..)| *kind == self);
        found.map_or("", |(.., ending)| ending)
    }
}

/// Which object. No two are ever called the same, whatever becomes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// The put that made it.
    pub put: Uuid,
    /// Its number there.
    pub number: u32,
    /// What it holds.
    pub kind: Kind,
}

impl ObjectId {
    /// From the last two parts of an object's path.
    pub fn parse(folder: &str, file: &str) -> Option<Self> {
        let (number, ending) = file.split_once('.')?;
        let (kind, ..) = Kind::ALL.iter().find(|(.., known)| *known == ending)?;
        let id = Self {
            put: Uuid::try_parse(folder).ok()?,
            number: number.parse().ok()?,
            kind: *kind,
        };
        // Nothing but what we call it ourselves.
        (id.to_string() == format!("{folder}/{file}")).then_some(id)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { put, number, kind } = self;
        write!(f, "{put}/{number}.{}", kind.ending())
    }
}

/// An object, as others refer to it: they know what it must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Which one.
    pub id: ObjectId,
    /// Its bytes.
    pub bytes: u64,
    /// Their SHA-256.
    pub hash: Hash,
}

/// A [`Reference`] as it is stored.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct StoredReference {
    put: [u8; 16],
    number: U32,
    kind: U32,
    bytes: U64,
    hash: Hash,
}

impl From<&Reference> for StoredReference {
    fn from(reference: &Reference) -> Self {
        Self {
            put: *reference.id.put.as_bytes(),
            number: reference.id.number.into(),
            kind: reference.id.kind.value().into(),
            bytes: reference.bytes.into(),
            hash: reference.hash,
        }
    }
}

impl StoredReference {
    /// Of an object of this kind; `what` holds the reference.
    pub(super) fn read(
        &self,
        what: &dyn fmt::Display,
        kind: Kind,
    ) -> Result<Reference, StoreError> {
        if self.kind.get() != kind.value() {
            let expected = format!("a reference to an object of kind {}", kind.value());
            return Err(damaged(what, expected, self.kind.get()));
        }
        Ok(Reference {
            id: ObjectId {
                put: Uuid::from_bytes(self.put),
                number: self.number.get(),
                kind,
            },
            bytes: self.bytes.get(),
            hash: self.hash,
        })
    }
}

/// What is known of a stored checkpoint without looking at its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it consists of.
    pub root: Reference,
    /// When it was put, in milliseconds since 1970.
    pub created_ms: u64,
    /// Pages of the guest's memory.
    pub pages: u64,
    /// Pages that no checkpoint it builds on had: what putting it wrote.
    pub new_pages: u64,
    /// Bytes of all objects that putting it wrote.
    pub new_bytes: u64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct StoredRecord {
    version: U64,
    root: StoredReference,
    created_ms: U64,
    pages: U64,
    new_pages: U64,
    new_bytes: U64,
    /// Of the name and all that stands above.
    seal: Hash,
}

const RECORD_VERSION: u64 = 1;

impl StoredRecord {
    fn sealed(&self, name: &Name) -> Hash {
        let bytes = self.as_bytes();
        let body = bytes.len() - size_of::<Hash>();
        let mut seal = Sha256::new_with_prefix(bytes.get(..body).unwrap_or(bytes));
        seal.update(name.sort_key());
        seal.finalize().into()
    }
}

impl Record {
    /// As bytes, which are good for this name only.
    pub fn to_bytes(&self, name: &Name) -> Vec<u8> {
        let mut stored = StoredRecord {
            version: RECORD_VERSION.into(),
            root: (&self.root).into(),
            created_ms: self.created_ms.into(),
            pages: self.pages.into(),
            new_pages: self.new_pages.into(),
            new_bytes: self.new_bytes.into(),
            seal: Hash::default(),
        };
        stored.seal = stored.sealed(name);
        stored.as_bytes().to_vec()
    }

    /// From bytes that are to stand behind `name`.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if they were not put there under this name.
    pub fn from_bytes(name: &Name, bytes: &[u8]) -> Result<Self, StoreError> {
        let what = format!("the entry of '{name}'");
        let stored = StoredRecord::read_from_bytes(bytes).map_err(|_| {
            let expected = format!("{} bytes", size_of::<StoredRecord>());
            damaged(&what, expected, format!("{} bytes", bytes.len()))
        })?;
        if stored.seal != stored.sealed(name) {
            let expected = "bytes that match their seal and their name";
            return Err(damaged(&what, expected, "others"));
        }
        if stored.version.get() != RECORD_VERSION {
            let expected = format!("version {RECORD_VERSION}");
            return Err(damaged(&what, expected, stored.version.get()));
        }
        Ok(Self {
            root: stored.root.read(&what, Kind::Root)?,
            created_ms: stored.created_ms.get(),
            pages: stored.pages.get(),
            new_pages: stored.new_pages.get(),
            new_bytes: stored.new_bytes.get(),
        })
    }

    /// When it was put.
    pub fn created(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.created_ms)
    }
}

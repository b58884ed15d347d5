//! What stands behind a key in etcd: what a name was, what it is to be, and from which generation on.
//!
//! Everything is sealed with the key that it stands behind: the SHA-256 of both comes last.

use crate::store::error::{StoreError, damaged};
use crate::store::record::Hash;
use sha2::{Digest, Sha256};

fn seal(key: &[u8], bytes: &[u8]) -> Hash {
    let length = u64::try_from(key.len()).unwrap_or(u64::MAX);
    let mut seal = Sha256::new_with_prefix(length.to_le_bytes());
    seal.update(key);
    seal.update(bytes);
    seal.finalize().into()
}

/// Bytes to stand behind a key.
pub(super) fn sealed(key: &[u8], mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend(seal(key, &bytes));
    bytes
}

/// The bytes that were put behind a key, from those that are there.
pub(super) fn opened<'b>(key: &[u8], bytes: &'b [u8], what: &str) -> Result<&'b [u8], StoreError> {
    let split = bytes.split_last_chunk::<{ size_of::<Hash>() }>();
    let sound = split.filter(|(bytes, found)| seal(key, bytes) == **found);
    sound.map(|(bytes, _)| bytes).ok_or_else(|| {
        let expected = "bytes that match their seal and their key";
        damaged(what, expected, format!("{} others", bytes.len()))
    })
}

/// An entry of two ages. It is what it was before `generation` until that one is committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Aged {
    /// The generation with which `new` holds.
    pub(super) generation: u64,
    /// Nothing, for a name that goes.
    pub(super) new: Option<Vec<u8>>,
    /// Nothing, for a name that comes.
    pub(super) old: Option<Vec<u8>>,
}

impl Aged {
    /// What a reader sees when `committed` generations are.
    pub(super) fn visible(&self, committed: u64) -> Option<&Vec<u8>> {
        if self.generation <= committed {
            self.new.as_ref()
        } else {
            self.old.as_ref()
        }
    }

    /// u64 generation; for each of new and old a byte, 1 if there is one, u32 its length, and the
    /// bytes. All little-endian.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.generation.to_le_bytes().to_vec();
        for value in [&self.new, &self.old] {
            bytes.push(u8::from(value.is_some()));
            let value = value.as_deref().unwrap_or_default();
            let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
            bytes.extend(length.to_le_bytes());
            bytes.extend(value);
        }
        bytes
    }

    /// From bytes of any origin, which stand behind `what`.
    pub(super) fn from_bytes(what: &str, bytes: &[u8]) -> Result<Self, StoreError> {
        let bad = || {
            damaged(
                what,
                "an entry of two ages",
                format!("{} bytes", bytes.len()),
            )
        };
        let (generation, mut rest) = bytes.split_first_chunk::<8>().ok_or_else(bad)?;
        let mut value = || -> Result<Option<Vec<u8>>, StoreError> {
            let (there, after) = rest.split_first().ok_or_else(bad)?;
            let (length, after) = after.split_first_chunk::<4>().ok_or_else(bad)?;
            let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| bad())?;
            let (value, after) = after.split_at_checked(length).ok_or_else(bad)?;
            rest = after;
            match (there, value) {
                (0, []) => Ok(None),
                (1, value) => Ok(Some(value.to_vec())),
                _ => Err(bad()),
            }
        };
        let (new, old) = (value()?, value()?);
        if !rest.is_empty() {
            return Err(bad());
        }
        Ok(Self {
            generation: u64::from_le_bytes(*generation),
            new,
            old,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_good_for_its_key_only() {
        let bytes = sealed(b"key", b"bytes".to_vec());
        assert_eq!(opened(b"key", &bytes, "x").unwrap(), b"bytes");
        assert!(opened(b"kez", &bytes, "x").is_err());
        for bit in 0..8 * bytes.len() {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(opened(b"key", &other, "x").is_err(), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert!(opened(b"key", &bytes[..end], "x").is_err(), "{end}");
        }
    }

    #[test]
    fn entries_come_back_and_others_are_refused() {
        let aged = Aged {
            generation: 7,
            new: Some(b"new".to_vec()),
            old: None,
        };
        let bytes = aged.to_bytes();
        assert_eq!(Aged::from_bytes("x", &bytes).unwrap(), aged);
        for end in 0..bytes.len() {
            assert!(Aged::from_bytes("x", &bytes[..end]).is_err(), "{end}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Aged::from_bytes("x", &longer).is_err());
        assert_eq!(aged.visible(6), None);
        assert_eq!(aged.visible(7).map(Vec::as_slice), Some(&b"new"[..]));
    }
}

//! What one sector holds: which one it is, which write put it there, and a body that follows from
//! both, under a checksum. A sector of any other write, place or run is told apart.

use crate::guest::block::splitmix;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a sector: the unit in which a disk may tear a write.
pub const SECTOR_BYTES: usize = 512;

/// "tidejrnl" in memory order.
const MAGIC: u64 = u64::from_le_bytes(*b"tidejrnl");
/// Words between the header and the checksum.
const BODY_WORDS: usize = 59;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Wire {
    magic: U64,
    seed: U64,
    sector: U64,
    sequence: U64,
    body: [U64; BODY_WORDS],
    checksum: U64,
}
const _: () = assert!(size_of::<Wire>() == SECTOR_BYTES);

/// Whose, where and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The run.
    pub seed: u64,
    /// Number of the sector on the disk.
    pub sector: u64,
    /// How often its block has been written; 0 is the formatted disk.
    pub sequence: u64,
}

/// What a sector was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A whole sector of some journal.
    Whole(Stamp),
    /// Nothing but zeroes: never written, or discarded.
    Blank,
    /// Neither: its bytes do not belong together.
    Broken,
}

impl Stamp {
    fn body(self) -> impl Iterator<Item = u64> {
        let first = splitmix(splitmix(splitmix(self.seed) ^ self.sector) ^ self.sequence);
        (1_u64..).map(move |n| first.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// Fills a sector. `bytes` that are no sector stay as they are.
    pub fn fill(self, bytes: &mut [u8]) {
        let mut body = [U64::ZERO; BODY_WORDS];
        for (word, value) in body.iter_mut().zip(self.body()) {
            *word = value.into();
        }
        let mut wire = Wire {
            magic: MAGIC.into(),
            seed: self.seed.into(),
            sector: self.sector.into(),
            sequence: self.sequence.into(),
            body,
            checksum: U64::ZERO,
        };
        wire.checksum = checksum(wire.as_bytes()).into();
        if bytes.len() == SECTOR_BYTES {
            bytes.copy_from_slice(wire.as_bytes());
        }
    }
}

/// Reads a sector.
pub fn read(bytes: &[u8]) -> Content {
    let Ok(wire) = Wire::read_from_bytes(bytes) else {
        return Content::Broken;
    };
    if wire.magic.get() != MAGIC || wire.checksum.get() != checksum(bytes) {
        return if bytes.iter().all(|byte| *byte == 0) {
            Content::Blank
        } else {
            Content::Broken
        };
    }
    let stamp = Stamp {
        seed: wire.seed.get(),
        sector: wire.sector.get(),
        sequence: wire.sequence.get(),
    };
    let same = |(word, value): (&U64, u64)| word.get() == value;
    if wire.body.iter().zip(stamp.body()).all(same) {
        Content::Whole(stamp)
    } else {
        Content::Broken
    }
}

/// Of all words but the last.
fn checksum(sector: &[u8]) -> u64 {
    let covered = sector.len().saturating_sub(8);
    digest(MAGIC, sector.get(..covered).unwrap_or_default())
}

/// Goes on with a digest over the whole words of `bytes`. Each word changes it whatever came
/// before; it is no defence against somebody who wants two disks to look alike.
pub fn digest(start: u64, bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(start, |sum, word| {
        (sum ^ u64::from_le_bytes(*word))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        seed: 1,
        sector: 77,
        sequence: 5,
    };

    #[test]
    fn a_sector_comes_back() {
        let mut bytes = [0; SECTOR_BYTES];
        STAMP.fill(&mut bytes);
        assert_eq!(read(&bytes), Content::Whole(STAMP));
        assert_eq!(read(&[0; SECTOR_BYTES]), Content::Blank);
    }

    #[test]
    fn any_changed_byte_breaks_it() {
        for at in 0..SECTOR_BYTES {
            let mut bytes = [0; SECTOR_BYTES];
            STAMP.fill(&mut bytes);
            bytes[at] ^= 0x10;
            assert_eq!(read(&bytes), Content::Broken, "byte {at}");
        }
    }

    #[test]
    fn the_header_of_one_write_on_the_body_of_another_is_broken() {
        let (mut old, mut new) = ([0; SECTOR_BYTES], [0; SECTOR_BYTES]);
        STAMP.fill(&mut old);
        Stamp {
            sequence: 6,
            ..STAMP
        }
        .fill(&mut new);
        new[256..].copy_from_slice(&old[256..]);
        assert_eq!(read(&new), Content::Broken);
    }
}

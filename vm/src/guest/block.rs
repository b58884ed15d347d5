//! What a disk block holds: which block of which disk it is, which write put it there, and a
//! pattern that fills the rest. Any two different (block, sequence) pairs differ in every word.

use driver::dirty::PAGE_SIZE;

/// Bytes of a block, and of the page it is read into.
pub const BLOCK_BYTES: usize = 4096;
const _: () = assert!(PAGE_SIZE == 4096);

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Which block: disk number in the upper 16 bits, block number below.
    pub block: u64,
    /// How often it has been written; 0 is the formatted disk.
    pub sequence: u32,
}

/// A page buffer, aligned so that words can be compared.
pub type Page = [u8; BLOCK_BYTES];

impl Stamp {
    /// The content of a page frame into which nothing was read yet.
    pub const fn empty(frame: u64) -> Self {
        Self {
            block: u64::MAX - frame,
            sequence: u32::MAX,
        }
    }

    /// Block `block` of disk `disk`.
    pub const fn of(disk: u16, block: u64, sequence: u32) -> Self {
        Self {
            block: (disk as u64) << 48 | block & 0xffff_ffff_ffff,
            sequence,
        }
    }

    fn words(self) -> impl Iterator<Item = u64> {
        let seed = splitmix(splitmix(self.block) ^ u64::from(self.sequence));
        let pattern =
            (1_u64..).map(move |n| seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        [self.block, u64::from(self.sequence)]
            .into_iter()
            .chain(pattern)
    }

    /// Fills a page.
    pub fn fill(self, page: &mut Page) {
        let (words, _) = page.as_chunks_mut::<8>();
        for (word, value) in words.iter_mut().zip(self.words()) {
            *word = value.to_le_bytes();
        }
    }

    /// Whether a page holds exactly this.
    pub fn matches(self, page: &Page) -> bool {
        let (words, _) = page.as_chunks::<8>();
        let same = |(word, value): (&[u8; 8], u64)| u64::from_le_bytes(*word) == value;
        words.iter().zip(self.words()).all(same)
    }

    /// What a page says it holds: block and sequence.
    pub fn head(page: &Page) -> (u64, u64) {
        let mut first = [0; 16];
        first.copy_from_slice(&page[..16]);
        Self::read(first)
    }

    /// What the first bytes of a page say it holds: block and sequence.
    pub fn read(first: [u8; 16]) -> (u64, u64) {
        let [a, b] = [&first[..8], &first[8..]].map(|half| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(half);
            u64::from_le_bytes(bytes)
        });
        (a, b)
    }
}

/// The splitmix64 step: a bijection that leaves no pattern.
pub fn splitmix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_tells_stamps_apart() {
        let (mut a, mut b) = ([0; BLOCK_BYTES], [0; BLOCK_BYTES]);
        Stamp::of(0, 7, 1).fill(&mut a);
        Stamp::of(0, 7, 2).fill(&mut b);
        assert!(Stamp::of(0, 7, 1).matches(&a));
        assert!(!Stamp::of(0, 7, 2).matches(&a));
        let differing = a.chunks(8).zip(b.chunks(8)).filter(|(x, y)| x != y).count();
        assert_eq!(differing, 511, "all but the block number");
        a[4095] ^= 1;
        assert!(!Stamp::of(0, 7, 1).matches(&a));
    }
}

//! Which pages a device writes.

use super::Result;
use crate::memory::Random;

/// A choice of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Anywhere, with the same chance.
    Random,
    /// Runs of so many pages, at multiples of their length.
    Runs(u64),
    /// One after the other.
    Sequential,
    /// Page n with a chance of about 1 in n, so that the hot ones lie together.
    Zipf,
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Random => f.write_str("random"),
            Self::Runs(pages) => write!(f, "runs of {pages}"),
            Self::Sequential => f.write_str("sequential"),
            Self::Zipf => f.write_str("zipf"),
        }
    }
}

/// The next page of a Zipf distribution over `0..2^power`, by its octaves.
pub fn zipf(random: &mut Random, power: u32) -> u64 {
    let octave = random.next().unwrap_or(0) % u64::from(power);
    let low = 1 << octave;
    low + random.next().unwrap_or(0) % low
}

impl Pattern {
    /// `count` distinct pages of `0..2^power`, in the order in which they are written.
    pub fn pages(self, power: u32, count: usize, seed: u64) -> Result<Vec<u64>> {
        let all = 1_u64 << power;
        let mut seen = vec![0_u64; usize::try_from(all.div_ceil(64))?];
        let mut random = Random(seed);
        let mut pages = Vec::with_capacity(count);
        let mut add = |page: u64, pages: &mut Vec<u64>| -> Result<()> {
            let word = &mut seen[usize::try_from(page / 64)?];
            if *word & (1 << (page % 64)) == 0 && pages.len() < count {
                *word |= 1 << (page % 64);
                pages.push(page);
            }
            Ok(())
        };
        let mut next = random.next().unwrap_or(0) % all;
        let mut draws = 0;
        while pages.len() < count {
            let (first, run) = match self {
                Self::Random => (random.next().unwrap_or(0) % all, 1),
                Self::Runs(run) => (random.next().unwrap_or(0) % (all / run) * run, run),
                Self::Sequential => (next, 1),
                // Few distinct pages are drawn late: what is left is taken in order.
                Self::Zipf if draws > 20 * count => (next, 1),
                Self::Zipf => (zipf(&mut random, power), 1),
            };
            next = (next + 1) % all;
            draws += 1;
            for page in first..first + run {
                add(page, &mut pages)?;
            }
        }
        Ok(pages)
    }
}

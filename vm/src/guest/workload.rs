//! What the guest's CPU does with its disk: a seeded walk over page frames and blocks.

use super::block::splitmix;
use crate::error::VmError;
use serde::{Deserialize, Serialize};

/// The pattern of a walk, over page frames and so over the blocks behind them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Every frame equally often.
    #[default]
    Random,
    /// The n-th most popular frame about 1/n as often as the first, popularity scattered.
    Zipf,
    /// One after the other.
    Sequential,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The frame that the walk fell on.
    pub frame: u64,
    /// Write a block rather than read one.
    pub write: bool,
}

/// A walk. Its state is all of the CPU's registers, so to speak: it moves with the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Walk {
    pattern: Pattern,
    frames: u64,
    /// Writes in a hundred requests.
    writes_percent: u8,
    random: u64,
    cursor: u64,
}

impl Walk {
    /// A walk over `frames` frames with the given share of writes.
    ///
    /// # Errors
    /// [`VmError::Shape`] without frames or with more than 100 %.
    pub fn new(
        pattern: Pattern,
        frames: u64,
        writes_percent: u8,
        seed: u64,
    ) -> Result<Self, VmError> {
        let walk = Self {
            pattern,
            frames,
            writes_percent,
            random: splitmix(seed),
            cursor: 0,
        };
        walk.check(frames)?;
        Ok(walk)
    }

    /// Whether a walk from outside fits a guest with `frames` frames.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn check(&self, frames: u64) -> Result<(), VmError> {
        if frames == 0 || self.frames != frames {
            return Err(VmError::shape(
                "frames of a walk",
                "as many as the guest has",
                self.frames,
            ));
        }
        if self.writes_percent > 100 {
            return Err(VmError::shape(
                "share of writes",
                "at most 100 %",
                self.writes_percent,
            ));
        }
        Ok(())
    }

    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        splitmix(self.random)
    }

    /// The next step.
    pub fn step(&mut self) -> Step {
        let write = self.next() % 100 < u64::from(self.writes_percent);
        let frame = match self.pattern {
            Pattern::Sequential => {
                self.cursor = self.cursor.wrapping_add(1);
                self.cursor % self.frames
            }
            Pattern::Random => self.next() % self.frames,
            Pattern::Zipf => {
                // An octave of ranks is picked evenly, then a rank in it: 1/n up to a factor of
                // two, in integers.
                let octaves = u64::from(u64::BITS - self.frames.leading_zeros());
                let low = 1_u64 << (self.next() % octaves);
                let rank = (low + self.next() % low - 1) % self.frames;
                rank.wrapping_mul(2_654_435_761) % self.frames
            }
        };
        Step { frame, write }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pattern: Pattern) -> Vec<u64> {
        let mut walk = Walk::new(pattern, 1000, 30, 42).unwrap();
        let mut counts = vec![0; 1000];
        for _ in 0..100_000 {
            counts[usize::try_from(walk.step().frame).unwrap()] += 1;
        }
        counts.sort_unstable_by(|a: &u64, b| b.cmp(a));
        counts
    }

    #[test]
    fn patterns_are_what_they_are_called() {
        let random = counts(Pattern::Random);
        assert!(random[0] < 160 && random[999] > 50);
        let zipf = counts(Pattern::Zipf);
        assert!(zipf[0] > 50 * zipf[500].max(1));
        assert!(counts(Pattern::Sequential).iter().all(|n| *n == 100));
    }

    #[test]
    fn the_same_state_goes_the_same_way() {
        let mut a = Walk::new(Pattern::Zipf, 1000, 30, 42).unwrap();
        a.step();
        let mut b = a;
        assert!((0..100).all(|_| a.step() == b.step()));
    }
}

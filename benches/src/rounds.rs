//! Rounds of a subject and its peer, in turn.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Ratios subject : peer of interleaved rounds.
#[derive(Clone, Debug, Default)]
pub struct Ratio {
    /// In ascending order.
    ratios: Vec<f64>,
    /// Median time of the subject.
    pub subject: Duration,
    /// Median time of the peer.
    pub peer: Duration,
}

/// Waits until the system has written out what it holds: a build that has just ended leaves it busy
/// on a core that the measurement shares.
pub fn settle() {
    rustix::fs::sync();
}

/// Runs `subject` and `peer` in turn, `rounds` times after one round that is thrown away.
///
/// Each returns the time of what it measured; what it prepares and checks is not in it.
pub fn interleave(
    rounds: usize,
    subject: impl FnMut() -> Duration,
    peer: impl FnMut() -> Duration,
) -> Ratio {
    interleave_until(rounds..=rounds, f64::INFINITY, subject, peer)
}

/// [`interleave`] for as many rounds as it takes until the median is known within `width`
/// ([`Ratio::confidence`]), at least the first and at most the last of `rounds`.
pub fn interleave_until(
    rounds: RangeInclusive<usize>,
    width: f64,
    mut subject: impl FnMut() -> Duration,
    mut peer: impl FnMut() -> Duration,
) -> Ratio {
    subject();
    peer();
    let mut all = Ratio::default();
    let (mut subjects, mut peers) = (Vec::new(), Vec::new());
    for round in 0..(*rounds.end()).max(1) {
        let [low, high] = all.confidence();
        if round >= *rounds.start() && high - low <= width {
            break;
        }
        // Each goes first in every other round, so that neither always has the warmer caches.
        let (s, p) = if round % 2 == 0 {
            let s = subject();
            (s, peer())
        } else {
            let p = peer();
            (subject(), p)
        };
        all.ratios.push(s.as_secs_f64() / p.as_secs_f64());
        all.ratios.sort_by(f64::total_cmp);
        subjects.push(s);
        peers.push(p);
    }
    subjects.sort();
    peers.sort();
    Ratio {
        subject: subjects[subjects.len() / 2],
        peer: peers[peers.len() / 2],
        ..all
    }
}

impl Ratio {
    /// The median ratio.
    pub fn median(&self) -> f64 {
        self.ratios[self.ratios.len() / 2]
    }

    /// How many rounds there were.
    pub fn rounds(&self) -> usize {
        self.ratios.len()
    }

    /// Between which two ratios the true median lies, 19 times out of 20: so many ranks of the
    /// rounds to both sides of the middle, whatever the noise is distributed like.
    pub fn confidence(&self) -> [f64; 2] {
        // Of n rounds half fall to each side, give or take 1.96 * sqrt(n) / 2.
        let apart = (self.ratios.len() * 96 / 100).isqrt() + 1;
        let middle = self.ratios.len() / 2;
        let at = |rank: Option<usize>| rank.and_then(|rank| self.ratios.get(rank));
        match (at(middle.checked_sub(apart)), at(middle.checked_add(apart))) {
            (Some(&low), Some(&high)) => [low, high],
            _ => [0.0, f64::INFINITY],
        }
    }

    /// The smallest and the largest ratio.
    pub fn spread(&self) -> [f64; 2] {
        [self.ratios[0], self.ratios[self.ratios.len() - 1]]
    }
}

//! Rounds of a subject and its peer, in turn.

use std::time::Duration;

/// Ratios subject : peer of interleaved rounds.
#[derive(Clone, Debug)]
pub struct Ratio {
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
    mut subject: impl FnMut() -> Duration,
    mut peer: impl FnMut() -> Duration,
) -> Ratio {
    subject();
    peer();
    let mut ratios = Vec::new();
    let (mut subjects, mut peers) = (Vec::new(), Vec::new());
    for round in 0..rounds.max(1) {
        // Each goes first in every other round, so that neither always has the warmer caches.
        let (s, p) = if round % 2 == 0 {
            let s = subject();
            (s, peer())
        } else {
            let p = peer();
            (subject(), p)
        };
        ratios.push(s.as_secs_f64() / p.as_secs_f64());
        subjects.push(s);
        peers.push(p);
    }
    ratios.sort_by(f64::total_cmp);
    subjects.sort();
    peers.sort();
    Ratio {
        subject: subjects[subjects.len() / 2],
        peer: peers[peers.len() / 2],
        ratios,
    }
}

impl Ratio {
    /// The median ratio.
    pub fn median(&self) -> f64 {
        self.ratios[self.ratios.len() / 2]
    }

    /// The smallest and the largest ratio.
    pub fn spread(&self) -> [f64; 2] {
        [self.ratios[0], self.ratios[self.ratios.len() - 1]]
    }
}

//! What a journal has to say.

use serde::Serialize;

/// Sectors that did not hold what they must, each fault counted once until its block is written
/// again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// An acknowledged write never arrived.
    pub lost: u64,
    /// An older write came again over a newer one that had been read already.
    pub stale: u64,
    /// The bytes of a sector do not belong together, or only some sectors of a write arrived.
    pub torn: u64,
    /// A sector of another place.
    pub misplaced: u64,
}

impl Counts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.lost + self.stale + self.torn + self.misplaced
    }
}

/// How a run ended.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Requests answered, the formatting and the final reading not counted.
    pub requests: u64,
    /// Of these, reads.
    pub reads: u64,
    /// Of these, writes.
    pub writes: u64,
    /// Of these, flushes.
    pub flushes: u64,
    /// Most requests that were with the system at one time.
    pub max_in_flight: u64,
    /// Longest time that one request took, in milliseconds.
    pub longest_ms: f64,
    /// From the first request after formatting to the last, in seconds.
    pub seconds: f64,
    /// What was wrong with the disk's contents.
    #[serde(flatten)]
    pub counts: Counts,
    /// Requests that the system answered with an error.
    pub failed: u64,
    /// Sectors that were read at the end and judged.
    pub sectors_verified: u64,
    /// Digest of the span as it was read at the end: of equal spans it is equal.
    pub digest: String,
}

impl Report {
    /// Whether the disk did all that was asked of it, and everything was verified.
    pub fn is_good(&self) -> bool {
        self.counts.total() == 0 && self.failed == 0 && self.sectors_verified != 0
    }
}

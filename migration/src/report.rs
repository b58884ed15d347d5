//! What a migration tells about itself. All of it was measured in the run it describes.

use crate::guest::Paused;
use serde::Serialize;
use std::time::Duration;

/// What one source contributed to a round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceShare {
    /// Name of the source.
    pub name: String,
    /// Pages of 4 KiB that it reported.
    pub pages: u64,
    /// Of those, pages whose bytes the destination already had: reported though unchanged. A page
    /// that several sources reported counts for each.
    pub unchanged: u64,
}

/// One round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RoundReport {
    /// Number of the round; 1 is the bulk round, which sends everything.
    pub round: u32,
    /// Pages of 4 KiB sent.
    pub pages: u64,
    /// Of those, pages of zeros that went without their bytes. Only in the bulk round.
    pub zeros: u64,
    /// Bytes on the wire, headers included.
    pub bytes: u64,
    /// Pages sent again though their bytes had not changed since they were sent last. 0 in the
    /// bulk round, where nothing had been sent.
    pub unchanged: u64,
    /// Who reported the pages. Empty in the bulk round.
    pub shares: Vec<SourceShare>,
    /// Reporting and sending, until the destination's acknowledgement, in nanoseconds.
    pub elapsed_ns: u64,
    /// Of that, collecting the reports, in nanoseconds.
    pub harvest_ns: u64,
    /// How much the guest was slowed down meanwhile, in percent.
    pub throttle: u8,
    /// The guest was paused.
    pub last: bool,
}

/// A whole migration.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Every round, in order.
    pub rounds: Vec<RoundReport>,
    /// How the pause went.
    pub paused: Paused,
    /// From the order to pause until the destination said that the guest runs, without the time
    /// taken for evidence and judgement.
    pub downtime: Duration,
    /// Taken by evidence and judgement while neither side ran the guest.
    pub judging: Duration,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// How long a plain copy of the same memory over the same socket took, if one was asked for.
    pub plain_copies: Vec<Duration>,
    /// The granularity each source works with, in bytes.
    pub granularity: Vec<(String, u64)>,
}

impl Report {
    /// Bytes per second of guest memory in the bulk round.
    pub fn bulk_rate(&self) -> Option<f64> {
        let bulk = self.rounds.first()?;
        rate(self.memory_bytes, Duration::from_nanos(bulk.elapsed_ns))
    }

    /// Bytes per second of the median plain copy.
    pub fn plain_rate(&self) -> Option<f64> {
        let mut times = self.plain_copies.clone();
        times.sort();
        rate(self.memory_bytes, *times.get(times.len() / 2)?)
    }

    /// Rounds after the bulk round that sent at least one page whose bytes had changed since it
    /// had been sent.
    pub fn redirtied_rounds(&self) -> usize {
        let again = |r: &&RoundReport| r.round > 1 && r.pages > r.unchanged;
        self.rounds.iter().filter(again).count()
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate for people; sizes are far below 2^53"
)]
fn rate(bytes: u64, elapsed: Duration) -> Option<f64> {
    let seconds = elapsed.as_secs_f64();
    (seconds > 0.0).then(|| bytes as f64 / seconds)
}

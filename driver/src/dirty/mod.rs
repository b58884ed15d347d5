//! Which pages were written: the sources that know, and the set they report into.

pub mod harvest;
pub mod records;
mod scan;
mod set;
mod tracker;

pub use records::RecordsSource;
pub use scan::Scanner;
pub use set::{DirtySet, Runs};
pub use tracker::TrackerSource;

use std::ops::Range;

/// Pages are counted in units of this many bytes, whatever granularity a source tracks with.
pub const PAGE_SIZE: u64 = 4096;

/// Why a source cannot track or report.
#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    /// The bus failed; what was not yet reported must be taken for dirty.
    #[error(transparent)]
    Bus(#[from] crate::bus::BusError),
    /// The ranges or the granularity cannot be tracked by this source.
    #[error("cannot track {what}: {why}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why not.
        why: String,
    },
    /// The source has not been started, or has been stopped.
    #[error("tracking is not started")]
    NotStarted,
}

/// Somebody who knows which pages were written.
///
/// The shape is that of VFIO's DMA logging as vfio-ioctls presents it, so that a VMM can put one in
/// the other's place. A page that was written after [`start`](DirtySource::start) and before the
/// last [`report`](DirtySource::report) is in at least one report.
pub trait DirtySource: Send {
    /// Starts tracking writes to `ranges` (bytes, IOVA) with pages of `granularity` bytes, a hint;
    /// returns the granularity in force.
    fn start(&mut self, ranges: &[Range<u64>], granularity: u64) -> Result<u64, DirtyError>;
    /// Adds the pages of `range` written since the last report to `into`, and forgets them. What
    /// was reported before an error stays in `into`.
    fn report(&mut self, range: Range<u64>, into: &mut DirtySet) -> Result<(), DirtyError>;
    /// Takes pages back that a round reported and failed to send: the next report has them.
    fn put_back(&mut self, pages: &DirtySet) -> Result<(), DirtyError>;
    /// Stops tracking. What was not reported is forgotten.
    fn stop(&mut self) -> Result<(), DirtyError>;
}

//! The dirty log as a source of dirty pages, beside trackers, records and what else knows of writes.

use super::{Frontend, VhostUserError};
use crate::dirty::{DirtyError, DirtySet, DirtySource, PAGE_SIZE};
use probe::probe;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a backend of vhost-user writes to the memory that it shares.
///
/// Whoever pauses the guest stops the backend's queues first
/// ([`stop_queue`](Frontend::stop_queue)): the report after that is the last word.
#[derive(Debug)]
pub struct LogSource {
    frontend: Arc<Mutex<Frontend>>,
    /// Taken from the log or put back, and not yet reported.
    pending: DirtySet,
}

fn refused(error: VhostUserError) -> DirtyError {
    match error {
        VhostUserError::NotLogging => DirtyError::NotStarted,
        other => DirtyError::Unsupported {
            what: "by the log of a vhost-user backend".to_owned(),
            why: other.to_string(),
        },
    }
}

impl LogSource {
    /// A log that is off. Others may use the frontend meanwhile, but not its log.
    pub fn new(frontend: Arc<Mutex<Frontend>>) -> Self {
        Self {
            frontend,
            pending: DirtySet::default(),
        }
    }

    fn frontend(&self) -> MutexGuard<'_, Frontend> {
        self.frontend.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DirtySource for LogSource {
    fn start(&mut self, ranges: &[Range<u64>], _granularity: u64) -> Result<u64, DirtyError> {
        self.frontend().start_log().map_err(refused)?;
        let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        self.pending = DirtySet::new(end.div_ceil(PAGE_SIZE));
        Ok(PAGE_SIZE)
    }

    fn report(&mut self, range: Range<u64>, into: &mut DirtySet) -> Result<(), DirtyError> {
        probe!(tidemark, harvest_start, range.start, range.end);
        let mut all = std::mem::take(&mut self.pending);
        let taken = self.frontend().harvest_log(&mut all);
        let pages = range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE);
        for page in all.iter().filter(|page| pages.contains(page)) {
            into.insert(page);
        }
        all.remove_range(pages);
        self.pending = all;
        taken.map_err(refused)?;
        probe!(tidemark, harvest_done, range.start, range.end);
        Ok(())
    }

    fn put_back(&mut self, pages: &DirtySet) -> Result<(), DirtyError> {
        self.pending.union_with(pages);
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DirtyError> {
        self.pending.clear();
        self.frontend().stop_log().map_err(refused)
    }
}

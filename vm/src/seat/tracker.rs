//! A tracker that is started by one party and harvested by another.

use driver::Transport;
use driver::dirty::harvest::HarvestWidth;
use driver::dirty::{DirtyError, DirtySet, DirtySource, TrackerSource};
use migration::agent::{Mode, Tracking};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
struct Inner {
    source: TrackerSource,
    /// What it was started with, and the granularity in force.
    on: Option<(Vec<Range<u64>>, u64, u64)>,
    /// Somebody else starts and stops it.
    conducted: bool,
}

/// A [`TrackerSource`] with two ends: a harvester's, which is a [`DirtySource`], and that of whoever
/// configures it.
///
/// While it is conducted, to start it is to see that it was started, with the same ranges and
/// granularity; one that was not is an error, and no silent beginning of its own.
#[derive(Clone, Debug)]
pub(crate) struct SharedTracker {
    inner: Arc<Mutex<Inner>>,
    mode: Mode,
}

fn unsupported(what: &str, why: String) -> DirtyError {
    DirtyError::Unsupported {
        what: what.to_owned(),
        why,
    }
}

impl Inner {
    fn start(&mut self, ranges: &[Range<u64>], granularity: u64) -> Result<u64, DirtyError> {
        let in_force = self.source.start(ranges, granularity)?;
        self.on = Some((ranges.to_vec(), granularity, in_force));
        Ok(in_force)
    }

    fn stop(&mut self) -> Result<(), DirtyError> {
        self.on = None;
        self.source.stop()
    }
}

impl SharedTracker {
    pub(crate) fn new(source: TrackerSource, width: HarvestWidth) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                source,
                on: None,
                conducted: false,
            })),
            mode: match width {
                HarvestWidth::Word => Mode::Bitmap,
                HarvestWidth::Byte => Mode::Bytes,
            },
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on somebody else starts and stops it, or nobody else any more.
    pub(crate) fn set_conducted(&self, conducted: bool) {
        self.inner().conducted = conducted;
    }

    /// Makes it what is wanted. What is wanted already goes on without a gap.
    pub(super) fn configure(&self, wanted: Option<&Tracking>) -> Result<(), DirtyError> {
        let mut inner = self.inner();
        let Some(wanted) = wanted else {
            return match inner.stop() {
                Err(DirtyError::NotStarted) => Ok(()),
                stopped => stopped,
            };
        };
        if wanted.mode != self.mode {
            let why = format!("this guest's devices leave {:?} marks", self.mode);
            return Err(unsupported("in this mode", why));
        }
        let same = |(ranges, granularity, _): &(Vec<Range<u64>>, u64, u64)| {
            *ranges == wanted.ranges && *granularity == wanted.granularity
        };
        if inner.on.as_ref().is_some_and(same) {
            return Ok(());
        }
        match inner.stop() {
            Ok(()) | Err(DirtyError::NotStarted) => {}
            Err(error) => return Err(error),
        }
        inner.start(&wanted.ranges, wanted.granularity).map(drop)
    }

    /// Whether the device has lost a tracker that was started. One that cannot be asked is not known to
    /// have it.
    pub(super) fn was_reset(&self, transport: &Transport) -> bool {
        let inner = self.inner();
        let enabled = || {
            let registers = transport.tracker_registers();
            registers.is_ok_and(|registers| registers.enable != 0)
        };
        inner.on.is_some() && !enabled()
    }
}

impl DirtySource for SharedTracker {
    fn start(&mut self, ranges: &[Range<u64>], granularity: u64) -> Result<u64, DirtyError> {
        let mut inner = self.inner();
        if !inner.conducted {
            return inner.start(ranges, granularity);
        }
        match &inner.on {
            Some((is, asked, in_force)) if is == ranges && *asked == granularity => Ok(*in_force),
            Some(_) => Err(unsupported(
                "these ranges",
                "its agent has turned tracking on for others".to_owned(),
            )),
            None => Err(unsupported(
                "this device",
                "its agent was to turn tracking on and has not".to_owned(),
            )),
        }
    }

    fn report(&mut self, range: Range<u64>, into: &mut DirtySet) -> Result<(), DirtyError> {
        self.inner().source.report(range, into)
    }

    fn put_back(&mut self, pages: &DirtySet) -> Result<(), DirtyError> {
        self.inner().source.put_back(pages)
    }

    fn stop(&mut self) -> Result<(), DirtyError> {
        let mut inner = self.inner();
        if inner.conducted {
            // Whoever has started it stops it.
            return Ok(());
        }
        inner.stop()
    }
}

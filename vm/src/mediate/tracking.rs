//! The tracker, driven by the mediator for itself. Its bitmap is memory of the mediator's own, and
//! what it says is kept here, so that it survives resets, moves and devices that die.

use super::{Back, Inner, MediateError};
use driver::bus::BusError;
use driver::dirty::harvest::HarvestWidth;
use driver::dirty::{DirtyError, DirtySet, DirtySource, PAGE_SIZE, TrackerSource};
use driver::memory::DmaMemory;
use spec::tracker::bitmap_length;
use std::sync::{Arc, PoisonError};

/// The least range that is tracked: all that a guest without a vIOMMU has below 4 GiB.
const LEAST: u64 = 1 << 32;
/// The most: a bitmap of 8 MiB. What a device writes beyond it is not tracked.
const MOST: u64 = 1 << 38;

/// What is tracked, and what was found.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    /// The tracker of the device in use; none before its driver started it.
    source: Option<TrackerSource>,
    /// Bytes from 0 on that are tracked.
    end: u64,
    /// All pages that were reported.
    dirty: Option<DirtySet>,
}

impl Tracking {
    /// Takes what the device has marked.
    fn harvest(&mut self) -> Result<(), DirtyError> {
        let (Some(source), Some(dirty)) = (&mut self.source, &mut self.dirty) else {
            return Ok(());
        };
        match source.report(0..self.end, dirty) {
            // A device that was reset has marked what it has marked, and is off.
            Err(DirtyError::NotStarted) => Ok(()),
            result => result,
        }
    }

    /// Starts the device's tracker over all that is mapped and more, in place of the last device's.
    fn start(&mut self, back: &Back, mapped: u64) -> Result<(), DirtyError> {
        let end = mapped.next_power_of_two().clamp(LEAST, MOST).max(self.end);
        let mut dirty = DirtySet::new(end / PAGE_SIZE);
        if let Some(before) = &self.dirty {
            dirty.union_with(before);
        }
        self.dirty = Some(dirty);
        self.source = None;
        self.end = end;
        let length = bitmap_length(end, 0).unwrap_or(u64::MAX);
        let bitmap = back.bitmap(length)?;
        let transport = Arc::clone(&back.transport);
        let source = TrackerSource::new(transport, bitmap, HarvestWidth::Word);
        let mut source = source.map_err(DirtyError::from)?;
        source.start(std::slice::from_ref(&(0..end)), PAGE_SIZE)?;
        self.source = Some(source);
        Ok(())
    }
}

impl Back {
    /// Memory for a bitmap, the same whenever it is long enough: guests start devices as often as
    /// they like.
    fn bitmap(&self, length: u64) -> Result<DmaMemory, BusError> {
        let mut kept = self.bitmap.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bitmap) = kept.as_ref().filter(|bitmap| bitmap.len() >= length) {
            return Ok(bitmap.clone());
        }
        let bitmap = self.bus.dma_alloc(length)?;
        *kept = Some(bitmap.clone());
        Ok(bitmap)
    }
}

impl Inner {
    /// Starts the tracker of a device, if pages are to be tracked.
    pub(super) fn start_tracking(&mut self, back: &Back) -> Result<(), MediateError> {
        let mapped = self.maps.end();
        let Some(tracking) = &mut self.tracking else {
            return Ok(());
        };
        tracking
            .harvest()
            .and_then(|()| tracking.start(back, mapped))
            .map_err(|error| MediateError::Tracker {
                name: back.name.clone(),
                error,
            })
    }

    /// Takes what the device in use has marked, if pages are tracked.
    pub(super) fn harvest(&mut self) -> Result<(), MediateError> {
        let name = &self.name;
        self.tracking.as_mut().map_or(Ok(()), |tracking| {
            tracking.harvest().map_err(|error| MediateError::Tracker {
                name: name.clone(),
                error,
            })
        })
    }

    /// Memory up to `end` is mapped: tracks it too.
    pub(super) fn track_up_to(&mut self, end: u64, back: &Back) {
        let Some(tracking) = &self.tracking else {
            return;
        };
        if tracking.source.is_none() || end <= tracking.end {
            return;
        }
        if tracking.end >= MOST {
            tracing::warn!(end, "memory beyond 256 GiB is not tracked");
        } else if let Err(error) = self.start_tracking(back) {
            tracing::error!(%error, "pages are not tracked");
        }
    }

    /// How many pages were written since tracking began.
    pub(super) fn dirty_pages(&mut self) -> Option<u64> {
        if let Err(error) = self.harvest() {
            tracing::error!(%error, "pages may be missing");
        }
        let tracking = self.tracking.as_ref()?;
        Some(tracking.dirty.as_ref().map_or(0, DirtySet::count))
    }
}

impl super::Mediator {
    /// Adds all pages that devices wrote since the last call to `into`, and forgets them. Nothing
    /// if pages are not tracked.
    ///
    /// # Errors
    ///
    /// [`MediateError::Tracker`]: what was not reported may have been written.
    pub fn take_dirty(&self, into: &mut DirtySet) -> Result<(), MediateError> {
        let mut inner = self.lock();
        inner.harvest()?;
        let dirty = inner.tracking.as_mut().and_then(|t| t.dirty.as_mut());
        if let Some(dirty) = dirty {
            for page in dirty.iter() {
                into.insert(page);
            }
            dirty.clear();
        }
        Ok(())
    }
}

//! The tracker, shared between who drives the device and who harvests meanwhile.

use super::pages::Pages;
use super::suspend::Meanwhile;
use super::track::RoundReport;
use crate::error::VmError;
use driver::Transport;
use driver::dirty::harvest::HarvestWidth;
use driver::dirty::{DirtySet, DirtySource, PAGE_SIZE, TrackerSource};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
struct State {
    source: TrackerSource,
    granularity: u64,
    /// What the round's harvests have given so far.
    harvested: DirtySet,
    harvests: u64,
    in_flight: u64,
    largest: u64,
}

/// Takes what the device has marked.
#[derive(Debug)]
pub(super) struct Harvester {
    range: Range<u64>,
    state: Mutex<State>,
}

impl Harvester {
    /// A tracker of `pages` that is off.
    pub(super) fn new(transport: &Arc<Transport>, pages: &Pages) -> Result<Self, VmError> {
        let range = pages.iova()..pages.iova() + pages.len();
        // One bit for each page from address 0 on.
        let bitmap = transport
            .bus()
            .dma_alloc((range.end / PAGE_SIZE).div_ceil(8))?;
        let source = TrackerSource::new(Arc::clone(transport), bitmap, HarvestWidth::Word)
            .map_err(VmError::driver("setting up the tracker"))?;
        Ok(Self {
            state: Mutex::new(State {
                source,
                granularity: PAGE_SIZE,
                harvested: DirtySet::new(range.end / PAGE_SIZE),
                harvests: 0,
                in_flight: 0,
                largest: 0,
            }),
            range,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts tracking; the granularity in force.
    pub(super) fn start(&self, granularity: u64) -> Result<u64, VmError> {
        let state = &mut *self.state();
        state.granularity = granularity;
        let range = std::slice::from_ref(&self.range);
        Ok(state.source.start(range, granularity)?)
    }

    /// Harvests once, while so many requests are in flight.
    pub(super) fn harvest(&self, in_flight: u64) -> Result<(), VmError> {
        let state = &mut *self.state();
        let before = state.harvested.count();
        state
            .source
            .report(self.range.clone(), &mut state.harvested)?;
        state.harvests += 1;
        state.in_flight += u64::from(in_flight != 0);
        // A page that comes again within the round is not counted again.
        state.largest = state.largest.max(state.harvested.count() - before);
        Ok(())
    }

    /// Gives the round's pages and begins anew.
    pub(super) fn end_round(&mut self, report: &mut RoundReport, pages: &Pages) -> DirtySet {
        let state = &mut *self.state();
        report.harvests = std::mem::take(&mut state.harvests);
        report.harvests_in_flight = std::mem::take(&mut state.in_flight);
        report.largest_harvest = std::mem::take(&mut state.largest);
        let empty = DirtySet::new((pages.iova() + pages.len()) / PAGE_SIZE);
        std::mem::replace(&mut state.harvested, empty)
    }

    /// Stops tracking.
    pub(super) fn stop(&self) -> Result<(), VmError> {
        Ok(self.state().source.stop()?)
    }
}

impl Meanwhile for &Harvester {
    /// The harvest that no write can follow.
    fn suspended(&mut self) -> Result<(), VmError> {
        self.harvest(0)
    }

    /// The reset has switched tracking off. All of it was harvested before.
    fn restored(&mut self) -> Result<(), VmError> {
        let state = &mut *self.state();
        state.source.stop()?;
        let granularity = state.granularity;
        let range = std::slice::from_ref(&self.range);
        state.source.start(range, granularity)?;
        Ok(())
    }
}

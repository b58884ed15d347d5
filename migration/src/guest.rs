//! What a guest offers to whoever moves it.

use crate::error::GuestError;
use crate::stream::Context;
use crate::stream::libxl::Options;
use driver::dirty::DirtySource;
use driver::memory::DmaMemory;
use std::ops::Range;
use std::time::Duration;

/// A source of dirty pages and the name it is reported under.
pub struct NamedSource {
    /// What reports call it.
    pub name: String,
    /// The source itself.
    pub source: Box<dyn DirtySource>,
}

impl std::fmt::Debug for NamedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamedSource")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The state of one device, opaque to the migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRecord {
    /// Which device; 0 is the guest's CPU, devices follow from 1.
    pub id: u32,
    /// What it is called and how it was set up, for whoever reads the stream. Keys are relative
    /// paths of letters, digits and `/_@-`.
    pub options: Options,
    /// Its state.
    pub context: Context,
}

/// How a pause went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paused {
    /// Requests in flight (made available and not yet used) immediately before the SUSPEND bit was
    /// written, over all queues of all devices.
    pub in_flight: u64,
    /// Of those, how many no device had used when all of them were suspended: they travel.
    pub carried: u64,
    /// How often the guest was let go again because nothing was in flight.
    pub retries: u32,
    /// From the order to pause until every device presented SUSPEND.
    pub elapsed: Duration,
}

/// A guest that can be moved away.
pub trait Guest {
    /// What the destination needs to know to make room for it: opaque text in UTF-8 without NUL, at
    /// most 1 MiB.
    fn describe(&self) -> Vec<u8>;
    /// Its memory, in ascending order of address and without overlap.
    fn memory(&self) -> Vec<DmaMemory>;
    /// Everyone who knows which pages were written. Each page written by anyone is in one of them.
    fn sources(&mut self) -> &mut [NamedSource];
    /// Turns the devices' tracking on where somebody else than the sources does so: of all, or of none.
    /// Every source is started after it all the same, with the same ranges and granularity.
    fn begin_tracking(
        &mut self,
        _ranges: &[Range<u64>],
        _granularity: u64,
    ) -> Result<(), GuestError> {
        Ok(())
    }
    /// Stops the CPU and suspends every device; when it returns, nothing writes the memory any
    /// more, and everything written is in a source's next report.
    fn pause(&mut self) -> Result<Paused, GuestError>;
    /// Lets the guest go on where it was paused. Harmless if it runs.
    fn resume(&mut self) -> Result<(), GuestError>;
    /// Slows the running CPU down by so many percent, 0 to 99; 0 is full speed. A guest that cannot
    /// be slowed down says so.
    fn throttle(&mut self, percent: u8) -> Result<(), GuestError> {
        Err(GuestError(format!(
            "slowing the guest down by {percent} %: this guest cannot be throttled; let it have \
             more rounds or more downtime instead"
        )))
    }
    /// The state of the CPU and of every device. Only while paused.
    fn save(&mut self) -> Result<Vec<DeviceRecord>, GuestError>;
}

/// A guest in the making, at the destination.
pub trait Incoming {
    /// Makes room for the guest that `description` describes. Untrusted.
    fn prepare(&mut self, description: &[u8]) -> Result<(), GuestError>;
    /// The memory to fill. Empty before [`prepare`](Incoming::prepare).
    fn memory(&self) -> Vec<DmaMemory>;
    /// Fills all memory with something no page of the guest holds, so that a page that is never
    /// sent shows.
    fn poison(&mut self) -> Result<(), GuestError>;
    /// Takes the state of one device. Untrusted.
    fn restore(&mut self, record: DeviceRecord) -> Result<(), GuestError>;
    /// Everything has come: checks that it is whole, leaves the evidence, runs nothing yet.
    /// Returns how long the evidence took, which is no part of the downtime.
    fn ready(&mut self) -> Result<Duration, GuestError>;
    /// Runs the guest.
    fn go(&mut self) -> Result<(), GuestError>;
}

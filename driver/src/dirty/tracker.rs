//! The memory dirty pages tracker as a source of dirty pages (draft 2023; layout: project rule).

use super::harvest::{HarvestWidth, harvest, harvest_within};
use super::{DirtyError, DirtySet, DirtySource, PAGE_SIZE};
use crate::error::DriverError;
use crate::memory::{DmaMemory, MemoryError};
use crate::transport::Transport;
use probe::probe;
use spec::tracker::{BITMAP_ALIGN, ENABLE_ON, GRA_POWER_MAX, TrackerRegs, bitmap_length};
use std::mem::offset_of;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

/// How long the device may take to turn tracking on or off.
const ENABLE_TIMEOUT: Duration = Duration::from_secs(5);
/// What it has not done when that is over.
const SWITCHED: &str = "switched its tracker";

/// A device's tracker, with the bitmap that the device writes.
///
/// What a device writes before [`start`](DirtySource::start) has returned may or may not be
/// reported, so a first copy of memory is made after it: every write that the copy does not show is
/// then reported. The device is seen to be on, by reading `enable` back, before `start` returns.
#[derive(Debug)]
pub struct TrackerSource {
    transport: Arc<Transport>,
    bitmap: DmaMemory,
    width: HarvestWidth,
    on: Option<On>,
}

/// What is in force while tracking is on.
#[derive(Debug)]
struct On {
    /// Pages of the started ranges.
    tracked: DirtySet,
    /// Taken from the bitmap or put back, and not yet reported. The device never sees it.
    pending: DirtySet,
    /// False if `pending` is surely empty.
    left: bool,
    /// Bytes of bitmap that the device may write.
    length: u64,
    /// log2 of the pages that one bit stands for.
    power: u8,
}

fn untrackable(what: impl Into<String>, why: impl Into<String>) -> DirtyError {
    DirtyError::Unsupported {
        what: what.into(),
        why: why.into(),
    }
}

impl From<DriverError> for DirtyError {
    fn from(error: DriverError) -> Self {
        match error {
            DriverError::Bus(error) => DirtyError::Bus(error),
            other => untrackable("with this device", other.to_string()),
        }
    }
}

impl TrackerSource {
    /// A tracker that is off. The device reaches `bitmap`; whoever gave it must keep everybody else
    /// from writing it.
    ///
    /// # Errors
    /// [`DriverError::NoCapability`] if the device has no tracker; [`DriverError::Tracker`] if the
    /// bitmap is empty, starts at IOVA 0 or is not 8-aligned in memory and IOVA.
    pub fn new(
        transport: Arc<Transport>,
        bitmap: DmaMemory,
        width: HarvestWidth,
    ) -> Result<Self, DriverError> {
        if !transport.has_tracker() {
            return Err(DriverError::NoCapability("dirty page tracker"));
        }
        if bitmap.is_empty() || bitmap.iova() == 0 || !bitmap.iova().is_multiple_of(BITMAP_ALIGN) {
            let why = format!("no place for a bitmap: {bitmap:?}");
            return Err(DriverError::Tracker(why));
        }
        bitmap.words()?;
        Ok(Self {
            transport,
            bitmap,
            width,
            on: None,
        })
    }

    /// The pages that the bitmap occupies, as page numbers: the device writes them unmarked, so a
    /// comparison of memories leaves out exactly these.
    pub fn regions(&self) -> Vec<Range<u64>> {
        let start = self.bitmap.iova();
        let end = start.saturating_add(self.bitmap.len());
        Vec::from([pages(&(start..end))])
    }

    /// The granularity in force in bytes; `None` while off.
    pub fn granularity(&self) -> Option<u64> {
        self.on.as_ref().map(|on| PAGE_SIZE << on.power)
    }

    /// Programs and enables; returns length and exponent in force.
    fn enable(&self, end: u64, hint: u8) -> Result<(u64, u8), DirtyError> {
        // The smallest granule from the hint on whose bitmap fits the memory.
        let fits = |power: &u8| {
            bitmap_length(end, *power).is_some_and(|length| length <= self.bitmap.len())
        };
        let Some(power) = (hint..=GRA_POWER_MAX).find(fits) else {
            let why = format!("a bitmap of {} bytes is too small", self.bitmap.len());
            return Err(untrackable(format!("memory up to {end:#x}"), why));
        };
        // Off before anything is programmed: a predecessor may have left it on.
        self.switch(0)?;
        for byte in self.bitmap.bytes() {
            // By bytes, or a device in this process that still marks would see two widths.
            if byte.load(Ordering::Relaxed) != 0 {
                byte.swap(0, Ordering::AcqRel);
            }
        }
        let begun = Instant::now();
        loop {
            if let Some(on) = self.program(end, power)? {
                return Ok(on);
            }
            if begun.elapsed() > ENABLE_TIMEOUT {
                let why = "it is reset again and again, which turns its tracker off";
                return Err(untrackable("with this device", why));
            }
        }
    }

    /// Programs and enables; `None` if somebody reset the device meanwhile: its owner may do so at
    /// any time, and does not know of us.
    fn program(&self, end: u64, power: u8) -> Result<Option<(u64, u8)>, DirtyError> {
        let transport = &self.transport;
        let length = bitmap_length(end, power).unwrap_or_default();
        transport.tracker_write64(offset_of!(TrackerRegs, bitmap_length), length)?;
        transport.tracker_write64(offset_of!(TrackerRegs, bitmap_addr), self.bitmap.iova())?;
        transport.tracker_write8(offset_of!(TrackerRegs, gra_power), power)?;
        let enable = offset_of!(TrackerRegs, enable);
        transport.tracker_write8(enable, ENABLE_ON)?;
        let mut reset = false;
        transport.wait(ENABLE_TIMEOUT, SWITCHED, |_| {
            let on = transport.tracker_read8(enable)? == ENABLE_ON;
            reset = self.was_reset(length)?;
            Ok(on || reset)
        })?;
        // A device may raise it; then the bitmap is longer than it needs be.
        let power = self.raised(power);
        if reset || self.was_reset(length)? {
            return Ok(None);
        }
        Ok(Some((length, power?)))
    }

    /// Whether the device has forgotten where its bitmap is. These are written first, so whatever a
    /// reset undid, it undid one of them.
    fn was_reset(&self, length: u64) -> Result<bool, DriverError> {
        let registers = self.transport.tracker_registers()?;
        let there = (registers.bitmap_addr.get(), registers.bitmap_length.get());
        Ok(there != (self.bitmap.iova(), length))
    }

    /// Reads `gra_power`, which a device only ever raises.
    fn raised(&self, from: u8) -> Result<u8, DriverError> {
        let power = self
            .transport
            .tracker_read8(offset_of!(TrackerRegs, gra_power))?;
        if power < from || power > GRA_POWER_MAX {
            let why = format!("gra_power {from} reads back {power}");
            return Err(DriverError::Tracker(why));
        }
        Ok(power)
    }

    fn switch(&self, enable: u8) -> Result<(), DriverError> {
        let offset = offset_of!(TrackerRegs, enable);
        self.transport.tracker_write8(offset, enable)?;
        self.transport.wait(ENABLE_TIMEOUT, SWITCHED, |_| {
            Ok(self.transport.tracker_read8(offset)? == enable)
        })
    }
}

/// Pages of a byte range, partial ones included.
fn pages(range: &Range<u64>) -> Range<u64> {
    range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE)
}

impl On {
    /// Moves what the device marked to `into` as far as it lies within `asked` (pages), the rest to
    /// `pending`. Whole-byte marks and large granules name pages that nobody asked to track: those
    /// are dropped.
    fn take(
        &mut self,
        bitmap: &DmaMemory,
        width: HarvestWidth,
        asked: &Range<u64>,
        into: &mut DirtySet,
    ) -> Result<(), MemoryError> {
        let Self {
            tracked,
            pending,
            left,
            length,
            power,
        } = self;
        if *power == 0 && asked.start == 0 && asked.end >= tracked.len() {
            return harvest_within(bitmap, *length, width, Some(tracked), into);
        }
        // One word of pages: 64 of them from a multiple of 64 on.
        let mut give = |index: u64, bits: u64| {
            let bits = bits & tracked.word(index);
            let inside = bits & word_of(asked, index);
            into.or_word(index, inside);
            if bits != inside {
                pending.or_word(index, bits & !inside);
                *left = true;
            }
        };
        let words = tracked.as_words().len() as u64;
        harvest(bitmap, *length, width, |word, mut bits| {
            if *power == 0 {
                give(word as u64, bits);
                return;
            }
            while bits != 0 {
                let bit = word as u64 * 64 + u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                // The bitmap is no longer than the tracked memory needs, or longer by what the
                // device raised the granularity; then its upper bits stand for nothing.
                let Some(first) = bit.checked_mul(1 << *power) else {
                    continue;
                };
                let end = first.saturating_add(1 << *power);
                for index in first / 64..end.div_ceil(64).min(words) {
                    give(index, word_of(&(first..end), index));
                }
            }
        })
    }
}

/// The bits of word `index` of a set that the pages of `range` have.
fn word_of(range: &Range<u64>, index: u64) -> u64 {
    let base = index.saturating_mul(64);
    let ones = |pages: u64| match pages {
        0..64 => (1_u64 << pages) - 1,
        _ => !0,
    };
    ones(range.end.saturating_sub(base)) & !ones(range.start.saturating_sub(base))
}

impl DirtySource for TrackerSource {
    fn start(&mut self, ranges: &[Range<u64>], granularity: u64) -> Result<u64, DirtyError> {
        if self.on.is_some() {
            return Err(untrackable("a second time", "tracking is on"));
        }
        if granularity != 0 && !granularity.is_power_of_two() {
            let what = format!("pages of {granularity} bytes");
            return Err(untrackable(what, "not a power of two"));
        }
        let hint = granularity.max(PAGE_SIZE).trailing_zeros() - PAGE_SIZE.trailing_zeros();
        let hint = u8::try_from(hint).unwrap_or(GRA_POWER_MAX);
        if hint > GRA_POWER_MAX {
            let what = format!("pages of {granularity} bytes");
            return Err(untrackable(what, "above 1 GiB"));
        }
        let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        if end == 0 || ranges.iter().any(|range| range.start >= range.end) {
            return Err(untrackable("these ranges", "none, or an empty one"));
        }
        let (length, power) = match self.enable(end, hint) {
            Ok(on) => on,
            Err(error) => {
                // Whatever state it is in, it must not write memory that is no longer a bitmap. The
                // first error is the one to tell.
                if let Err(second) = self.switch(0) {
                    tracing::warn!(error = %second, "the tracker cannot be switched off");
                }
                return Err(error);
            }
        };
        let mut tracked = DirtySet::new(end.div_ceil(PAGE_SIZE));
        for range in ranges {
            tracked.insert_range(pages(range));
        }
        self.on = Some(On {
            pending: DirtySet::new(tracked.len()),
            tracked,
            left: false,
            length,
            power,
        });
        Ok(PAGE_SIZE << power)
    }

    fn report(&mut self, range: Range<u64>, into: &mut DirtySet) -> Result<(), DirtyError> {
        let on = self.on.as_mut().ok_or(DirtyError::NotStarted)?;
        probe!(tidemark, harvest_start, range.start, range.end);
        let asked = pages(&range);
        // What the caller's set cannot hold stays pending with what it did not ask for.
        let asked = asked.start..asked.end.min(into.len());
        on.take(&self.bitmap, self.width, &asked, into)
            .map_err(|error| untrackable("with this bitmap", error.to_string()))?;
        if on.left {
            on.pending.move_range(asked, into);
            on.left = !on.pending.is_empty();
        }
        probe!(tidemark, harvest_done, range.start, range.end);
        Ok(())
    }

    fn put_back(&mut self, pages: &DirtySet) -> Result<(), DirtyError> {
        let on = self.on.as_mut().ok_or(DirtyError::NotStarted)?;
        on.pending.union_with(pages);
        on.pending.intersect_with(&on.tracked);
        on.left = true;
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DirtyError> {
        self.on.take().ok_or(DirtyError::NotStarted)?;
        self.switch(0)?;
        fence(Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

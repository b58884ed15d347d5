//! The bitmap of a dirty pages tracker, and its registers.

use super::bench::Bench;
use super::memory::Span;
use super::outcome::{Absent, Stop, arose};
use crate::constants::{PAGE, reg};
use std::collections::BTreeSet;

/// Most bytes of bitmap that a case can keep.
const BITMAP_MAX: u64 = 1 << 20;

/// A bitmap in memory with a page on either side that nobody may touch.
#[derive(Clone, Copy, Debug)]
pub struct Bitmap {
    /// Bitmap and guards.
    pub all: Span,
    /// The bitmap itself.
    pub bits: Span,
}

impl Bench {
    /// A zeroed bitmap for all of the case's memory at this granularity, at least `least` bytes.
    ///
    /// # Errors
    /// Not applicable without a tracker, inconclusive if addresses are too high for it.
    pub fn bitmap(&self, gra_power: u64) -> Result<Bitmap, Stop> {
        if self.caps.tracker().is_none() {
            return Err(Stop::NotApplicable(Absent::Tracker));
        }
        let end = self.memory().iova() + self.memory().len();
        let bits = ((end - 1) >> (12 + gra_power)) + 1;
        let len = bits.div_ceil(8);
        arose(len <= BITMAP_MAX, || {
            format!("memory at {end:#x} needs {len} bytes of bitmap")
        })?;
        let all = self.take(len.next_multiple_of(PAGE) + 2 * PAGE)?;
        Ok(Bitmap {
            all,
            bits: all.part(PAGE, len),
        })
    }

    /// Programs the tracker and switches it on.
    ///
    /// # Errors
    /// Inconclusive if `enable` does not read 1 then.
    pub fn track(&self, bitmap: Bitmap, gra_power: u64) -> Result<(), Stop> {
        self.track_at(bitmap.bits.iova, bitmap.bits.len, gra_power)?;
        let on = self.get(reg::TRACKER_ENABLE)?;
        arose(on == 1, || format!("enable reads {on} after 1 was written"))
    }

    /// Programs the tracker as told and writes 1 to `enable`.
    ///
    /// # Errors
    /// The bus's.
    pub fn track_at(&self, addr: u64, length: u64, gra_power: u64) -> Result<(), Stop> {
        self.put(reg::TRACKER_ENABLE, 0)?;
        self.put(reg::TRACKER_GRA_POWER, gra_power)?;
        self.put_wide(reg::TRACKER_ADDR, addr)?;
        self.put_wide(reg::TRACKER_LENGTH, length)?;
        self.put(reg::TRACKER_ENABLE, 1)
    }

    /// Numbers of the bits that are set: bit n is bit n % 8 of byte n / 8.
    ///
    /// # Errors
    /// The memory's.
    pub fn marked(&self, bitmap: Bitmap) -> Result<BTreeSet<u64>, Stop> {
        let mut bytes = vec![0; usize::try_from(bitmap.bits.len).unwrap_or(0)];
        self.memory().read(bitmap.bits.offset, &mut bytes)?;
        let set = (0..).zip(bytes).flat_map(|(index, byte)| {
            (0..8)
                .filter(move |bit| byte & 1 << bit != 0)
                .map(move |bit| index * 8 + bit)
        });
        Ok(set.collect())
    }

    /// Zeroes the bitmap.
    ///
    /// # Errors
    /// The memory's.
    pub fn clear(&self, bitmap: Bitmap) -> Result<(), Stop> {
        let zeroes = vec![0; usize::try_from(bitmap.bits.len).unwrap_or(0)];
        self.memory().write(bitmap.bits.offset, &zeroes)?;
        Ok(())
    }

    /// Offset of the first byte that is not zero in a part of memory.
    ///
    /// # Errors
    /// The memory's.
    pub fn first_nonzero(&self, span: Span) -> Result<Option<u64>, Stop> {
        let mut bytes = vec![0; usize::try_from(span.len).unwrap_or(0)];
        self.memory().read(span.offset, &mut bytes)?;
        Ok((0..)
            .zip(bytes)
            .find(|(_, byte)| *byte != 0)
            .map(|(offset, _)| offset))
    }
}

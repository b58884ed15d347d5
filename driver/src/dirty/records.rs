//! Page-write recording as a source of dirty pages (project rules; see [`spec::records`]).

use super::{DirtyError, DirtySet, DirtySource, PAGE_SIZE};
use crate::admin::{AdminQueue, RESULT_BYTES, Subject};
use crate::error::DriverError;
use probe::probe;
use spec::Le64;
use spec::records::{self, Extent, Limits, Read, Start, output};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zerocopy::{FromBytes, IntoBytes};

/// Commands that recording takes, to be in use before anything is started.
pub const COMMANDS: [u16; 4] = [
    records::CAP_QUERY,
    records::START,
    records::STOP,
    records::READ,
];
/// Reads of one report. A device that always has more is cut short, and everything is dirty then.
const READS_MAX: u32 = 1 << 16;

/// The records of a function, had through an administration queue: its own, or its owner's.
///
/// Through an owner, neither a reset of the function nor its function level reset ends the recording
/// or loses a record. If the device had no room for some, all of the tracked pages are reported.
#[derive(Debug)]
pub struct RecordsSource {
    queue: Arc<Mutex<AdminQueue>>,
    subject: Subject,
    on: Option<On>,
    overflows: u64,
}

#[derive(Debug)]
struct On {
    /// Pages of the started ranges.
    tracked: DirtySet,
    /// Read or put back, and not yet reported.
    pending: DirtySet,
    /// Bytes that the ranges lie in.
    span: Range<u64>,
    /// Bytes of a recorded page.
    page_size: u64,
}

fn untrackable(what: impl Into<String>, why: impl Into<String>) -> DirtyError {
    DirtyError::Unsupported {
        what: what.into(),
        why: why.into(),
    }
}

impl RecordsSource {
    /// Recording of `subject` that is off. The queue's driver has [`COMMANDS`] in use for its group.
    pub fn new(queue: Arc<Mutex<AdminQueue>>, subject: Subject) -> Self {
        Self {
            queue,
            subject,
            on: None,
            overflows: 0,
        }
    }

    /// How often the device said that it had no room for a record.
    pub fn overflows(&self) -> u64 {
        self.overflows
    }

    fn queue(&self) -> MutexGuard<'_, AdminQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all there is into `pending`.
    fn drain(&mut self) -> Result<(), DirtyError> {
        let on = self.on.as_mut().ok_or(DirtyError::NotStarted)?;
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let ask = Read {
            start: on.span.start.into(),
            length: (on.span.end - on.span.start).into(),
            page_size: on.page_size.into(),
        };
        let per_record = on.page_size / PAGE_SIZE;
        let mut everything = false;
        let mut reads = 0;
        loop {
            let answer = queue.command(records::READ, self.subject, ask.as_bytes(), RESULT_BYTES);
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    // What was read is read; what was not cannot be told from it any more.
                    on.pending.union_with(&on.tracked);
                    return Err(error.into());
                }
            };
            let (records, _) = <[Le64]>::ref_from_prefix_with_elems(
                answer.result,
                answer.result.len() / size_of::<Le64>(),
            )
            .map_err(|_| untrackable("with this device", "records are no numbers"))?;
            let count = usize::try_from(answer.output & output::COUNT).unwrap_or(usize::MAX);
            for record in records.iter().take(count) {
                let first = record.get() / PAGE_SIZE;
                if per_record == 1 {
                    on.pending.insert(first);
                } else {
                    let end = first.saturating_add(per_record);
                    on.pending.insert_range(first..end);
                }
            }
            everything |= answer.output & output::OVERFLOW != 0;
            reads += 1;
            if answer.output & output::MORE == 0 {
                break;
            }
            if reads == READS_MAX {
                everything = true;
                break;
            }
        }
        // Large pages name memory that nobody asked to track, as whole-byte marks do.
        on.pending.intersect_with(&on.tracked);
        if everything {
            self.overflows += 1;
            on.pending.union_with(&on.tracked);
        }
        Ok(())
    }

    fn limits(&self) -> Result<Limits, DriverError> {
        let mut queue = self.queue();
        let answer = queue.command(records::CAP_QUERY, self.subject, &[], size_of::<Limits>())?;
        Ok(answer.read())
    }
}

/// Ranges of whole pages that hold `ranges`, in ascending order, at most `most`: those with the
/// smallest gaps become one.
fn whole(ranges: &[Range<u64>], page_size: u64, most: usize) -> Option<Vec<Range<u64>>> {
    let mut all = Vec::with_capacity(ranges.len());
    for range in ranges {
        let start = range.start / page_size * page_size;
        all.push(start..range.end.checked_next_multiple_of(page_size)?);
    }
    all.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(all.len());
    for range in all {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    while merged.len() > most.max(1) {
        let gap = |at: usize| merged[at + 1].start - merged[at].end;
        let at = (0..merged.len() - 1).min_by_key(|at| gap(*at))?;
        merged[at].end = merged[at + 1].end;
        merged.remove(at + 1);
    }
    Some(merged)
}

impl DirtySource for RecordsSource {
    fn start(&mut self, ranges: &[Range<u64>], granularity: u64) -> Result<u64, DirtyError> {
        if self.on.is_some() {
            return Err(untrackable("a second time", "tracking is on"));
        }
        let what = || format!("pages of {granularity} bytes");
        if granularity != 0 && !granularity.is_power_of_two() {
            return Err(untrackable(what(), "not a power of two"));
        }
        if ranges.is_empty() || ranges.iter().any(|range| range.start >= range.end) {
            return Err(untrackable("these ranges", "none, or an empty one"));
        }
        let limits = self.limits()?;
        let hint = granularity.max(PAGE_SIZE).trailing_zeros();
        let sizes = limits.page_sizes.get();
        let shift = (hint..64).find(|shift| sizes & (1 << shift) != 0);
        let shift = shift.ok_or_else(|| untrackable(what(), "the device has no such pages"))?;
        let page_size = 1_u64 << shift;
        let most = usize::try_from(limits.max_ranges.get()).unwrap_or(usize::MAX);
        let extents = whole(ranges, page_size, most)
            .ok_or_else(|| untrackable("these ranges", "they end with the address space"))?;
        let mut data = Start {
            page_size: page_size.into(),
            count: u32::try_from(extents.len()).unwrap_or(u32::MAX).into(),
            reserved: 0.into(),
        }
        .as_bytes()
        .to_vec();
        for extent in &extents {
            let extent = Extent {
                start: extent.start.into(),
                length: (extent.end - extent.start).into(),
            };
            data.extend_from_slice(extent.as_bytes());
        }
        self.queue()
            .command(records::START, self.subject, &data, 0)?;
        let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        let mut tracked = DirtySet::new(end.div_ceil(PAGE_SIZE));
        for range in ranges {
            tracked.insert_range(range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE));
        }
        let span = match (extents.first(), extents.last()) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => 0..0,
        };
        self.on = Some(On {
            pending: DirtySet::new(tracked.len()),
            tracked,
            span,
            page_size,
        });
        Ok(page_size)
    }

    fn report(&mut self, range: Range<u64>, into: &mut DirtySet) -> Result<(), DirtyError> {
        probe!(tidemark, harvest_start, range.start, range.end);
        self.drain()?;
        let on = self.on.as_mut().ok_or(DirtyError::NotStarted)?;
        let asked = range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE).min(into.len());
        on.pending.move_range(asked, into);
        probe!(tidemark, harvest_done, range.start, range.end);
        Ok(())
    }

    fn put_back(&mut self, pages: &DirtySet) -> Result<(), DirtyError> {
        let on = self.on.as_mut().ok_or(DirtyError::NotStarted)?;
        on.pending.union_with(pages);
        on.pending.intersect_with(&on.tracked);
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DirtyError> {
        self.on.take().ok_or(DirtyError::NotStarted)?;
        self.queue().command(records::STOP, self.subject, &[], 0)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_whole_and_few() {
        let ranges = [
            0x5000..0x5001,
            0x1fff..0x3000,
            0x9000..0xa000,
            0x2000..0x4000,
        ];
        let whole = |size, most| whole(&ranges, size, most).unwrap();
        assert_eq!(
            whole(4096, 9),
            [0x1000..0x4000, 0x5000..0x6000, 0x9000..0xa000]
        );
        assert_eq!(whole(4096, 2), [0x1000..0x6000, 0x9000..0xa000]);
        assert_eq!(whole(4096, 0), std::slice::from_ref(&(0x1000..0xa000)));
        assert_eq!(whole(0x4000, 9), std::slice::from_ref(&(0..0xc000)));
        let last = u64::MAX - 1..u64::MAX;
        assert_eq!(super::whole(std::slice::from_ref(&last), 4096, 1), None);
    }
}

//! What a VMM learns of the pages that a function writes: VFIO's DMA logging, from our recorder.
//!
//! A report takes what was recorded into bits of our own and answers from those, so that ranges may
//! be reported in any order and in any grain, and a page's bit is cleared only when all of that page
//! was reported.

use super::served::Refusal;
use crate::dma::Dma;
use crate::tracker::records::{PAGES_MAX, Recorder, RecordsConfig};
use rustix::io::Errno;
use std::ops::Range;
use std::sync::Arc;

/// Pages that are tracked have 4 KiB to 1 GiB.
const SHIFTS: Range<u32> = 12..31;
/// Records held between two reports. What is written beyond them makes all pages dirty.
const RECORDS_MAX: u64 = 1 << 22;
/// Records that are fetched at once.
const BATCH: usize = 1 << 16;

/// Pages of a range that were written and not reported yet.
#[derive(Debug)]
struct Written {
    /// Page numbers.
    pages: Range<u64>,
    /// Bit n of all: page `pages.start + n`.
    bits: Vec<u64>,
}

impl Written {
    fn new(pages: Range<u64>) -> Option<Self> {
        let words = (pages.end - pages.start).div_ceil(64);
        let bits = vec![0; usize::try_from(words).ok()?];
        Some(Self { pages, bits })
    }

    fn set(&mut self, pages: &Range<u64>) {
        let (start, end) = self.within(pages);
        for page in start..end {
            if let Some(word) = self.bits.get_mut(index(page / 64)) {
                *word |= 1 << (page % 64);
            }
        }
    }

    /// The part of `pages` that this range has, counted from its first.
    fn within(&self, pages: &Range<u64>) -> (u64, u64) {
        let Range { start, end } = self.pages;
        let clamp = |page: u64| page.clamp(start, end) - start;
        (clamp(pages.start), clamp(pages.end))
    }
}

/// DMA logging that is on.
#[derive(Debug)]
pub(super) struct Logging {
    recorder: Arc<Recorder>,
    shift: u32,
    written: Vec<Written>,
    /// The guest's bitmap, if its pages were counted as written since the last report.
    noted: Range<u64>,
}

impl Logging {
    /// Starts. The ranges are in bytes, and may be any; pages have `page_size` bytes if that can be,
    /// or else the next size that can.
    pub(super) fn start(dma: &Dma, page_size: u64, ranges: &[Range<u64>]) -> Result<Self, Refusal> {
        if !page_size.is_power_of_two() {
            let why = format!("pages of {page_size:#x} bytes, a power of two expected");
            return Err(Refusal::invalid(why));
        }
        let hint = page_size.trailing_zeros();
        let mut shift = hint.clamp(SHIFTS.start, SHIFTS.end - 1);
        let pages = loop {
            let pages = merged(ranges, shift);
            let count: u64 = pages.iter().map(|pages| pages.end - pages.start).sum();
            if count <= PAGES_MAX {
                break pages;
            }
            shift += 1;
            if !SHIFTS.contains(&shift) {
                let why = "ranges of more than 2^58 bytes to be logged";
                return Err(Refusal::new(Errno::NOSPC, why));
            }
        };
        let count: u64 = pages.iter().map(|pages| pages.end - pages.start).sum();
        let config = RecordsConfig {
            page_shift: shift,
            ranges: pages
                .iter()
                // The end of all addresses is no number: their last byte will do.
                .map(|pages| {
                    let end = pages.end.checked_mul(1 << shift);
                    pages.start << shift..end.unwrap_or(u64::MAX)
                })
                .collect(),
            capacity: u32::try_from(count.min(RECORDS_MAX)).unwrap_or(u32::MAX),
        };
        let no_room = || Refusal::new(Errno::NOMEM, "no memory to log so many pages");
        let recorder = Arc::new(Recorder::new(&config).map_err(|_| no_room())?);
        let written: Option<_> = pages.into_iter().map(Written::new).collect();
        let written = written.ok_or_else(no_room)?;
        dma.attach_recorder(Arc::clone(&recorder));
        Ok(Self {
            recorder,
            shift,
            written,
            noted: 0..0,
        })
    }

    /// Bytes of a page.
    pub(super) fn page_size(&self) -> u64 {
        1 << self.shift
    }

    /// Ends; returns when nothing is logged any more.
    pub(super) fn stop(&self, dma: &Dma) {
        dma.detach_recorder(&self.recorder);
    }

    /// Counts the guest's bitmap as written: the tracker's own stores are recorded by nobody, and a
    /// VMM has to move those pages too. To be called before the tracker's configuration may change.
    pub(super) fn note_bitmap(&mut self, dma: &Dma) {
        let bitmap = dma.bitmap_iovas();
        if !bitmap.is_empty() && bitmap != self.noted {
            let pages = bitmap.start >> self.shift..((bitmap.end - 1) >> self.shift) + 1;
            self.set(&pages);
            self.noted = bitmap;
        }
    }

    fn set(&mut self, pages: &Range<u64>) {
        self.written
            .iter_mut()
            .for_each(|written| written.set(pages));
    }

    /// Takes all that was recorded.
    fn collect(&mut self, dma: &Dma) {
        let mut turned = false;
        loop {
            let recorder = Arc::clone(&self.recorder);
            let taken = recorder.take(&(0..u64::MAX), BATCH, || {
                if !turned {
                    dma.quiet(|| recorder.turn());
                    turned = true;
                }
            });
            if taken.overflow {
                self.set(&(0..u64::MAX));
            }
            for record in &taken.records {
                let page = record.get() >> self.shift;
                self.set(&(page..page + 1));
            }
            let more = taken.more;
            recorder.delivered(taken);
            if !more {
                break;
            }
        }
        self.noted = 0..0;
        self.note_bitmap(dma);
        // What is told of now is written again.
        self.noted = 0..0;
    }

    /// Sets the bit of every unit of `unit` bytes, counted from the start of `range`, in which
    /// anything was written. What was written is forgotten where `range` has all of its page.
    pub(super) fn report(&mut self, dma: &Dma, range: &Range<u64>, unit: u64, bits: &mut [u64]) {
        self.collect(dma);
        let shift = self.shift;
        let last = range.end - 1;
        let pages = range.start >> shift..(last >> shift) + 1;
        for written in &mut self.written {
            let first = written.pages.start;
            let (start, end) = written.within(&pages);
            for number in start / 64..end.div_ceil(64) {
                let Some(word) = written.bits.get_mut(index(number)) else {
                    continue;
                };
                let mut rest = *word;
                while rest != 0 {
                    let bit = u64::from(rest.trailing_zeros());
                    rest &= rest - 1;
                    let page = number * 64 + bit;
                    if !(start..end).contains(&page) {
                        continue;
                    }
                    let from = (first + page) << shift;
                    let to = from + ((1 << shift) - 1);
                    if range.start <= from && to <= last {
                        *word &= !(1 << bit);
                    }
                    let units = (from.max(range.start) - range.start) / unit
                        ..=(to.min(last) - range.start) / unit;
                    for unit in units {
                        if let Some(word) = bits.get_mut(index(unit / 64)) {
                            *word |= 1 << (unit % 64);
                        }
                    }
                }
            }
        }
    }
}

/// The pages that the ranges touch, in order and without overlap.
fn merged(ranges: &[Range<u64>], shift: u32) -> Vec<Range<u64>> {
    let mut pages: Vec<_> = ranges
        .iter()
        .filter(|range| !range.is_empty())
        .map(|range| range.start >> shift..((range.end - 1) >> shift) + 1)
        .collect();
    pages.sort_by_key(|pages| pages.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(pages.len());
    for pages in pages {
        match merged.last_mut() {
            Some(before) if pages.start <= before.end => before.end = before.end.max(pages.end),
            _ => merged.push(pages),
        }
    }
    merged
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

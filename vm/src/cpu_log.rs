//! Which pages the guest's own CPU wrote.

use driver::dirty::{DirtyError, DirtySet, DirtySource, PAGE_SIZE};
use driver::memory::WriteLog;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// One bit for each page of 4 KiB, set after every store that the emulated CPU makes. Always on.
#[derive(Debug)]
pub struct CpuLog {
    words: Vec<AtomicU64>,
    pages: u64,
}

impl CpuLog {
    /// A log of the addresses below `end` (bytes). Stores above are not the guest's memory and
    /// leave no trace.
    pub fn new(end: u64) -> Arc<Self> {
        let pages = end.div_ceil(PAGE_SIZE);
        Arc::new(Self {
            words: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            pages,
        })
    }

    fn mark(&self, page: u64) {
        let word = usize::try_from(page / 64).ok();
        if page < self.pages
            && let Some(word) = word.and_then(|word| self.words.get(word))
        {
            // Release, and after the store: whoever takes the bit sees the data.
            word.fetch_or(1 << (page % 64), Ordering::Release);
        }
    }
}

impl WriteLog for CpuLog {
    fn wrote(&self, iova: u64, len: u64) {
        let Some(last) = len.checked_sub(1) else {
            return;
        };
        for page in iova / PAGE_SIZE..=iova.saturating_add(last) / PAGE_SIZE {
            self.mark(page);
        }
    }
}

/// The [`CpuLog`] as a source of dirty pages.
#[derive(Debug)]
pub struct CpuLogSource(pub Arc<CpuLog>);

impl DirtySource for CpuLogSource {
    fn start(&mut self, ranges: &[Range<u64>], _granularity: u64) -> Result<u64, DirtyError> {
        if let Some(beyond) = ranges.iter().find(|r| r.end > self.0.pages * PAGE_SIZE) {
            return Err(DirtyError::Unsupported {
                what: format!("{:#x}..{:#x}", beyond.start, beyond.end),
                why: format!("the log ends at {:#x}", self.0.pages * PAGE_SIZE),
            });
        }
        // What was written before is in the first full copy.
        for word in &self.0.words {
            word.swap(0, Ordering::AcqRel);
        }
        fence(Ordering::SeqCst);
        Ok(PAGE_SIZE)
    }

    fn report(&mut self, range: Range<u64>, into: &mut DirtySet) -> Result<(), DirtyError> {
        let asked = range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE).min(into.len());
        for (index, word) in (0_u64..).zip(&self.0.words) {
            let mask = mask_of(index * 64, &asked);
            if mask == 0 || word.load(Ordering::Relaxed) & mask == 0 {
                continue;
            }
            let taken = word.fetch_and(!mask, Ordering::AcqRel) & mask;
            into.or_word(index, taken);
        }
        // Before anyone reads the pages.
        fence(Ordering::SeqCst);
        Ok(())
    }

    fn put_back(&mut self, pages: &DirtySet) -> Result<(), DirtyError> {
        for (word, bits) in self.0.words.iter().zip(pages.as_words()) {
            if *bits != 0 {
                word.fetch_or(*bits, Ordering::Release);
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DirtyError> {
        Ok(())
    }
}

/// The bits of the word whose first page is `first` that lie within `pages`.
fn mask_of(first: u64, pages: &Range<u64>) -> u64 {
    let low = pages.start.saturating_sub(first);
    let high = pages.end.saturating_sub(first);
    let below = |n: u64| if n >= 64 { u64::MAX } else { (1 << n) - 1 };
    below(high) & !below(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(source: &mut CpuLogSource, range: Range<u64>) -> Vec<u64> {
        let mut set = DirtySet::new(1000);
        source.report(range, &mut set).unwrap();
        set.iter().collect()
    }

    #[test]
    fn reports_what_was_written_once_and_only_where_asked() {
        let log = CpuLog::new(1000 * PAGE_SIZE);
        let mut source = CpuLogSource(Arc::clone(&log));
        log.wrote(5 * PAGE_SIZE + 4095, 2);
        log.wrote(63 * PAGE_SIZE, 2 * PAGE_SIZE);
        log.wrote(999 * PAGE_SIZE, 3 * PAGE_SIZE);
        log.wrote(7 * PAGE_SIZE, 0);
        let end = 1000 * PAGE_SIZE;
        assert_eq!(
            reported(&mut source, 6 * PAGE_SIZE..64 * PAGE_SIZE),
            [6, 63]
        );
        assert_eq!(reported(&mut source, 0..end), [5, 64, 999]);
        assert_eq!(reported(&mut source, 0..end), [0_u64; 0]);
    }

    #[test]
    fn takes_pages_back() {
        let log = CpuLog::new(1000 * PAGE_SIZE);
        let mut source = CpuLogSource(Arc::clone(&log));
        log.wrote(PAGE_SIZE, 1);
        let mut set = DirtySet::new(1000);
        source.report(0..1000 * PAGE_SIZE, &mut set).unwrap();
        log.wrote(2 * PAGE_SIZE, 1);
        source.put_back(&set).unwrap();
        assert_eq!(reported(&mut source, 0..1000 * PAGE_SIZE), [1, 2]);
    }

    #[test]
    fn no_page_is_lost_between_a_writer_and_a_reporter() {
        let log = CpuLog::new(64 * PAGE_SIZE);
        let writer = Arc::clone(&log);
        let thread = std::thread::spawn(move || {
            for page in (0..200_000_u64).map(|n| n % 64) {
                writer.wrote(page * PAGE_SIZE, 8);
            }
        });
        let mut source = CpuLogSource(log);
        let mut seen = DirtySet::new(64);
        while !thread.is_finished() {
            source.report(0..64 * PAGE_SIZE, &mut seen).unwrap();
        }
        thread.join().unwrap();
        source.report(0..64 * PAGE_SIZE, &mut seen).unwrap();
        assert_eq!(seen.count(), 64);
    }
}

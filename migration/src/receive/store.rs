//! The memory that fills: which pages have come, over whatever connection.

use super::Received;
use crate::error::{GuestError, MigrationError};
use crate::stream::{Answer, DestinationStream};
use driver::dirty::{DirtySet, PAGE_SIZE};
use driver::memory::DmaMemory;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_SIZE == 4096);
static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Shared by everybody who takes pages.
#[derive(Debug, Default)]
pub(super) struct Store {
    memory: OnceLock<Vec<DmaMemory>>,
    /// Pages that have come at least once.
    seen: Mutex<DirtySet>,
    /// Held alone while memory is something else than the guest's.
    guests: RwLock<()>,
}

impl Store {
    /// There is room now.
    pub(super) fn open(&self, memory: Vec<DmaMemory>) {
        let end = memory.iter().map(|w| w.iova() + w.len()).max();
        *self.seen() = DirtySet::new(end.unwrap_or(0).div_ceil(PAGE_SIZE));
        // Opened once: the caller's phases see to that.
        self.memory.get_or_init(|| memory);
    }

    pub(super) fn all_came(&self) -> Result<(), GuestError> {
        let total: u64 = self.windows().iter().map(|w| w.len() / PAGE_SIZE).sum();
        let seen = self.seen().count();
        if seen == total {
            return Ok(());
        }
        Err(GuestError(format!(
            "{seen} of {total} pages of memory have come"
        )))
    }

    fn windows(&self) -> &[DmaMemory] {
        self.memory.get().map_or(&[], Vec::as_slice)
    }

    fn seen(&self) -> MutexGuard<'_, DirtySet> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the pages of one connection.
///
/// A page is on one connection only between two of the source's barriers; a source that does
/// otherwise damages its own guest and nothing else.
#[derive(Debug)]
pub(super) struct Taker<'a> {
    pub(super) store: &'a Store,
    pub(super) received: Received,
    /// Pages of this record that came a second time with the bytes they already had.
    unchanged: Vec<u64>,
    buffer: Vec<u8>,
    held: Vec<u8>,
}

impl<'a> Taker<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self {
            store,
            received: Received::default(),
            unchanged: Vec::new(),
            buffer: Vec::new(),
            held: Vec::new(),
        }
    }

    /// Takes bytes that mean nothing, answers, and lets `poison` undo them before anybody's pages
    /// are taken.
    pub(super) fn plain_copy(
        &self,
        stream: &mut dyn DestinationStream,
        len: u64,
        poison: impl FnOnce() -> Result<(), MigrationError>,
    ) -> Result<(), MigrationError> {
        let _alone = self.store.guests.write();
        let windows = self.store.windows();
        let total: u64 = windows.iter().map(DmaMemory::len).sum();
        if len != total {
            let expected = format!("a plain copy of {total} bytes");
            return Err(stream.fault(expected, format!("{len} bytes")));
        }
        for window in windows {
            let mut at = 0;
            while at < window.len() {
                let chunk = (window.len() - at).min(1 << 20);
                let bytes = usize::try_from(chunk).unwrap_or(PAGE_BYTES);
                stream.bytes_into(window, &[(at, bytes)])?;
                at += chunk;
            }
        }
        stream.answer(Answer::PlainCopied)?;
        poison()
    }

    /// Takes a record and answers: what comes for the first time goes straight into memory, what
    /// comes again is compared with what is held.
    pub(super) fn pages(
        &mut self,
        stream: &mut dyn DestinationStream,
        pages: &[u64],
    ) -> Result<(), MigrationError> {
        let store = self.store;
        let _shared = store.guests.read();
        // Who came before is asked once: between two barriers nobody else brings these.
        let known: Vec<bool> = {
            let seen = store.seen();
            pages.iter().map(|page| seen.contains(*page)).collect()
        };
        let (mut rest, mut known) = (pages, known.as_slice());
        while let (Some(&first), Some(&again)) = (rest.first(), known.first()) {
            let window = self.window(stream, first)?;
            let alike = rest.iter().zip(known);
            let alike = alike.take_while(|(page, was)| **was == again && holds(window, **page));
            let count = alike.count();
            let (mine, others) = rest.split_at(count);
            if again {
                self.compare(stream, window, mine)?;
            } else {
                fill(stream, window, mine)?;
            }
            rest = others;
            known = known.get(count..).unwrap_or_default();
        }
        self.took(pages);
        let unchanged = std::mem::take(&mut self.unchanged);
        stream.answer(Answer::Taken {
            unchanged: &unchanged,
        })
    }

    /// Takes pages of zeros and answers. That they hold zeros is only said of memory that was never
    /// written: of a page that came before, nobody would know what it holds.
    pub(super) fn zero_pages(
        &mut self,
        stream: &mut dyn DestinationStream,
        pages: &[u64],
    ) -> Result<(), MigrationError> {
        let store = self.store;
        let _shared = store.guests.read();
        for &page in pages {
            let window = self.window(stream, page)?;
            if !store.seen().insert(page) {
                let expected = "a page without data only where none came before";
                return Err(stream.fault(expected.to_owned(), format!("page {page:#x} again")));
            }
            let offset = page * PAGE_SIZE - window.iova();
            window.write(offset, &ZEROS).map_err(beyond)?;
        }
        self.took(&[]);
        let count = u64::try_from(pages.len()).unwrap_or(u64::MAX);
        self.received.pages += count;
        self.received.zeros += count;
        stream.answer(Answer::Taken { unchanged: &[] })
    }

    fn took(&mut self, pages: &[u64]) {
        let mut seen = self.store.seen();
        for page in pages {
            seen.insert(*page);
        }
        self.received.records += 1;
        self.received.pages += u64::try_from(pages.len()).unwrap_or(u64::MAX);
    }

    fn compare(
        &mut self,
        stream: &mut dyn DestinationStream,
        window: &DmaMemory,
        pages: &[u64],
    ) -> Result<(), MigrationError> {
        self.held.resize(PAGE_BYTES, 0);
        self.buffer.resize(pages.len() * PAGE_BYTES, 0);
        stream.bytes(&mut self.buffer)?;
        for (&page, came) in pages.iter().zip(self.buffer.chunks_exact(PAGE_BYTES)) {
            let offset = page * PAGE_SIZE - window.iova();
            window.read(offset, &mut self.held).map_err(beyond)?;
            if self.held == came {
                self.unchanged.push(page);
            } else {
                window.write(offset, came).map_err(beyond)?;
            }
        }
        Ok(())
    }

    fn window(
        &self,
        stream: &dyn DestinationStream,
        page: u64,
    ) -> Result<&'a DmaMemory, MigrationError> {
        let mut windows = self.store.windows().iter();
        windows.find(|window| holds(window, page)).ok_or_else(|| {
            let expected = "a page of the guest's memory".to_owned();
            stream.fault(expected, format!("page {page:#x}"))
        })
    }
}

fn holds(window: &DmaMemory, page: u64) -> bool {
    let most = window.len().checked_sub(PAGE_SIZE);
    let offset = page.checked_mul(PAGE_SIZE);
    let offset = offset.and_then(|address| address.checked_sub(window.iova()));
    offset.is_some_and(|offset| most.is_some_and(|most| offset <= most))
}

fn fill(
    stream: &mut dyn DestinationStream,
    window: &DmaMemory,
    pages: &[u64],
) -> Result<(), MigrationError> {
    let mut ranges: Vec<(u64, usize)> = Vec::new();
    let mut next = None;
    for &page in pages {
        match ranges.last_mut() {
            Some((_, len)) if next == Some(page) => *len += PAGE_BYTES,
            _ => ranges.push((page * PAGE_SIZE - window.iova(), PAGE_BYTES)),
        }
        next = page.checked_add(1);
    }
    stream.bytes_into(window, &ranges)
}

fn beyond(error: driver::memory::MemoryError) -> GuestError {
    GuestError::new("storing a page", error)
}

//! Pages set aside while the guest stands still, to be sent when it runs again.

use super::error::CheckpointError;
use super::secondary::window_of;
use crate::error::GuestError;
use crate::stream::BATCH_PAGES;
use driver::dirty::{DirtySet, PAGE_SIZE};
use driver::memory::DmaMemory;

const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_SIZE == 4096);

/// Of a guest's memory there is room for one part in so many,
const SHARE: u64 = 16;
/// and for so many bytes at most.
const ROOM_MAX: u64 = 64 << 20;

/// Copies of pages.
#[derive(Debug)]
pub(super) struct Aside {
    pages: Vec<u64>,
    data: Vec<u8>,
}

impl Aside {
    /// Room for a guest with so many bytes of memory.
    pub(super) fn new(memory: u64) -> Self {
        Self {
            pages: Vec::new(),
            data: room(memory),
        }
    }

    /// Copies these pages, or none if there is no room for all of them; says which.
    pub(super) fn take(
        &mut self,
        memory: &[DmaMemory],
        dirty: &DirtySet,
    ) -> Result<bool, CheckpointError> {
        self.pages.clear();
        let count = usize::try_from(dirty.count()).unwrap_or(usize::MAX);
        if count > self.data.len() / PAGE_BYTES {
            return Ok(false);
        }
        for (page, into) in dirty.iter().zip(self.data.chunks_exact_mut(PAGE_BYTES)) {
            let at = page * PAGE_SIZE;
            let window = window_of(memory, at)?;
            let read = window.read(at - window.iova(), into);
            read.map_err(|error| GuestError::new("copying a page", error))?;
            self.pages.push(page);
        }
        Ok(true)
    }

    /// What was set aside, as many pages as a record takes at a time, with their data.
    pub(super) fn records(&self) -> impl Iterator<Item = (&[u64], &[u8])> {
        let data = self.data.chunks(BATCH_PAGES * PAGE_BYTES);
        let records = self.pages.chunks(BATCH_PAGES).zip(data);
        records.map(|(pages, data)| {
            let data = data.get(..pages.len() * PAGE_BYTES);
            (pages, data.unwrap_or_default())
        })
    }
}

/// Room for pages of a guest with so many bytes of memory. It has been written, so that the kernel
/// does not have to find it page by page while a guest waits.
pub(super) fn room(memory: u64) -> Vec<u8> {
    let bytes = (memory / SHARE).clamp(PAGE_SIZE, ROOM_MAX);
    let bytes = usize::try_from(bytes).unwrap_or(PAGE_BYTES);
    let mut room = Vec::with_capacity(bytes);
    room.resize(bytes, 0xa5);
    room
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    const PAGES: u64 = 64;

    fn window() -> DmaMemory {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("aside", flags).unwrap());
        file.set_len(PAGES * PAGE_SIZE).unwrap();
        DmaMemory::from_file(&file, 0, PAGES * PAGE_SIZE, 0).unwrap()
    }

    fn set(pages: &[u64]) -> DirtySet {
        let mut set = DirtySet::new(PAGES);
        for page in pages {
            set.insert(*page);
        }
        set
    }

    #[test]
    fn what_was_set_aside_stays_as_it_was() {
        let memory = [window()];
        let mut aside = Aside::new(PAGES * PAGE_SIZE);
        for page in [3, 7] {
            memory[0].write(page * PAGE_SIZE, &[1; PAGE_BYTES]).unwrap();
        }
        assert!(aside.take(&memory, &set(&[3, 7])).unwrap());
        // The guest goes on.
        memory[0].write(7 * PAGE_SIZE, &[2; PAGE_BYTES]).unwrap();
        let records: Vec<_> = aside.records().collect();
        assert_eq!(records, [(&[3, 7][..], &[1; 2 * PAGE_BYTES][..])]);
    }

    #[test]
    fn all_pages_are_set_aside_or_none() {
        let memory = [window()];
        let mut aside = Aside::new(PAGES * PAGE_SIZE);
        assert!(aside.take(&memory, &set(&[0, 1, 2, 63])).unwrap());
        assert!(!aside.take(&memory, &set(&[0, 1, 2, 3, 63])).unwrap());
        assert_eq!(aside.records().count(), 0, "nothing of the time before");
    }
}

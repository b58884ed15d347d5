//! Pages set aside while the guest stands still, to be sent when it runs again.

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
    ) -> Result<bool, GuestError> {
        self.pages.clear();
        let count = usize::try_from(dirty.count()).unwrap_or(usize::MAX);
        if count > self.data.len() / PAGE_BYTES {
            return Ok(false);
        }
        for (page, into) in dirty.iter().zip(self.data.chunks_exact_mut(PAGE_BYTES)) {
            let at = page * PAGE_SIZE;
            let window = memory
                .iter()
                .find(|w| at >= w.iova() && at - w.iova() < w.len())
                .ok_or_else(|| GuestError(format!("page {page:#x} is none of the guest's")))?;
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

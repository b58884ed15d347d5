//! The memory of an exercise: pages that the device alone writes once they are prepared.

use crate::error::VmError;
use crate::guest::block::{BLOCK_BYTES, Page, splitmix};
use crate::journal::sector::{Content, SECTOR_BYTES, read};
use driver::bus::Bus;
use driver::dirty::PAGE_SIZE;
use driver::memory::DmaMemory;

/// Pages that the device writes, then pages that it only reads.
#[derive(Debug)]
pub(super) struct Pages {
    memory: DmaMemory,
    /// Pages that reads go to.
    frames: u64,
}

impl Pages {
    /// `frames` pages for reads and `sources` pages for writes.
    pub(super) fn new(bus: &dyn Bus, frames: u64, sources: u64) -> Result<Self, VmError> {
        let bytes = frames
            .checked_add(sources)
            .and_then(|pages| pages.checked_mul(PAGE_SIZE))
            .filter(|_| frames != 0)
            .ok_or_else(|| VmError::shape("pages", "a number that memory can hold", frames))?;
        Ok(Self {
            memory: bus.dma_alloc(bytes)?,
            frames,
        })
    }

    /// Where they are (IOVA).
    pub(super) fn iova(&self) -> u64 {
        self.memory.iova()
    }

    /// Bytes of them.
    pub(super) fn len(&self) -> u64 {
        self.memory.len()
    }

    /// All of them.
    pub(super) fn count(&self) -> u64 {
        self.len() / PAGE_SIZE
    }

    /// Those that reads go to; the others are behind them.
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// IOVA of a page.
    pub(super) fn address(&self, page: u64) -> u64 {
        self.iova() + page * PAGE_SIZE
    }

    /// Writes into every page what no disk holds, and what no other round has written, so that
    /// whatever the device stores there changes bytes.
    pub(super) fn prepare(&self, round: u64) -> Result<(), VmError> {
        let mut page: Page = [0; BLOCK_BYTES];
        for number in 0..self.count() {
            let first = splitmix(splitmix(!number) ^ !round);
            let (words, _) = page.as_chunks_mut::<8>();
            for (word, n) in words.iter_mut().zip(1_u64..) {
                let value = first.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                *word = value.to_le_bytes();
            }
            self.memory.write(number * PAGE_SIZE, &page)?;
        }
        Ok(())
    }

    /// How many of the sectors that a read has put into `pages` pages from `page` on are not those
    /// that a journal with this seed has formatted from `sector` on.
    pub(super) fn wrong(
        &self,
        page: u64,
        pages: u64,
        sector: u64,
        seed: u64,
    ) -> Result<u64, VmError> {
        let mut wrong = 0;
        let mut bytes: Page = [0; BLOCK_BYTES];
        let mut expected = sector;
        for page in page..page + pages {
            self.memory.read(page * PAGE_SIZE, &mut bytes)?;
            for bytes in bytes.chunks_exact(SECTOR_BYTES) {
                let is_right = matches!(
                    read(bytes),
                    Content::Whole(stamp) if stamp.seed == seed && stamp.sector == expected
                );
                wrong += u64::from(!is_right);
                expected += 1;
            }
        }
        Ok(wrong)
    }
}

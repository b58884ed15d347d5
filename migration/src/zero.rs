//! Pages of zeros, which need no bytes on the wire.

use crate::stream::New;
use driver::dirty::PAGE_SIZE;
use driver::memory::DmaMemory;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words looked at before deciding whether to look on: a cache line.
const LINE: usize = 8;

/// The pages that need no bytes, and those that do, each in order: the first are the `new` ones that
/// hold nothing but zeros.
pub(crate) fn split(memory: &[DmaMemory], pages: &[u64], new: New) -> (Vec<u64>, Vec<u64>) {
    let mut full = pages.to_vec();
    let empty = match new {
        New::All => take_out(memory, &mut full),
        New::Unknown => Vec::new(),
    };
    (empty, full)
}

/// Takes the pages out of `pages` that hold nothing but zeros, and returns them in order.
///
/// Whoever writes such a page meanwhile marks it, and so it is sent again: what counts is what is
/// seen after tracking has begun.
fn take_out(memory: &[DmaMemory], pages: &mut Vec<u64>) -> Vec<u64> {
    let mut empty = Vec::new();
    let mut window: Option<(&DmaMemory, &[AtomicU64])> = None;
    pages.retain(|page| {
        let Some(address) = page.checked_mul(PAGE_SIZE) else {
            return true;
        };
        if !window.is_some_and(|(window, _)| holds(window, address)) {
            let found = memory.iter().find(|window| holds(window, address));
            window = found.and_then(|window| Some((window, window.words().ok()?)));
        }
        let zero = window.is_some_and(|(window, words)| is_zero(words, address - window.iova()));
        if zero {
            empty.push(*page);
        }
        !zero
    });
    empty
}

fn holds(window: &DmaMemory, address: u64) -> bool {
    let most = window.len().checked_sub(PAGE_SIZE);
    address >= window.iova() && most.is_some_and(|most| address - window.iova() <= most)
}

fn is_zero(words: &[AtomicU64], offset: u64) -> bool {
    let Ok(first) = usize::try_from(offset / 8) else {
        return false;
    };
    let count = usize::try_from(PAGE_SIZE / 8).unwrap_or(0);
    let page = words.get(first..first.saturating_add(count));
    page.is_some_and(|page| {
        let mut lines = page.chunks_exact(LINE);
        lines.all(|line| {
            let mut seen = 0;
            for word in line {
                seen |= word.load(Ordering::Relaxed);
            }
            seen == 0
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn window(pages: u64, iova: u64) -> DmaMemory {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("zero", flags).unwrap());
        file.set_len(pages * PAGE_SIZE).unwrap();
        DmaMemory::from_file(&file, 0, pages * PAGE_SIZE, iova).unwrap()
    }

    #[test]
    fn every_byte_of_a_page_counts() {
        let memory = [window(4, 2 * PAGE_SIZE), window(2, 10 * PAGE_SIZE)];
        for offset in 0..PAGE_SIZE {
            memory[0].write(PAGE_SIZE + offset, &[1]).unwrap();
            let mut pages = vec![2, 3, 4, 5, 10, 11];
            assert_eq!(take_out(&memory, &mut pages), [2, 4, 5, 10, 11]);
            assert_eq!(pages, [3], "byte {offset}");
            memory[0].write(PAGE_SIZE + offset, &[0]).unwrap();
        }
        // What is nobody's memory is not called empty.
        let mut pages = vec![1, 6, 9, 12, u64::MAX];
        assert_eq!(take_out(&memory, &mut pages), [0_u64; 0]);
        assert_eq!(pages.len(), 5);
    }
}

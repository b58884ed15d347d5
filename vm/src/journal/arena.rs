//! Memory that requests point into: pages of 4 KiB, as direct I/O wants them.

use crate::guest::block::splitmix;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a page.
pub(super) const PAGE_BYTES: usize = 4096;

/// One page of memory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub(super) struct Page([u8; PAGE_BYTES]);

/// `bytes` of memory, rounded up to pages, each page written once: the system has given them all,
/// and none is the shared page of zeroes.
pub(super) fn pages(bytes: usize) -> Vec<Page> {
    vec![Page([0xa5; PAGE_BYTES]); bytes.div_ceil(PAGE_BYTES)]
}

/// Buffers of one size cut from an arena, handed out in random order, each as often as every other.
#[derive(Debug)]
pub(super) struct Pool<'a>(Mutex<VecDeque<&'a mut [u8]>>);

impl<'a> Pool<'a> {
    /// Cuts `arena` into buffers of `bytes`, each beginning on a page.
    pub(super) fn new(arena: &'a mut [Page], bytes: usize, seed: u64) -> Self {
        let pages = bytes.div_ceil(PAGE_BYTES).max(1);
        let mut buffers: Vec<_> = arena
            .chunks_exact_mut(pages)
            .filter_map(|chunk| chunk.as_mut_bytes().get_mut(..bytes))
            .collect();
        let mut random = seed;
        for left in (1..buffers.len()).rev() {
            random = splitmix(random);
            // Below the length of a vector, so it fits.
            let other = usize::try_from(random % (left as u64 + 1)).unwrap_or(0);
            buffers.swap(left, other);
        }
        Self(Mutex::new(buffers.into()))
    }

    /// The buffer that has rested longest. None only if more are out than there are.
    pub(super) fn take(&self) -> Option<&'a mut [u8]> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    /// Puts a buffer back.
    pub(super) fn give(&self, buffer: &'a mut [u8]) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn all_buffers_come_before_one_comes_again() {
        let mut arena = pages(100 * PAGE_BYTES);
        let pool = Pool::new(&mut arena, 4096, 1);
        let mut order = Vec::new();
        for _ in 0..100 {
            let buffer = pool.take().unwrap();
            order.push(buffer.as_ptr().addr());
            pool.give(buffer);
        }
        assert_eq!(order.iter().collect::<HashSet<_>>().len(), 100);
        assert!(order.iter().all(|address| address % 4096 == 0));
        assert!(!order.is_sorted(), "in random order");
    }
}

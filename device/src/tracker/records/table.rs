//! The words of a recorder: many, zero, and there only where they are used.
#![expect(
    unsafe_code,
    reason = "advises the system and the processor about memory"
)]

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use rustix::mm::{Advice, madvise};
use std::sync::atomic::AtomicU64;
use zerocopy::FromZeros;

/// Words of a huge page, where Linux has them: 2 MiB.
const HUGE: usize = (2 << 20) / size_of::<AtomicU64>();

/// Words that hold 0 at first. The system has memory for those that were written, and their
/// neighbours, only.
#[derive(Debug)]
pub(super) struct Table {
    words: Vec<AtomicU64>,
    /// Where its words begin.
    from: usize,
}

impl Table {
    /// A table of `len` words, or `None` if there is no room for them.
    ///
    /// A random page of a large guest misses the caches and, on small pages, what the processor
    /// remembers of page tables, which costs a virtual machine as much again. So a table of a huge
    /// page or more begins on one and asks for them.
    pub(super) fn new(len: usize) -> Option<Self> {
        let huge = len >= HUGE;
        let room = if huge {
            len.checked_next_multiple_of(HUGE)?.checked_add(HUGE)?
        } else {
            len
        };
        let words = AtomicU64::new_vec_zeroed(room).ok()?;
        if !huge {
            return Some(Self { words, from: 0 });
        }
        let from = words.as_ptr().align_offset(HUGE * size_of::<AtomicU64>());
        let table = words.get(from..from.checked_add(len)?)?;
        // SAFETY: the advice is about memory of this vector alone, whose length is a multiple of
        // the word's, and changes nothing of what is in it or of who may reach it.
        let advised = unsafe {
            let first = table.as_ptr().cast_mut().cast();
            madvise(
                first,
                len.next_multiple_of(HUGE) * size_of::<AtomicU64>(),
                Advice::LinuxHugepage,
            )
        };
        if let Err(error) = advised {
            tracing::debug!(%error, "no huge pages for a recorder: its marks will be slower");
        }
        Some(Self { words, from })
    }

    /// Has word `at` fetched, for somebody who will want it soon.
    #[inline(always)]
    pub(super) fn fetch(&self, at: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some(word) = self.as_slice().get(at) {
            // SAFETY: the instruction is part of every x86-64 processor, and reads and writes
            // nothing that a program could see, wherever the address leads.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(word.as_ptr().cast()) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    /// The words, and perhaps some more.
    #[inline(always)]
    pub(super) fn as_slice(&self) -> &[AtomicU64] {
        self.words.get(self.from..).unwrap_or_default()
    }
}

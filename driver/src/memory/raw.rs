//! The accesses to a mapping that the compiler cannot check: atomic views, writev and readv.

#![expect(
    unsafe_code,
    reason = "shared memory as atomics, and its addresses as arguments of system calls"
)]

use super::{DmaMemory, MemoryError};
use libc::{c_int, iovec};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

/// An atomic integer that may be laid over shared memory.
///
/// # Safety
/// The type is valid for every bit pattern, has interior mutability throughout and no drop glue.
pub(super) unsafe trait Atomic {}
// SAFETY: an atomic integer has the layout of its integer, for which all patterns are valid.
unsafe impl Atomic for AtomicU8 {}
// SAFETY: as above.
unsafe impl Atomic for AtomicU16 {}
// SAFETY: as above.
unsafe impl Atomic for AtomicU32 {}
// SAFETY: as above.
unsafe impl Atomic for AtomicU64 {}

/// Linux's UIO_MAXIOV: a call with more segments fails.
const SEGMENTS_MAX: usize = 1024;

impl DmaMemory {
    /// The whole items of type `T` within `len` bytes at `start`.
    pub(super) fn view<T: Atomic>(&self, start: usize, len: usize) -> Result<&[T], MemoryError> {
        self.locate(start as u64, len as u64)?;
        let first = self.address(start);
        if !first.cast::<T>().is_aligned() {
            return Err(MemoryError::Misaligned {
                offset: start as u64,
                align: align_of::<T>(),
            });
        }
        let items = len / size_of::<T>();
        // `T` accepts every bit pattern, and being atomic it may change under a shared reference,
        // which is what other holders of the memory do. Nobody makes a `&mut` or a plain `&[u8]` of
        // this memory: this module and vm-memory's volatile copies are the only ways in.
        //
        // SAFETY: alignment was checked, and `locate` has shown that the bytes lie in the window,
        // which is in the mapping, which lives as long as `self.region`, which the result borrows.
        Ok(unsafe { std::slice::from_raw_parts(first.cast::<T>(), items) })
    }

    /// Where the window is mapped here. Whoever hands this on to somebody who reads or writes it
    /// argues as `view` does: by atomics, by volatile copies, or from outside this process.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.address(0)
    }

    fn address(&self, start: usize) -> *mut u8 {
        // `wrapping_add` needs no promise; the callers have checked that the sum is inside.
        self.region.as_ptr().wrapping_add(self.base + start)
    }

    /// `ranges` as segments, without the first `skip` bytes.
    fn segments(
        &self,
        into: &mut Vec<iovec>,
        ranges: &[(u64, usize)],
        mut skip: usize,
    ) -> Result<(), MemoryError> {
        for &(offset, len) in ranges {
            let (start, size) = self.locate(offset, len as u64)?;
            let passed = skip.min(size);
            skip -= passed;
            if passed < size && into.len() < SEGMENTS_MAX {
                into.push(iovec {
                    iov_base: self.address(start + passed).cast(),
                    iov_len: size - passed,
                });
            }
        }
        Ok(())
    }
}

fn count(segments: &[iovec]) -> c_int {
    // At most SEGMENTS_MAX, which every c_int holds.
    c_int::try_from(segments.len()).unwrap_or(c_int::MAX)
}

/// One writev of what remains of `head` and `ranges` after `skip` bytes.
pub(super) fn writev(
    memory: &DmaMemory,
    fd: BorrowedFd<'_>,
    head: &[u8],
    ranges: &[(u64, usize)],
    skip: usize,
) -> io::Result<usize> {
    let mut segments = Vec::with_capacity(SEGMENTS_MAX.min(ranges.len() + 1));
    let passed = skip.min(head.len());
    if let Some(rest) = head.get(passed..).filter(|rest| !rest.is_empty()) {
        segments.push(iovec {
            iov_base: rest.as_ptr().cast_mut().cast(),
            iov_len: rest.len(),
        });
    }
    memory.segments(&mut segments, ranges, skip - passed)?;
    // SAFETY: every segment lies within `head`, which is borrowed for the call, or within the
    // mapping, which `memory` keeps; the kernel only reads them. That others store into the mapping
    // meanwhile is the kernel's business, not the compiler's: no Rust reference is formed.
    let sent = unsafe { libc::writev(fd.as_raw_fd(), segments.as_ptr(), count(&segments)) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// One readv into what remains of `ranges` after `skip` bytes; logs what was stored.
pub(super) fn readv(
    memory: &DmaMemory,
    fd: BorrowedFd<'_>,
    ranges: &[(u64, usize)],
    skip: usize,
) -> io::Result<usize> {
    let mut segments = Vec::with_capacity(SEGMENTS_MAX.min(ranges.len()));
    memory.segments(&mut segments, ranges, skip)?;
    // SAFETY: every segment lies within the mapping, which `memory` keeps and which is writable;
    // no reference to plain bytes of it exists anywhere (see `view`).
    let got = unsafe { libc::readv(fd.as_raw_fd(), segments.as_ptr(), count(&segments)) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let (mut skip, mut left) = (skip, got);
    for &(offset, len) in ranges {
        let passed = skip.min(len);
        skip -= passed;
        let filled = left.min(len - passed);
        left -= filled;
        memory.logged(offset + passed as u64, filled);
    }
    Ok(got)
}

/// Bugs of the kinds that AddressSanitizer is to find in this crate: `cargo xtask proofs` builds the tests
/// with `--cfg planted`, and each of these must end the program with a report.
#[cfg(all(test, planted))]
mod planted {
    use super::DmaMemory;
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::fs::File;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A view of one word too many.
    #[test]
    fn out_of_bounds() {
        let words: Vec<_> = (0..8).map(AtomicU64::new).collect();
        let beyond = words
            .as_ptr()
            .wrapping_add(std::hint::black_box(words.len()));
        // SAFETY: there is none, which is what is to be found.
        let word = unsafe { &*beyond };
        println!("not found: {}", word.load(Ordering::Relaxed));
    }

    /// A view that outlives what it looks at.
    #[test]
    fn use_after_free() {
        let words: Vec<_> = (0..8).map(AtomicU64::new).collect();
        let first = words.as_ptr();
        drop(words);
        // SAFETY: there is none, which is what is to be found.
        let word = unsafe { &*std::hint::black_box(first) };
        println!("not found: {}", word.load(Ordering::Relaxed));
    }

    /// A view of guest memory that was unmapped.
    #[test]
    fn use_after_unmap() {
        let file = File::from(memfd_create("planted", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(4096).unwrap();
        let memory = DmaMemory::from_file(&file, 0, 4096, 0).unwrap();
        let first = memory.as_ptr().cast::<AtomicU64>();
        drop(memory);
        // SAFETY: there is none, which is what is to be found.
        let word = unsafe { &*std::hint::black_box(first) };
        println!("not found: {}", word.load(Ordering::Relaxed));
    }
}

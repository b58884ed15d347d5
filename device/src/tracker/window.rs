//! A stretch of the guest's bitmap in this process's memory, as atomics.
#![expect(unsafe_code, reason = "an atomic view of memory that the guest shares")]

use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU8, AtomicU64};
use vm_memory::VolatileSlice;

/// Where the bitmap's bytes lie in this process: `host = byte + delta`.
///
/// Two stretches that are neighbours both in the bitmap and in this process have equal windows, so
/// that a range map joins them into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// A pointer into the mapping, for its provenance; never dereferenced as it stands.
    base: NonNull<u8>,
    /// Host address of byte 0 of the bitmap, wrapping.
    delta: usize,
}

// SAFETY: a window is a pair of addresses. Access through it is to atomics only, and its user keeps
// the mapping alive (see `word`).
unsafe impl Send for Window {}
// SAFETY: as above; sharing hands out atomics only.
unsafe impl Sync for Window {}

impl Window {
    /// The window through which byte `byte` of the bitmap is the first byte of `slice`.
    ///
    /// `mapping` is the start of the mapping that `slice` lies in.
    pub(crate) fn new(mapping: *mut u8, slice: &VolatileSlice<'_>, byte: usize) -> Option<Self> {
        let host = slice.ptr_guard_mut().as_ptr().addr();
        Some(Self {
            base: NonNull::new(mapping)?,
            delta: host.wrapping_sub(byte),
        })
    }

    fn at(&self, byte: usize) -> Option<NonNull<u8>> {
        let host = NonZeroUsize::new(byte.wrapping_add(self.delta))?;
        Some(self.base.with_addr(host))
    }

    /// The 64-bit word that starts at byte `byte` of the bitmap.
    ///
    /// # Safety
    ///
    /// The eight bytes lie in the range this window was recorded for, `byte` and the bitmap's
    /// address are multiples of 8, and the mapping lives as long as `'a`.
    #[inline(always)]
    pub(crate) unsafe fn word<'a>(&self, byte: usize) -> Option<&'a AtomicU64> {
        let at = self.at(byte)?.cast::<AtomicU64>();
        debug_assert!(at.is_aligned());
        // SAFETY: aligned and mapped by the caller's promise; every access to these bytes in this
        // process is atomic or goes through vm-memory as volatile guest memory.
        Some(unsafe { at.as_ref() })
    }

    /// Byte `byte` of the bitmap.
    ///
    /// # Safety
    ///
    /// As for [`Window::word`], for one byte and without its alignment.
    #[inline(always)]
    pub(crate) unsafe fn byte<'a>(&self, byte: usize) -> Option<&'a AtomicU8> {
        let at = self.at(byte)?.cast::<AtomicU8>();
        // SAFETY: mapped by the caller's promise; atomic or volatile like the words.
        Some(unsafe { at.as_ref() })
    }
}

/// The words of a bitmap from word 0 on, as far as one window reaches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words {
    first: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: an address and a count; access is to atomics only, under `as_slice`'s promise.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Default for Words {
    fn default() -> Self {
        Self {
            first: NonNull::dangling(),
            count: 0,
        }
    }
}

impl Words {
    /// `count` words at the start of `window`; none if they do not fit this process.
    pub(crate) fn new(window: &Window, count: u64) -> Self {
        match (window.at(0), usize::try_from(count)) {
            (Some(first), Ok(count)) => Self {
                first: first.cast(),
                count,
            },
            _ => Self::default(),
        }
    }

    /// The words.
    ///
    /// # Safety
    ///
    /// The range the window was recorded for holds them, the bitmap's address is a multiple of 8,
    /// and the mapping lives as long as `'a`.
    #[inline(always)]
    pub(crate) unsafe fn as_slice<'a>(&self) -> &'a [AtomicU64] {
        // SAFETY: mapped and aligned by the caller's promise; every access to these bytes in this
        // process is atomic or goes through vm-memory as volatile guest memory.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

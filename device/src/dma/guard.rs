//! The door, open: memory access of one burst.
#![expect(
    unsafe_code,
    reason = "gives vm-memory's slices the tracker as their bitmap"
)]

use super::DmaError;
use super::space::Space;
use crate::tracker::{Bitmap, MarkAt, Written};
use crossbeam_utils::sync::ShardedLockReadGuard;
use probe::probe;
use std::cell::Cell;
use std::iter::FusedIterator;
use vm_memory::bitmap::{BS, Bitmap as _};
use vm_memory::guest_memory::{Error as GuestMemoryError, GuestMemorySliceIterator};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

/// The door, open. Implements vm-memory's `GuestMemory`: writes through that are marked at once.
#[derive(Debug)]
pub struct DmaGuard<'a> {
    space: ShardedLockReadGuard<'a, Space>,
    /// Pages that its bursts wrote. Counted together when the door shuts: one more locked operation
    /// a burst would cost as much as eight marks, and more where threads share the counter.
    pages: Cell<u64>,
}

impl<'a> DmaGuard<'a> {
    pub(super) fn new(space: ShardedLockReadGuard<'a, Space>) -> Self {
        Self {
            space,
            pages: Cell::new(0),
        }
    }

    /// Copies guest memory out, once.
    ///
    /// # Errors
    ///
    /// [`DmaError::Fault`] if any part is not readable; `into` may then be partly filled.
    pub fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), DmaError> {
        let mut rest = into;
        for slice in self.space.slices(iova, rest.len(), Permissions::Read) {
            let (_, slice) = slice?;
            let (now, later) = rest.split_at_mut(slice.len());
            slice.copy_to(now);
            rest = later;
        }
        Ok(())
    }

    /// Whether all of the range can be written.
    pub fn is_writable(&self, iova: u64, len: usize) -> bool {
        self.space.check(iova, len, Permissions::Write)
    }

    /// The same memory with writes to the used ring at `used` marked as
    /// [`Dma::set_ring_marks`](super::Dma::set_ring_marks) says.
    pub(crate) fn ring(&self, used: u64) -> RingMem<'_> {
        let (bitmap, shift) = self.space.ring_bitmap(used);
        RingMem {
            space: &self.space,
            bitmap,
            shift,
        }
    }

    /// Starts a burst of bulk writes.
    pub fn burst(&self) -> Burst<'_> {
        Burst {
            guard: self,
            written: self.written(),
        }
    }

    /// A list of writes to be marked together by [`DmaGuard::mark`].
    pub fn written(&self) -> Written<'_> {
        Written::new(self.space.data_bitmap())
    }

    /// Marks writes whose data has been stored: one fence, then only the pages that are not marked
    /// yet cost a locked operation.
    #[inline]
    pub fn mark(&self, written: &Written<'_>) {
        written.mark();
        probe!(tidemark, mark, written.pages());
        self.pages.set(self.pages.get() + written.pages());
    }
}

impl Drop for DmaGuard<'_> {
    fn drop(&mut self) {
        if self.pages.get() != 0 {
            self.space.data_bitmap().count(self.pages.get());
        }
    }
}

/// Bulk writes whose marks are set together, after all data has landed: on [`Burst::commit`], or
/// when dropped.
#[derive(Debug)]
pub struct Burst<'a> {
    guard: &'a DmaGuard<'a>,
    written: Written<'a>,
}

impl Burst<'_> {
    /// Stores `data` at `iova`.
    ///
    /// # Errors
    ///
    /// [`DmaError::Fault`], with nothing stored, if any part of the range is not writable.
    pub fn write(&mut self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        let mut rest = data;
        self.store(iova, data.len(), |slice| {
            let (now, later) = rest.split_at(slice.len());
            slice.copy_from(now);
            rest = later;
        })
    }

    /// Stores `len` zeroes at `iova`.
    ///
    /// # Errors
    ///
    /// As for [`Burst::write`].
    pub fn zero(&mut self, iova: u64, len: usize) -> Result<(), DmaError> {
        const ZEROES: [u8; 4096] = [0; 4096];
        self.store(iova, len, |slice| {
            let mut offset = 0;
            while let Ok(rest) = slice.offset(offset)
                && !rest.is_empty()
            {
                let now = &ZEROES[..rest.len().min(ZEROES.len())];
                rest.copy_from(now);
                offset += now.len();
            }
        })
    }

    fn store(
        &mut self,
        iova: u64,
        len: usize,
        mut each: impl FnMut(&VolatileSlice<'_>),
    ) -> Result<(), DmaError> {
        let access = Permissions::Write;
        let space = &self.guard.space;
        if !space.check(iova, len, access) {
            return Err(DmaError::Fault { iova, len, access });
        }
        for slice in space.slices(iova, len, access) {
            each(&slice?.1);
        }
        self.written
            .record(iova, u64::try_from(len).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Sets the marks. To be called before the used ring is published.
    pub fn commit(self) {}
}

impl Drop for Burst<'_> {
    fn drop(&mut self) {
        self.guard.mark(&self.written);
    }
}

/// Memory as a queue's ring sees it: writes to the used ring are marked the ring's own way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingMem<'a> {
    space: &'a Space,
    bitmap: &'a Bitmap,
    /// What is added to an IOVA, wrapping, to have the address that is marked.
    shift: u64,
}

impl GuestMemory for RingMem<'_> {
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = Bitmap;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.space.check(addr.0, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Bitmap>>, GuestMemoryError> {
        let Self {
            space,
            bitmap,
            shift,
        } = *self;
        Ok(marked(space, addr.0, count, access, bitmap, shift))
    }
}

impl GuestMemory for DmaGuard<'_> {
    /// Never given out: the only way to the memory is through the map.
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = Bitmap;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.space.check(addr.0, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Bitmap>>, GuestMemoryError> {
        let bitmap = self.space.data_bitmap();
        Ok(marked(&self.space, addr.0, count, access, bitmap, 0))
    }
}

/// Slices of guest memory whose writes are marked in `bitmap` at their IOVA plus `shift`.
fn marked<'a>(
    space: &'a Space,
    iova: u64,
    count: usize,
    access: Permissions,
    bitmap: &'a Bitmap,
    shift: u64,
) -> impl GuestMemorySliceIterator<'a, MarkAt<'a>> {
    Marked(space.slices(iova, count, access).map(move |slice| {
        let (iova, slice) = slice.map_err(|error| {
            GuestMemoryError::IOError(std::io::Error::new(std::io::ErrorKind::NotFound, error))
        })?;
        let offset = usize::try_from(iova.wrapping_add(shift))
            .map_err(|_| GuestMemoryError::InvalidGuestAddress(GuestAddress(iova)))?;
        let host = slice.ptr_guard_mut();
        // SAFETY: the same memory as `slice`, whose mapping outlives the borrow of `space`: the
        // lock is held for as long as that. All access to it is volatile or atomic.
        Ok(unsafe {
            VolatileSlice::with_bitmap(host.as_ptr(), slice.len(), bitmap.slice_at(offset), None)
        })
    }))
}

/// An iterator over slices of guest memory that ends after an error.
struct Marked<I>(I);

impl<'a, I> Iterator for Marked<I>
where
    I: Iterator<Item = Result<VolatileSlice<'a, MarkAt<'a>>, GuestMemoryError>>,
{
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        self.0.next()
    }
}

impl<'a, I> FusedIterator for Marked<I> where
    I: Iterator<Item = Result<VolatileSlice<'a, MarkAt<'a>>, GuestMemoryError>>
{
}

impl<'a, I> GuestMemorySliceIterator<'a, MarkAt<'a>> for Marked<I> where
    I: Iterator<Item = Result<VolatileSlice<'a, MarkAt<'a>>, GuestMemoryError>>
{
}

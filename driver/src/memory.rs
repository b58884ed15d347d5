//! Memory that a driver shares with its device.
//!
//! Everything here is a copy or an atomic access: no reference to plain bytes of shared memory ever
//! exists, because somebody else may be writing them.

use std::fmt::{self, Debug};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use vm_memory::volatile_memory::VolatileMemory;
use vm_memory::{FileOffset, MmapRegion};

mod raw;

/// Told of every store a driver makes into guest memory, after the store has been made.
///
/// An emulated guest's CPU is its driver and its workload: this is its dirty log.
pub trait WriteLog: Send + Sync + Debug {
    /// `len` bytes at `iova` have been stored.
    fn wrote(&self, iova: u64, len: u64);
}

/// An access that a window of memory cannot carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The access leaves the window. Nothing was read or stored.
    #[error("{len} bytes at offset {offset:#x} leave a window of {size:#x} bytes")]
    OutOfRange {
        /// Offset in bytes from the start of the window.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Length of the window in bytes.
        size: u64,
    },
    /// An atomic access is not on its natural boundary. Nothing was read or stored.
    #[error("offset {offset:#x} is not a multiple of {align} bytes in memory")]
    Misaligned {
        /// Offset in bytes from the start of the window.
        offset: u64,
        /// Alignment that the access needs, in bytes.
        align: usize,
    },
}

impl From<MemoryError> for io::Error {
    fn from(error: MemoryError) -> Self {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

/// A window of memory that both the driver and the device reach.
///
/// Clones are windows onto the same memory. Offsets count from the window's start; all multi-byte
/// accesses are little-endian, as VIRTIO 1.4 has it.
///
/// A location that other threads touch at the same time must be touched by all of them with one
/// width: Rust's memory model says nothing of atomics that overlap.
#[derive(Clone)]
pub struct DmaMemory {
    region: Arc<MmapRegion>,
    /// Start of the window within the region.
    base: usize,
    len: usize,
    iova: u64,
    log: Option<Arc<dyn WriteLog>>,
}

impl Debug for DmaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaMemory({:#x}+{:#x})", self.iova, self.len)
    }
}

macro_rules! atomics {
    ($($load:ident $store:ident $atomic:ident $int:ident;)*) => {$(
        #[doc = concat!("Loads a little-endian `", stringify!($int), "` atomically.")]
        ///
        /// `order` is one that a load can have; the others count as `SeqCst`.
        ///
        /// # Errors
        /// [`MemoryError`] if the location leaves the window or is not naturally aligned.
        pub fn $load(&self, offset: u64, order: Ordering) -> Result<$int, MemoryError> {
            let order = match order {
                Ordering::Release | Ordering::AcqRel => Ordering::SeqCst,
                other => other,
            };
            Ok($int::from_le(self.atomic::<$atomic>(offset)?.load(order)))
        }

        #[doc = concat!("Stores a little-endian `", stringify!($int), "` atomically, then logs.")]
        ///
        /// `order` is one that a store can have; the others count as `SeqCst`.
        ///
        /// # Errors
        /// [`MemoryError`] if the location leaves the window or is not naturally aligned.
        pub fn $store(&self, offset: u64, value: $int, order: Ordering) -> Result<(), MemoryError> {
            let order = match order {
                Ordering::Acquire | Ordering::AcqRel => Ordering::SeqCst,
                other => other,
            };
            self.atomic::<$atomic>(offset)?.store(value.to_le(), order);
            self.logged(offset, size_of::<$int>());
            Ok(())
        }
    )*};
}

impl DmaMemory {
    /// Maps `len` bytes of `file` from `offset` on, shared and writable; the device knows their
    /// first byte as `iova`.
    ///
    /// The file must not shrink while the window or a clone of it lives: touching what is gone
    /// kills the process (SIGBUS).
    ///
    /// # Errors
    /// The system's refusal; `InvalidInput` if the length is 0, exceeds the file or the address
    /// space, or if `iova + len` overflows.
    pub fn from_file(file: &File, offset: u64, len: u64, iova: u64) -> io::Result<Self> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
        let size = usize::try_from(len).map_err(|_| invalid("longer than the address space"))?;
        if iova.checked_add(len).is_none() {
            return Err(invalid("IOVA plus length overflows"));
        }
        let held = file.metadata()?;
        if held.is_file() && offset.checked_add(len).is_none_or(|end| end > held.len()) {
            return Err(invalid("the file ends before the window"));
        }
        let region = MmapRegion::from_file(FileOffset::new(file.try_clone()?, offset), size)
            .map_err(|error| match error {
                vm_memory::mmap::MmapRegionError::Mmap(system) => system,
                other => io::Error::new(io::ErrorKind::InvalidInput, other),
            })?;
        Ok(Self {
            region: Arc::new(region),
            base: 0,
            len: size,
            iova,
            log: None,
        })
    }

    /// The same window, with every store told to `log`. Replaces a log set before.
    #[must_use]
    pub fn with_log(mut self, log: Arc<dyn WriteLog>) -> Self {
        self.log = Some(log);
        self
    }

    /// Address of the first byte as the device knows it.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// True if the window holds no byte at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A window onto a part of this one; keeps the log.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn slice(&self, offset: u64, len: u64) -> Result<Self, MemoryError> {
        let (start, size) = self.locate(offset, len)?;
        Ok(Self {
            region: Arc::clone(&self.region),
            base: self.base + start,
            len: size,
            iova: self.iova + offset,
            log: self.log.clone(),
        })
    }

    /// Copies bytes out. Not atomic: a concurrent store may be seen in part.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        let (start, size) = self.locate(offset, data.len() as u64)?;
        match self.region.get_slice(self.base + start, size) {
            Ok(slice) => {
                slice.copy_to(data);
                Ok(())
            }
            Err(_) => Err(self.out_of_range(offset, data.len() as u64)),
        }
    }

    /// Copies bytes in, then logs. Not atomic: a concurrent load may see it in part.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), MemoryError> {
        let (start, size) = self.locate(offset, data.len() as u64)?;
        match self.region.get_slice(self.base + start, size) {
            Ok(slice) => {
                slice.copy_from(data);
                self.logged(offset, size);
                Ok(())
            }
            Err(_) => Err(self.out_of_range(offset, data.len() as u64)),
        }
    }

    atomics! {
        load_u8 store_u8 AtomicU8 u8;
        load_u16 store_u16 AtomicU16 u16;
        load_u32 store_u32 AtomicU32 u32;
        load_u64 store_u64 AtomicU64 u64;
    }

    /// The window as words in memory order (a word of a bitmap is `u64::from_le` of it). A tail
    /// shorter than a word is left out. Stores through this view are not logged.
    ///
    /// # Errors
    /// [`MemoryError::Misaligned`] if the window does not start on 8 bytes.
    pub fn words(&self) -> Result<&[AtomicU64], MemoryError> {
        self.view(0, self.len)
    }

    /// The window as bytes. Stores through this view are not logged.
    pub fn bytes(&self) -> &[AtomicU8] {
        // A byte is never misaligned and the whole window is never outside of itself.
        self.view(0, self.len).unwrap_or_default()
    }

    /// Sends `head`, then the bytes of `ranges` (offset, length), with one `writev`; the kernel
    /// reads the memory itself. Returns how many bytes went out: fewer than asked for is no error.
    ///
    /// # Errors
    /// What the system says, `Interrupted` included; `InvalidInput` for a range outside.
    pub fn writev_to(
        &self,
        fd: BorrowedFd<'_>,
        head: &[u8],
        ranges: &[(u64, usize)],
    ) -> io::Result<usize> {
        raw::writev(self, fd, head, ranges, 0)
    }

    /// Sends all of `head` and `ranges` with as few `writev` as the system allows.
    ///
    /// # Errors
    /// What the system says; `WriteZero` if the receiver takes nothing any more; `InvalidInput` for
    /// a range outside (nothing is sent then).
    pub fn write_all_to(
        &self,
        fd: BorrowedFd<'_>,
        head: &[u8],
        ranges: &[(u64, usize)],
    ) -> io::Result<()> {
        let total = self.total(ranges, head.len())?;
        let mut done = 0;
        while done < total {
            match raw::writev(self, fd, head, ranges, done) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Receives into `ranges` (offset, length) with one `readv`, then logs what was stored; the
    /// kernel writes the memory itself. Returns the bytes received, 0 at the end of the stream.
    ///
    /// # Errors
    /// What the system says, `Interrupted` included; `InvalidInput` for a range outside.
    pub fn readv_from(&self, fd: BorrowedFd<'_>, ranges: &[(u64, usize)]) -> io::Result<usize> {
        raw::readv(self, fd, ranges, 0)
    }

    /// Fills all of `ranges` from `fd`, then logs.
    ///
    /// # Errors
    /// What the system says; `UnexpectedEof` if the stream ends before; `InvalidInput` for a range
    /// outside (nothing is received then).
    pub fn read_exact_from(&self, fd: BorrowedFd<'_>, ranges: &[(u64, usize)]) -> io::Result<()> {
        let total = self.total(ranges, 0)?;
        if self.read_from(fd, ranges)? < total {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Fills `ranges` from `fd` as far as there is something, then logs. Returns the bytes received:
    /// fewer than asked for only where the stream ends.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for a range outside (nothing is received then).
    pub fn read_from(&self, fd: BorrowedFd<'_>, ranges: &[(u64, usize)]) -> io::Result<usize> {
        let total = self.total(ranges, 0)?;
        let mut done = 0;
        while done < total {
            match raw::readv(self, fd, ranges, done) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn total(&self, ranges: &[(u64, usize)], head: usize) -> io::Result<usize> {
        let mut total = head;
        for &(offset, len) in ranges {
            self.locate(offset, len as u64)?;
            total = total.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        }
        Ok(total)
    }

    fn logged(&self, offset: u64, len: usize) {
        if let Some(log) = &self.log
            && len != 0
        {
            log.wrote(self.iova + offset, len as u64);
        }
    }

    fn out_of_range(&self, offset: u64, len: u64) -> MemoryError {
        MemoryError::OutOfRange {
            offset,
            len,
            size: self.len(),
        }
    }

    /// Offset and length as native sizes, if they lie within the window.
    fn locate(&self, offset: u64, len: u64) -> Result<(usize, usize), MemoryError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => {}
            _ => return Err(self.out_of_range(offset, len)),
        }
        match (usize::try_from(offset), usize::try_from(len)) {
            (Ok(offset), Ok(len)) => Ok((offset, len)),
            _ => Err(self.out_of_range(offset, len)),
        }
    }

    fn atomic<T: raw::Atomic>(&self, offset: u64) -> Result<&T, MemoryError> {
        let (start, size) = self.locate(offset, size_of::<T>() as u64)?;
        self.view(start, size)?
            .first()
            .ok_or_else(|| self.out_of_range(offset, size_of::<T>() as u64))
    }
}

#[cfg(test)]
mod tests;

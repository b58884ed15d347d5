//! Mapping a part of a file that another process shares.

use rustix::mm::{MapFlags, ProtFlags};
use std::fs::File;
use std::io;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Mappings begin at multiples of this many bytes of their file.
const PAGE: u64 = 4096;

/// A part of a file, mapped shared and writable, from any offset on.
#[derive(Debug)]
pub(crate) struct Mapped {
    region: MmapRegion<()>,
    /// Where the part begins in the mapping, which begins with a page of the file.
    skip: usize,
    len: usize,
}

impl Mapped {
    /// Maps `len` bytes of `file` from `offset`. The file has to hold them all: access to what lies
    /// behind its end would end the process.
    pub(crate) fn new(file: &File, offset: u64, len: u64) -> io::Result<Self> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        let end = offset
            .checked_add(len)
            .filter(|_| len != 0)
            .ok_or_else(|| invalid(format!("{len} bytes at offset {offset:#x} are no range")))?;
        let there = file.metadata()?.len();
        if end > there {
            let why = format!("the file has {there:#x} bytes, {end:#x} are needed");
            return Err(invalid(why));
        }
        let skip = offset % PAGE;
        let size = usize::try_from(len + skip).map_err(io::Error::other)?;
        let region = map_file(file.try_clone()?, offset - skip, size, true)?;
        Ok(Self {
            region,
            skip: usize::try_from(skip).map_err(io::Error::other)?,
            len: usize::try_from(len).map_err(io::Error::other)?,
        })
    }

    /// The part.
    pub(crate) fn slice(&self) -> Option<VolatileSlice<'_>> {
        self.region.get_slice(self.skip, self.len).ok()
    }

    /// The start of the mapping, which the part lies in.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.region.as_ptr()
    }
}

/// Maps `size` bytes of `file`, shared, from a page on.
pub(crate) fn map_file(
    file: File,
    offset: u64,
    size: usize,
    writable: bool,
) -> io::Result<MmapRegion<()>> {
    let prot = if writable {
        ProtFlags::READ | ProtFlags::WRITE
    } else {
        ProtFlags::READ
    };
    let flags = MapFlags::SHARED | MapFlags::NORESERVE;
    let prot = i32::try_from(prot.bits()).map_err(io::Error::other)?;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    MmapRegion::build(Some(FileOffset::new(file, offset)), size, prot, flags).map_err(|error| {
        match error {
            MmapRegionError::Mmap(error) => error,
            other => io::Error::other(other),
        }
    })
}

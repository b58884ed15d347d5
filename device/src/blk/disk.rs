//! What a block device keeps its sectors in.

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Storage addressed by byte. All calls are positional and may come from several threads at once.
pub trait Disk: Send + Sync + Debug {
    /// Bytes.
    ///
    /// # Errors
    ///
    /// As the storage has it.
    fn size(&self) -> io::Result<u64>;
    /// Reads up to `into.len()` bytes from `offset`; 0 is the end. May read fewer than there are.
    ///
    /// # Errors
    ///
    /// As the storage has it; `Interrupted` is tried again.
    fn pread(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes up to `data.len()` bytes at `offset`; 0 is a failure. May write fewer.
    ///
    /// # Errors
    ///
    /// As for [`Disk::pread`].
    fn pwrite(&self, data: &[u8], offset: u64) -> io::Result<usize>;
    /// Makes all completed writes durable.
    ///
    /// # Errors
    ///
    /// As the storage has it; what was durable is then unknown.
    fn flush(&self) -> io::Result<()>;
    /// Gives up the storage of a range, which reads as zeroes afterwards.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the storage cannot; the range is then as it was.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes a range read as zeroes and keeps its storage.
    ///
    /// # Errors
    ///
    /// As for [`Disk::punch`].
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;
    /// The file that reads and writes of the same offsets may be submitted to directly, in the
    /// place of [`Disk::pread`] and [`Disk::pwrite`]. None, the default, if there is no such file.
    fn file(&self) -> Option<&File> {
        None
    }
}

impl Disk for File {
    fn size(&self) -> io::Result<u64> {
        // Not the metadata's length, which is 0 for a block device.
        Ok(rustix::fs::seek(self, rustix::fs::SeekFrom::End(0))?)
    }

    fn pread(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(into, offset)
    }

    fn pwrite(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        self.write_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        allocate(self, flags, offset, len)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        allocate(self, flags, offset, len)
    }

    fn file(&self) -> Option<&File> {
        Some(self)
    }
}

fn allocate(file: &File, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(file, flags, offset, len) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Err(io::ErrorKind::Unsupported.into()),
            other => return Ok(other?),
        }
    }
}

/// Reads all of `into`; a disk that ends before is an error.
pub(super) fn read_all(disk: &dyn Disk, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !into.is_empty() {
        match disk.pread(into, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => (into, offset) = (advance_mut(into, n)?, advance(offset, n)?),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all of `data`.
pub(super) fn write_all(disk: &dyn Disk, mut data: &[u8], mut offset: u64) -> io::Result<()> {
    while !data.is_empty() {
        match disk.pwrite(data, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                data = data.get(n..).ok_or(io::ErrorKind::InvalidData)?;
                offset = advance(offset, n)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Zeroes a range, by giving up its storage if `unmap`, through `zeroes` where the storage knows
/// no better way.
pub(super) fn zero_all(
    disk: &dyn Disk,
    offset: u64,
    len: u64,
    unmap: bool,
    scratch: &mut [u8],
) -> io::Result<()> {
    let unsupported = |result: &io::Result<()>| matches!(result, Err(error) if error.kind() == io::ErrorKind::Unsupported);
    if unmap {
        let punched = disk.punch(offset, len);
        if !unsupported(&punched) {
            return punched;
        }
    }
    let zeroed = disk.zero(offset, len);
    if !unsupported(&zeroed) {
        return zeroed;
    }
    scratch.fill(0);
    let (mut at, mut left) = (offset, len);
    while left != 0 {
        let now = usize::try_from(left).map_or(scratch.len(), |left| left.min(scratch.len()));
        write_all(disk, &scratch[..now], at)?;
        at = advance(at, now)?;
        left -= u64::try_from(now).unwrap_or(left);
    }
    Ok(())
}

fn advance(offset: u64, by: usize) -> io::Result<u64> {
    u64::try_from(by)
        .ok()
        .and_then(|by| offset.checked_add(by))
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn advance_mut(buffer: &mut [u8], by: usize) -> io::Result<&mut [u8]> {
    buffer
        .get_mut(by..)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

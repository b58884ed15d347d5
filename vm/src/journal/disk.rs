//! The disk under test, as the journal needs it.

use crate::error::VmError;
use rustix::fs::{FileType, OFlags};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Requests to a disk. Each call is one request, and returns when the disk has answered it.
pub trait Disk: Sync {
    /// Reads `data.len()` bytes from byte `offset` on.
    ///
    /// # Errors
    /// The disk's, or that it ends before.
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;
    /// Writes `data` to byte `offset`.
    ///
    /// # Errors
    /// The disk's.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes the writes that have been answered durable.
    ///
    /// # Errors
    /// The disk's.
    fn flush(&self) -> io::Result<()>;
    /// Bytes of the disk.
    fn size(&self) -> u64;
}

/// A block device, or a file that stands for one.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    size: u64,
    direct: bool,
}

impl FileDisk {
    /// Opens a disk past the page cache (O_DIRECT), so that each read asks the device. A file whose
    /// file system has no such mode is opened without; a block device always has it.
    ///
    /// # Errors
    /// [`VmError::File`].
    pub fn open(path: &Path, write: bool) -> Result<Self, VmError> {
        let failed = |error| VmError::file("open the disk", path)(error);
        // OFlags are the system's own, and fit an int there.
        let direct = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other);
        let direct = direct.map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(write);
        let (mut file, direct) = match options.clone().custom_flags(direct).open(path) {
            Ok(file) => (file, true),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                (options.open(path).map_err(failed)?, false)
            }
            Err(error) => return Err(failed(error)),
        };
        let mode = rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?;
        let kind = FileType::from_raw_mode(mode.st_mode);
        if !matches!(kind, FileType::BlockDevice | FileType::RegularFile) {
            let why = "a block device or a file was expected";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, why)));
        }
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { file, size, direct })
    }

    /// Whether reads go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }
}

impl Disk for FileDisk {
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn size(&self) -> u64 {
        self.size
    }
}

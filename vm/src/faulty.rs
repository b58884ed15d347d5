//! A disk with a fault, for tests of what becomes of a guest then.

use device::blk::Disk;
use rustix::io::Errno;
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a disk's system says of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// ENOSPC: no room is left.
    NoSpace,
    /// EIO: it could not be written.
    Io,
}

/// One write fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskFault {
    /// What the system says.
    pub error: DiskError,
    /// Which write to the storage, counted from 1.
    pub nth: u64,
}

impl FromStr for DiskFault {
    type Err = String;

    /// From `enospc:N` or `eio:N`.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("expected enospc:N or eio:N with N from 1, got '{text}'");
        let (error, nth) = text.split_once(':').ok_or_else(bad)?;
        let error = match error {
            "enospc" => DiskError::NoSpace,
            "eio" => DiskError::Io,
            _ => return Err(bad()),
        };
        let nth = nth.parse().ok().filter(|nth| *nth > 0).ok_or_else(bad)?;
        Ok(Self { error, nth })
    }
}

/// A disk of which one write fails; the next one succeeds again.
#[derive(Debug)]
pub(crate) struct FaultyDisk<D> {
    disk: D,
    fault: DiskFault,
    writes: AtomicU64,
}

impl<D> FaultyDisk<D> {
    pub(crate) fn new(disk: D, fault: DiskFault) -> Self {
        Self {
            disk,
            fault,
            writes: AtomicU64::new(0),
        }
    }
}

impl<D: Disk> Disk for FaultyDisk<D> {
    fn size(&self) -> io::Result<u64> {
        self.disk.size()
    }

    fn pread(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.pread(into, offset)
    }

    fn pwrite(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        if self.writes.fetch_add(1, Ordering::Relaxed) + 1 == self.fault.nth {
            let error = match self.fault.error {
                DiskError::NoSpace => Errno::NOSPC,
                DiskError::Io => Errno::IO,
            };
            return Err(error.into());
        }
        self.disk.pwrite(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.punch(offset, len)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.zero(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_write_fails_and_nothing_of_it_is_written() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let fault = "enospc:2".parse().unwrap();
        let disk = FaultyDisk::new(file, fault);
        assert_eq!(disk.pwrite(&[1; 8], 0).unwrap(), 8);
        let error = disk.pwrite(&[2; 8], 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let mut bytes = [0; 8];
        disk.pread(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [1; 8]);
        assert_eq!(disk.pwrite(&[3; 8], 0).unwrap(), 8);
    }

    #[test]
    fn nothing_else_is_taken_for_a_fault() {
        for bad in ["", "eio", "eio:0", "eio:x", "enoent:1"] {
            assert!(bad.parse::<DiskFault>().is_err(), "{bad}");
        }
    }
}

//! The disk that a served device stands on.

use anyhow::{Context, Result};
use device::blk::{BlkDevice, BlkError, BlkOptions, Disk};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// A block device on a file or block device that exists, and the file itself, to be flushed at the
/// end, unless it is for reading only.
///
/// With a `delay` reads and writes take at least so many milliseconds, so that tests can catch
/// requests in flight.
pub fn open(
    path: &Path,
    options: BlkOptions,
    delay: u64,
) -> Result<(Option<File>, Arc<BlkDevice>)> {
    let file = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .open(path)
        .map_err(|error| BlkError::Open {
            path: path.to_owned(),
            error,
        })
        .context("a file or block device that exists was expected as the disk")?;
    let kept = file.try_clone().context("cannot keep the disk open")?;
    let kept = (!options.read_only).then_some(kept);
    let device = if delay == 0 {
        BlkDevice::open(file, options)
    } else {
        let delay = Duration::from_millis(delay);
        BlkDevice::with_disk(Box::new(SlowDisk { file, delay }), options)
    };
    let device = device.with_context(|| path.display().to_string())?;
    Ok((kept, device))
}

/// A file that takes its time.
#[derive(Debug)]
struct SlowDisk {
    file: File,
    delay: Duration,
}

impl Disk for SlowDisk {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
    fn pread(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        thread::sleep(self.delay);
        self.file.pread(into, offset)
    }
    fn pwrite(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        thread::sleep(self.delay);
        self.file.pwrite(data, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch(offset, len)
    }
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.zero(offset, len)
    }
}

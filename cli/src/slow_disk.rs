//! A disk that takes its time, so that tests can catch requests in flight.

use device::blk::{BlkDevice, BlkError, BlkOptions, Disk};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// A block device on a file whose reads and writes take at least so many milliseconds.
pub fn open(file: File, options: BlkOptions, delay: u64) -> Result<Arc<BlkDevice>, BlkError> {
    if delay == 0 {
        return BlkDevice::open(file, options);
    }
    let delay = Duration::from_millis(delay);
    BlkDevice::with_disk(Box::new(SlowDisk { file, delay }), options)
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

//! A disk in memory that counts, and that can be made to do wrong.

use super::SECTORS;
use super::memory::{GuestMemory, PAGE, UNMAPPED, memory_file};
use super::watched::Counts;
use crate::Plant;
use device::blk::Disk;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

const BYTES: u64 = SECTORS * 512;
/// Request that meets a plant: to this sector.
const PLANTED_SECTOR: u64 = 5;
/// What is taken by `Plant::Memory`, touched.
const HOARD: usize = 160 << 20;

#[derive(Debug)]
pub(super) struct FuzzDisk {
    bytes: Mutex<Vec<u8>>,
    counts: Arc<Counts>,
    /// Guest memory, for a plant that goes past the door.
    guest: File,
    plant: Option<Plant>,
}

impl FuzzDisk {
    pub(super) fn new(memory: &GuestMemory, counts: Arc<Counts>, plant: Option<Plant>) -> Self {
        let size = usize::try_from(BYTES).unwrap_or(0);
        Self {
            bytes: Mutex::new((0..=250).cycle().take(size).collect()),
            counts,
            guest: memory.file().try_clone().expect("cloned"),
            plant,
        }
    }

    pub(super) fn into_disk(self, file: bool) -> Box<dyn Disk> {
        if file {
            return Box::new(memory_file("fuzz-disk", BYTES));
        }
        Box::new(self)
    }

    fn counted(&self, bytes: u64) {
        self.counts.disk.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn range(&self, offset: u64, len: usize) -> std::ops::Range<usize> {
        let size = usize::try_from(BYTES).unwrap_or(0);
        let start = usize::try_from(offset).unwrap_or(size).min(size);
        start..start.saturating_add(len).min(size)
    }

    /// Has the plant act on a request of `len` bytes at `offset`.
    fn planted(&self, offset: u64, len: usize) {
        let met = offset == PLANTED_SECTOR * 512;
        let stray = |at| self.guest.write_all_at(&[0x5a], at).expect("written");
        match self.plant {
            Some(Plant::Unmarked) if met => stray(40 * PAGE + 77),
            Some(Plant::OutsideGrant) if met => stray(UNMAPPED.start * PAGE + 7),
            Some(Plant::Panic) if met && len == 1024 => {
                panic!("planted panic: {len} bytes at {offset:#x}")
            }
            _ => {}
        }
    }

    fn fill(&self, offset: u64, len: u64) {
        self.counted(len);
        let range = self.range(offset, usize::try_from(len).unwrap_or(usize::MAX));
        self.lock()[range].fill(0);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for FuzzDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(BYTES)
    }

    fn pread(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.counted(into.len() as u64);
        self.planted(offset, into.len());
        let range = self.range(offset, into.len());
        let now = range.len();
        into[..now].copy_from_slice(&self.lock()[range]);
        Ok(now)
    }

    fn pwrite(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        self.counted(data.len() as u64);
        self.planted(offset, data.len());
        let range = self.range(offset, data.len());
        let now = range.len();
        self.lock()[range].copy_from_slice(&data[..now]);
        Ok(now)
    }

    fn flush(&self) -> io::Result<()> {
        self.counted(0);
        if self.plant == Some(Plant::Memory) {
            std::hint::black_box(vec![1_u8; HOARD]);
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fill(offset, len);
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        // The other way to zero is to write.
        self.counted(len);
        let _ = offset;
        Err(io::ErrorKind::Unsupported.into())
    }
}

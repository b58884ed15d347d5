//! The driver's memory, as the judging function reaches it.

use driver::memory::DmaMemory;
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

/// Windows by address; a later one hides what lies under it.
#[derive(Debug, Default)]
pub struct Memory {
    windows: Vec<DmaMemory>,
}

impl Memory {
    /// Maps a part of a file in place of what was there.
    ///
    /// # Errors
    /// The system's; nothing is mapped there then.
    pub fn map(&mut self, iova: u64, size: u64, file: &File, offset: u64) -> io::Result<()> {
        self.unmap(iova, size);
        self.windows
            .push(DmaMemory::from_file(file, offset, size, iova)?);
        Ok(())
    }

    /// Unmaps a range; parts of windows beside it stay.
    pub fn unmap(&mut self, iova: u64, size: u64) {
        let end = iova.saturating_add(size);
        let windows = std::mem::take(&mut self.windows);
        for window in windows {
            let (from, to) = (window.iova(), window.iova() + window.len());
            if to <= iova || end <= from {
                self.windows.push(window);
                continue;
            }
            let parts = [(from, iova.max(from)), (end.min(to), to)];
            for (from, to) in parts.into_iter().filter(|(from, to)| from < to) {
                let part = window.slice(from - window.iova(), to - from);
                self.windows.extend(part);
            }
        }
    }

    /// Windows that hold all of a range have one piece of it each: what lies across two is read in
    /// two.
    fn find(&self, iova: u64) -> Option<&DmaMemory> {
        let holds = |window: &&DmaMemory| {
            iova.checked_sub(window.iova())
                .is_some_and(|at| at < window.len())
        };
        self.windows.iter().find(holds)
    }

    /// Whether all of a range is there.
    pub fn reaches(&self, iova: u64, len: u64) -> bool {
        let (mut at, mut left) = (iova, len);
        while left > 0 {
            let Some(window) = self.find(at) else {
                return false;
            };
            let there = window.len() - (at - window.iova());
            if there >= left {
                return true;
            }
            left -= there;
            let Some(next) = at.checked_add(there) else {
                return false;
            };
            at = next;
        }
        true
    }

    /// Reads; false, and zeroes, where there is nothing.
    pub fn read(&self, iova: u64, data: &mut [u8]) -> bool {
        let (mut at, mut done) = (iova, 0);
        while done < data.len() {
            let Some(window) = self.find(at) else {
                data[done..].fill(0);
                return false;
            };
            let offset = at - window.iova();
            let there = usize::try_from(window.len() - offset).unwrap_or(usize::MAX);
            let piece = there.min(data.len() - done);
            if window.read(offset, &mut data[done..done + piece]).is_err() {
                return false;
            }
            done += piece;
            at = at.wrapping_add(piece as u64);
        }
        true
    }

    /// Writes; false where there is nothing, which stays without.
    pub fn write(&self, iova: u64, data: &[u8]) -> bool {
        let (mut at, mut done) = (iova, 0);
        while done < data.len() {
            let Some(window) = self.find(at) else {
                return false;
            };
            let offset = at - window.iova();
            let there = usize::try_from(window.len() - offset).unwrap_or(usize::MAX);
            let piece = there.min(data.len() - done);
            if window.write(offset, &data[done..done + piece]).is_err() {
                return false;
            }
            done += piece;
            at = at.wrapping_add(piece as u64);
        }
        true
    }

    /// A 16-bit number that the driver may be storing at this moment; 0 where there is nothing.
    pub fn load(&self, iova: u64) -> u16 {
        let window = self.find(iova);
        let value = window.and_then(|w| w.load_u16(iova - w.iova(), Ordering::Acquire).ok());
        value.unwrap_or_else(|| {
            let mut data = [0; 2];
            self.read(iova, &mut data);
            u16::from_le_bytes(data)
        })
    }

    /// Stores a 16-bit number that publishes what was written before.
    pub fn store(&self, iova: u64, value: u16) {
        let window = self.find(iova);
        let stored = window.map(|w| w.store_u16(iova - w.iova(), value, Ordering::SeqCst));
        if !matches!(stored, Some(Ok(()))) {
            self.write(iova, &value.to_le_bytes());
        }
    }

    /// `N` bytes.
    pub fn bytes<const N: usize>(&self, iova: u64) -> [u8; N] {
        let mut data = [0; N];
        self.read(iova, &mut data);
        data
    }
}

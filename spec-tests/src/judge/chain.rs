//! A buffer as the driver exposed it.

use super::memory::Memory;

/// One piece of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    /// Address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it.
    pub write: bool,
}

/// A buffer.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// The head's index, or the buffer id of a packed ring.
    pub id: u16,
    /// Ring entries that it takes.
    pub slots: u16,
    /// Its pieces, those of an indirect table included.
    pub elements: Vec<Element>,
    /// What of descriptors and rings is the device's until the buffer is used, as it was exposed.
    pub exposed: Vec<(u64, Vec<u8>)>,
}

impl Chain {
    /// Bytes that the device reads.
    pub fn readable(&self) -> u64 {
        self.sum(false)
    }

    /// Bytes that the device writes.
    pub fn writable(&self) -> u64 {
        self.sum(true)
    }

    fn sum(&self, write: bool) -> u64 {
        let mine = self
            .elements
            .iter()
            .filter(|element| element.write == write);
        mine.map(|element| u64::from(element.len)).sum()
    }

    /// The readable bytes from `offset` on, as many as fit and there are.
    pub fn read(&self, memory: &Memory, offset: u64, data: &mut [u8]) -> usize {
        self.walk(false, offset, data.len(), |addr, range| {
            memory.read(addr, &mut data[range]);
        })
    }

    /// Writes to the writable bytes from `offset` on, as many as fit.
    pub fn write(&self, memory: &Memory, offset: u64, data: &[u8]) -> usize {
        self.walk(true, offset, data.len(), |addr, range| {
            memory.write(addr, &data[range]);
        })
    }

    fn walk(
        &self,
        write: bool,
        offset: u64,
        len: usize,
        mut each: impl FnMut(u64, std::ops::Range<usize>),
    ) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for element in self
            .elements
            .iter()
            .filter(|element| element.write == write)
        {
            let there = u64::from(element.len);
            if skip >= there {
                skip -= there;
                continue;
            }
            let piece = usize::try_from(there - skip).unwrap_or(0).min(len - done);
            each(element.addr.wrapping_add(skip), done..done + piece);
            done += piece;
            skip = 0;
            if done == len {
                break;
            }
        }
        done
    }

    /// Whether all of it can be reached.
    pub fn reachable(&self, memory: &Memory) -> bool {
        self.elements
            .iter()
            .all(|element| memory.reaches(element.addr, u64::from(element.len)))
    }

    /// What has changed since it was exposed.
    pub fn changed(&self, memory: &Memory) -> Option<u64> {
        let differs = |(at, bytes): &&(u64, Vec<u8>)| {
            let mut now = vec![0; bytes.len()];
            memory.read(*at, &mut now) && now != *bytes
        };
        self.exposed.iter().find(differs).map(|(at, _)| *at)
    }

    /// Whether a readable piece comes after a writable one, or none if it has not both kinds.
    pub fn framed(&self) -> Option<bool> {
        let first = self.elements.iter().position(|element| element.write)?;
        let read = self.elements.iter().any(|element| !element.write);
        read.then(|| self.elements[first..].iter().all(|element| element.write))
    }
}

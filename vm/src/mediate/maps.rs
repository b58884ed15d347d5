//! The guest's memory as the VMM mapped it: what another device has to be given.

use driver::bus::Access;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Bound::{Excluded, Unbounded};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Weak};

/// Most maps: with pages of 4 KiB four gigabytes, each of them mapped by itself.
const MAPS_MAX: usize = 1 << 20;

/// A memory file. One descriptor is kept for each, however many maps point into it.
#[derive(Debug)]
pub(super) struct Memory {
    /// Device, inode, and whether the descriptor was for reading only.
    id: (u64, u64, bool),
    pub file: File,
}

/// What is mapped at an address.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub size: u64,
    pub access: Access,
    pub memory: Arc<Memory>,
    pub offset: u64,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.memory, &other.memory)
            && (self.size, self.access, self.offset) == (other.size, other.access, other.offset)
    }
}

impl Entry {
    /// What remains of an entry at `start` from `from` up to `to`.
    fn part(&self, start: u64, from: u64, to: u64) -> Self {
        Self {
            size: to - from,
            offset: self.offset + (from - start),
            ..self.clone()
        }
    }
}

/// The maps in force, by address; none overlaps another. They are kept as they came and not joined,
/// because there are servers that unmap only what was mapped.
#[derive(Clone, Debug, Default)]
pub(super) struct Maps {
    entries: BTreeMap<u64, Entry>,
    files: Vec<Weak<Memory>>,
}

impl Maps {
    /// Maps in place of what was there. The ends have been checked not to wrap.
    pub fn insert(
        &mut self,
        iova: u64,
        size: u64,
        access: Access,
        file: File,
        offset: u64,
    ) -> io::Result<&Entry> {
        let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
        let end = iova.checked_add(size).filter(|_| size != 0);
        if end.is_none() || offset.checked_add(size).is_none() {
            return Err(bad("the range is empty or wraps"));
        }
        self.remove(iova, size);
        if self.entries.len() >= MAPS_MAX {
            return Err(bad("there are more than a million maps already"));
        }
        let memory = self.memory(file, access)?;
        let entry = Entry {
            size,
            access,
            memory,
            offset,
        };
        Ok(self.entries.entry(iova).insert_entry(entry).into_mut())
    }

    /// Removes what lies in the range, which may run past the end of the address space; true if
    /// there was anything.
    pub fn remove(&mut self, iova: u64, size: u64) -> bool {
        let end = iova.saturating_add(size);
        // The first entry that reaches into the range begins at or before it.
        let before = self.entries.range(..=iova).next_back().map(|(at, _)| *at);
        let first = before.unwrap_or(iova);
        let hit: Vec<u64> = self
            .entries
            .range(first..end.max(first))
            .filter(|(at, entry)| **at < end && iova < *at + entry.size)
            .map(|(at, _)| *at)
            .collect();
        for at in &hit {
            let Some(entry) = self.entries.remove(at) else {
                continue;
            };
            let last = at + entry.size;
            if *at < iova {
                self.entries.insert(*at, entry.part(*at, *at, iova));
            }
            if end < last {
                self.entries.insert(end, entry.part(*at, end, last));
            }
        }
        !hit.is_empty()
    }

    /// The maps, in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.iter().map(|(at, entry)| (*at, entry))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Where the last one ends, 0 if there is none.
    pub fn end(&self) -> u64 {
        let last = self.entries.last_key_value();
        last.map_or(0, |(at, entry)| at + entry.size)
    }

    /// True if exactly this is mapped at `iova`.
    pub fn has(&self, iova: u64, entry: &Entry) -> bool {
        self.entries.get(&iova) == Some(entry)
    }

    /// Copies bytes out of guest memory. They may be changing.
    pub fn read(&self, iova: u64, data: &mut [u8]) -> io::Result<()> {
        let mut at = iova;
        let mut rest = data;
        while !rest.is_empty() {
            let hole = || io::Error::new(io::ErrorKind::AddrNotAvailable, format!("{at:#x}"));
            let below = (Unbounded, Excluded(at.checked_add(1).ok_or_else(hole)?));
            let (start, entry) = self.entries.range(below).next_back().ok_or_else(hole)?;
            let skip = at - start;
            let there = entry.size.checked_sub(skip).filter(|there| *there != 0);
            let there = usize::try_from(there.ok_or_else(hole)?).unwrap_or(usize::MAX);
            let (part, later) = rest.split_at_mut(rest.len().min(there));
            entry.memory.file.read_exact_at(part, entry.offset + skip)?;
            at = at.wrapping_add(u64::try_from(part.len()).unwrap_or(0));
            rest = later;
        }
        Ok(())
    }

    fn memory(&mut self, file: File, access: Access) -> io::Result<Arc<Memory>> {
        let meta = file.metadata()?;
        let id = (meta.dev(), meta.ino(), access == Access::Read);
        self.files.retain(|memory| memory.strong_count() > 0);
        let known = self.files.iter().filter_map(Weak::upgrade);
        if let Some(memory) = known.into_iter().find(|memory| memory.id == id) {
            return Ok(memory);
        }
        let memory = Arc::new(Memory { id, file });
        self.files.push(Arc::downgrade(&memory));
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::io::Write;

    fn file() -> File {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..16_u8).flat_map(|page| [page; 4096]).collect();
        file.write_all(&bytes).unwrap();
        file
    }

    fn list(maps: &Maps) -> Vec<(u64, u64, u64)> {
        let page = |bytes: u64| bytes / 4096;
        maps.iter()
            .map(|(at, entry)| (page(at), page(entry.size), page(entry.offset)))
            .collect()
    }

    fn map(maps: &mut Maps, page: u64, pages: u64, offset: u64, file: &File) {
        let file = file.try_clone().unwrap();
        let (iova, size, offset) = (page * 4096, pages * 4096, offset * 4096);
        maps.insert(iova, size, Access::ReadWrite, file, offset)
            .unwrap();
    }

    #[test]
    fn a_map_more_than_there_may_be_is_refused() {
        let (mut maps, file) = (Maps::default(), file());
        map(&mut maps, 0, 1, 0, &file);
        let entry = maps.entries.values().next().unwrap().clone();
        let most = u64::try_from(MAPS_MAX).unwrap();
        let more = (1..most).map(|page| (page * 4096, entry.clone()));
        maps.entries.extend(more);
        let again = file.try_clone().unwrap();
        let beyond = maps.insert(most * 4096, 4096, Access::Read, again, 0);
        let said = beyond.unwrap_err().to_string();
        assert!(said.contains("more than a million maps"), "{said}");
        // One in the place of another is no more.
        map(&mut maps, 3, 1, 0, &file);
    }

    #[test]
    fn maps_are_cut_and_replaced() {
        let (mut maps, file) = (Maps::default(), file());
        map(&mut maps, 10, 8, 0, &file);
        map(&mut maps, 20, 4, 8, &file);
        assert!(maps.remove(12 * 4096, 2 * 4096));
        assert_eq!(list(&maps), [(10, 2, 0), (14, 4, 4), (20, 4, 8)]);
        map(&mut maps, 17, 4, 12, &file);
        assert_eq!(
            list(&maps),
            [(10, 2, 0), (14, 3, 4), (17, 4, 12), (21, 3, 9)]
        );
        let mut data = [0; 2];
        maps.read(17 * 4096 - 1, &mut data).unwrap();
        assert_eq!(data, [6, 12]);
        assert!(maps.read(12 * 4096 - 1, &mut data).is_err());
        assert!(maps.read(0, &mut data).is_err());
        assert!(!maps.remove(12 * 4096, 2 * 4096) && !maps.remove(1 << 40, 4096));
        assert!(maps.remove(21 * 4096, u64::MAX));
        assert_eq!((maps.len(), maps.end()), (3, 21 * 4096));
        assert_eq!(maps.files.len(), 1, "one descriptor");
        assert!(maps.remove(0, u64::MAX) && maps.len() == 0);
        for (iova, size, offset) in [(0, 0, 0), (u64::MAX, 2, 0), (0, 4096, u64::MAX)] {
            let file = file.try_clone().unwrap();
            maps.insert(iova, size, Access::Read, file, offset)
                .unwrap_err();
        }
    }

    /// Against a table of pages.
    #[test]
    fn any_order_of_edits() {
        let (mut maps, file) = (Maps::default(), file());
        let mut pages = HashMap::new();
        let mut random = 7_u64;
        let mut below = |n: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % n
        };
        for _ in 0..5000 {
            let (page, count, offset) = (below(64), 1 + below(8), below(8));
            if below(3) == 0 {
                maps.remove(page * 4096, count * 4096);
                pages.retain(|there, _| !(page..page + count).contains(there));
            } else {
                map(&mut maps, page, count, offset, &file);
                pages.extend((page..page + count).zip(offset..));
            }
            let mut seen = HashMap::new();
            for (at, count, offset) in list(&maps) {
                for (page, offset) in (at..at + count).zip(offset..) {
                    assert_eq!(seen.insert(page, offset), None, "overlap");
                }
            }
            assert_eq!(seen, pages);
        }
    }
}

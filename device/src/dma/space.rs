//! The IOVA map, the memory files behind it, and the tracker's bitmap, which follow each other.

use super::{DmaError, MAP_ALIGN, Map, RingMarks};
use crate::mapping::map_file;
use crate::tracker::records::Recorder;
use crate::tracker::{Bitmap, DirtyLog, TrackerConfig, TrackerStats, Window};
use rangemap::RangeMap;
use std::fs::File;
use std::io;
use std::num::Wrapping;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use vm_memory::{MmapRegion, Permissions, VolatileMemory, VolatileSlice};

/// A memory file, mapped whole.
#[derive(Debug)]
struct Memory {
    /// Device and inode: the file's identity, whichever descriptor it came by.
    id: (u64, u64),
    writable: bool,
    region: MmapRegion<()>,
    /// Bytes of IOVA space that map into it; unmapped at 0.
    mapped: u64,
}

/// What a range of IOVAs maps to. Neighbours that continue each other are equal, and are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    memory: usize,
    /// Offset in the memory file is IOVA plus this, wrapping.
    delta: Wrapping<u64>,
    perm: Permissions,
}

#[derive(Debug, Default)]
pub(super) struct Space {
    memories: Vec<Option<Memory>>,
    map: RangeMap<u64, Target>,
    bitmap: Bitmap,
    /// What the bitmaps before it counted.
    before: TrackerStats,
    /// What `bitmap` marks in, if that is not guest memory.
    log: Option<DirtyLog>,
    /// With a log, whether it takes the marks of data.
    log_data: bool,
    /// Used rings whose writes are not marked like data, by IOVA.
    rings: Vec<(u64, RingMarks)>,
    /// What is marked here is not wanted.
    off: Bitmap,
    /// Who records what is marked in `bitmap`.
    recorders: Vec<Arc<Recorder>>,
}

impl Space {
    pub(super) fn map(
        &mut self,
        iova: u64,
        size: u64,
        file: &File,
        offset: u64,
        perm: Permissions,
    ) -> Result<(), DmaError> {
        let bad = |why: String| DmaError::BadMap { iova, size, why };
        if ![iova, size, offset]
            .iter()
            .all(|n| n.is_multiple_of(MAP_ALIGN))
        {
            return Err(bad(format!(
                "multiples of {MAP_ALIGN} expected, offset is {offset:#x}"
            )));
        }
        let end = iova.checked_add(size).filter(|_| size != 0);
        let end = end.ok_or_else(|| bad("the range is empty or wraps".to_owned()))?;
        let last = offset
            .checked_add(size)
            .ok_or_else(|| bad("the offset wraps".to_owned()))?;
        let memory = self
            .memory_for(file, perm, last)
            .map_err(|error| bad(error.to_string()))?;
        let delta = Wrapping(offset) - Wrapping(iova);
        self.uncount(iova..end);
        if let Some(memory) = self.memories.get_mut(memory).and_then(Option::as_mut) {
            memory.mapped += size;
        }
        self.map.insert(
            iova..end,
            Target {
                memory,
                delta,
                perm,
            },
        );
        self.follow(iova..end);
        self.release_unused();
        Ok(())
    }

    /// Puts `maps` in the place of all there are; all as they were if one of them cannot be made.
    pub(super) fn replace(&mut self, maps: &[Map<'_>]) -> Result<(), DmaError> {
        // Still counted, so that no memory goes that a new map may need.
        let before = std::mem::take(&mut self.map);
        let made = maps
            .iter()
            .try_for_each(|map| self.map(map.iova, map.size, map.file, map.offset, map.perm));
        let gone = match &made {
            Ok(()) => before,
            Err(_) => std::mem::replace(&mut self.map, before),
        };
        for (range, target) in gone.iter() {
            self.uncount_target(target, range.end - range.start);
        }
        self.follow(0..u64::MAX);
        self.release_unused();
        made
    }

    pub(super) fn unmap(&mut self, iova: u64, size: u64) {
        let end = iova.saturating_add(size);
        if iova < end {
            self.uncount(iova..end);
            self.map.remove(iova..end);
            self.follow(iova..end);
            self.release_unused();
        }
    }

    pub(super) fn set_tracker(&mut self, config: TrackerConfig) {
        if self.bitmap.config() != config {
            self.before = self.tracker_totals();
            self.bitmap = Bitmap::new(config);
            self.bitmap.set_recorders(&self.recorders);
            self.follow(self.bitmap.iovas());
        }
    }

    /// Marks in `log` from now on, or nowhere; returns the log before it, to be unmapped when the
    /// door is open again.
    pub(super) fn set_log(&mut self, log: Option<DirtyLog>) -> Option<DirtyLog> {
        let mut bitmap = log.as_ref().map(Bitmap::in_log).unwrap_or_default();
        bitmap.count_on(&self.bitmap);
        bitmap.set_recorders(&self.recorders);
        self.bitmap = bitmap;
        std::mem::replace(&mut self.log, log)
    }

    pub(super) fn attach(&mut self, recorder: Arc<Recorder>) {
        self.recorders.push(recorder);
        self.bitmap.set_recorders(&self.recorders);
    }

    pub(super) fn detach(&mut self, recorder: &Arc<Recorder>) {
        self.recorders.retain(|other| !Arc::ptr_eq(other, recorder));
        self.bitmap.set_recorders(&self.recorders);
    }

    pub(super) fn set_log_data(&mut self, on: bool) {
        self.log_data = on;
    }

    pub(super) fn set_ring_marks(&mut self, used: u64, marks: RingMarks) {
        self.rings.retain(|ring| ring.0 != used);
        if marks != RingMarks::LikeData {
            self.rings.push((used, marks));
        }
    }

    /// What this and all earlier bitmaps counted.
    pub(super) fn tracker_totals(&self) -> TrackerStats {
        let (now, before) = (self.bitmap.stats(), self.before);
        TrackerStats {
            pages: before.pages + now.pages,
            beyond_length: before.beyond_length + now.beyond_length,
            shadowed: before.shadowed + now.shadowed,
            undelivered: now.undelivered,
        }
    }

    pub(super) fn bitmap(&self) -> &Bitmap {
        &self.bitmap
    }

    /// Where data is marked.
    pub(super) fn data_bitmap(&self) -> &Bitmap {
        if self.log.is_some() && !self.log_data {
            &self.off
        } else {
            &self.bitmap
        }
    }

    /// Where writes to the used ring at `used` are marked, and what is added to their IOVA.
    pub(super) fn ring_bitmap(&self, used: u64) -> (&Bitmap, u64) {
        match self.rings.iter().find(|ring| ring.0 == used) {
            None | Some((_, RingMarks::LikeData)) => (self.data_bitmap(), 0),
            Some((_, RingMarks::Off)) => (&self.off, 0),
            Some((_, RingMarks::At(log))) => (&self.bitmap, log.wrapping_sub(used)),
        }
    }

    /// Whether all of the range can be accessed so.
    pub(super) fn check(&self, iova: u64, len: usize, access: Permissions) -> bool {
        self.slices(iova, len, access).all(|slice| slice.is_ok())
    }

    /// The range piece by piece, each with its IOVA; ends after the first piece that faults.
    pub(super) fn slices(
        &self,
        iova: u64,
        len: usize,
        access: Permissions,
    ) -> impl Iterator<Item = Result<(u64, VolatileSlice<'_>), DmaError>> {
        let mut next = iova;
        let mut left = len;
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let Some(slice) = self.slice(next, left, access) else {
                left = 0;
                return Some(Err(DmaError::Fault { iova, len, access }));
            };
            let at = next;
            left -= slice.len();
            // Wraps only when the range ends with the address space, and is then used no more.
            next = next.wrapping_add(slice.len().try_into().unwrap_or(u64::MAX));
            Some(Ok((at, slice)))
        })
    }

    /// The longest piece from `iova` on, at most `len` bytes.
    fn slice(&self, iova: u64, len: usize, access: Permissions) -> Option<VolatileSlice<'_>> {
        let (range, target) = self.map.get_key_value(&iova)?;
        if !target.perm.allow(access) {
            return None;
        }
        let len = usize::try_from(range.end - iova).map_or(len, |there| there.min(len));
        let offset = usize::try_from((Wrapping(iova) + target.delta).0).ok()?;
        self.memories
            .get(target.memory)?
            .as_ref()?
            .region
            .get_slice(offset, len)
            .ok()
    }

    /// Tells the bitmap which of its parts within `range` are mapped now, and where.
    fn follow(&mut self, range: Range<u64>) {
        let iovas = self.bitmap.iovas();
        let range = range.start.max(iovas.start)..range.end.min(iovas.end);
        if range.is_empty() {
            return;
        }
        self.bitmap.forget(range.clone());
        for (mapped, target) in self.map.overlapping(range.clone()) {
            if !target.perm.allow(Permissions::Write) {
                continue;
            }
            let part = mapped.start.max(range.start)..mapped.end.min(range.end);
            let Some(memory) = self.memories.get(target.memory).and_then(Option::as_ref) else {
                continue;
            };
            let window = (|| {
                let offset = usize::try_from((Wrapping(part.start) + target.delta).0).ok()?;
                let len = usize::try_from(part.end - part.start).ok()?;
                let byte = usize::try_from(part.start - iovas.start).ok()?;
                let slice = memory.region.get_slice(offset, len).ok()?;
                Window::new(memory.region.as_ptr(), &slice, byte)
            })();
            if let Some(window) = window {
                self.bitmap.resolve(part, window);
            }
        }
    }

    /// The memory of `file`, mapped at least up to `end`.
    fn memory_for(&mut self, file: &File, perm: Permissions, end: u64) -> io::Result<usize> {
        let meta = file.metadata()?;
        if end > meta.len() {
            let why = format!("the file has {:#x} bytes, {end:#x} are needed", meta.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let id = (meta.dev(), meta.ino());
        let writable = perm.allow(Permissions::Write);
        let fits = |memory: &Memory| {
            memory.id == id
                && memory.writable == writable
                && u64::try_from(memory.region.size()).is_ok_and(|size| size >= end)
        };
        if let Some(known) = self
            .memories
            .iter()
            .position(|m| m.as_ref().is_some_and(fits))
        {
            return Ok(known);
        }
        let size = usize::try_from(meta.len()).map_err(io::Error::other)?;
        let region = map_file(file.try_clone()?, 0, size, writable)?;
        let memory = Memory {
            id,
            writable,
            region,
            mapped: 0,
        };
        let free = self.memories.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.memories.len());
        if free.is_none() {
            self.memories.push(None);
        }
        self.memories[slot] = Some(memory);
        Ok(slot)
    }

    /// Takes what maps in `range` now off the counts of the memories it maps to.
    fn uncount(&mut self, range: Range<u64>) {
        let part = |(mapped, target): (&Range<u64>, &Target)| {
            let bytes = mapped.end.min(range.end) - mapped.start.max(range.start);
            (*target, bytes)
        };
        let gone: Vec<_> = self.map.overlapping(range.clone()).map(part).collect();
        for (target, bytes) in gone {
            self.uncount_target(&target, bytes);
        }
    }

    fn uncount_target(&mut self, target: &Target, bytes: u64) {
        let memory = self.memories.get_mut(target.memory);
        if let Some(memory) = memory.and_then(Option::as_mut) {
            memory.mapped -= bytes;
        }
    }

    /// Unmaps memory files that no IOVA points into.
    fn release_unused(&mut self) {
        for slot in &mut self.memories {
            if slot.as_ref().is_some_and(|memory| memory.mapped == 0) {
                *slot = None;
            }
        }
    }
}

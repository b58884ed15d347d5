//! The maps of one client: what there is, and how much there may be.

use super::message::{DmaMap, DmaUnmap};
use super::served::{Map, Refusal, Served};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use vfio_bindings::bindings::vfio::{
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_ALL,
    VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
};
use vm_memory::Permissions;

/// Most maps of one client: with pages of 4 KiB four gigabytes, each of them mapped by itself.
pub const MAPS_MAX: usize = 1 << 20;
/// Most memory files that a client's maps may point into. Each costs a descriptor and one mapping
/// of all of it, however many maps there are.
pub const FILES_MAX: usize = 512;

/// Device and inode.
type Id = (u64, u64);

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where it ends.
    end: u64,
    /// The memory file, if there is one.
    file: Option<Id>,
}

/// The maps in force, none of which overlaps another.
#[derive(Debug, Default)]
pub(super) struct Maps {
    entries: BTreeMap<u64, Entry>,
    /// Maps that point into each file.
    files: HashMap<Id, usize>,
}

impl Maps {
    /// DMA_MAP.
    pub(super) fn map(
        &mut self,
        served: &dyn Served,
        ask: &DmaMap,
        mut fds: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let (iova, size, flags) = (ask.address.get(), ask.size.get(), ask.flags.get());
        let perm = permissions(flags)?;
        let end = iova.checked_add(size).filter(|_| size != 0);
        let end = end.ok_or_else(|| {
            Refusal::invalid(format!(
                "a map of {size:#x} bytes at {iova:#x}: it is empty or wraps"
            ))
        })?;
        if fds.len() > 1 {
            let count = fds.len();
            let why = format!("a map with {count} descriptors, at most one expected");
            return Err(Refusal::invalid(why));
        }
        if let Some((start, entry)) = self.first(iova, end) {
            let why = format!(
                "a map of {iova:#x}..{end:#x} over one of {start:#x}..{:#x}; unmap that first",
                entry.end
            );
            return Err(Refusal::new(Errno::EXIST, why));
        }
        if self.entries.len() >= MAPS_MAX {
            let why = format!("there are {MAPS_MAX} maps already");
            return Err(Refusal::new(Errno::NOSPC, why));
        }
        // Nothing that a device could reach: ROM and flash come without a descriptor.
        let memory = fds.pop().filter(|_| perm != Permissions::No);
        let memory = memory.map(|fd| judge(fd, ask.offset.get(), size));
        let memory = memory.transpose()?;
        let id = memory.as_ref().map(|(_, id)| *id);
        if let Some(id) = id
            && !self.files.contains_key(&id)
            && self.files.len() >= FILES_MAX
        {
            let why = format!("maps into more than {FILES_MAX} memory files");
            return Err(Refusal::new(Errno::NOSPC, why));
        }
        served.map(Map {
            iova,
            size,
            perm,
            memory: memory.map(|(file, _)| (file, ask.offset.get())),
        })?;
        self.insert(iova, Entry { end, file: id });
        Ok(())
    }

    /// DMA_UNMAP. Whatever lies in the range goes, which may be nothing: VMMs unmap all of the
    /// address space, and more than they mapped.
    pub(super) fn unmap(&mut self, served: &dyn Served, ask: &DmaUnmap) -> Result<(), Refusal> {
        let (iova, size, flags) = (ask.address.get(), ask.size.get(), ask.flags.get());
        if flags & VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP != 0 {
            let why =
                "an unmap that asks for dirty pages; DMA logging reports them, before or after";
            return Err(Refusal::new(Errno::OPNOTSUPP, why));
        }
        let (iova, size) = match flags {
            0 => (iova, size),
            VFIO_DMA_UNMAP_FLAG_ALL if (iova, size) == (0, 0) => (0, u64::MAX),
            VFIO_DMA_UNMAP_FLAG_ALL => {
                let why = format!(
                    "an unmap of all with address {iova:#x} and size {size:#x}, 0 expected"
                );
                return Err(Refusal::invalid(why));
            }
            _ => return Err(Refusal::invalid(format!("an unmap with flags {flags:#x}"))),
        };
        served.unmap(iova, size);
        self.remove(iova, iova.saturating_add(size));
        Ok(())
    }

    /// Where the last map ends.
    pub(super) fn end(&self) -> u64 {
        let last = self.entries.last_key_value();
        last.map_or(0, |(_, entry)| entry.end)
    }

    /// The first map that has any address in the range.
    fn first(&self, start: u64, end: u64) -> Option<(u64, Entry)> {
        let below = self.entries.range(..end).next_back();
        below
            .map(|(at, entry)| (*at, *entry))
            .filter(|(_, entry)| entry.end > start)
    }

    fn insert(&mut self, start: u64, entry: Entry) {
        if let Some(id) = entry.file {
            *self.files.entry(id).or_default() += 1;
        }
        self.entries.insert(start, entry);
    }

    /// Takes out what lies in the range; parts beside it stay.
    fn remove(&mut self, start: u64, end: u64) {
        while let Some((at, entry)) = self.first(start, end) {
            self.entries.remove(&at);
            if let Some(id) = entry.file
                && let Some(count) = self.files.get_mut(&id)
            {
                *count -= 1;
                if *count == 0 {
                    self.files.remove(&id);
                }
            }
            if at < start {
                self.insert(
                    at,
                    Entry {
                        end: start,
                        ..entry
                    },
                );
            }
            if entry.end > end {
                self.insert(end, entry);
            }
        }
    }
}

fn permissions(flags: u32) -> Result<Permissions, Refusal> {
    const READ: u32 = VFIO_DMA_MAP_FLAG_READ;
    const WRITE: u32 = VFIO_DMA_MAP_FLAG_WRITE;
    const BOTH: u32 = READ | WRITE;
    match flags {
        0 => Ok(Permissions::No),
        READ => Ok(Permissions::Read),
        WRITE => Ok(Permissions::Write),
        BOTH => Ok(Permissions::ReadWrite),
        _ => Err(Refusal::invalid(format!(
            "a map with flags {flags:#x}, at most {BOTH:#x} expected"
        ))),
    }
}

/// The memory file, if the map lies in it. What is no file has no memory that stays where it is.
fn judge(fd: OwnedFd, offset: u64, size: u64) -> Result<(File, Id), Refusal> {
    let file = File::from(fd);
    let meta = file.metadata().map_err(|error| {
        Refusal::invalid(format!("a map of a file that tells nothing: {error}"))
    })?;
    if !meta.is_file() {
        let why = "a map of something else than a memory file";
        return Err(Refusal::invalid(why));
    }
    let end = offset.checked_add(size);
    if end.is_none_or(|end| end > meta.len()) {
        let len = meta.len();
        let why = format!("a map of {size:#x} bytes at {offset:#x} of a file that has {len:#x}");
        return Err(Refusal::invalid(why));
    }
    Ok((file, (meta.dev(), meta.ino())))
}

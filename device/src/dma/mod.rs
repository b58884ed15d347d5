//! The one door to guest memory.
//!
//! Nothing in this crate writes guest memory but through here. [`Dma::enter`] opens the door for
//! one burst of work. While the guard lives no map changes and the tracker's configuration stands
//! still, so a guard is never held across disk I/O, and a thread holds one at a time. Rings and
//! other small fields go through the guard as vm-memory's `GuestMemory` and are marked as they are
//! written; bulk data goes through [`Burst`], which marks after everything has landed.
//!
//! Addresses are IOVAs. Each memory file is mapped once, however many maps point into it, so a map
//! costs an entry in a tree and no system call.

mod guard;
mod space;
#[cfg(test)]
mod tests;
mod waiters;

pub(crate) use guard::RingMem;
pub use guard::{Burst, DmaGuard};
pub(crate) use waiters::MapWaiter;

use crate::tracker::records::Recorder;
use crate::tracker::{DirtyLog, TrackerConfig, TrackerStats};
use crossbeam_utils::sync::{ShardedLock, ShardedLockWriteGuard};
use space::Space;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use vm_memory::Permissions;
use waiters::Waiters;

/// Maps begin and end at multiples of this many bytes.
pub const MAP_ALIGN: u64 = 4096;

/// Why a map or an access failed.
#[derive(Debug, thiserror::Error)]
pub enum DmaError {
    /// Part of the range is not mapped, or not for this kind of access. The access had no effect.
    #[error("no {access:?} access to {len} bytes at IOVA {iova:#x}")]
    Fault {
        /// First address.
        iova: u64,
        /// Bytes.
        len: usize,
        /// What was wanted.
        access: Permissions,
    },
    /// The map cannot be made; the maps are as they were.
    #[error("cannot map {size:#x} bytes at IOVA {iova:#x}: {why}")]
    BadMap {
        /// First address.
        iova: u64,
        /// Bytes.
        size: u64,
        /// What was expected and what came.
        why: String,
    },
}

/// One map of a whole table: see [`Dma::replace_maps`].
#[derive(Clone, Copy, Debug)]
pub struct Map<'a> {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// The memory.
    pub file: &'a File,
    /// Where in it the map begins, in bytes.
    pub offset: u64,
    /// What the device may do there.
    pub perm: Permissions,
}

/// How writes to a used ring are marked: vhost switches them apart from data, and may give them
/// another address than their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RingMarks {
    /// Where they are, whenever data is marked.
    #[default]
    LikeData,
    /// Not at all.
    Off,
    /// As if the used ring began at this address, whether data is marked or not.
    At(u64),
}

/// Guest memory as the device reaches it.
#[derive(Debug, Default)]
pub struct Dma {
    /// Sharded, because every burst of every worker takes it and maps change seldom.
    space: ShardedLock<Space>,
    waiters: Waiters,
}

impl Dma {
    /// No maps, tracking off.
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps `size` bytes of `file` from `offset` at `iova`, replacing what was mapped there.
    ///
    /// All three are multiples of [`MAP_ALIGN`]. A map without write permission needs `file` open
    /// for reading only. Returns when nothing goes through the maps it replaced.
    ///
    /// # Errors
    ///
    /// [`DmaError::BadMap`] if the numbers do not fit the file or the address space.
    pub fn map(
        &self,
        iova: u64,
        size: u64,
        file: &File,
        offset: u64,
        perm: Permissions,
    ) -> Result<(), DmaError> {
        let made = self.shut().map(iova, size, file, offset, perm);
        self.waiters.tell();
        made
    }

    /// Removes all maps in the range, whole or in part; returns when nothing goes through them.
    ///
    /// A range that was never mapped, or that runs past the end of the address space, is normal:
    /// QEMU unmaps all of it.
    pub fn unmap(&self, iova: u64, size: u64) {
        self.shut().unmap(iova, size);
    }

    /// Puts a whole table of maps in the place of all maps there are. Nothing sees a state in
    /// between, so a queue that runs never faults on what both tables hold; no mark is lost.
    ///
    /// Later maps win where two overlap.
    ///
    /// # Errors
    ///
    /// [`DmaError::BadMap`] for the first map that cannot be made; all maps are as they were.
    pub fn replace_maps(&self, maps: &[Map<'_>]) -> Result<(), DmaError> {
        let made = self.shut().replace(maps);
        self.waiters.tell();
        made
    }

    /// Counts the maps that were made, for [`Dma::wait_for_map`].
    pub(crate) fn maps_made(&self) -> u64 {
        self.waiters.made()
    }

    /// Tells `waiter` once of a map made after the first `seen`; at once if there was one already.
    /// One that is dropped before waits no more.
    pub(crate) fn wait_for_map(&self, seen: u64, waiter: Arc<dyn MapWaiter>) {
        self.waiters.wait(seen, waiter);
    }

    /// Marks in `log`, in place of a bitmap in guest memory, from now on; with `None` nowhere.
    /// Returns when no mark can go to the log before it: all those are set.
    ///
    /// Data is marked only after [`Dma::set_log_data`].
    pub fn set_log(&self, log: Option<DirtyLog>) {
        let mut space = self.shut();
        let before = space.set_log(log);
        drop(space);
        drop(before);
    }

    /// Whether a log takes the marks of data (vhost: LOG_ALL); returns when that is so for all
    /// data to come. Nothing is spent on marks while it does not.
    pub fn set_log_data(&self, on: bool) {
        self.shut().set_log_data(on);
    }

    /// How writes to the used ring at `used` are marked from now on.
    pub fn set_ring_marks(&self, used: u64, marks: RingMarks) {
        self.shut().set_ring_marks(used, marks);
    }

    /// Has `recorder` record the pages written from now on, beside the tracker and beside other
    /// recorders. Neither a reset nor a new tracker configuration ends that.
    pub fn attach_recorder(&self, recorder: Arc<Recorder>) {
        self.shut().attach(recorder);
    }

    /// Has it record no more; returns when that is so.
    pub fn detach_recorder(&self, recorder: &Arc<Recorder>) {
        self.shut().detach(recorder);
    }

    /// Does something short while the door is shut: no burst is under way.
    pub fn quiet(&self, work: impl FnOnce()) {
        let _shut = self.shut();
        work();
    }

    fn shut(&self) -> ShardedLockWriteGuard<'_, Space> {
        self.space.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the door for one burst of work.
    pub fn enter(&self) -> DmaGuard<'_> {
        DmaGuard::new(self.space.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a tracker configuration in force; returns when no mark of the old one can follow.
    pub fn set_tracker(&self, config: TrackerConfig) {
        self.shut().set_tracker(config);
    }

    /// Where the bitmap in guest memory lies that the tracker marks in; empty if there is none.
    pub(crate) fn bitmap_iovas(&self) -> Range<u64> {
        self.space
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .bitmap()
            .iovas()
    }

    /// What the tracker could not do since it was last configured.
    pub fn tracker_stats(&self) -> TrackerStats {
        self.space
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .bitmap()
            .stats()
    }

    /// The same since the door was made, over all configurations; what waits for delivery is only
    /// that of the present one.
    pub fn tracker_totals(&self) -> TrackerStats {
        let space = self.space.read().unwrap_or_else(PoisonError::into_inner);
        space.tracker_totals()
    }

    /// Whether data that is written now is marked.
    pub fn is_tracking(&self) -> bool {
        let space = self.space.read().unwrap_or_else(PoisonError::into_inner);
        space.data_bitmap().is_active()
    }
}

//! The table of chains in flight: what a device that was killed had taken and not used.
//!
//! It lies in a file that outlives the device's process: a memfd that the vhost-user frontend keeps,
//! or a file on a disk. The layout and the procedure are those of the vhost-user protocol for split
//! rings ("Inflight I/O tracking"), so that any backend can go on where another one was killed. All
//! numbers are in the byte order of the machine. Every store is a Release, so that another process
//! never sees a later step without the earlier ones; a kill between any two of them leaves a table
//! that [`InflightQueue::recover`] puts right with the used index of the ring.
//!
//! A queue's part is a header (features u64, version u16, entries u16, last_batch_head u16,
//! used_idx u16) and for each descriptor 16 bytes: inflight u8, next u16 at 6, counter u64 at 8.

use crate::mapping::Mapped;
use crate::virtio::QueueError;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use vm_memory::{AtomicAccess, Bytes, VolatileSlice};

/// Bytes of a queue's header, and of an entry.
const HEADER: u64 = 16;
const ENTRY: u64 = 16;
/// Queues' parts begin at multiples of this many bytes.
const ALIGN: u64 = 64;
/// The one version there is; 0 is a part that was never used.
const VERSION: u16 = 1;

// Offsets in a header and in an entry.
const AT_VERSION: usize = 8;
const AT_ENTRIES: usize = 10;
const AT_LAST_BATCH_HEAD: usize = 12;
const AT_USED_IDX: usize = 14;
const AT_INFLIGHT: usize = 0;
const AT_NEXT: usize = 6;
const AT_COUNTER: usize = 8;

/// For how many queues of how many entries a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflightShape {
    /// Queues.
    pub queues: u16,
    /// Most entries of each.
    pub queue_size: u16,
}

impl InflightShape {
    /// Bytes of a table of this shape.
    pub fn bytes(self) -> u64 {
        self.stride() * u64::from(self.queues)
    }

    fn stride(self) -> u64 {
        (HEADER + ENTRY * u64::from(self.queue_size)).next_multiple_of(ALIGN)
    }
}

/// Why a table cannot be made or taken over.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// The table has no queues, no entries, or begins at an odd place.
    #[error(
        "an in-flight table of {} queues of {} entries at offset {offset:#x}; at least one of each \
         and a multiple of 8 expected", shape.queues, shape.queue_size
    )]
    Shape {
        /// What was asked for.
        shape: InflightShape,
        /// Where in the file, in bytes.
        offset: u64,
    },
    /// The table is too small for its queues.
    #[error("an in-flight table of {bytes} bytes; {needed} expected for its queues")]
    Short {
        /// Bytes there are.
        bytes: u64,
        /// Bytes that its queues take.
        needed: u64,
    },
    /// The file cannot be made, or not be mapped for writing.
    #[error("the in-flight table's file cannot be used: {0}")]
    File(#[from] io::Error),
}

/// A table, mapped.
#[derive(Debug)]
pub struct InflightTable {
    mapped: Mapped,
    shape: InflightShape,
}

impl InflightTable {
    /// A file of its own with an empty table at offset 0, which can neither grow nor shrink.
    ///
    /// # Errors
    ///
    /// [`InflightError`].
    pub fn new_file(shape: InflightShape) -> Result<File, InflightError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("tidemark-inflight", flags).map_err(io::Error::from)?);
        Self::create(&file, shape)?;
        let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(io::Error::from)?;
        Ok(file)
    }

    /// Puts an empty table at the beginning of `file`, in place of whatever the file held.
    ///
    /// # Errors
    ///
    /// [`InflightError`].
    pub fn create(file: &File, shape: InflightShape) -> Result<Arc<Self>, InflightError> {
        file.set_len(0)?;
        file.set_len(shape.bytes())?;
        let table = Self::open(file, 0, shape.bytes(), shape)?;
        for index in 0..shape.queues {
            if let Some(queue) = table.queue(index) {
                queue.format();
            }
        }
        Ok(table)
    }

    /// The table that lies in `bytes` bytes of `file` from `offset` on. Nothing is read yet: what
    /// it says is judged when a queue recovers from it.
    ///
    /// # Errors
    ///
    /// [`InflightError`].
    pub fn open(
        file: &File,
        offset: u64,
        bytes: u64,
        shape: InflightShape,
    ) -> Result<Arc<Self>, InflightError> {
        if shape.queues == 0 || shape.queue_size == 0 || !offset.is_multiple_of(8) {
            return Err(InflightError::Shape { shape, offset });
        }
        let needed = shape.bytes();
        if bytes < needed {
            return Err(InflightError::Short { bytes, needed });
        }
        let mapped = Mapped::new(file, offset, needed)?;
        Ok(Arc::new(Self { mapped, shape }))
    }

    /// For what queues the table is.
    pub fn shape(&self) -> InflightShape {
        self.shape
    }

    /// The part of queue `index`, or `None` if the table has none.
    pub fn queue(self: &Arc<Self>, index: u16) -> Option<InflightQueue> {
        if index >= self.shape.queues {
            return None;
        }
        Some(InflightQueue {
            start: usize::try_from(self.shape.stride() * u64::from(index)).ok()?,
            table: Arc::clone(self),
            counter: 0,
        })
    }
}

/// One queue's part of a table.
#[derive(Clone, Debug)]
pub struct InflightQueue {
    table: Arc<InflightTable>,
    /// Where the part begins in the table.
    start: usize,
    /// The next chain's place in the order of popping.
    counter: u64,
}

impl InflightQueue {
    /// Puts the part right after its device ended at any point, for a ring of `size` entries that
    /// has used `used_idx`; returns the heads in flight in the order in which they were popped.
    ///
    /// # Errors
    ///
    /// [`QueueError::Broken`] if the part cannot be that ring's.
    pub fn recover(&mut self, size: u16, used_idx: u16) -> Result<Vec<u16>, QueueError> {
        let bad = |what: String| QueueError::broken(format!("the in-flight table: {what}"));
        let most = self.table.shape.queue_size;
        if self.load::<u16>(AT_VERSION) == 0 {
            self.format();
        }
        let version = self.load::<u16>(AT_VERSION);
        if version != VERSION {
            return Err(bad(format!("version {version}; {VERSION} expected")));
        }
        let entries = self.load::<u16>(AT_ENTRIES);
        if entries < size || entries > most {
            return Err(bad(format!(
                "{entries} entries for a ring of {size}; at most {most} expected"
            )));
        }
        self.finish_batch(entries, used_idx)?;

        let mut flying = Vec::new();
        for head in 0..entries {
            match self.load_entry::<u8>(head, AT_INFLIGHT) {
                0 => {}
                1 if head < size => {
                    flying.push((self.load_entry::<u64>(head, AT_COUNTER), head));
                }
                other => return Err(bad(format!("entry {head} of a ring of {size} is {other}"))),
            }
        }
        flying.sort_unstable();
        let last = flying.last().map(|&(counter, _)| counter);
        self.counter = match last {
            None => 0,
            Some(last) => last
                .checked_add(1)
                .ok_or_else(|| bad("its counter is at its end".to_owned()))?,
        };
        Ok(flying.into_iter().map(|(_, head)| head).collect())
    }

    /// Forgets whatever the part holds, for a ring that has used `used_idx` and has nothing in
    /// flight.
    pub fn clear(&mut self, used_idx: u16) {
        // First what makes sense of the rest, so that a kill in the middle leaves a part that
        // recovers to nothing or is cleared again.
        self.format();
        for head in 0..self.table.shape.queue_size {
            self.store_entry(head, AT_INFLIGHT, 0u8);
        }
        self.store(AT_USED_IDX, used_idx);
        self.counter = 0;
    }

    /// The ring used more than the table says: the last batch was published and not yet cleared.
    fn finish_batch(&self, entries: u16, used_idx: u16) -> Result<(), QueueError> {
        let batch = used_idx.wrapping_sub(self.load::<u16>(AT_USED_IDX));
        let flying = (0..entries).any(|head| self.load_entry::<u8>(head, AT_INFLIGHT) != 0);
        if batch != 0 && flying {
            let mut head = self.load::<u16>(AT_LAST_BATCH_HEAD);
            for _ in 0..batch {
                if batch > entries || head >= entries {
                    return Err(QueueError::broken(format!(
                        "the in-flight table: a last batch of {batch} chains with head {head} in \
                         a table of {entries} entries"
                    )));
                }
                self.store_entry(head, AT_INFLIGHT, 0u8);
                head = self.load_entry(head, AT_NEXT);
            }
        }
        self.store(AT_USED_IDX, used_idx);
        Ok(())
    }

    /// The chain at `head` has been popped.
    pub(super) fn popped(&mut self, head: u16) {
        self.store_entry(head, AT_COUNTER, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.store_entry(head, AT_INFLIGHT, 1u8);
    }

    /// The chain at `head` is about to be published in the used ring, as a batch of one.
    pub(super) fn publishing(&self, head: u16) {
        self.store_entry(head, AT_NEXT, self.load::<u16>(AT_LAST_BATCH_HEAD));
        self.store(AT_LAST_BATCH_HEAD, head);
    }

    /// It has been published, which made the used index `used_idx`.
    pub(super) fn published(&self, head: u16, used_idx: u16) {
        self.store_entry(head, AT_INFLIGHT, 0u8);
        self.store(AT_USED_IDX, used_idx);
    }

    fn format(&self) {
        self.store(AT_ENTRIES, self.table.shape.queue_size);
        self.store(AT_VERSION, VERSION);
    }

    fn slice(&self) -> Option<VolatileSlice<'_>> {
        self.table.mapped.slice()?.offset(self.start).ok()
    }

    fn load<T: AtomicAccess + Default>(&self, at: usize) -> T {
        // The mapping holds all that the shape says, and heads are below its entries.
        self.slice()
            .and_then(|slice| slice.load(at, Acquire).ok())
            .unwrap_or_default()
    }

    fn store<T: AtomicAccess>(&self, at: usize, value: T) {
        let stored = self.slice().map(|slice| slice.store(value, at, Release));
        debug_assert!(matches!(stored, Some(Ok(()))), "outside the table");
        #[cfg(test)]
        tests::stored();
    }

    fn load_entry<T: AtomicAccess + Default>(&self, head: u16, at: usize) -> T {
        self.load(entry(head) + at)
    }

    fn store_entry<T: AtomicAccess>(&self, head: u16, at: usize, value: T) {
        self.store(entry(head) + at, value);
    }
}

/// Where the entry of `head` begins in its queue's part.
fn entry(head: u16) -> usize {
    const { assert!(HEADER == 16 && ENTRY == 16) }
    16 + 16 * usize::from(head)
}

#[cfg(test)]
#[path = "inflight_tests.rs"]
mod tests;

//! The block device on a file (VIRTIO 1.4, "Block Device").

mod buffer;
mod counters;
mod disk;
mod pipeline;
mod request;
mod ring;
#[cfg(test)]
mod tests;
mod turn;

pub use counters::{BlkStats, QueueActivity, RequestCount};
pub use disk::Disk;

use crate::dma::Dma;
use crate::pool::WORKERS_MAX;
use crate::queue::Virtqueue;
use crate::virtio::{Progress, QueueError, VirtioDevice};
use buffer::Spares;
use counters::{Activities, Counters};
use pipeline::{Lane, REQUESTS_MAX};
use request::{DISCARD_SECTORS_MAX, Limits, RANGES_MAX, ZERO_SECTORS_MAX};
use ring::{Direction, Ring};
use rustix::fs::OFlags;
use spec::blk::{BlkConfig, BlkFeatures, DEVICE_ID, ID_BYTES, SECTOR_SIZE};
use spec::ring::QUEUE_SIZE_MAX;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use turn::{Turn, Turns};
use zerocopy::IntoBytes;

/// Most request queues.
pub const QUEUES_MAX: u16 = 64;
/// PCI class code: mass storage, SCSI, as QEMU's virtio-blk has it.
const PCI_CLASS: u32 = 0x01_00_00;
/// log2 of logical blocks of 512 bytes in the 4 KiB that a file system writes at once.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// What a block device is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlkOptions {
    /// Request queues, 1 to [`QUEUES_MAX`].
    pub queues: u16,
    /// Largest size of each, a power of two up to 32768.
    pub queue_size: u16,
    /// The driver may not write.
    pub read_only: bool,
    /// The page cache is passed by (O_DIRECT).
    pub direct: bool,
    /// What GET_ID returns: ASCII, padded with zero bytes.
    pub id: [u8; ID_BYTES],
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 256,
            read_only: false,
            direct: false,
            id: *b"tidemark\0\0\0\0\0\0\0\0\0\0\0\0",
        }
    }
}

/// Why a disk cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The disk's file cannot be opened: it is missing, or not permitted.
    #[error("cannot open the disk {path}: {error}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The disk's size or mode cannot be told, as for a pipe or a directory.
    #[error("the disk is neither a file nor a block device: {0}")]
    NotADisk(#[source] io::Error),
    /// The disk has no sectors.
    #[error("the disk is empty; at least one sector of 512 bytes is needed")]
    Empty,
    /// The disk is not a whole number of sectors.
    #[error(
        "the disk has {size} bytes, which is not a multiple of 512; round it up with `truncate -s %512`"
    )]
    NotSectors {
        /// Its size in bytes.
        size: u64,
    },
    /// The file is open for reading only, and the device is not to be read-only.
    #[error("the disk is open for reading only; open it for writing or make the device read-only")]
    NotWritable,
    /// The file cannot be used without the page cache, or not in sectors of 512 bytes: it is on a
    /// file system in memory, or on storage with larger blocks. Serve it through the page cache.
    #[error("the disk cannot be read past the page cache (O_DIRECT) in sectors of 512 bytes: {0}")]
    NotDirect(#[source] io::Error),
    /// The number or size of queues is out of range.
    #[error("{queues} queues of {size} entries; 1 to 64 of a power of two up to 32768 expected")]
    Queues {
        /// Number of queues.
        queues: u16,
        /// Entries of each.
        size: u16,
    },
}

/// A block device on a disk.
#[derive(Debug)]
pub struct BlkDevice {
    disk: Box<dyn Disk>,
    direct: bool,
    limits: Limits,
    queues: u16,
    queue_size: u16,
    id: [u8; ID_BYTES],
    /// The driver cannot flush: every write is durable before it completes.
    writethrough: AtomicBool,
    lanes: Lanes,
    turns: Turns,
    counters: Counters,
    activities: Activities,
}

impl BlkDevice {
    /// Serves the file or block device at `path`.
    ///
    /// # Errors
    ///
    /// [`BlkError`].
    pub fn open_path(path: &Path, options: BlkOptions) -> Result<Arc<Self>, BlkError> {
        let file = OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .open(path)
            .map_err(|error| BlkError::Open {
                path: path.to_owned(),
                error,
            })?;
        Self::open(file, options)
    }

    /// Serves an open file or block device.
    ///
    /// # Errors
    ///
    /// [`BlkError`].
    pub fn open(file: File, options: BlkOptions) -> Result<Arc<Self>, BlkError> {
        let kind = file.metadata().map_err(BlkError::NotADisk)?;
        if kind.is_dir() {
            return Err(BlkError::NotADisk(io::ErrorKind::IsADirectory.into()));
        }
        let mode = rustix::fs::fcntl_getfl(&file).map_err(|e| BlkError::NotADisk(e.into()))?;
        if !options.read_only && mode & OFlags::RWMODE == OFlags::RDONLY {
            return Err(BlkError::NotWritable);
        }
        if options.direct {
            pass_by_page_cache(&file, mode).map_err(BlkError::NotDirect)?;
        }
        Self::with_disk(Box::new(file), options)
    }

    /// Serves anything that is a [`Disk`].
    ///
    /// # Errors
    ///
    /// [`BlkError`].
    pub fn with_disk(disk: Box<dyn Disk>, options: BlkOptions) -> Result<Arc<Self>, BlkError> {
        let BlkOptions {
            queues, queue_size, ..
        } = options;
        let queues_fit = (1..=QUEUES_MAX).contains(&queues);
        if !queues_fit || !queue_size.is_power_of_two() || queue_size > QUEUE_SIZE_MAX {
            return Err(BlkError::Queues {
                queues,
                size: queue_size,
            });
        }
        let size = disk.size().map_err(BlkError::NotADisk)?;
        if size == 0 {
            return Err(BlkError::Empty);
        }
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(BlkError::NotSectors { size });
        }
        Ok(Arc::new(Self {
            lanes: Lanes::new(&*disk),
            disk,
            limits: Limits {
                capacity: size / SECTOR_SIZE,
                read_only: options.read_only,
            },
            direct: options.direct,
            queues,
            queue_size,
            id: options.id,
            writethrough: AtomicBool::new(false),
            turns: Turns::default(),
            counters: Counters::default(),
            activities: Activities::new(queues),
        }))
    }

    /// The file, if the kernel is to do its I/O in this direction while we go on.
    ///
    /// Writes into the page cache are a copy, and file systems that cannot promise that it never
    /// waits have it done by a thread of the kernel for us: slower than doing it here.
    fn asynchronous(&self, direction: Direction) -> Option<&File> {
        let cached_write = direction == Direction::Write && !self.direct;
        self.disk.file().filter(|_| !cached_write)
    }

    /// To be held while writes may be with the kernel by themselves.
    fn turn(&self) -> Option<Turn<'_>> {
        let file = self.asynchronous(Direction::Write);
        let file = file.filter(|_| self.lanes.rings && !self.limits.read_only)?;
        Some(self.turns.take(file))
    }

    /// Opens now what workers would open while they work, a ring for each that can be at work at once,
    /// and never another: for a process that gives up what that takes. What cannot be had is done
    /// without, and slower.
    pub fn open_rings(&self) {
        self.lanes.fill(WORKERS_MAX.min(self.queues.into()));
    }

    /// What has been done so far.
    pub fn stats(&self) -> BlkStats {
        self.counters.stats()
    }

    /// The same requests by kind and result, every pair of them.
    pub fn requests(&self) -> Vec<RequestCount> {
        self.counters.requests()
    }

    /// What each request queue does, in the order of their numbers.
    pub fn activity(&self) -> Vec<QueueActivity> {
        self.activities.all()
    }
}

/// Opens `file`, whose flags are `mode`, to O_DIRECT, and sees that its storage takes sectors.
fn pass_by_page_cache(file: &File, mode: OFlags) -> io::Result<()> {
    rustix::fs::fcntl_setfl(file, mode | OFlags::DIRECT)?;
    let mut sector = Spares::default().take(512);
    // An empty disk is refused elsewhere.
    file.pread(sector.bytes_mut(), 0).map(drop)
}

impl VirtioDevice for BlkDevice {
    fn device_id(&self) -> u16 {
        DEVICE_ID
    }

    fn pci_class(&self) -> u32 {
        PCI_CLASS
    }

    fn features(&self) -> u64 {
        let mut features = BlkFeatures::SEG_MAX
            | BlkFeatures::BLK_SIZE
            | BlkFeatures::FLUSH
            | BlkFeatures::TOPOLOGY;
        features.set(BlkFeatures::MQ, self.queues > 1);
        features.set(BlkFeatures::RO, self.limits.read_only);
        let changing = BlkFeatures::DISCARD | BlkFeatures::WRITE_ZEROES;
        features.set(changing, !self.limits.read_only);
        features.bits()
    }

    fn num_queues(&self) -> u16 {
        self.queues
    }

    fn queue_max_size(&self, _index: u16) -> u16 {
        self.queue_size
    }

    fn config_len(&self) -> usize {
        size_of::<BlkConfig>()
    }

    fn config(&self) -> Vec<u8> {
        let config = BlkConfig {
            capacity: self.limits.capacity.into(),
            // A chain of the queue's size, less the header and the status byte.
            seg_max: u32::from(self.queue_size.saturating_sub(2).max(1)).into(),
            blk_size: 512.into(),
            physical_block_exp: PHYSICAL_BLOCK_EXP,
            min_io_size: (1 << PHYSICAL_BLOCK_EXP).into(),
            writeback: 1,
            num_queues: self.queues.into(),
            max_discard_sectors: DISCARD_SECTORS_MAX.into(),
            max_discard_seg: RANGES_MAX.into(),
            discard_sector_alignment: (1 << PHYSICAL_BLOCK_EXP).into(),
            max_write_zeroes_sectors: ZERO_SECTORS_MAX.into(),
            max_write_zeroes_seg: RANGES_MAX.into(),
            write_zeroes_may_unmap: 1,
            ..BlkConfig::default()
        };
        config.as_bytes().to_vec()
    }

    /// `writeback` is the only field that a driver may write, and only with CONFIG_WCE.
    fn config_write(&self, _offset: usize, _data: &[u8]) -> bool {
        false
    }

    fn negotiated(&self, features: u64) {
        let flush = BlkFeatures::from_bits_retain(features).contains(BlkFeatures::FLUSH);
        self.writethrough.store(!flush, Ordering::Relaxed);
    }

    fn reset(&self) {
        self.writethrough.store(false, Ordering::Relaxed);
    }

    fn process(
        &self,
        index: u16,
        queue: &mut Virtqueue,
        dma: &Dma,
        notify: &mut dyn FnMut(),
    ) -> Result<Progress, QueueError> {
        let activity = self.activities.queue(index);
        pipeline::process(self, activity, queue, dma, notify)
    }
}

/// Lanes that wait for their next use: as many as workers have used at once.
#[derive(Debug)]
struct Lanes {
    waiting: Mutex<Vec<Lane>>,
    /// Whether the kernel can do I/O by itself, here and for this disk.
    rings: bool,
    /// No more rings are opened.
    full: AtomicBool,
}

impl Lanes {
    fn new(disk: &dyn Disk) -> Self {
        let ring = disk
            .file()
            .and_then(|_| match Ring::new(REQUESTS_MAX.into()) {
                Ok(ring) => Some(ring),
                Err(error) => {
                    tracing::warn!(%error, "no io_uring: disk I/O is done one request at a time");
                    None
                }
            });
        Self {
            rings: ring.is_some(),
            waiting: Mutex::new(vec![Lane::new(ring)]),
            full: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, lanes: usize) {
        let mut waiting = self.lock();
        for _ in waiting.len()..lanes {
            waiting.push(self.lane());
        }
        self.full.store(true, Ordering::Release);
    }

    fn take(&self) -> Lane {
        let waiting = self.lock().pop();
        waiting.unwrap_or_else(|| self.lane())
    }

    /// A ring that cannot be had now, for want of descriptors perhaps, is done without.
    fn lane(&self) -> Lane {
        let wanted = self.rings && !self.full.load(Ordering::Acquire);
        Lane::new(
            wanted
                .then(|| Ring::new(REQUESTS_MAX.into()).ok())
                .flatten(),
        )
    }

    fn give_back(&self, lane: Lane) {
        self.lock().push(lane);
    }
}

//! What a server needs of what it serves.

use rustix::io::Errno;
use std::fmt::Debug;
use std::fs::File;
use std::ops::Range;
use vm_memory::Permissions;

/// Memory that a client lets the device reach.
#[derive(Debug)]
pub struct Map {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// What the device may do there.
    pub perm: Permissions,
    /// The memory file, and where in it the range begins. `None` for ROM and flash, whose maps come
    /// without a descriptor: nothing that a device has business with.
    pub memory: Option<(File, u64)>,
}

/// What one SET_IRQS message asks for, of MSI-X vectors that there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IrqRequest {
    /// No vector has an eventfd any more.
    DisableAll,
    /// These vectors get the eventfds of the message, as many as there are vectors; without any they
    /// lose theirs.
    Connect(Range<usize>),
    /// Raise these vectors, as if the device had.
    Trigger(Range<usize>),
}

/// Why something that a client asked for is not done. The client is told the errno, the log the
/// words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why} ({errno})")]
pub struct Refusal {
    errno: Errno,
    why: String,
}

impl Refusal {
    /// Any reason, in words: what came, and what was expected.
    pub fn new(errno: Errno, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { errno, why }
    }

    /// EINVAL: what was asked for makes no sense.
    pub fn invalid(why: impl Into<String>) -> Self {
        Self::new(Errno::INVAL, why)
    }

    /// ENODEV: what is behind the front door is gone.
    pub fn gone(why: impl Into<String>) -> Self {
        Self::new(Errno::NODEV, why)
    }

    /// What the client is told.
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

/// A PCI function as its client sees it: one call for each message, in the order of the messages.
///
/// The server has judged what it can: accesses lie within their region and are at most a megabyte
/// long, maps lie in their file and over no other map, vectors exist and eventfds are some. What is
/// refused has changed nothing.
pub trait Served: Send + Sync + Debug {
    /// Bytes of a BAR, 0 to 5; 0 if there is none. Does not change.
    fn bar_size(&self, bar: u8) -> u64;
    /// MSI-X vectors. Does not change.
    fn vectors(&self) -> u16;
    /// The client has gone, and with it its memory and its eventfds.
    fn end(&self);
    /// Reads configuration space.
    fn config_read(&self, offset: u16, data: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&self, offset: u16, data: &[u8]);
    /// Reads a BAR.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]);
    /// Writes a BAR.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]);
    /// Maps memory where nothing is mapped.
    ///
    /// # Errors
    ///
    /// Why the map cannot be made.
    fn map(&self, map: Map) -> Result<(), Refusal>;
    /// Unmaps what there is in the range, which may be nothing and may run past the end of the
    /// address space. Returns when nothing goes through the maps any more: the client may reuse the
    /// memory then.
    fn unmap(&self, iova: u64, size: u64);
    /// Function level reset; returns when it is complete.
    ///
    /// # Errors
    ///
    /// If it is not after the time that a client can be kept waiting. It goes on.
    fn reset(&self) -> Result<(), Refusal>;
    /// Connects, disconnects or raises interrupts.
    fn interrupts(&self, request: IrqRequest, eventfds: Vec<File>);
    /// The function as a VMM migrates it. Default: it does not migrate, and logs no writes.
    fn migrates(&self) -> Option<&dyn Migrates> {
        None
    }
}

/// What a VMM that migrates a function needs of it: VFIO's features for migration, version 2, and for
/// DMA logging. A reset makes the function run, and ends nothing of the logging.
pub trait Migrates: Send + Sync + Debug {
    /// Stops the function: when this returns it moves nothing, and its driver does not know.
    ///
    /// # Errors
    ///
    /// If it has not stopped after the time that a client can be kept waiting. It may yet.
    fn stop(&self) -> Result<(), Refusal>;
    /// Lets it go on.
    ///
    /// # Errors
    ///
    /// If it cannot; it is stopped as before.
    fn start(&self) -> Result<(), Refusal>;
    /// Whether it is stopped.
    fn is_stopped(&self) -> bool;
    /// The state of a function that is stopped, for another of the same shape.
    ///
    /// # Errors
    ///
    /// If it is not stopped.
    fn save(&self) -> Result<Vec<u8>, Refusal>;
    /// Gives a function that is stopped another's state, all of it or nothing.
    ///
    /// # Errors
    ///
    /// What is wrong with the state.
    fn load(&self, state: &[u8]) -> Result<(), Refusal>;
    /// Logs the pages that the function writes in `ranges`, bytes of IOVA, from now on. Returns the
    /// size of a page, `page_size` if that can be.
    ///
    /// # Errors
    ///
    /// If writes are logged already, the size is none, or there is too much to be logged.
    fn log_start(&self, page_size: u64, ranges: &[Range<u64>]) -> Result<u64, Refusal>;
    /// Logs no more; what was not reported is forgotten. Nothing happens if nothing is logged.
    ///
    /// # Errors
    ///
    /// None are known.
    fn log_stop(&self) -> Result<(), Refusal>;
    /// Sets bit n of `bits` if the function wrote to bytes n * `unit` to (n + 1) * `unit` of `range`,
    /// which is not empty, since they were reported last. `unit` is a power of two of at least 4096.
    ///
    /// # Errors
    ///
    /// If nothing is logged.
    fn log_report(&self, range: &Range<u64>, unit: u64, bits: &mut [u64]) -> Result<(), Refusal>;
}

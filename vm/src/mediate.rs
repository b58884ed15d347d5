//! The mediator: a vfio-user server towards the VMM, a driver towards the device.
//!
//! Stock drivers never suspend a device and never ask for its queues' state or its tracker. The
//! mediator negotiates those itself, under the guest's driver, and hides them from it: feature bits
//! are taken out of what the guest reads and put into what it writes, the tracker's capability is
//! not in the list that it sees, and the status it reads has no SUSPEND. So the mediator can stop
//! the device, carry its state to another one, on another server, and go on, while VMM and guest
//! notice nothing but a pause.
//!
//! The data path does not go through the mediator. The device maps the guest's memory itself, and
//! its interrupts go to the VMM's own eventfds; only register accesses and doorbells pass here.

mod access;
mod control;
mod face;
mod maps;
mod moving;
mod open;
mod pending;
mod program;
mod shadow;
mod tracking;
mod travelling;

pub use control::{Control, ControlError, Request, ask};
pub use moving::{InflightLog, MoveReport};
pub use open::open;

use device::queue::InflightError;
use driver::bus::{Bus, BusError, RelayBus};
use driver::dirty::DirtyError;
use driver::memory::DmaMemory;
use driver::transport::RESET_TIMEOUT;
use driver::{DriverError, Transport};
use face::{Face, Facilities};
use maps::Maps;
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};
use shadow::Shadow;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use tracking::Tracking;

/// Where the mediator's own memory is mapped: beyond what any guest's IOMMU can address, so that it
/// is never in the way of the guest's maps. A VMM's unmap of everything does not reach it.
pub const OWN_MEMORY: u64 = 1 << 62;
/// The command register in configuration space (PCI).
const COMMAND: u16 = 4;

/// Why the mediator cannot do what it was asked for. The guest goes on where it was, unless the
/// message says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum MediateError {
    /// A device cannot be reached, or does not let itself be looked at.
    #[error("{name}: {error}")]
    Device {
        /// Which device.
        name: String,
        /// What went wrong.
        error: DriverError,
    },
    /// The device to move to is not the same to the guest.
    #[error("{name} cannot take the device's place: {what}")]
    Unlike {
        /// Which device.
        name: String,
        /// What the guest would notice.
        what: String,
    },
    /// A device lacks what a move needs.
    #[error("{name} lacks {what}")]
    Lacks {
        /// Which device.
        name: String,
        /// What it lacks, by name.
        what: String,
    },
    /// The device waits for its guest's driver to reset it.
    #[error(
        "{name} has set DEVICE_NEEDS_RESET or was given up by its driver; its state means nothing until the driver resets it"
    )]
    Broken {
        /// Which device.
        name: String,
    },
    /// The device did not suspend, or its state could not be read.
    #[error("{name} could not be suspended and saved: {error}; the guest goes on there")]
    Save {
        /// Which device.
        name: String,
        /// What went wrong.
        error: DriverError,
    },
    /// The device to move to refused the state.
    #[error("{name} does not take the device's state: {error}; the guest stays where it was")]
    Restore {
        /// Which device.
        name: String,
        /// What went wrong.
        error: DriverError,
    },
    /// The stream in which the state travels is not whole.
    #[error("the device's state on its way: {why}; the guest stays where it was")]
    Stream {
        /// What was expected and what came, and where.
        why: String,
    },
    /// A move failed, and the device that it began with does not run again.
    #[error("{error}; and {name} does not resume: {second}. The guest's device stands still")]
    Stuck {
        /// The device that the guest is left with.
        name: String,
        /// Why the move failed.
        error: Box<MediateError>,
        /// Why it does not go on.
        second: DriverError,
    },
    /// The device died, and nobody said which requests it had in flight.
    #[error(
        "{name} died; a device that takes over needs the table of what was in flight: start it with the dead server's --inflight FILE, and name that FILE here too"
    )]
    NoLog {
        /// The device that died.
        name: String,
    },
    /// The table of what was in flight does not fit.
    #[error("the in-flight table {path}: {why}")]
    BadLog {
        /// The table's file.
        path: String,
        /// What was expected and what came.
        why: String,
    },
    /// Guest memory cannot be read.
    #[error("the used ring of queue {queue} cannot be read: {error}")]
    Ring {
        /// The queue.
        queue: u16,
        /// What went wrong.
        error: io::Error,
    },
    /// The tracker cannot be started or read.
    #[error("{name}: the tracker: {error}")]
    Tracker {
        /// Which device.
        name: String,
        /// What went wrong.
        error: DirtyError,
    },
}

impl MediateError {
    fn device(name: &str) -> impl FnOnce(DriverError) -> Self {
        let name = name.to_owned();
        move |error| Self::Device { name, error }
    }

    fn log(path: &str, error: &InflightError) -> Self {
        Self::BadLog {
            path: path.to_owned(),
            why: error.to_string(),
        }
    }
}

/// What a mediator is to do besides passing on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Tracks the pages that the device writes, across all moves.
    pub tracker: bool,
    /// Holds the guest's accesses back while there is no device, because another one may take over.
    /// Otherwise they read as ones, and writes are lost, as on a bus where nothing is.
    pub hold: bool,
}

/// A device that the mediator drives.
#[derive(Debug)]
struct Back {
    name: String,
    bus: Arc<dyn RelayBus>,
    transport: Arc<Transport>,
    facilities: Facilities,
    /// Memory for the tracker's bitmap, once it was needed.
    bitmap: Mutex<Option<DmaMemory>>,
}

impl Back {
    /// Takes a device into use: afterwards it is as after power-on.
    fn open(name: &str, bus: Arc<dyn RelayBus>) -> Result<(Arc<Self>, Face), MediateError> {
        let open = || -> Result<_, DriverError> {
            let mut command = [0; 2];
            bus.config_read(COMMAND, &mut command)?;
            let plain: Arc<dyn Bus> = Arc::clone(&bus) as _;
            let transport = Arc::new(Transport::new(plain)?);
            let mut back = Self {
                name: name.to_owned(),
                bus,
                facilities: Facilities::default(),
                transport,
                bitmap: Mutex::default(),
            };
            back.reset()?;
            driver::transport::enable(&*back.bus)?;
            back.facilities = Facilities::look(&back.transport)?;
            let face = Face::look(&*back.bus, &back.transport)?;
            // The guest is to find it as after power-on, and that switched on is how it was found.
            back.reset()?;
            back.bus.config_write(COMMAND, &command)?;
            Ok((Arc::new(back), face))
        };
        open().map_err(MediateError::device(name))
    }

    /// Resets the function, or where there is no way to, the virtio device.
    fn reset(&self) -> Result<(), DriverError> {
        match self.bus.reset() {
            Err(BusError::Exhausted { what, why }) => {
                tracing::debug!(what, why, "the virtio device is reset instead");
                self.transport.reset(RESET_TIMEOUT)
            }
            result => Ok(result?),
        }
    }
}

/// What the mediator has counted, for machines.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The device's name.
    pub device: String,
    /// False while the device is gone and none has taken over.
    pub alive: bool,
    /// The guest's driver runs the device.
    pub driver_ok: bool,
    /// What keeps this device from being moved, if anything.
    pub lacks: Option<String>,
    /// Moves from device to device, takeovers not among them.
    pub moves: u64,
    /// Times a device took over from one that died.
    pub takeovers: u64,
    /// Moves and takeovers that failed.
    pub failed_moves: u64,
    /// Memory maps of the guest now in force.
    pub maps: usize,
    /// Register accesses passed on, doorbells not among them.
    pub accesses: u64,
    /// Doorbells passed on.
    pub doorbells: u64,
    /// Maps of memory passed on.
    pub dma_maps: u64,
    /// Unmaps passed on.
    pub dma_unmaps: u64,
    /// Pages that the device wrote since tracking began; absent unless they are tracked.
    pub dirty_pages: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    moves: u64,
    takeovers: u64,
    failed_moves: u64,
    accesses: u64,
    doorbells: u64,
    dma_maps: u64,
    dma_unmaps: u64,
}

/// Everything that a move changes, under one lock: the guest's accesses wait for it.
#[derive(Debug)]
struct Inner {
    /// `None` while the device is gone.
    back: Option<Arc<Back>>,
    /// The device in use, or the last that was.
    name: String,
    shadow: Shadow,
    maps: Maps,
    /// The VMM's eventfd of each vector.
    vectors: Vec<Option<File>>,
    tracking: Option<Tracking>,
    counters: Counters,
}

/// One who stands between a VMM and a device.
#[derive(Debug)]
pub struct Mediator {
    face: Face,
    options: Options,
    inner: Mutex<Inner>,
    /// Signalled when another device has taken over.
    moved: Condvar,
    /// For the threads that watch devices.
    this: Weak<Self>,
}

impl Mediator {
    /// Takes a device into use. It is reset: no guest may be using it. `name` is for messages.
    ///
    /// The bus's own memory must lie where no guest's is, such as at [`OWN_MEMORY`].
    ///
    /// # Errors
    ///
    /// [`MediateError::Device`], or [`MediateError::Lacks`] if pages are to be tracked and the device
    /// has no tracker.
    pub fn new(
        name: &str,
        bus: Arc<dyn RelayBus>,
        options: Options,
    ) -> Result<Arc<Self>, MediateError> {
        let (back, face) = Back::open(name, bus)?;
        if options.tracker && !back.facilities.tracker() {
            back.facilities.check(name, true)?;
        }
        let inner = Inner {
            name: name.to_owned(),
            shadow: Shadow::new(&face),
            maps: Maps::default(),
            vectors: (0..face.vectors).map(|_| None).collect(),
            tracking: options.tracker.then(Tracking::default),
            counters: Counters::default(),
            back: Some(Arc::clone(&back)),
        };
        let this = Arc::new_cyclic(|this| Self {
            face,
            options,
            inner: Mutex::new(inner),
            moved: Condvar::new(),
            this: this.clone(),
        });
        this.watch(&back);
        Ok(this)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How things stand.
    pub fn report(&self) -> Report {
        let mut inner = self.lock();
        let counters = inner.counters;
        let back = inner.back.clone();
        let lacks = back.as_ref().and_then(|back| {
            let lacks = back.facilities.check(&inner.name, self.options.tracker);
            lacks.err().map(|error| error.to_string())
        });
        let dirty_pages = inner.dirty_pages();
        Report {
            device: inner.name.clone(),
            alive: back.is_some(),
            driver_ok: inner
                .shadow
                .status
                .contains(spec::status::DeviceStatus::DRIVER_OK),
            lacks,
            moves: counters.moves,
            takeovers: counters.takeovers,
            failed_moves: counters.failed_moves,
            maps: inner.maps.len(),
            accesses: counters.accesses,
            doorbells: counters.doorbells,
            dma_maps: counters.dma_maps,
            dma_unmaps: counters.dma_unmaps,
            dirty_pages,
        }
    }

    /// Notices at once when a device goes, where its bus can tell.
    fn watch(&self, back: &Arc<Back>) {
        let Some(hangup) = back.bus.hangup() else {
            return;
        };
        let (this, watched) = (self.this.clone(), Arc::downgrade(back));
        thread::spawn(move || {
            wait_for(&hangup);
            if let (Some(this), Some(back)) = (this.upgrade(), watched.upgrade()) {
                this.lock().lost(&back);
            }
        });
    }
}

/// Waits until the other end of a socket has gone, or this one was shut down.
fn wait_for(hangup: &OwnedFd) {
    loop {
        let mut fds = [PollFd::new(hangup, PollFlags::empty())];
        match poll(&mut fds, None) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}

impl Inner {
    /// The device has gone. A device that is not in use any more may go.
    fn lost(&mut self, gone: &Arc<Back>) {
        if self
            .back
            .as_ref()
            .is_some_and(|back| Arc::ptr_eq(back, gone))
        {
            self.back = None;
            let queues = self.shadow.queues.iter().filter(|queue| queue.enabled);
            tracing::warn!(
                device = self.name,
                queues = queues.count(),
                "the device has gone; another can take over with `mediate move`"
            );
        }
    }
}

/// Whether the device itself is gone, and not just this access in vain.
fn is_gone(error: &BusError) -> bool {
    matches!(error, BusError::Unreachable { .. })
}

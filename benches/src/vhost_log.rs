//! The dirty log of vhost-user-backend, as it is: a daemon of that crate without queues that work,
//! whose memory and log its frontend has given it.

use driver::dirty::DirtySet;
use driver::vhost_user::{Frontend, SharedMemory};
use spec::features::Features;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vhost::vhost_user::{Listener, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringRwLock};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::new_event_consumer_and_notifier;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier};

type Memory = GuestMemoryAtomic<GuestMemoryMmap<BitmapMmapRegion>>;

/// What went wrong, in its own words.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A device that does nothing.
#[derive(Clone, Copy, Debug)]
struct Idle;

impl VhostUserBackend for Idle {
    type Bitmap = BitmapMmapRegion;
    type Vring = VringRwLock<Memory>;

    fn num_queues(&self) -> usize {
        1
    }
    fn max_queue_size(&self) -> usize {
        16
    }
    fn features(&self) -> u64 {
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES;
        (protocol | VhostUserVirtioFeatures::LOG_ALL).bits() | Features::VERSION_1.bits()
    }
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::LOG_SHMFD | VhostUserProtocolFeatures::REPLY_ACK
    }
    fn set_event_idx(&self, _: bool) {}
    fn update_memory(&self, _: Memory) -> io::Result<()> {
        Ok(())
    }
    /// Without it the daemon would wait for its worker for ever when it is dropped.
    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }
    fn handle_event(
        &self,
        _: u16,
        _: EventSet,
        _: &[VringRwLock<Memory>],
        _: usize,
    ) -> io::Result<()> {
        Ok(())
    }
}

/// The bitmap that a device on vhost-user-backend marks.
pub struct VhostLog {
    // Hangs up before the daemon is dropped.
    frontend: Frontend,
    _daemon: VhostUserDaemon<Idle>,
    bitmap: BitmapMmapRegion,
}

impl std::fmt::Debug for VhostLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostLog")
            .field("frontend", &self.frontend)
            .finish_non_exhaustive()
    }
}

impl VhostLog {
    /// A log of memory from 0 up to `end`.
    ///
    /// # Errors
    /// What the daemon, its frontend or the system refuses.
    pub fn new(end: u64) -> Result<Self, Error> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("log.sock");
        let memory: Memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("vhost-log".to_owned(), Idle, memory.clone())
            .map_err(|error| error.to_string())?;
        let mut listener = Listener::new(&path, true)?;
        let socket = UnixStream::connect(&path)?;
        daemon
            .start(&mut listener)
            .map_err(|error| error.to_string())?;
        let mut frontend = Frontend::from_stream(socket, Duration::from_secs(20))?;
        frontend.negotiate(Features::VERSION_1, Features::VERSION_1)?;
        frontend.share(&[&SharedMemory::new(0, end)?])?;
        frontend.start_log()?;
        let memory = memory.memory();
        let region = memory.iter().next().ok_or("the daemon has no memory")?;
        let bitmap = region.bitmap().clone();
        Ok(Self {
            frontend,
            _daemon: daemon,
            bitmap,
        })
    }

    /// Marks a range of bytes.
    pub fn mark(&self, offset: usize, len: usize) {
        self.bitmap.mark_dirty(offset, len);
    }

    /// Takes all marks away.
    ///
    /// # Errors
    /// The log is off.
    pub fn take(&mut self, into: &mut DirtySet) -> Result<(), Error> {
        Ok(self.frontend.harvest_log(into)?)
    }
}

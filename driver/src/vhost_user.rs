//! A vhost-user frontend without a virtual machine: drives the queues of a backend process over
//! its socket (vhost-user specification, as QEMU's documentation has it).
//!
//! The order of work: [`connect`](Frontend::connect), [`negotiate`](Frontend::negotiate),
//! [`share`](Frontend::share) memory, build queues in it, [`start_queue`](Frontend::start_queue).
//! [`stop_queue`](Frontend::stop_queue) answers where a queue stood; the same memory and that
//! number start it at another backend. What the protocol calls suspended is a device all of whose
//! queues are stopped; its dirty page tracker is the log ([`start_log`](Frontend::start_log)).
//!
//! Guest addresses are what the queues' memory has for IOVAs.

mod error;
mod events;
mod inflight;
mod log;
mod memory;
mod source;
mod watchdog;
mod wire;

pub use error::VhostUserError;
pub use events::QueueEvents;
pub use inflight::InflightTable;
pub use memory::SharedMemory;
pub use source::LogSource;

use crate::transport::QueueSetup;
use log::Log;
use spec::features::Features;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags,
};
use vhost::vhost_user::{Frontend as Link, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use watchdog::Watchdog;

/// How long a backend may take to answer a request, draining a queue included.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The address of guest address 0 in this process, as the backend is told. Rings are named by
/// addresses of this process, memory by both: one that is not the other shows a backend that takes
/// one for the other.
const USER_BASE: u64 = 1 << 46;
/// Memory files in one table: what the protocol permits everybody.
const REGIONS_MAX: usize = 8;

/// A connection to a backend. Dropped, it closes the connection; the backend then stops.
pub struct Frontend {
    link: Link,
    /// The same connection, for what the crate cannot say.
    socket: UnixStream,
    watchdog: Watchdog,
    offered: u64,
    protocol: VhostUserProtocolFeatures,
    /// Negotiated, without LOG_ALL, which comes and goes.
    features: u64,
    queues: Vec<Option<QueueSetup>>,
    /// Guest addresses that are shared.
    shared: Vec<Range<u64>>,
    log: Option<Log>,
}

impl std::fmt::Debug for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frontend")
            .field("features", &Features::from_bits_retain(self.features))
            .field("protocol", &self.protocol)
            .field("queues", &self.queues)
            .field("log", &self.log)
            .finish_non_exhaustive()
    }
}

impl Frontend {
    /// Connects to the backend that listens at `path`.
    ///
    /// # Errors
    /// [`VhostUserError::Connect`], and what [`from_stream`](Self::from_stream) has.
    pub fn connect(path: &Path) -> Result<Self, VhostUserError> {
        let socket = UnixStream::connect(path).map_err(|source| VhostUserError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Self::from_stream(socket, REQUEST_TIMEOUT)
    }

    /// Speaks over a connected socket: becomes its owner, and agrees on the protocol's features.
    /// No request may take longer than `timeout`.
    ///
    /// # Errors
    /// [`VhostUserError::ProtocolMissing`] if the backend knows no protocol features, as none of
    /// this century does; or what the backend says.
    pub fn from_stream(socket: UnixStream, timeout: Duration) -> Result<Self, VhostUserError> {
        let clone = |socket: &UnixStream| {
            let cloned = socket.try_clone();
            cloned.map_err(|source| VhostUserError::Setup {
                what: "duplicate a socket",
                source,
            })
        };
        let mut this = Self {
            link: Link::from_stream(clone(&socket)?, 1),
            watchdog: Watchdog::new(clone(&socket)?, timeout)?,
            socket,
            offered: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            features: 0,
            queues: vec![None],
            shared: Vec::new(),
            log: None,
        };
        this.offered = this.ask("GET_FEATURES", |link| link.get_features())?;
        if this.offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return Err(VhostUserError::ProtocolMissing("PROTOCOL_FEATURES"));
        }
        let known = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        let offered = this.ask("GET_PROTOCOL_FEATURES", |link| link.get_protocol_features())?;
        this.protocol = offered & known;
        let protocol = this.protocol;
        this.ask("SET_PROTOCOL_FEATURES", |link| {
            link.set_protocol_features(protocol)
        })?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            // Otherwise a refusal shows nowhere.
            this.link.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if protocol.contains(VhostUserProtocolFeatures::MQ) {
            let queues = this.ask("GET_QUEUE_NUM", |link| link.get_queue_num())?;
            this.queues = vec![None; usize::try_from(queues).unwrap_or(1)];
        }
        this.ask("SET_OWNER", |link| link.set_owner())?;
        Ok(this)
    }

    /// The features the backend offers. Bits 26 and 30 are the protocol's own: LOG_ALL, and that
    /// there are protocol features.
    pub fn offered(&self) -> Features {
        Features::from_bits_retain(self.offered)
    }

    /// The protocol features in force, as the specification numbers them.
    pub fn protocol(&self) -> u64 {
        self.protocol.bits()
    }

    /// Queues the backend has.
    pub fn num_queues(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// Accepts those of `wanted` that are offered, and returns them.
    ///
    /// # Errors
    /// [`VhostUserError::FeaturesMissing`] if one of `needed` is not offered; or what the backend
    /// says.
    pub fn negotiate(
        &mut self,
        wanted: Features,
        needed: Features,
    ) -> Result<Features, VhostUserError> {
        self.offers(needed.bits())?;
        let reserved = VhostUserVirtioFeatures::all().bits();
        let accepted = (wanted | needed).bits() & self.offered & !reserved;
        // Without it queues would run as soon as they are kicked.
        self.features = accepted | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let features = self.features;
        self.ask("SET_FEATURES", |link| link.set_features(features))?;
        Ok(Features::from_bits_retain(accepted))
    }

    /// Reads the first `len` bytes of the device's configuration.
    ///
    /// # Errors
    /// [`VhostUserError::ProtocolMissing`], or what the backend says, which may have fewer.
    pub fn config(&mut self, len: usize) -> Result<Vec<u8>, VhostUserError> {
        self.speaks(VhostUserProtocolFeatures::CONFIG, "CONFIG")?;
        let empty = vec![0; len];
        let size = u32::try_from(len).unwrap_or(u32::MAX);
        let flags = VhostUserConfigFlags::empty();
        let (_, config) = self.ask("GET_CONFIG", |link| link.get_config(0, size, flags, &empty))?;
        Ok(config)
    }

    /// Shares memory, in the place of all that was shared before. While the log is on it is made
    /// longer first, if the new memory ends higher.
    ///
    /// # Errors
    /// [`VhostUserError::Address`] for no memory, more than eight files, or two at one address; or
    /// what the backend says.
    pub fn share(&mut self, memories: &[&SharedMemory]) -> Result<(), VhostUserError> {
        let refused = |address, why| VhostUserError::Address {
            what: "shared memory",
            address,
            why,
        };
        if memories.is_empty() || memories.len() > REGIONS_MAX {
            return Err(refused(0, "1 to 8 files are expected"));
        }
        let mut sorted: Vec<_> = memories.iter().map(|memory| memory.range()).collect();
        sorted.sort_by_key(|range| range.start);
        for (low, high) in sorted.iter().zip(sorted.iter().skip(1)) {
            if high.start < low.end {
                return Err(refused(high.start, "two files at one address"));
            }
        }
        if sorted.iter().any(|range| range.end > USER_BASE) {
            return Err(refused(USER_BASE, "guest addresses end before it"));
        }
        let region = |memory: &&SharedMemory| VhostUserMemoryRegionInfo {
            guest_phys_addr: memory.window().iova(),
            memory_size: memory.window().len(),
            userspace_addr: memory.window().iova() + USER_BASE,
            mmap_offset: 0,
            mmap_handle: memory.fd(),
        };
        let regions: Vec<_> = memories.iter().map(region).collect();
        let end = end_of(&sorted);
        if self.log.as_ref().is_some_and(|log| log.end() < end) {
            self.log_up_to(end)?;
        }
        self.ask("SET_MEM_TABLE", |link| link.set_mem_table(&regions))?;
        self.shared = sorted;
        self.barrier()
    }

    /// Starts queue `index` at position `base`: for a new queue what
    /// [`QueueState::default_of`](spec::queue_state::QueueState::default_of) its format is, 0 or 0x8000; otherwise what
    /// [`stop_queue`](Self::stop_queue) returned, or after a backend has died, the used index
    /// that memory holds ([`SplitQueue::device_used`](crate::queue::SplitQueue::device_used)).
    /// In a packed queue nothing is in flight then: it is where both sides stand.
    ///
    /// # Errors
    /// [`VhostUserError::NoSuchQueue`], [`VhostUserError::QueueState`] if it runs,
    /// [`VhostUserError::Address`] if it is not in shared memory; or what the backend says.
    pub fn start_queue(
        &mut self,
        index: u16,
        setup: QueueSetup,
        base: u16,
    ) -> Result<QueueEvents, VhostUserError> {
        if self.queue(index)?.is_some() {
            let state = "runs already; stop it first";
            return Err(VhostUserError::QueueState { index, state });
        }
        for (what, address) in [
            ("descriptor table", setup.desc),
            ("available ring", setup.driver),
            ("used ring", setup.device),
        ] {
            if !self.shared.iter().any(|range| range.contains(&address)) {
                let why = "no memory is shared there";
                return Err(VhostUserError::Address { what, address, why });
            }
        }
        let events = QueueEvents::new()?;
        let n = usize::from(index);
        self.ask("SET_VRING_NUM", |link| link.set_vring_num(n, setup.size))?;
        self.set_base(index, base)?;
        self.addresses(index, &setup)?;
        self.ask("SET_VRING_CALL", |link| {
            link.set_vring_call(n, &events.call)
        })?;
        self.ask("SET_VRING_KICK", |link| {
            link.set_vring_kick(n, &events.kick)
        })?;
        self.ask("SET_VRING_ENABLE", |link| link.set_vring_enable(n, true))?;
        if let Some(queue) = self.queues.get_mut(n) {
            *queue = Some(setup);
        }
        Ok(events)
    }

    /// Stops queue `index` when what it has taken is done, and returns its position: where the
    /// next request is to be taken, and in a packed queue the next one used, index and wrap counter
    /// as a [`QueueState`](spec::queue_state::QueueState) has them.
    ///
    /// # Errors
    /// [`VhostUserError::NoSuchQueue`], [`VhostUserError::QueueState`] if it does not run,
    /// [`VhostUserError::Nonsense`] for a position that is none; or what the backend says.
    pub fn stop_queue(&mut self, index: u16) -> Result<u16, VhostUserError> {
        if self.queue(index)?.is_none() {
            let state = "does not run";
            return Err(VhostUserError::QueueState { index, state });
        }
        let n = usize::from(index);
        let base = self.ask("GET_VRING_BASE", |link| link.get_vring_base(n))?;
        if let Some(queue) = self.queues.get_mut(n) {
            *queue = None;
        }
        let (low, high) = (base & 0xffff, base >> 16);
        let fits = if self.packed() {
            low == high
        } else {
            high == 0
        };
        let position = u16::try_from(low).ok().filter(|_| fits);
        position.ok_or_else(|| VhostUserError::Nonsense {
            request: "GET_VRING_BASE",
            what: if self.packed() {
                format!("{base:#x}, where both places of a stopped packed queue are one")
            } else {
                format!("{base}, where a split queue's index has 16 bits")
            },
        })
    }

    /// Packed queues were agreed on.
    fn packed(&self) -> bool {
        self.features & Features::RING_PACKED.bits() != 0
    }

    /// A packed queue's has both places, which the crate cannot send.
    fn set_base(&mut self, index: u16, base: u16) -> Result<(), VhostUserError> {
        const REQUEST: &str = "SET_VRING_BASE";
        if !self.packed() {
            return self.ask(REQUEST, |link| link.set_vring_base(index.into(), base));
        }
        let acknowledged = self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        let socket = &self.socket;
        self.watchdog.guard(REQUEST, || {
            let both = u32::from(base) | u32::from(base) << 16;
            wire::set_vring_base(socket, index.into(), both, acknowledged)
                .map_err(vhost::Error::IOError)
        })
    }

    /// Tells the backend where a queue lies, and whether to log its used ring.
    fn addresses(&mut self, index: u16, setup: &QueueSetup) -> Result<(), VhostUserError> {
        let logged = VhostUserVringAddrFlags::VHOST_VRING_F_LOG.bits();
        let config = VringConfigData {
            queue_max_size: setup.size,
            queue_size: setup.size,
            flags: if self.is_logging() { logged } else { 0 },
            desc_table_addr: setup.desc + USER_BASE,
            avail_ring_addr: setup.driver + USER_BASE,
            used_ring_addr: setup.device + USER_BASE,
            log_addr: self.is_logging().then_some(setup.device),
        };
        self.ask("SET_VRING_ADDR", |link| {
            link.set_vring_addr(usize::from(index), &config)
        })
    }

    fn queue(&self, index: u16) -> Result<Option<QueueSetup>, VhostUserError> {
        let queue = self.queues.get(usize::from(index)).copied();
        queue.ok_or_else(|| VhostUserError::NoSuchQueue {
            index,
            have: self.num_queues(),
        })
    }

    fn offers(&self, needed: u64) -> Result<(), VhostUserError> {
        match needed & !self.offered {
            0 => Ok(()),
            missing => Err(VhostUserError::FeaturesMissing(Features::from_bits_retain(
                missing,
            ))),
        }
    }

    fn speaks(
        &self,
        needed: VhostUserProtocolFeatures,
        name: &'static str,
    ) -> Result<(), VhostUserError> {
        if self.protocol.contains(needed) {
            Ok(())
        } else {
            Err(VhostUserError::ProtocolMissing(name))
        }
    }

    /// Returns when the backend has carried out all that it was asked.
    fn barrier(&mut self) -> Result<(), VhostUserError> {
        if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            // Every request was answered.
            return Ok(());
        }
        // Requests are carried out in order, and this one has a reply.
        self.ask("GET_FEATURES", |link| link.get_features())?;
        Ok(())
    }

    fn ask<T>(
        &mut self,
        request: &'static str,
        carry_out: impl FnOnce(&mut Link) -> vhost::Result<T>,
    ) -> Result<T, VhostUserError> {
        let link = &mut self.link;
        self.watchdog.guard(request, || carry_out(link))
    }
}

/// The first guest address behind all of `ranges`.
fn end_of(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end).max().unwrap_or(0)
}

#[cfg(test)]
mod tests;

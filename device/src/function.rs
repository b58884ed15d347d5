//! The virtio-pci function: configuration space, BARs, queues and tracker in one.
//!
//! This is what the front doors serve. Every access is total: whatever a guest or a socket sends,
//! there is an answer, never a panic. A register write that starts something long posts it and
//! returns; reads show how far it is.

use crate::admin::{Admin, carry};
pub use crate::admin::{AdminAnswer, AdminConfig, OwnerError};
use crate::dma::Dma;
use crate::engine::Engine;
use crate::queue::InflightTable;
use crate::queue::QueueConfig;
use crate::status::State;
use crate::tracker::{Marking, TrackerConfig};
pub use crate::transport::caps::Pasid;
pub use crate::transport::msix::{InterruptSink, MsixOwner};
use crate::transport::registers::{BAR0_SIZE, BAR1_SIZE};
use crate::virtio::{QueueError, VirtioDevice};
pub(crate) use inner::Core;
use inner::Machinery;
pub(crate) use parts::{Part, PartsError};
pub use saved::SavedError;
use spec::features::Features;
use spec::queue_state::QueueState;
use std::sync::Arc;
use std::time::Duration;

mod access;
mod inner;
mod mode;
mod parts;
mod saved;
#[cfg(test)]
mod tests;

/// What a function offers beside its device type.
#[derive(Clone, Copy, Debug)]
pub struct FunctionConfig {
    /// Transport and ring features offered. Bits that this implementation cannot keep are left
    /// out, VERSION_1 is always offered; RING_PACKED is not with a table of what is in flight,
    /// which is for split rings. IN_ORDER is offered to whoever asks for it here and has no
    /// administration queues. Default: all that are supported but ACCESS_PLATFORM and RING_PACKED.
    pub features: Features,
    /// Whether there is a memory dirty pages tracker. Default: yes.
    pub tracker: bool,
    /// How the tracker marks. Default: [`Marking::Bit`].
    pub marking: Marking,
    /// The least `gra_power` that the tracker works with (DT-4), at most 18. Default: 0.
    pub min_gra_power: u8,
    /// The PASID extended capability. Default: absent.
    pub pasid: Pasid,
    /// The PASID, 20 bits, that the function's DMA carries while PASIDs are enabled. Default: 0.
    pub dma_pasid: u32,
    /// How the device suspends. Default: at once, and without fail.
    pub suspend: SuspendBehaviour,
    /// Its administration queues. Default: none.
    pub admin: AdminConfig,
}

impl FunctionConfig {
    /// The features that this implementation can keep, but for IN_ORDER: device types keep to it
    /// by the way, and no driver gains by it here.
    pub const SUPPORTED: Features = Features::VERSION_1
        .union(Features::RING_INDIRECT_DESC)
        .union(Features::RING_EVENT_IDX)
        .union(Features::ACCESS_PLATFORM)
        .union(Features::NOTIFICATION_DATA)
        .union(Features::RING_RESET)
        .union(Features::RING_PACKED)
        .union(Features::ADMIN_VQ)
        .union(Features::SUSPEND)
        .union(Features::QUEUE_STATE);
}

impl Default for FunctionConfig {
    fn default() -> Self {
        Self {
            features: Self::SUPPORTED
                .difference(Features::ACCESS_PLATFORM)
                .difference(Features::RING_PACKED),
            tracker: true,
            marking: Marking::Bit,
            min_gra_power: 0,
            pasid: Pasid::Absent,
            dma_pasid: 0,
            suspend: SuspendBehaviour::default(),
            admin: AdminConfig::default(),
        }
    }
}

/// Ways for a device to suspend that the standard allows and drivers must cope with. For tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct SuspendBehaviour {
    /// How long the device goes on presenting DRIVER_OK after its queues have stopped.
    pub delay: Duration,
    /// The device sets DEVICE_NEEDS_RESET instead of SUSPEND (SUS-15).
    pub fails: bool,
    /// The device sets DEVICE_NEEDS_RESET instead of resuming (SUS-16).
    pub resume_fails: bool,
}

/// What a function has counted since it was made. Requests are counted by the device types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionStats {
    /// Times the device became suspended.
    pub suspends: u64,
    /// Times it ran again after that.
    pub resumes: u64,
    /// From a driver's order to suspend until SUSPEND was presented, all times together.
    pub suspending: Duration,
    /// For which it was suspended, all times together; one that lasts is not among them yet.
    pub suspended: Duration,
    /// Resets that were finished, of either kind.
    pub resets: u64,
    /// Times it set DEVICE_NEEDS_RESET.
    pub errors: u64,
    /// Queues that broke: their driver made a malformed chain available, or took a ring's memory away.
    pub broken_queues: u64,
    /// Doorbell writes that reached a queue.
    pub notifications: u64,
    /// Interrupts handed to the sink.
    pub interrupts: u64,
    /// Driver writes that a rule made the device ignore: wrong width, state or value.
    pub ignored: u64,
}

/// A virtio-pci function.
#[derive(Debug)]
pub struct PciFunction {
    pub(crate) core: Arc<Core>,
    dma: Arc<Dma>,
}

impl PciFunction {
    /// A function after power-on: no memory mapped, no interrupt sink.
    ///
    /// It has at most 64 queues, administration queues included, whatever the device type says.
    pub fn new(config: FunctionConfig, device: Arc<dyn VirtioDevice>) -> Arc<Self> {
        Self::with_inflight(config, device, None)
    }

    /// A function that owns others: it has the SR-IOV capability, and `members` are its virtual
    /// functions 1, 2 and so on, there while VF Enable is set and as far as NumVFs reaches. Its
    /// administration queues reach them (VIRTIO 1.4, "Device groups", SR-IOV group type).
    ///
    /// The members are reached by whoever drives them through front doors of their own; their
    /// configuration space is what a hypervisor presents of a virtual function. When VF Enable is
    /// cleared, they are reset.
    ///
    /// # Errors
    ///
    /// [`OwnerError`] if there are too many members, or one of them has an owner already.
    pub fn owner(
        config: FunctionConfig,
        device: Arc<dyn VirtioDevice>,
        members: Vec<Arc<Self>>,
    ) -> Result<Arc<Self>, OwnerError> {
        if members.is_empty() || members.len() > Admin::MEMBERS_MAX {
            return Err(OwnerError::Members(members.len()));
        }
        let owner = Self::build(config, device, members.clone(), None);
        if let Some(admin) = &owner.core.admin {
            for (number, member) in (1..).zip(&members) {
                let taken = member.core.owner.set(Arc::downgrade(admin));
                taken.map_err(|_| OwnerError::Owned(number))?;
            }
        }
        Ok(owner)
    }

    /// A function that notes in a table what its queues have in flight. Queues that the table has
    /// no part for are not noted.
    ///
    /// A queue that starts with nothing between its available and its used state clears its part. So
    /// a suspend leaves an empty table, and what a life left that was cut short is never taken for
    /// a later one's. A queue that starts with n buffers between them goes on where a device was
    /// killed: it carries out the n requests that the table names, and then what is available
    /// (project rule). A table that names more or fewer is refused, with DEVICE_NEEDS_RESET.
    pub fn with_inflight(
        config: FunctionConfig,
        device: Arc<dyn VirtioDevice>,
        inflight: Option<Arc<InflightTable>>,
    ) -> Arc<Self> {
        Self::build(config, device, Vec::new(), inflight)
    }

    fn build(
        config: FunctionConfig,
        device: Arc<dyn VirtioDevice>,
        members: Vec<Arc<Self>>,
        inflight: Option<Arc<InflightTable>>,
    ) -> Arc<Self> {
        let mut config = config;
        if inflight.is_some() {
            config.features.remove(Features::RING_PACKED);
        }
        let dma = Arc::new(Dma::new());
        let admin = Admin::new(config.admin, device.num_queues(), members, &dma);
        let core = Core::new(config, Arc::clone(&device), admin.clone(), |events| {
            let device = match &admin {
                Some(admin) => carry(device, Arc::clone(admin)),
                None => device,
            };
            let engine = Engine::new(device, Arc::clone(&dma), events);
            Box::new(Real {
                engine,
                dma: Arc::clone(&dma),
                inflight,
            })
        });
        if let Some(admin) = &admin {
            admin.belongs_to(&core);
        }
        Arc::new(Self { core, dma })
    }
    /// Reads configuration space. Bytes beyond its 4096 read 0xff.
    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.core.config_read(usize::from(offset), data);
    }
    /// Writes configuration space. Only writable bits change.
    pub fn config_write(&self, offset: u16, data: &[u8]) {
        self.core.config_write(usize::from(offset), data);
    }
    /// Reads BAR `bar`. An access that is not entirely within it reads 0xff.
    pub fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        self.core.bar_read(bar, offset, data);
    }
    /// Writes BAR `bar`. An access that is not entirely within it is ignored.
    pub fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.core.bar_write(bar, offset, data);
    }
    /// Bytes of BAR `bar`, 0 if there is none.
    pub const fn bar_size(bar: u8) -> u64 {
        match bar {
            0 => BAR0_SIZE,
            1 => BAR1_SIZE,
            _ => 0,
        }
    }
    /// Number of MSI-X vectors: one per queue and one for configuration changes.
    pub fn vectors(&self) -> u16 {
        self.core.vectors()
    }
    /// Virtio device id.
    pub(crate) fn device_id(&self) -> u16 {
        self.core.device_id()
    }
    /// Guest memory as this function reaches it.
    pub fn dma(&self) -> &Arc<Dma> {
        &self.dma
    }
    /// Connects the interrupts, from now on, in place of what was connected before.
    pub fn set_interrupts(&self, sink: Arc<dyn InterruptSink>, owner: MsixOwner) {
        self.core.set_interrupts(sink, owner);
    }
    /// Starts a function level reset, and returns.
    pub fn reset(&self) {
        self.core.reset();
    }
    /// Resets, and waits until that is done. False if it was not within `timeout`.
    pub fn reset_and_wait(&self, timeout: Duration) -> bool {
        self.core.reset();
        self.core.wait_for_reset(timeout)
    }
    /// The device configuration changed by itself: tells the driver, once it may be told (SUS-14).
    pub fn notify_config_change(&self) {
        self.core.notify_config_change();
    }
    /// Where the device is in its life.
    pub fn state(&self) -> State {
        self.core.state()
    }
    /// How often its administration queues gave each answer, since it was made; empty without any.
    pub fn admin_answers(&self) -> Vec<(AdminAnswer, u64)> {
        let admin = self.core.admin.as_ref();
        admin.map(|admin| admin.answered()).unwrap_or_default()
    }
    /// What was counted so far.
    pub fn stats(&self) -> FunctionStats {
        self.core.stats()
    }
}

/// The queues and the door to memory.
#[derive(Debug)]
struct Real {
    engine: Engine,
    dma: Arc<Dma>,
    inflight: Option<Arc<InflightTable>>,
}

impl Machinery for Real {
    fn start(&self, index: u16, config: QueueConfig) -> Result<(), QueueError> {
        match self.inflight.as_ref().and_then(|table| table.queue(index)) {
            Some(part) => self.engine.start_from(index, config, part),
            None => self.engine.start(index, config),
        }
    }
    fn kick(&self, index: u16) {
        self.engine.kick(index);
    }
    fn stop(&self, index: u16) -> bool {
        self.engine.stop(index)
    }
    fn state(&self, index: u16) -> Option<QueueState> {
        self.engine.state(index)
    }
    fn set_tracker(&self, config: TrackerConfig) {
        self.dma.set_tracker(config);
    }
}

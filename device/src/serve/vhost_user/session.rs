//! One frontend's connection: what its messages do.
//!
//! Messages come one after the other on one thread, which takes `state` for each; the engine's
//! callbacks and the kick thread never take it, so a message may wait for a ring to stop.

use super::kicks::Kicks;
use super::memory::{REGIONS_MAX, Regions};
use super::ring::{Areas, Base, Outlets, Ring};
use super::{Counters, DRAIN_WAIT, Refused, ServeError};
use crate::dma::{Dma, RingMarks};
use crate::engine::{Engine, EngineEvents};
use crate::queue::{InflightShape, InflightTable, QueueConfig};
use crate::tracker::{DirtyLog, Marking};
use crate::virtio::VirtioDevice;
use spec::features::Features;
use spec::queue_state::QueueState;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    GpuBackend, Result, VhostUserBackendReqHandler, VhostUserProtocolFeatures as Protocol,
};

/// Log all writes to guest memory. vhost, VHOST_F_LOG_ALL.
const LOG_ALL: u64 = 1 << 26;
/// The protocol has feature bits of its own. vhost-user, VHOST_USER_F_PROTOCOL_FEATURES.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Feature bits that are between frontend and backend only.
const NOT_VIRTIO: u64 = LOG_ALL | PROTOCOL_FEATURES;

#[derive(Debug)]
pub(super) struct Session {
    device: Arc<dyn VirtioDevice>,
    marking: Marking,
    /// Whether packed rings are offered, and then no in-flight tables.
    packed: bool,
    counters: Arc<Counters>,
    dma: Arc<Dma>,
    engine: Arc<Engine>,
    outlets: Arc<Outlets>,
    kicks: Kicks,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    features: u64,
    regions: Regions,
    inflight: Option<Arc<InflightTable>>,
    rings: Vec<Ring>,
}

impl Session {
    /// The device as after power-on.
    pub(super) fn new(
        device: Arc<dyn VirtioDevice>,
        marking: Marking,
        packed: bool,
        counters: Arc<Counters>,
    ) -> std::result::Result<Self, ServeError> {
        let rings = usize::from(device.num_queues());
        let dma = Arc::new(Dma::new());
        let outlets = Arc::new(Outlets::new(rings, Arc::clone(&counters)));
        let events = Arc::clone(&outlets) as Arc<dyn EngineEvents>;
        let engine = Engine::new(Arc::clone(&device), Arc::clone(&dma), events);
        let engine = Arc::new(engine);
        Ok(Self {
            kicks: Kicks::new(Arc::clone(&engine), rings)?,
            device,
            marking,
            packed,
            counters,
            dma,
            engine,
            outlets,
            state: Mutex::new(State {
                rings: (0..rings).map(|_| Ring::default()).collect(),
                ..State::default()
            }),
        })
    }

    pub(super) fn dma(&self) -> &Arc<Dma> {
        &self.dma
    }

    /// The frontend is gone: finishes what is in flight, and forgets everything else.
    pub(super) fn end(&self) -> std::result::Result<(), Refused> {
        let mut state = self.lock();
        self.stop_all(&mut state)?;
        self.device.reset();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offered(&self) -> u64 {
        let mut transport =
            Features::VERSION_1 | Features::RING_INDIRECT_DESC | Features::RING_EVENT_IDX;
        transport.set(Features::RING_PACKED, self.packed);
        self.device.features() | transport.bits() | NOT_VIRTIO
    }

    /// Starts or stops ring `index`, whichever its configuration asks for.
    fn settle(&self, state: &mut State, index: usize) -> std::result::Result<(), Refused> {
        let enabled_always = state.features & PROTOCOL_FEATURES == 0;
        let event_idx = state.features & Features::RING_EVENT_IDX.bits() != 0;
        let packed = state.packed();
        let inflight = state.inflight.clone();
        let ring = state.ring(index)?;
        let wanted = ring.kicked && (ring.enabled || enabled_always);
        match ring.areas {
            Some(areas) if wanted && !ring.running => {
                let bad = |error| Refused::Start { index, error };
                let begin = QueueState::default_of(packed);
                let from = ring.base.map_or(Some(begin), |base| base.state(packed));
                let config = QueueConfig {
                    size: ring.size,
                    desc: areas.desc,
                    driver: areas.avail,
                    device: areas.used,
                    packed,
                    event_idx,
                    state: from.ok_or_else(|| no_base(index, ring.base))?,
                };
                let number = number(index);
                match inflight {
                    None => self.engine.start(number, config).map_err(bad)?,
                    Some(table) => {
                        let part = table.queue(number).ok_or_else(|| Refused::Ring {
                            index,
                            what: format!(
                                "not in the in-flight table, which has {} queues",
                                table.shape().queues
                            ),
                        })?;
                        let taken = self.engine.start_noted(number, config, part).map_err(bad)?;
                        if taken != 0 {
                            tracing::info!(index, taken, "requests of a killed backend");
                        }
                        let taken = u64::try_from(taken).unwrap_or(u64::MAX);
                        Counters::add(&self.counters.resubmitted, taken);
                    }
                }
                ring.running = true;
                Counters::add(&self.counters.ring_starts, 1);
            }
            _ if !wanted && ring.running => self.stop(ring, index, packed)?,
            _ => {}
        }
        Ok(())
    }

    /// Stops a ring and waits until nothing of it is in flight.
    fn stop(
        &self,
        ring: &mut Ring,
        index: usize,
        packed: bool,
    ) -> std::result::Result<(), Refused> {
        if self.engine.stop(number(index)) {
            let stopped = self.outlets.wait_stopped(index, DRAIN_WAIT);
            let stopped = stopped.ok_or(Refused::Stuck { index })?;
            ring.base = Some(Base::of(stopped, packed));
        }
        ring.running = false;
        Ok(())
    }

    /// All of them are told first, so that they end at the same time.
    fn stop_all(&self, state: &mut State) -> std::result::Result<(), Refused> {
        let packed = state.packed();
        let running = |ring: &(usize, &mut Ring)| ring.1.running;
        for (index, _) in state.rings.iter_mut().enumerate().filter(running) {
            self.kicks.forget(index);
            self.engine.stop(number(index));
        }
        for (index, ring) in state.rings.iter_mut().enumerate().filter(running) {
            let stopped = self.outlets.wait_stopped(index, DRAIN_WAIT);
            let stopped = stopped.ok_or(Refused::Stuck { index })?;
            ring.base = Some(Base::of(stopped, packed));
            ring.running = false;
        }
        Ok(())
    }

    fn reset(&self) -> std::result::Result<(), Refused> {
        let mut state = self.lock();
        self.stop_all(&mut state)?;
        for (index, ring) in state.rings.iter_mut().enumerate() {
            self.kicks.forget(index);
            if let Some(areas) = ring.areas {
                self.forget_marks(areas);
            }
            *ring = Ring::default();
        }
        state.inflight = None;
        self.dma.set_log_data(false);
        self.device.reset();
        Ok(())
    }
}

impl State {
    fn packed(&self) -> bool {
        self.features & Features::RING_PACKED.bits() != 0
    }

    fn ring(&mut self, index: usize) -> std::result::Result<&mut Ring, Refused> {
        let rings = self.rings.len();
        self.rings.get_mut(index).ok_or(Refused::NoRing {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            rings,
        })
    }

    fn standing(
        &mut self,
        index: u32,
        what: &'static str,
    ) -> std::result::Result<&mut Ring, Refused> {
        let ring = self.ring(position(index))?;
        if ring.running {
            return Err(Refused::Running { what });
        }
        Ok(ring)
    }

    fn all_stand(&self, what: &'static str) -> std::result::Result<(), Refused> {
        if self.rings.iter().any(|ring| ring.running) {
            return Err(Refused::Running { what });
        }
        Ok(())
    }
}

impl VhostUserBackendReqHandler for Session {
    fn set_owner(&self) -> Result<()> {
        Ok(())
    }

    /// Deprecated by the protocol, which leaves it to the backend to disable all rings.
    fn reset_owner(&self) -> Result<()> {
        Ok(self.reset()?)
    }

    fn reset_device(&self) -> Result<()> {
        Ok(self.reset()?)
    }

    fn get_features(&self) -> Result<u64> {
        Ok(self.offered())
    }

    /// LOG_ALL may come and go at any time; everything else stands as long as a ring runs.
    fn set_features(&self, features: u64) -> Result<()> {
        let mut state = self.lock();
        let offered = self.offered();
        if features & !offered != 0 {
            return Err(Refused::Features {
                asked: features,
                offered,
            }
            .into());
        }
        let changed = state.features ^ features;
        if changed & !LOG_ALL != 0 {
            state.all_stand("the features are changed")?;
            self.device.negotiated(features & !NOT_VIRTIO);
        }
        state.features = features;
        let logging = features & LOG_ALL != 0;
        self.dma.set_log_data(logging);
        if changed & LOG_ALL != 0 {
            tracing::info!(logging, "log of data");
            Counters::add(&self.counters.log_starts, logging.into());
        }
        Ok(())
    }

    fn set_mem_table(
        &self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut state = self.lock();
        state.regions.replace(&self.dma, table, &files)?;
        Counters::add(&self.counters.memory_changes, 1);
        Ok(None)
    }

    fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        let mut state = self.lock();
        let packed = state.packed();
        let ring = state.standing(index, "its size is set")?;
        let index = position(index);
        let most = self.device.queue_max_size(number(index));
        let size = u16::try_from(num).ok();
        let shape = |size: u16| size.is_power_of_two() || packed && size != 0;
        let size = size.filter(|&size| shape(size) && size <= most);
        ring.size = size.ok_or_else(|| Refused::Ring {
            index,
            what: format!("{num} entries; up to {most} expected, of a split ring a power of two"),
        })?;
        Ok(())
    }

    /// While the ring runs only the flag and the log's address may change.
    fn set_vring_addr(
        &self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let mut state = self.lock();
        let index = position(index);
        let gpa = |area, user| {
            state.regions.gpa(user).ok_or_else(|| Refused::Ring {
                index,
                what: format!("its {area} at {user:#x} of the frontend is in no memory region"),
            })
        };
        let areas = Areas {
            desc: gpa("descriptor table", descriptor)?,
            avail: gpa("available ring", available)?,
            used: gpa("used ring", used)?,
        };
        let ring = state.ring(index)?;
        if ring.running && ring.areas != Some(areas) {
            let what = "its addresses are changed";
            return Err(Refused::Running { what }.into());
        }
        if let Some(before) = ring.areas.replace(areas).filter(|&before| before != areas) {
            self.forget_marks(before);
        }
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let marks = |at| {
            if logged {
                RingMarks::At(at)
            } else {
                RingMarks::Off
            }
        };
        self.dma.set_ring_marks(areas.used, marks(log));
        if state.packed() {
            // The log's address is that of the third area; the ring itself the frontend knows.
            self.dma.set_ring_marks(areas.desc, marks(areas.desc));
        }
        Ok(self.settle(&mut state, index)?)
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        let mut state = self.lock();
        let packed = state.packed();
        let ring = state.standing(index, "its base is set")?;
        let base = Some(Base(base));
        let fits = base.is_some_and(|base| base.state(packed).is_some());
        if !fits {
            return Err(no_base(position(index), base).into());
        }
        ring.base = base;
        Ok(())
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        let mut state = self.lock();
        let at = position(index);
        let packed = state.packed();
        let ring = state.ring(at)?;
        self.kicks.forget(at);
        ring.kicked = false;
        if ring.running {
            self.stop(ring, at, packed)?;
        }
        let begin = Base::of(QueueState::default_of(packed), packed);
        Ok(VhostUserVringState::new(
            index,
            ring.base.unwrap_or(begin).0,
        ))
    }

    fn set_vring_kick(&self, index: u8, file: Option<File>) -> Result<()> {
        let mut state = self.lock();
        let index = usize::from(index);
        state.ring(index)?;
        self.kicks.listen(index, file)?;
        state.ring(index)?.kicked = true;
        self.settle(&mut state, index)?;
        // A kick may have come by the descriptor before this one.
        self.engine.kick(number(index));
        Ok(())
    }

    fn set_vring_call(&self, index: u8, file: Option<File>) -> Result<()> {
        let mut state = self.lock();
        state.ring(index.into())?;
        Ok(self.outlets.set_call(index.into(), file)?)
    }

    fn set_vring_err(&self, index: u8, file: Option<File>) -> Result<()> {
        let mut state = self.lock();
        state.ring(index.into())?;
        Ok(self.outlets.set_error(index.into(), file)?)
    }

    fn get_protocol_features(&self) -> Result<Protocol> {
        let mut offered = Protocol::MQ
            | Protocol::LOG_SHMFD
            | Protocol::REPLY_ACK
            | Protocol::CONFIG
            | Protocol::RESET_DEVICE
            | Protocol::CONFIGURE_MEM_SLOTS;
        // The table of a packed ring has a layout of its own.
        offered.set(Protocol::INFLIGHT_SHMFD, !self.packed);
        Ok(offered)
    }

    fn set_protocol_features(&self, features: u64) -> Result<()> {
        let offered = self.get_protocol_features()?.bits();
        if features & !offered != 0 {
            return Err(Refused::Features {
                asked: features,
                offered,
            }
            .into());
        }
        Ok(())
    }

    fn get_queue_num(&self) -> Result<u64> {
        Ok(self.device.num_queues().into())
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        let mut state = self.lock();
        let index = position(index);
        state.ring(index)?.enabled = enable;
        Ok(self.settle(&mut state, index)?)
    }

    /// Frontends ask for as much as they know of; what the device has no fields for is zero.
    fn get_config(&self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let mut config = self.device.config();
        let (offset, size) = (position(offset), position(size));
        // The crate has judged the sum: at most 256 bytes.
        config.resize(config.len().max(offset.saturating_add(size)), 0);
        Ok(config[offset..offset + size].to_vec())
    }

    fn set_config(&self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        let end = position(offset).saturating_add(data.len());
        if end <= self.device.config_len() {
            self.device.config_write(position(offset), data);
        }
        Ok(())
    }

    fn set_gpu_socket(&self, _gpu: GpuBackend) -> Result<()> {
        Err(Refused::Unsupported("a GPU socket").into())
    }

    fn get_shared_object(&self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Refused::Unsupported("a shared object").into())
    }

    fn get_inflight_fd(&self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let shape = self.shape(asked)?;
        let file = InflightTable::new_file(shape).map_err(Refused::from)?;
        let reply = VhostUserInflight::new(shape.bytes(), 0, shape.queues, shape.queue_size);
        Ok((reply, file))
    }

    fn set_inflight_fd(&self, table: &VhostUserInflight, file: File) -> Result<()> {
        let mut state = self.lock();
        state.all_stand("the in-flight table is set")?;
        let shape = self.shape(table)?;
        let opened = InflightTable::open(&file, table.mmap_offset, table.mmap_size, shape);
        state.inflight = Some(opened.map_err(Refused::from)?);
        Ok(())
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        Ok(u64::try_from(REGIONS_MAX).unwrap_or(u64::MAX))
    }

    fn add_mem_region(
        &self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.lock().regions.add(&self.dma, region, &file)?;
        Counters::add(&self.counters.memory_changes, 1);
        Ok(None)
    }

    fn remove_mem_region(&self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.lock().regions.remove(&self.dma, region)?;
        Counters::add(&self.counters.memory_changes, 1);
        Ok(())
    }

    fn set_device_state_fd(
        &self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(Refused::Unsupported("transfer of device state").into())
    }

    fn check_device_state(&self) -> Result<()> {
        Err(Refused::Unsupported("transfer of device state").into())
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        Err(Refused::Unsupported("shared memory regions").into())
    }

    /// Takes the place of the log before it, if there is one, between two bursts: what was marked
    /// is in the old one, what will be is in the new one.
    fn set_log_base(&self, log: &VhostUserLog, file: File) -> Result<()> {
        let opened = DirtyLog::open(&file, log.mmap_offset, log.mmap_size, self.marking);
        self.dma.set_log(Some(opened.map_err(Refused::from)?));
        Counters::add(&self.counters.logs, 1);
        Ok(())
    }
}

/// What is said of a base that no split ring has.
fn no_base(index: usize, base: Option<Base>) -> Refused {
    let base = base.map_or(0, |base| base.0);
    Refused::Ring {
        index,
        what: format!("base {base:#x}; of a split ring an index of 16 bits is expected"),
    }
}

impl Session {
    /// A ring is there no longer.
    fn forget_marks(&self, areas: Areas) {
        for area in [areas.used, areas.desc] {
            self.dma.set_ring_marks(area, RingMarks::LikeData);
        }
    }

    /// The shape of a table for at most the device's rings.
    fn shape(&self, table: &VhostUserInflight) -> std::result::Result<InflightShape, Refused> {
        let most = self.device.num_queues();
        if table.num_queues > most {
            return Err(Refused::NoRing {
                index: u32::from(table.num_queues) - 1,
                rings: most.into(),
            });
        }
        Ok(InflightShape {
            queues: table.num_queues,
            queue_size: table.queue_size,
        })
    }
}

/// A number from a message as an index; beyond any ring if it is none.
fn position(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// An index of a ring that exists.
fn number(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

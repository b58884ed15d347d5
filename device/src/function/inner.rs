//! The function's state, events, and what is done about them. Accesses stand in `access.rs`, what
//! an owner does to a member in `mode.rs` and `parts.rs`.
//!
//! Locks, in the order in which they are taken: `door` (one register write at a time, from first
//! byte to last effect), `tracker`, `registers`, `interrupts`. The engine is never called with
//! `registers` held, because it may call back on the same thread; its callbacks do not take `door`.
//! Queues are started and stopped with `door` held only, so a start never races with a stop.

use super::mode::Mode;
use super::{FunctionConfig, FunctionStats};
use crate::admin::Admin;
use crate::engine::EngineEvents;
use crate::pci::ConfigSpace;
use crate::queue::QueueConfig;
use crate::status::{Effects, Event, State, Violation, transition};
use crate::tracker::TrackerConfig;
use crate::transport::caps::Announce;
use crate::transport::common::{Common, Phase};
use crate::transport::msix::{InterruptSink, Interrupts, MsixOwner};
use crate::transport::registers::MAX_QUEUES;
use crate::transport::tracker::{PasidState, Tracker};
use crate::virtio::{QueueError, VirtioDevice};
use probe::probe;
use spec::features::Features;
use spec::pci::NO_VECTOR;
use spec::queue_state::QueueState;
use spec::tracker::PASID_MASK;
use std::fmt::Debug;
use std::mem::discriminant;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// What runs the queues and reaches memory: [`crate::engine::Engine`] and [`crate::dma::Dma`], or a
/// test's stand-in.
pub(super) trait Machinery: Send + Sync + Debug {
    fn start(&self, index: u16, config: QueueConfig) -> Result<(), QueueError>;
    fn kick(&self, index: u16);
    fn stop(&self, index: u16) -> bool;
    fn state(&self, index: u16) -> Option<QueueState>;
    fn set_tracker(&self, config: TrackerConfig);
}

/// Everything that register accesses read and change.
#[derive(Debug)]
pub(super) struct Registers {
    pub(super) state: State,
    /// Since when the device is in that state, whatever else of it changed.
    entered: Instant,
    pub(super) common: Common,
    pub(super) tracker: Tracker,
    pub(super) pci: ConfigSpace,
    /// Until when a drained device goes on presenting DRIVER_OK.
    pub(super) hold: Option<Instant>,
    /// What an owner made of it.
    pub(super) mode: Mode,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    suspends: AtomicU64,
    resumes: AtomicU64,
    /// Nanoseconds.
    suspending: AtomicU64,
    /// Nanoseconds.
    suspended: AtomicU64,
    resets: AtomicU64,
    errors: AtomicU64,
    broken_queues: AtomicU64,
    pub(super) notifications: AtomicU64,
    pub(super) ignored: AtomicU64,
}

/// The function but for its public face.
#[derive(Debug)]
pub(crate) struct Core {
    pub(super) config: FunctionConfig,
    pub(super) device: Arc<dyn VirtioDevice>,
    pub(super) machinery: Box<dyn Machinery>,
    /// What its administration queues do, if it has some.
    pub(super) admin: Option<Arc<Admin>>,
    /// Who waits for this function to stop or to finish a reset: its owner.
    pub(super) owner: OnceLock<Weak<Admin>>,
    pub(super) door: Mutex<()>,
    /// What [`Machinery::set_tracker`] was last told.
    tracker: Mutex<TrackerConfig>,
    registers: Mutex<Registers>,
    /// Signalled at every change of state.
    pub(super) moved: Condvar,
    pub(super) interrupts: Mutex<Interrupts>,
    pub(super) counters: Counters,
}

/// The engine's way back. It ends with the function.
#[derive(Debug)]
struct Events(Weak<Core>);

impl EngineEvents for Events {
    fn queue_stopped(&self, index: u16, state: QueueState) {
        if let Some(core) = self.0.upgrade() {
            core.stopped(index, Some(state));
        }
    }
    fn queue_used(&self, index: u16) {
        if let Some(core) = self.0.upgrade() {
            lock(&core.interrupts).notify_queue(index);
        }
    }
    fn queue_broken(&self, index: u16, error: QueueError) {
        if let Some(core) = self.0.upgrade() {
            tracing::warn!(queue = index, %error, "queue is broken");
            count(&core.counters.broken_queues);
            core.post(Event::DeviceError);
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Core {
    pub(super) fn new(
        config: FunctionConfig,
        device: Arc<dyn VirtioDevice>,
        admin: Option<Arc<Admin>>,
        machinery: impl FnOnce(Arc<dyn EngineEvents>) -> Box<dyn Machinery>,
    ) -> Arc<Self> {
        // Bits 24 to 49 are the transport's and the rings', the others the device type's.
        const DEVICE_TYPE: u64 = 0x00ff_ffff | 0x3fff << 50;
        let admin_queues = admin.as_ref().map_or(0, |admin| admin.queues());
        let vfs = admin.as_ref().and_then(|admin| admin.vfs());
        let kept = FunctionConfig::SUPPORTED | Features::IN_ORDER;
        let mut offered = (config.features & kept)
            | Features::VERSION_1
            | Features::from_bits_retain(device.features() & DEVICE_TYPE);
        if admin_queues == 0 {
            offered.remove(Features::ADMIN_VQ);
        } else {
            // Device types push in the order of popping; commands end when they end.
            offered.remove(Features::IN_ORDER);
        }
        offered.set(Features::SR_IOV, vfs.is_some());
        let data_queues = device.num_queues().min(MAX_QUEUES - admin_queues);
        let queues = data_queues + admin_queues;
        let mut sizes: Vec<u16> = (0..data_queues).map(|i| device.queue_max_size(i)).collect();
        sizes.resize(usize::from(queues), Admin::QUEUE_SIZE);
        let announce = Announce {
            queues,
            config_len: device.config_len(),
            tracker: config.tracker,
            pasid: config.pasid,
            vfs,
        };
        let registers = Registers {
            state: State::Reset,
            entered: Instant::now(),
            common: Common::new(offered, &sizes, admin_queues, device.config()),
            tracker: Tracker::new(config.marking, config.min_gra_power),
            pci: ConfigSpace::new(device.device_id(), device.pci_class(), announce),
            hold: None,
            mode: Mode::default(),
        };
        let core = Arc::new_cyclic(|weak: &Weak<Self>| Self {
            config,
            device,
            admin,
            owner: OnceLock::new(),
            machinery: machinery(Arc::new(Events(weak.clone()))),
            door: Mutex::new(()),
            tracker: Mutex::new(TrackerConfig::default()),
            registers: Mutex::new(registers),
            moved: Condvar::new(),
            interrupts: Mutex::new(Interrupts::new(queues)),
            counters: Counters::default(),
        });
        core.put_tracker_in_force();
        core
    }

    pub(super) fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    pub(super) fn state(&self) -> State {
        self.settle_if_held();
        self.registers().state
    }

    pub(super) fn device_id(&self) -> u16 {
        self.device.device_id()
    }

    pub(super) fn vectors(&self) -> u16 {
        u16::try_from(self.registers().common.queues.len()).map_or(0, |queues| queues + 1)
    }

    pub(super) fn set_interrupts(&self, sink: Arc<dyn InterruptSink>, owner: MsixOwner) {
        lock(&self.interrupts).connect(sink, owner);
    }

    pub(super) fn stats(&self) -> FunctionStats {
        let counters = &self.counters;
        FunctionStats {
            suspends: counters.suspends.load(Relaxed),
            resumes: counters.resumes.load(Relaxed),
            suspending: Duration::from_nanos(counters.suspending.load(Relaxed)),
            suspended: Duration::from_nanos(counters.suspended.load(Relaxed)),
            resets: counters.resets.load(Relaxed),
            errors: counters.errors.load(Relaxed),
            broken_queues: counters.broken_queues.load(Relaxed),
            notifications: counters.notifications.load(Relaxed),
            interrupts: lock(&self.interrupts).sent(),
            ignored: counters.ignored.load(Relaxed),
        }
    }

    // Life.

    pub(super) fn reset(&self) {
        let _door = lock(&self.door);
        self.post(Event::Flr);
    }

    pub(super) fn wait_for_reset(&self, timeout: Duration) -> bool {
        let registers = self.registers();
        let resetting = |registers: &mut Registers| registers.state != State::Reset;
        let result = self.moved.wait_timeout_while(registers, timeout, resetting);
        !result.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    pub(super) fn notify_config_change(&self) {
        self.post(Event::ConfigChanged);
    }

    /// Moves the device and does what that asks for.
    pub(super) fn post(&self, event: Event) {
        let effects = self.step(&mut self.registers(), event);
        self.carry_out(effects);
    }

    /// Moves the device. A configuration change notification goes out here, under the lock, so
    /// that it cannot come after a SUSPEND that is presented later.
    pub(super) fn step(&self, registers: &mut Registers, event: Event) -> Effects {
        let before = registers.state;
        let (next, effects) = match transition(before, event) {
            Ok(step) => step,
            Err(late @ Violation::NotAwaited { .. }) => {
                tracing::debug!(%late);
                return Effects::empty();
            }
            Err(violation) => {
                count(&self.counters.ignored);
                tracing::debug!(%violation, "status write ignored");
                return Effects::empty();
            }
        };
        registers.state = next;
        probe!(
            tidemark,
            state,
            std::ptr::from_ref(self),
            before.number(),
            next.number(),
            next.status().bits()
        );
        if discriminant(&before) != discriminant(&next) {
            let stayed = registers.entered.elapsed().as_nanos();
            let stayed = u64::try_from(stayed).unwrap_or(u64::MAX);
            registers.entered = Instant::now();
            let counter = match (before, next) {
                (State::Suspending { .. }, State::Suspended { .. }) => {
                    Some(&self.counters.suspending)
                }
                (State::Suspended { .. }, _) => Some(&self.counters.suspended),
                _ => None,
            };
            if let Some(counter) = counter {
                counter.fetch_add(stayed, Relaxed);
            }
        }
        if !matches!(next, State::Suspending { .. }) {
            registers.hold = None;
        }
        match (before, next) {
            (State::Suspending { .. }, State::Suspended { .. }) => count(&self.counters.suspends),
            (State::Resuming { .. }, State::Running) => count(&self.counters.resumes),
            (State::NeedsReset { .. }, State::NeedsReset { .. }) => {}
            (_, State::NeedsReset { .. }) => count(&self.counters.errors),
            _ => {}
        }
        if event == Event::ResetDone {
            count(&self.counters.resets);
        }
        if effects.contains(Effects::NOTIFY_CONFIG) && registers.mode.may_notify() {
            lock(&self.interrupts).notify_config();
        }
        self.moved.notify_all();
        self.tell_owner();
        effects
    }

    pub(super) fn carry_out(&self, effects: Effects) {
        if effects.contains(Effects::NEGOTIATED) {
            let features = self.registers().common.features();
            self.device.negotiated(features.bits());
        }
        if effects.contains(Effects::START_QUEUES) {
            self.start_queues();
        }
        if effects.contains(Effects::STOP_QUEUES) {
            self.stop_queues();
        }
        if effects.contains(Effects::CLEAR) {
            self.clear(effects.contains(Effects::CLEAR_PCI));
        }
    }

    pub(super) fn queue_indices(&self) -> std::ops::Range<u16> {
        0..self.vectors().saturating_sub(1)
    }

    /// Starts every enabled queue and reports how that went.
    pub(super) fn start_queues(&self) {
        let mut ok = true;
        for index in self.queue_indices() {
            ok &= self.start(index);
        }
        let event = match self.registers().state {
            State::Resuming { .. } if ok && !self.config.suspend.resume_fails => Event::Resumed,
            State::Resuming { .. } => Event::ResumeFailed,
            _ if ok => return,
            _ => Event::DeviceError,
        };
        self.post(event);
    }

    /// Starts a queue if it is enabled. False if that failed.
    pub(super) fn start(&self, index: u16) -> bool {
        let config = {
            let mut registers = self.registers();
            let live = matches!(registers.state, State::Running | State::Resuming { .. })
                && registers.mode.is_active();
            let common = &mut registers.common;
            let Some(queue) = common.queues.get_mut(usize::from(index)) else {
                return true;
            };
            if !live || queue.phase != Phase::Enabled {
                return true;
            }
            queue.phase = Phase::Started;
            let queue = *queue;
            common.queue_config(&queue)
        };
        let Err(error) = self.machinery.start(index, config) else {
            return true;
        };
        tracing::warn!(queue = index, %error, "queue cannot be started");
        if let Some(queue) = self.registers().common.queues.get_mut(usize::from(index)) {
            queue.phase = Phase::Enabled;
        }
        false
    }

    /// Asks every started queue to stop. Does not wait.
    pub(super) fn stop_queues(&self) {
        let mut asked = Vec::new();
        for (index, queue) in (0..).zip(&mut self.registers().common.queues) {
            if queue.phase == Phase::Started {
                queue.phase = Phase::Stopping;
                asked.push(index);
            }
        }
        for index in asked {
            if !self.machinery.stop(index) {
                self.stopped(index, None);
            }
        }
        self.settle();
    }

    /// A queue has stopped.
    fn stopped(&self, index: u16, state: Option<QueueState>) {
        {
            let mut registers = self.registers();
            let queue = registers.common.queues.get_mut(usize::from(index));
            let Some(queue) = queue.filter(|queue| queue.phase == Phase::Stopping) else {
                return;
            };
            queue.phase = Phase::Enabled;
            queue.state = state.or(queue.state);
            if queue.resetting {
                queue.reset();
                lock(&self.interrupts).map_queue(index, NO_VECTOR);
            }
        }
        self.settle();
    }

    /// Finishes what waits for the queues to stop, if they have.
    pub(super) fn settle(&self) {
        let effects = {
            let mut registers = self.registers();
            if registers
                .common
                .queues
                .iter()
                .any(|queue| queue.phase == Phase::Stopping)
            {
                return;
            }
            if registers.mode.drained() {
                self.moved.notify_all();
                self.tell_owner();
            }
            let knobs = &self.config.suspend;
            let event = match registers.state {
                State::Suspending { .. } if knobs.fails => Event::DrainFailed,
                State::Suspending { .. } => {
                    let now = Instant::now();
                    let until = *registers.hold.get_or_insert(now + knobs.delay);
                    if now < until {
                        return;
                    }
                    Event::Drained
                }
                State::Resetting {
                    clearing: false, ..
                } => Event::Drained,
                _ => return,
            };
            self.step(&mut registers, event)
        };
        self.carry_out(effects);
    }

    /// A suspend that was held back for a test ends when somebody looks.
    pub(super) fn settle_if_held(&self) {
        let held = self.registers().hold.is_some();
        if held {
            self.settle();
        }
    }

    /// RS-1, DT-6, PC-14: everything back to default, while no queue runs.
    fn clear(&self, pci: bool) {
        self.device.reset();
        if let Some(admin) = &self.admin {
            admin.reset();
        }
        {
            let mut registers = self.registers();
            registers.common.reset();
            registers.tracker.reset();
            let mut interrupts = lock(&self.interrupts);
            if pci {
                registers.pci.reset();
                registers.mode = Mode::default();
                interrupts.power_on();
            } else {
                interrupts.reset();
            }
        }
        self.put_tracker_in_force();
        self.follow_vfs();
        self.post(Event::ResetDone);
    }

    /// Resets one queue (VR-1, PC-7). `queue_reset` reads 1 until the queue has stopped.
    pub(super) fn reset_queue(&self, index: u16) {
        {
            let mut registers = self.registers();
            let Some(queue) = registers.common.queues.get_mut(usize::from(index)) else {
                return;
            };
            match queue.phase {
                Phase::Off | Phase::Enabled => {
                    queue.reset();
                    lock(&self.interrupts).map_queue(index, NO_VECTOR);
                    return;
                }
                Phase::Stopping => return,
                Phase::Started => {
                    queue.phase = Phase::Stopping;
                    queue.resetting = true;
                }
            }
        }
        if !self.machinery.stop(index) {
            self.stopped(index, None);
        }
    }

    // Tracking.

    pub(super) fn pasid(&self, registers: &Registers) -> PasidState {
        if registers.pci.pasid_enabled() {
            PasidState::On(self.config.dma_pasid & PASID_MASK)
        } else {
            PasidState::Off
        }
    }

    /// Tells the door to memory what the registers say, if that is news.
    pub(super) fn put_tracker_in_force(&self) {
        let mut in_force = lock(&self.tracker);
        let config = {
            let registers = self.registers();
            let config = registers.tracker.config(self.pasid(&registers));
            // Fields that are being set up concern nobody before `enable`.
            let off = TrackerConfig {
                marking: config.marking,
                ..TrackerConfig::default()
            };
            if config.enabled { config } else { off }
        };
        if *in_force != config {
            self.machinery.set_tracker(config);
            *in_force = config;
        }
    }
}

//! Accesses, events and what is done about them.
//!
//! Locks, in the order in which they are taken: `door` (one register write at a time, from first
//! byte to last effect), `tracker`, `registers`, `interrupts`. The engine is never called with
//! `registers` held, because it may call back on the same thread; its callbacks do not take `door`.
//! Queues are started and stopped with `door` held only, so a start never races with a stop.

use super::{FunctionConfig, FunctionStats};
use crate::engine::EngineEvents;
use crate::pci::{ConfigSpace, DATA};
use crate::queue::QueueConfig;
use crate::status::{Effects, Event, Negotiation, State, Violation, transition};
use crate::tracker::TrackerConfig;
use crate::transport::caps::Announce;
use crate::transport::common::{Common, Phase};
use crate::transport::msix::{InterruptSink, Interrupts, MsixOwner};
use crate::transport::notify::notified;
use crate::transport::registers::{self, BAR0_SIZE, BAR1_SIZE, DEVICE, MAX_QUEUES, NOTIFY, Reg};
use crate::transport::registers::{Facts, States};
use crate::transport::tracker::{PasidState, Tracker};
use crate::transport::{low16, number, overlay};
use crate::virtio::{QueueError, VirtioDevice};
use spec::features::Features;
use spec::pci::NO_VECTOR;
use spec::queue_state::QueueState;
use spec::tracker::PASID_MASK;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
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
struct Registers {
    state: State,
    common: Common,
    tracker: Tracker,
    pci: ConfigSpace,
    /// Until when a drained device goes on presenting DRIVER_OK.
    hold: Option<Instant>,
}

#[derive(Debug, Default)]
struct Counters {
    suspends: AtomicU64,
    resumes: AtomicU64,
    resets: AtomicU64,
    errors: AtomicU64,
    notifications: AtomicU64,
    ignored: AtomicU64,
}

/// The function but for its public face.
#[derive(Debug)]
pub(super) struct Core {
    config: FunctionConfig,
    device: Arc<dyn VirtioDevice>,
    machinery: Box<dyn Machinery>,
    door: Mutex<()>,
    /// What [`Machinery::set_tracker`] was last told.
    tracker: Mutex<TrackerConfig>,
    registers: Mutex<Registers>,
    /// Signalled at every change of state.
    moved: Condvar,
    interrupts: Mutex<Interrupts>,
    counters: Counters,
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
            core.post(Event::DeviceError);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Core {
    pub(super) fn new(
        config: FunctionConfig,
        device: Arc<dyn VirtioDevice>,
        machinery: impl FnOnce(Arc<dyn EngineEvents>) -> Box<dyn Machinery>,
    ) -> Arc<Self> {
        // Bits 24 to 49 are the transport's and the rings', the others the device type's.
        const DEVICE_TYPE: u64 = 0x00ff_ffff | 0x3fff << 50;
        let offered = (config.features & FunctionConfig::SUPPORTED)
            | Features::VERSION_1
            | Features::from_bits_retain(device.features() & DEVICE_TYPE);
        let queues = device.num_queues().min(MAX_QUEUES);
        let sizes: Vec<u16> = (0..queues).map(|i| device.queue_max_size(i)).collect();
        let announce = Announce {
            queues,
            config_len: device.config_len(),
            tracker: config.tracker,
            pasid: config.pasid,
        };
        let registers = Registers {
            state: State::Reset,
            common: Common::new(offered, &sizes, device.config()),
            tracker: Tracker::new(config.marking, config.min_gra_power),
            pci: ConfigSpace::new(device.device_id(), device.pci_class(), announce),
            hold: None,
        };
        let core = Arc::new_cyclic(|weak: &Weak<Self>| Self {
            config,
            device,
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

    fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    pub(super) fn state(&self) -> State {
        self.settle_if_held();
        self.registers().state
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
            resets: counters.resets.load(Relaxed),
            errors: counters.errors.load(Relaxed),
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
    fn post(&self, event: Event) {
        let effects = self.step(&mut self.registers(), event);
        self.carry_out(effects);
    }

    /// Moves the device. A configuration change notification goes out here, under the lock, so
    /// that it cannot come after a SUSPEND that is presented later.
    fn step(&self, registers: &mut Registers, event: Event) -> Effects {
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
        if effects.contains(Effects::NOTIFY_CONFIG) {
            lock(&self.interrupts).notify_config();
        }
        self.moved.notify_all();
        effects
    }

    fn carry_out(&self, effects: Effects) {
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

    fn queue_indices(&self) -> std::ops::Range<u16> {
        0..self.vectors().saturating_sub(1)
    }

    /// Starts every enabled queue and reports how that went.
    fn start_queues(&self) {
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
    fn start(&self, index: u16) -> bool {
        let config = {
            let mut registers = self.registers();
            let live = matches!(registers.state, State::Running | State::Resuming { .. });
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
    fn stop_queues(&self) {
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
            queue.state = state.unwrap_or(queue.state);
            if queue.resetting {
                queue.reset();
                lock(&self.interrupts).map_queue(index, NO_VECTOR);
            }
        }
        self.settle();
    }

    /// Finishes what waits for the queues to stop, if they have.
    fn settle(&self) {
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
    fn settle_if_held(&self) {
        let held = self.registers().hold.is_some();
        if held {
            self.settle();
        }
    }

    /// RS-1, DT-6, PC-14: everything back to default, while no queue runs.
    fn clear(&self, pci: bool) {
        self.device.reset();
        {
            let mut registers = self.registers();
            registers.common.reset();
            registers.tracker.reset();
            let mut interrupts = lock(&self.interrupts);
            if pci {
                registers.pci.reset();
                interrupts.power_on();
            } else {
                interrupts.reset();
            }
        }
        self.put_tracker_in_force();
        self.post(Event::ResetDone);
    }

    /// Resets one queue (VR-1, PC-7). `queue_reset` reads 1 until the queue has stopped.
    fn reset_queue(&self, index: u16) {
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

    fn pasid(&self, registers: &Registers) -> PasidState {
        if registers.pci.pasid_enabled() {
            PasidState::On(self.config.dma_pasid & PASID_MASK)
        } else {
            PasidState::Off
        }
    }

    /// Tells the door to memory what the registers say, if that is news.
    fn put_tracker_in_force(&self) {
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

    // Configuration space.

    pub(super) fn config_read(&self, offset: usize, data: &mut [u8]) {
        if offset < DATA.end && DATA.start < offset.saturating_add(data.len()) {
            let window = self.registers().pci.window();
            if let Some(window) = window {
                let mut buffer = [0; 4];
                let read = &mut buffer[..window.length];
                self.bar_read(window.bar, window.offset, read);
                self.registers().pci.set_window_data(read);
            }
        }
        let intx = lock(&self.interrupts).intx();
        self.registers().pci.read(offset, data, intx);
    }

    pub(super) fn config_write(&self, offset: usize, data: &[u8]) {
        let _door = lock(&self.door);
        let (asked, window) = {
            let mut registers = self.registers();
            let asked = registers.pci.write(offset, data);
            if asked.msix {
                let (enabled, masked) = registers.pci.msix_control();
                lock(&self.interrupts).control(enabled, masked);
            }
            (asked, registers.pci.window())
        };
        if asked.pasid {
            self.put_tracker_in_force();
        }
        if asked.window
            && let Some(window) = window
        {
            self.write(window.bar, window.offset, &window.data[..window.length]);
        }
        if asked.flr {
            self.post(Event::Flr);
        }
    }

    // BARs.

    pub(super) fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        match (bar, within(offset, data.len(), bar)) {
            (0, Some(offset)) => self.read_registers(offset, data),
            (1, Some(offset)) => lock(&self.interrupts).read(offset, data),
            _ => {}
        }
    }

    fn read_registers(&self, offset: usize, data: &mut [u8]) {
        self.settle_if_held();
        data.fill(0);
        let rows: Vec<_> = registers::touched(offset, data.len()).collect();
        let has = |reg| rows.iter().any(|row| row.reg == reg);
        let in_config = offset < DEVICE.end() && DEVICE.offset < offset + data.len();

        // What others know is asked for before the lock is taken.
        let config = (in_config || has(Reg::ConfigGeneration)).then(|| self.device.config());
        let live = if has(Reg::QueueAvailState) || has(Reg::QueueUsedState) {
            self.live_state()
        } else {
            None
        };

        let mut registers = self.registers();
        if let Some(config) = &config {
            registers.common.look(config);
            let len = config
                .len()
                .min(self.device.config_len())
                .min(DEVICE.length);
            overlay(data, offset, &config[..len], DEVICE.offset);
        }
        for row in rows {
            let value = match row.reg {
                Reg::DeviceStatus => u32::from(registers.state.status().bits()),
                Reg::ConfigGeneration => u32::from(
                    config
                        .as_ref()
                        .map_or(0, |config| registers.common.look(config)),
                ),
                Reg::ConfigMsixVector => u32::from(lock(&self.interrupts).config_vector()),
                Reg::QueueMsixVector => {
                    u32::from(lock(&self.interrupts).queue_vector(registers.common.select))
                }
                Reg::IsrStatus => u32::from(lock(&self.interrupts).take_isr()),
                reg => {
                    let tracker = registers.tracker.read(reg).filter(|_| self.config.tracker);
                    tracker
                        .or_else(|| registers.common.read(reg, live))
                        .unwrap_or(0)
                }
            };
            overlay(data, offset, &value.to_le_bytes()[..row.width], row.offset);
        }
    }

    /// Where the selected queue stands, if it runs.
    fn live_state(&self) -> Option<QueueState> {
        let index = {
            let registers = self.registers();
            let running = |phase| matches!(phase, Phase::Started | Phase::Stopping);
            let queue = registers.common.selected()?;
            running(queue.phase).then_some(registers.common.select)?
        };
        self.machinery.state(index)
    }

    pub(super) fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        // A doorbell changes no register, so it does not wait for those who do.
        if bar == 0
            && let Some(position) =
                within(offset, data.len(), 0).and_then(|at| NOTIFY.position(at, data.len()))
        {
            return self.notify(position, data);
        }
        let _door = lock(&self.door);
        self.write(bar, offset, data);
    }

    /// A write to a BAR, with the door held.
    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        let Some(offset) = within(offset, data.len(), bar) else {
            return count(&self.counters.ignored);
        };
        if bar == 1 {
            lock(&self.interrupts).write(offset, data);
        } else if let Some(position) = NOTIFY.position(offset, data.len()) {
            self.notify(position, data);
        } else if let Some(position) = DEVICE.position(offset, data.len()) {
            self.write_config(position, data);
        } else {
            self.write_register(offset, data);
        }
    }

    fn notify(&self, position: usize, data: &[u8]) {
        let queue = {
            let registers = self.registers();
            let with_data = registers
                .common
                .features()
                .contains(Features::NOTIFICATION_DATA);
            let heard = States::DOORBELLS.contains(States::of(registers.state));
            notified(position, data, with_data)
                .filter(|_| heard)
                .filter(|index| {
                    let queue = registers.common.queues.get(usize::from(*index));
                    queue.is_some_and(|queue| queue.phase == Phase::Started)
                })
        };
        match queue {
            Some(index) => {
                count(&self.counters.notifications);
                self.machinery.kick(index);
            }
            None => count(&self.counters.ignored),
        }
    }

    fn write_config(&self, position: usize, data: &[u8]) {
        self.settle_if_held();
        let inside = position.saturating_add(data.len()) <= self.device.config_len();
        let state = self.registers().state;
        if inside && States::DEVICE_CONFIG.contains(States::of(state)) {
            // A change shows in the generation when it is next read.
            self.device.config_write(position, data);
        } else {
            count(&self.counters.ignored);
        }
    }

    fn write_register(&self, offset: usize, data: &[u8]) {
        self.settle_if_held();
        let value = number(data);
        let (Some(row), Some(value)) = (registers::exact(offset, data.len()), value) else {
            return count(&self.counters.ignored);
        };
        let mut registers = self.registers();
        let facts = Facts {
            tracker_on: registers.tracker.is_on(),
            ..registers.common.facts()
        };
        if !row.accepts(registers.state, facts) {
            return count(&self.counters.ignored);
        }
        let select = registers.common.select;
        match row.reg {
            Reg::DeviceStatus => {
                let negotiation = Negotiation {
                    acceptable: registers.common.acceptable(),
                    suspend: registers.common.features().contains(Features::SUSPEND),
                };
                drop(registers);
                let [byte, ..] = value.to_le_bytes();
                self.post(Event::Write(byte, negotiation));
            }
            Reg::ConfigMsixVector => lock(&self.interrupts).map_config(low16(value)),
            Reg::QueueMsixVector => lock(&self.interrupts).map_queue(select, low16(value)),
            // PC-10: the driver never writes 0; other values have no meaning.
            Reg::QueueEnable if value == 1 => {
                if let Some(queue) = registers.common.queues.get_mut(usize::from(select)) {
                    queue.phase = Phase::Enabled;
                }
                drop(registers);
                if !self.start(select) {
                    self.post(Event::DeviceError);
                }
            }
            Reg::QueueReset if value == 1 => {
                drop(registers);
                self.reset_queue(select);
            }
            Reg::QueueEnable | Reg::QueueReset => count(&self.counters.ignored),
            reg if registers.tracker.read(reg).is_some() => {
                if self.config.tracker {
                    let pasid = self.pasid(&registers);
                    registers.tracker.write(reg, value, pasid);
                    drop(registers);
                    self.put_tracker_in_force();
                }
            }
            reg => registers.common.write(reg, value),
        }
    }
}

/// The offset of an access that lies entirely within a BAR.
fn within(offset: u64, len: usize, bar: u8) -> Option<usize> {
    let size = match bar {
        0 => BAR0_SIZE,
        1 => BAR1_SIZE,
        _ => return None,
    };
    let end = offset.checked_add(u64::try_from(len).ok()?)?;
    if end <= size {
        usize::try_from(offset).ok()
    } else {
        None
    }
}

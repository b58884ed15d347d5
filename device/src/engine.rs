//! Runs started queues as tasks on a bounded pool of workers.
//!
//! A queue is a small state machine: a kick, a stop and the end of a run meet under its own lock,
//! which is never held while anything is done. So no kick is lost, one worker at a time works on a
//! queue, and a stop is answered once.

use crate::dma::{Dma, DmaGuard, MapWaiter};
use crate::pool::{Pool, Task};
use crate::queue::{Gate, InflightQueue, QueueConfig, Virtqueue};
use crate::virtio::{Progress, QueueError, VirtioDevice};
use spec::queue_state::QueueState;
use std::fmt::Debug;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What workers report. Called on a worker, or on the caller of [`Engine::stop`] for a queue that
/// no worker is at; no engine lock and no [`DmaGuard`] is held during a call.
///
/// For one queue the calls come one after the other: what a run reports comes before its
/// `queue_stopped`.
pub trait EngineEvents: Send + Sync + Debug {
    /// Queue `index` has stopped: nothing of it is in flight, all marks are set, and its last
    /// interrupt has been asked for. This is where it stood. It may be started again from within.
    fn queue_stopped(&self, index: u16, state: QueueState);
    /// Queue `index` has used buffers the driver is to be told about.
    fn queue_used(&self, index: u16);
    /// Queue `index` is broken and will do no more work (it still answers `stop`).
    fn queue_broken(&self, index: u16, error: QueueError);
}

/// The queues of one function. Dropped, it stops them all.
#[derive(Debug)]
pub struct Engine {
    slots: Vec<Arc<Slot>>,
    pool: Arc<Pool>,
}

impl Engine {
    /// An engine for `device` on the process-wide pool, with no queue started.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        dma: Arc<Dma>,
        events: Arc<dyn EngineEvents>,
    ) -> Self {
        Self::on_pool(Pool::global(), &device, &dma, &events)
    }

    pub(crate) fn on_pool(
        pool: Arc<Pool>,
        device: &Arc<dyn VirtioDevice>,
        dma: &Arc<Dma>,
        events: &Arc<dyn EngineEvents>,
    ) -> Self {
        let slot = |index| {
            Arc::new(Slot {
                index,
                device: Arc::clone(device),
                dma: Arc::clone(dma),
                events: Arc::clone(events),
                pool: Arc::clone(&pool),
                waits_for_map: AtomicBool::new(false),
                inner: Mutex::default(),
            })
        };
        Self {
            slots: (0..device.num_queues()).map(slot).collect(),
            pool,
        }
    }

    /// Validates the configuration and starts the queue; it is scheduled once at once, in case
    /// buffers are already available.
    ///
    /// Opens the door to guest memory: the caller holds no guard.
    ///
    /// # Errors
    ///
    /// [`QueueError`] as [`Virtqueue::start`] has it, or [`QueueError::NotStartable`] if the queue
    /// does not exist or has not stopped.
    pub fn start(&self, index: u16, config: QueueConfig) -> Result<(), QueueError> {
        self.start_with(index, config, |mem| Virtqueue::start(config, mem))?;
        Ok(())
    }

    /// Starts a queue with a table of what is in flight, as [`Virtqueue::start_noted`] has it;
    /// returns how many chains it takes over from a device that was killed. Such a queue stops only
    /// when those are used.
    ///
    /// # Errors
    ///
    /// As for [`Engine::start`], and if the table cannot be this ring's.
    pub fn start_noted(
        &self,
        index: u16,
        config: QueueConfig,
        inflight: InflightQueue,
    ) -> Result<usize, QueueError> {
        self.start_with(index, config, |mem| {
            Virtqueue::start_noted(config, inflight, mem)
        })
    }

    /// Starts a queue with a table of what is in flight, as [`Virtqueue::start_from`] has it. One
    /// that takes chains over stops only when those are used.
    ///
    /// # Errors
    ///
    /// As for [`Engine::start`], and if the table cannot be this ring's.
    pub fn start_from(
        &self,
        index: u16,
        config: QueueConfig,
        inflight: InflightQueue,
    ) -> Result<(), QueueError> {
        self.start_with(index, config, |mem| {
            Virtqueue::start_from(config, inflight, mem)
        })?;
        Ok(())
    }

    fn start_with(
        &self,
        index: u16,
        config: QueueConfig,
        start: impl FnOnce(&DmaGuard<'_>) -> Result<Virtqueue, QueueError>,
    ) -> Result<usize, QueueError> {
        let not = |why| QueueError::NotStartable { index, why };
        let slot = self
            .slot(index)
            .ok_or_else(|| not("the device has no such queue"))?;
        let max = slot.device.queue_max_size(index);
        if config.size > max {
            return Err(QueueError::broken(format!(
                "a queue size of {}; at most {max} expected",
                config.size
            )));
        }
        // Before the table of a queue that runs could be touched.
        if !matches!(slot.lock().phase, Phase::Stopped) {
            return Err(not("it has not stopped"));
        }
        let queue = start(&slot.dma.enter())?.numbered(index);
        let inherited = queue.inherited();
        {
            let mut inner = slot.lock();
            if !matches!(inner.phase, Phase::Stopped) {
                return Err(not("it has not stopped"));
            }
            inner.snapshot = Some(queue.state());
            inner.gate = queue.gate();
            inner.phase = Phase::Scheduled { queue, stop: false };
        }
        self.pool.schedule(slot.clone());
        Ok(inherited)
    }

    /// The driver notified the queue. Unknown, stopped and broken queues are ignored.
    pub fn kick(&self, index: u16) {
        if let Some(slot) = self.slot(index)
            && slot.kick()
        {
            self.pool.schedule(slot.clone());
        }
    }

    /// Asks a queue to stop: it pops no more, finishes what it popped, then `queue_stopped` is
    /// called exactly once. Never waits.
    ///
    /// True if the queue was started: its `queue_stopped` has been called, by this thread, or is
    /// going to be; stopping a queue twice yields true twice and still one call. False, and no
    /// call, if it is not started.
    pub fn stop(&self, index: u16) -> bool {
        self.slot(index).is_some_and(|slot| slot.stop())
    }

    /// Where a queue stands. While a worker is at it, where it stood before that run; after it
    /// stopped, where it stopped. `None` if it was never started.
    pub fn state(&self, index: u16) -> Option<QueueState> {
        let inner = self.slot(index)?.lock();
        match &inner.phase {
            Phase::Idle(queue) | Phase::Scheduled { queue, .. } | Phase::Broken(queue) => {
                Some(queue.state())
            }
            Phase::Running { .. } | Phase::Stopped => inner.snapshot,
        }
    }

    fn slot(&self, index: u16) -> Option<&Arc<Slot>> {
        self.slots.get(usize::from(index))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for slot in &self.slots {
            slot.stop();
        }
    }
}

/// One queue of the device.
#[derive(Debug)]
struct Slot {
    index: u16,
    device: Arc<dyn VirtioDevice>,
    dma: Arc<Dma>,
    events: Arc<dyn EngineEvents>,
    pool: Arc<Pool>,
    /// It is among those who are told of the next map, once.
    waits_for_map: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    phase: Phase,
    snapshot: Option<QueueState>,
    /// Of the queue that was started last.
    gate: Gate,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Stopped,
    /// Empty, waiting for a kick.
    Idle(Virtqueue),
    /// Ready on the pool. The pool may hold an entry for any other phase too, left from a queue
    /// that was stopped in between; its run does nothing.
    Scheduled {
        queue: Virtqueue,
        /// To be stopped as soon as it has used what it took over from another device.
        stop: bool,
    },
    /// With a worker, who has the queue.
    Running {
        kicked: bool,
        stop: bool,
    },
    Broken(Virtqueue),
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if the queue is now to be put on the pool.
    fn kick(&self) -> bool {
        let mut inner = self.lock();
        match mem::take(&mut inner.phase) {
            Phase::Idle(queue) => {
                inner.phase = Phase::Scheduled { queue, stop: false };
                true
            }
            Phase::Running { stop, .. } => {
                inner.phase = Phase::Running { kicked: true, stop };
                false
            }
            other => {
                inner.phase = other;
                false
            }
        }
    }

    fn stop(&self) -> bool {
        let state = {
            let mut inner = self.lock();
            match mem::take(&mut inner.phase) {
                Phase::Stopped => return false,
                Phase::Running { kicked, .. } => {
                    inner.phase = Phase::Running { kicked, stop: true };
                    inner.gate.close();
                    return true;
                }
                Phase::Scheduled { queue, .. } if queue.inherited() != 0 => {
                    inner.phase = Phase::Scheduled { queue, stop: true };
                    inner.gate.close();
                    return true;
                }
                Phase::Idle(queue) | Phase::Scheduled { queue, .. } | Phase::Broken(queue) => {
                    let state = queue.stop();
                    inner.snapshot = Some(state);
                    state
                }
            }
        };
        self.events.queue_stopped(self.index, state);
        true
    }

    /// One step of the device's work, with everything that may go wrong as a value.
    fn step(&self, queue: &mut Virtqueue) -> Result<Progress, QueueError> {
        let mut used = || self.events.queue_used(self.index);
        let work = || self.device.process(self.index, queue, &self.dma, &mut used);
        // A worker that dies takes the queue's state along, and whoever suspends the device waits
        // for ever: a defect of a device type breaks its queue instead.
        let progress = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            Err(QueueError::broken(
                "none by the driver: the device panicked",
            ))
        })?;
        // For the device that has nothing to push and so asks for no notification itself.
        if queue.needs_notification(&self.dma.enter())? {
            used();
        }
        Ok(progress)
    }
}

impl Slot {
    /// Has the queue looked at again when something is mapped. Until then each kick has it looked at
    /// once, so a driver that took its rings away for good costs no more than it asks for.
    fn wait_for_map(self: &Arc<Self>, seen: u64, error: &QueueError) {
        if !self.waits_for_map.swap(true, Ordering::AcqRel) {
            tracing::info!(queue = self.index, %error, "waiting for the next map");
            self.dma.wait_for_map(seen, self.clone());
        }
    }
}

impl MapWaiter for Slot {
    fn mapped(self: Arc<Self>) {
        self.waits_for_map.store(false, Ordering::Release);
        if self.kick() {
            self.pool.schedule(self.clone());
        }
    }
}

impl Task for Slot {
    fn run(self: Arc<Self>) -> bool {
        let mut queue = {
            let mut inner = self.lock();
            match mem::take(&mut inner.phase) {
                Phase::Scheduled { queue, stop } => {
                    inner.snapshot = Some(queue.state());
                    inner.phase = Phase::Running {
                        kicked: false,
                        stop,
                    };
                    queue
                }
                other => {
                    inner.phase = other;
                    return false;
                }
            }
        };

        // All is reported before the phase changes: once it has, a stop may be answered on another
        // thread.
        let maps = self.dma.maps_made();
        let progress = match self.step(&mut queue) {
            Ok(progress) => Some(progress),
            Err(error) if queue.outlasts(&error) => {
                self.wait_for_map(maps, &error);
                Some(Progress::Idle)
            }
            Err(error) => {
                tracing::warn!(queue = self.index, %error, "queue broken");
                self.events.queue_broken(self.index, error);
                None
            }
        };

        let state = {
            let mut inner = self.lock();
            let (kicked, stop) = match inner.phase {
                Phase::Running { kicked, stop } => (kicked, stop),
                // Nobody but this worker ends a run.
                _ => (false, true),
            };
            let again = kicked || progress == Some(Progress::More);
            if stop && progress.is_some() && queue.inherited() != 0 {
                inner.phase = Phase::Scheduled { queue, stop };
                return true;
            }
            if !stop {
                inner.phase = match progress {
                    None => Phase::Broken(queue),
                    Some(_) if again => Phase::Scheduled { queue, stop },
                    Some(_) => Phase::Idle(queue),
                };
                return again && progress.is_some();
            }
            let state = queue.stop();
            inner.snapshot = Some(state);
            inner.phase = Phase::Stopped;
            state
        };
        self.events.queue_stopped(self.index, state);
        false
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;

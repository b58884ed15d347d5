//! The lives of a device whose driver resets it whenever it likes, in the middle of its work.

use super::vcpu::{Gate, Order};
use super::{Place, negotiate, setup_of};
use crate::error::VmError;
use crate::hypervisor::Means;
use driver::Transport;
use driver::memory::DmaMemory;
use driver::queue::Virtqueue;
use driver::transport::enable;
use spec::features::Features;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// One device, for the virtual CPUs that use it: each is in its present life while it does, and
/// none is while a new one begins.
#[derive(Debug)]
pub(crate) struct Life {
    /// Lives before this one.
    number: RwLock<u64>,
    /// Requests in a life.
    every: u64,
    /// Requests in this one.
    done: AtomicU64,
    transport: Arc<Transport>,
    means: Means,
    queue_size: u16,
    /// The device's queues, with their rings.
    queues: Vec<(Place, DmaMemory)>,
}

impl Life {
    /// The first life of a device with these queues.
    pub(crate) fn new(
        transport: &Arc<Transport>,
        means: Means,
        every: u64,
        queue_size: u16,
        queues: Vec<(Place, DmaMemory)>,
    ) -> Arc<Self> {
        Arc::new(Self {
            number: RwLock::new(0),
            every,
            done: AtomicU64::new(0),
            transport: Arc::clone(transport),
            means,
            queue_size,
            queues,
        })
    }

    /// Lives before this one, which lasts at least as long as what is returned.
    pub(crate) fn enter(&self) -> RwLockReadGuard<'_, u64> {
        self.number.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its driver and the device agreed on: the same in every life.
    pub(crate) fn features(&self) -> Features {
        self.transport.features()
    }

    /// So many more requests have completed; resets the device if that is enough for one life. What
    /// is in flight then is the virtual CPUs' to submit again.
    pub(crate) fn go_on(&self, requests: u64, gate: &Gate) -> Result<(), VmError> {
        if self.done.fetch_add(requests, Ordering::Relaxed) + requests < self.every {
            return Ok(());
        }
        let mut number = self.number.write().unwrap_or_else(PoisonError::into_inner);
        // Another virtual CPU may have been faster; and one that was told to stop has an end of
        // this life in view.
        if self.done.load(Ordering::Relaxed) < self.every || gate.order() != Order::Run {
            return Ok(());
        }
        self.begin(*number % 2 == 1)?;
        *number += 1;
        self.done.store(0, Ordering::Relaxed);
        gate.resets.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Resets the device, and initialises it as at boot.
    fn begin(&self, function_level: bool) -> Result<(), VmError> {
        let bus = self.transport.bus();
        if function_level {
            bus.reset()?;
            enable(&**bus).map_err(VmError::driver("finding a device again"))?;
        }
        let packed = self.features().contains(Features::RING_PACKED);
        negotiate(&self.transport, self.means, packed)?;
        let features = self.transport.features();
        for (place, ring) in &self.queues {
            let blank = vec![0; usize::try_from(ring.len()).unwrap_or_default()];
            ring.write(0, &blank)?;
            let queue = Virtqueue::new(ring.clone(), self.queue_size, features)
                .map_err(VmError::driver("making a queue again"))?;
            setup_of(&self.transport, place, &queue)?;
        }
        let live = self.transport.driver_ok();
        live.map_err(VmError::driver("starting a device again"))
    }
}

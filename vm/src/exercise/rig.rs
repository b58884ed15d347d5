//! A block device with a driver on it that knows of every request what became of it.

use crate::error::VmError;
use driver::blk::{BlkQueue, Completion, Outcome, read_config};
use driver::bus::{Bus, Interrupt};
use driver::queue::{Buffer, Virtqueue};
use driver::transport::Notifier;
use driver::{DriverError, Transport};
use serde::Serialize;
use spec::blk::{self, BlkFeatures};
use spec::features::Features;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A device that completes nothing for so long is broken.
const SILENCE: Duration = Duration::from_secs(10);
/// How long an interrupt is waited for before somebody looks: what is found then was not announced.
const INTERRUPT_WAIT: Duration = Duration::from_secs(1);

/// What the driver of an exercise wants.
const WANTED: Features = Features::RING_EVENT_IDX
    .union(Features::RING_INDIRECT_DESC)
    .union(Features::RING_PACKED)
    .union(Features::ORDER_PLATFORM)
    .union(Features::NOTIFICATION_DATA)
    .union(Features::NOTIF_CONFIG_DATA)
    .union(Features::ACCESS_PLATFORM)
    .union(Features::SUSPEND)
    .union(Features::QUEUE_STATE);

/// What became of all requests. Nothing is taken from the device's word for it but completions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Requests made available to the device.
    pub submitted: u64,
    /// Requests that completed once, with success.
    pub completed: u64,
    /// Requests that the device answered with an error.
    pub failed: u64,
    /// Completions of requests that were not in flight.
    pub doubled: u64,
    /// Requests that were in flight at the end.
    pub lost: u64,
}

impl Account {
    /// Whether every request was done exactly once.
    pub fn is_exact(&self) -> bool {
        self.completed == self.submitted && self.failed + self.doubled + self.lost == 0
    }
}

#[derive(Debug)]
struct Lane {
    queue: BlkQueue,
    size: u16,
    notifier: Notifier,
}

/// The driver.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) transport: Arc<Transport>,
    lanes: Vec<Lane>,
    interrupt: Arc<dyn Interrupt>,
    /// Sectors of the disk.
    pub(super) capacity: u64,
    /// Whether each request so far is in flight, by token.
    in_flight: Vec<bool>,
    account: Account,
    /// Times that requests had completed and no interrupt told.
    pub(super) unannounced: u64,
    /// Times that an interrupt was waited for and came.
    pub(super) interrupts: u64,
}

impl Rig {
    /// Brings a device up, with as many of `queues` queues as it has, of at most `size` entries.
    pub(super) fn start(
        bus: Arc<dyn Bus>,
        queues: u16,
        size: u16,
        needed: Features,
    ) -> Result<Self, VmError> {
        let transport = Transport::new(bus).map_err(VmError::driver("finding a virtio device"))?;
        let transport = Arc::new(transport);
        if transport.device_id() != blk::DEVICE_ID {
            let expected = "a block device (2)";
            return Err(VmError::shape(
                "virtio device id",
                expected,
                transport.device_id(),
            ));
        }
        let many_queues = Features::from_bits_retain(BlkFeatures::MQ.bits());
        let read_only = Features::from_bits_retain(BlkFeatures::RO.bits());
        let features = transport
            .negotiate(WANTED | many_queues | read_only, needed)
            .map_err(VmError::driver("initialising the device"))?;
        let config = read_config(&transport).map_err(VmError::driver("reading the disk's size"))?;
        let has_mq = features.contains(many_queues);
        let count = if has_mq { config.num_queues.get() } else { 1 };
        let bus = Arc::clone(transport.bus());
        // The receiver exists before the device can use the vector. 0 is for configuration changes
        // where there is another.
        let (vector, interrupt) = match bus.interrupt(1) {
            Ok(interrupt) => (1, interrupt),
            Err(_) => (0, bus.interrupt(0)?),
        };
        let mut lanes = Vec::new();
        for index in 0..count.min(queues).max(1) {
            let failed = VmError::driver::<DriverError>;
            let max = transport
                .queue_max_size(index)
                .map_err(failed("asking for a queue's size"))?;
            let size = size.min(max).max(1);
            let ring = bus.dma_alloc(Virtqueue::bytes_needed(size))?;
            let ring = Virtqueue::new(ring, size, features).map_err(failed("making a queue"))?;
            transport
                .setup_queue(index, &ring.setup(vector), None)
                .map_err(failed("setting up a queue"))?;
            let area = bus.dma_alloc(BlkQueue::area_needed(size))?;
            lanes.push(Lane {
                queue: BlkQueue::new(ring, area),
                size,
                notifier: transport
                    .notifier(index)
                    .map_err(failed("finding a doorbell"))?,
            });
        }
        transport
            .driver_ok()
            .map_err(VmError::driver("starting the device"))?;
        Ok(Self {
            transport,
            lanes,
            interrupt,
            capacity: config.capacity.get(),
            in_flight: Vec::new(),
            account: Account::default(),
            unannounced: 0,
            interrupts: 0,
        })
    }

    /// Reads the disk's size again: the device may have changed it since.
    pub(super) fn look_again(&mut self) -> Result<(), VmError> {
        let config = read_config(&self.transport);
        let config = config.map_err(VmError::driver("reading the disk's size"))?;
        self.capacity = config.capacity.get();
        Ok(())
    }

    /// Number of queues.
    pub(super) fn queues(&self) -> usize {
        self.lanes.len()
    }

    /// Requests in flight, as the driver knows.
    pub(super) fn in_flight(&self) -> u64 {
        self.waiting().sum()
    }

    /// Requests in flight on each queue.
    pub(super) fn waiting(&self) -> impl Iterator<Item = u64> {
        let lanes = self.lanes.iter();
        lanes.map(|lane| u64::from(lane.queue.in_flight()))
    }

    /// Entries of each queue.
    pub(super) fn sizes(&self) -> impl Iterator<Item = u16> {
        self.lanes.iter().map(|lane| lane.size)
    }

    /// The used state that the device of each queue has, if the driver has got all it used.
    pub(super) fn last_used(&self) -> impl Iterator<Item = u16> {
        self.lanes.iter().map(|lane| lane.queue.ring().last_used())
    }

    /// Builds a request on a queue; its token, or none if the queue is full. The device sees it
    /// after [`ring`](Self::ring).
    pub(super) fn submit(
        &mut self,
        queue: usize,
        write: bool,
        sector: u64,
        data: &[Buffer],
    ) -> Result<Option<u64>, VmError> {
        let token = self.in_flight.len() as u64;
        let Some(lane) = self.lanes.get_mut(queue) else {
            return Ok(None);
        };
        let added = if write {
            lane.queue.write(sector, data, token)
        } else {
            lane.queue.read(sector, data, token)
        };
        match added {
            Ok(()) => {
                self.in_flight.push(true);
                self.account.submitted += 1;
                Ok(Some(token))
            }
            Err(DriverError::QueueFull) => Ok(None),
            Err(error) => Err(VmError::driver("building a request")(error)),
        }
    }

    /// Makes what was submitted available, and tells the device where it wants to be told.
    pub(super) fn ring(&mut self) -> Result<(), VmError> {
        let failed = VmError::driver::<DriverError>;
        for lane in &mut self.lanes {
            let wanted = lane.queue.publish();
            if wanted.map_err(failed("making requests available"))? {
                let next = lane.queue.ring().published();
                let told = lane.notifier.notify(next);
                told.map_err(failed("notifying the device"))?;
            }
        }
        Ok(())
    }

    /// Tells the device of all queues, wanted or not: after a pause nobody knows what was missed.
    pub(super) fn ring_all(&mut self) -> Result<(), VmError> {
        for lane in &self.lanes {
            let told = lane.notifier.notify(lane.queue.ring().published());
            told.map_err(VmError::driver("notifying the device"))?;
        }
        Ok(())
    }

    /// Takes what has completed and gives each to `each`; how many.
    pub(super) fn reap(
        &mut self,
        mut each: impl FnMut(&Completion) -> Result<(), VmError>,
    ) -> Result<u64, VmError> {
        let mut count = 0;
        for lane in &mut self.lanes {
            while let Some(done) = lane
                .queue
                .complete()
                .map_err(VmError::driver("taking a completed request"))?
            {
                count += 1;
                let index = usize::try_from(done.token).unwrap_or(usize::MAX);
                match self.in_flight.get_mut(index) {
                    Some(in_flight @ true) => {
                        *in_flight = false;
                        if done.outcome == Outcome::Ok {
                            self.account.completed += 1;
                            each(&done)?;
                        } else {
                            self.account.failed += 1;
                        }
                    }
                    _ => self.account.doubled += 1,
                }
            }
        }
        Ok(count)
    }

    /// Waits until something has completed; at once if something has, or if nothing is in flight.
    pub(super) fn wait(&mut self) -> Result<(), VmError> {
        let begin = Instant::now();
        let mut told = true;
        while self.in_flight() != 0 {
            let mut ready = false;
            for lane in &mut self.lanes {
                let enabled = lane.queue.ring_mut().enable_interrupts();
                ready |= enabled.map_err(VmError::driver("enabling interrupts"))?;
            }
            if ready {
                self.unannounced += u64::from(!told);
                return Ok(());
            }
            if begin.elapsed() > SILENCE {
                let status = self.transport.status();
                return Err(VmError::driver("waiting for requests")(
                    DriverError::Timeout {
                        what: "completed a request",
                        waited: SILENCE,
                        status: status.map_err(VmError::driver("reading the status"))?,
                    },
                ));
            }
            told = self.interrupt.wait(INTERRUPT_WAIT);
            self.interrupts += u64::from(told);
        }
        Ok(())
    }

    /// Resets the device and gives what became of all requests.
    pub(super) fn finish(self) -> Result<Account, VmError> {
        let lost = self
            .in_flight
            .iter()
            .filter(|in_flight| **in_flight)
            .count();
        self.transport
            .reset(SILENCE)
            .map_err(VmError::driver("resetting the device"))?;
        Ok(Account {
            lost: lost as u64,
            ..self.account
        })
    }
}

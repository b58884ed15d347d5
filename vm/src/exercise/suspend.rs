//! Suspending a device that has requests in flight, and letting it go on.

use super::rig::{Account, Rig};
use crate::error::VmError;
use driver::DriverError;
use driver::bus::Bus;
use driver::state::{DeviceState, restore, save};
use driver::suspend::{resume, suspend};
use serde::Serialize;
use spec::features::Features;
use spec::status::DeviceStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a device may take for one of the two.
const LIMIT: Duration = Duration::from_secs(10);
/// Pages of each request: big ones are still in flight when the device is told to suspend.
pub(super) const BIG: u64 = 16;

/// How a suspended device comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Comeback {
    /// By resuming it.
    Resume,
    /// By a reset, after which its state is written back.
    Restore,
}

/// A queue's state as a suspended device shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct QueueReport {
    /// Queue number.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Next entry that the device takes: its free-running index in the available ring, or a packed
    /// ring's entry with the wrap counter in bit 15.
    pub avail: u16,
    /// Next entry that the device fills, in the same way.
    pub used: u16,
}

/// One suspension.
#[derive(Clone, Debug, Serialize)]
pub struct Suspension {
    /// How the device came back.
    pub comeback: Comeback,
    /// Requests in flight when it was told to suspend.
    pub in_flight: u64,
    /// Those that it completed before it was suspended.
    pub drained: u64,
    /// Those that it left for later.
    pub carried: u64,
    /// Until it presented SUSPEND, in milliseconds.
    pub suspend_ms: f64,
    /// Until it ran again, in milliseconds.
    pub comeback_ms: f64,
    /// The status while suspended.
    pub status: String,
    /// The queues' states.
    pub queues: Vec<QueueReport>,
    /// Queues whose state disagrees with the driver's own count of what was carried over.
    pub disagreeing: u64,
}

/// What is to be done while the device is suspended, and after a reset before it runs again.
pub(super) trait Meanwhile {
    /// It is suspended: nothing is written any more.
    fn suspended(&mut self) -> Result<(), VmError>;
    /// It has been reset and restored, and does not run yet.
    fn restored(&mut self) -> Result<(), VmError>;
}

impl Meanwhile for () {
    fn suspended(&mut self) -> Result<(), VmError> {
        Ok(())
    }

    fn restored(&mut self) -> Result<(), VmError> {
        Ok(())
    }
}

/// Suspends, reads the state, and lets the device go on.
pub(super) fn cycle(
    rig: &mut Rig,
    comeback: Comeback,
    meanwhile: &mut dyn Meanwhile,
    each: impl FnMut(&driver::blk::Completion) -> Result<(), VmError>,
) -> Result<Suspension, VmError> {
    let failed = VmError::driver::<DriverError>;
    let transport = Arc::clone(&rig.transport);
    let in_flight = rig.in_flight();
    let begin = Instant::now();
    suspend(&transport, LIMIT).map_err(failed("suspending the device"))?;
    let suspended = begin.elapsed();
    let status = transport.status();
    let status = status_names(status.map_err(failed("reading the status"))?);
    meanwhile.suspended()?;
    let state = save(&transport).map_err(failed("reading the state"))?;
    let drained = rig.reap(each)?;
    let queues = reports(&state);
    // What the driver got is what the device says it used, so it waits for all the rest.
    let disagreeing = rig
        .last_used()
        .zip(&queues)
        .filter(|(last, queue)| *last != queue.used)
        .count();
    let carried = rig.in_flight();
    let begin = Instant::now();
    match comeback {
        Comeback::Resume => {
            resume(&transport, LIMIT).map_err(failed("resuming the device"))?;
        }
        Comeback::Restore => {
            let reset = transport.reset(LIMIT);
            reset.map_err(failed("resetting the device"))?;
            restore(&transport, &state).map_err(failed("restoring the device"))?;
            meanwhile.restored()?;
            let live = transport.driver_ok();
            live.map_err(failed("starting the device again"))?;
        }
    }
    let comeback_took = begin.elapsed();
    rig.ring_all()?;
    Ok(Suspension {
        comeback,
        in_flight,
        drained,
        carried,
        suspend_ms: suspended.as_secs_f64() * 1e3,
        comeback_ms: comeback_took.as_secs_f64() * 1e3,
        status,
        queues,
        disagreeing: disagreeing as u64,
    })
}

/// The names of a status's bits.
pub(super) fn status_names(status: DeviceStatus) -> String {
    let names: Vec<_> = status.iter_names().map(|(name, _)| name).collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(" | "),
    }
}

fn reports(state: &DeviceState) -> Vec<QueueReport> {
    let enabled = state.queues.iter().filter(|queue| queue.enabled);
    enabled
        .map(|queue| QueueReport {
            index: queue.index,
            size: queue.size,
            avail: queue.avail,
            used: queue.used,
        })
        .collect()
}

/// What [`suspensions`] found.
#[derive(Clone, Debug, Serialize)]
pub struct SuspendReport {
    /// Each suspension.
    pub suspensions: Vec<Suspension>,
    /// What became of all requests.
    pub requests: Account,
}

impl SuspendReport {
    /// Whether every request was done exactly once and all counts agreed.
    pub fn is_good(&self) -> bool {
        self.requests.is_exact() && self.suspensions.iter().all(|one| one.disagreeing == 0)
    }
}

/// Fills a block device's queues with reads and suspends it `times` times while they are in flight;
/// the device comes back as `comeback` says. Nothing is written to the disk.
///
/// # Errors
/// [`VmError`]: the device has no SUSPEND or QUEUE_STATE, is no block device, or breaks a rule.
pub fn suspensions(
    bus: Arc<dyn Bus>,
    times: u32,
    queues: u16,
    comeback: Comeback,
) -> Result<SuspendReport, VmError> {
    let needed = Features::SUSPEND | Features::QUEUE_STATE;
    let mut rig = Rig::start(bus, queues, 128, needed)?;
    let pages = rig.capacity / 8;
    let each = pages.clamp(1, BIG);
    let memory = rig.transport.bus().dma_alloc(each * 4096)?;
    // All reads go to the same place: what they read is of no interest.
    let buffer = (memory.iova(), u32::try_from(memory.len()).unwrap_or(4096));
    let mut suspensions = Vec::new();
    for time in 0..times {
        rig.look_again()?;
        for queue in 0..rig.queues() {
            let mut sector = u64::from(time);
            loop {
                sector = (sector + each * 8) % (rig.capacity.saturating_sub(each * 8) + 1);
                if rig.submit(queue, false, sector, &[buffer])?.is_none() {
                    break;
                }
            }
        }
        rig.ring()?;
        if time % 2 == 1 {
            // In the middle of its work; the other times before it has well begun.
            rig.wait()?;
            rig.reap(|_| Ok(()))?;
        }
        let one = cycle(&mut rig, comeback, &mut (), |_| Ok(()))?;
        suspensions.push(one);
        while rig.in_flight() != 0 {
            rig.wait()?;
            rig.reap(|_| Ok(()))?;
        }
    }
    Ok(SuspendReport {
        suspensions,
        requests: rig.finish()?,
    })
}

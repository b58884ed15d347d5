//! From one device to another, under a guest that goes on.

use super::access::signal;
use super::face::Face;
use super::maps::Maps;
use super::pending::{index, pending};
use super::{Back, Inner, MediateError, Mediator, program, travelling};
use device::queue::{InflightShape, InflightTable};
use driver::bus::{BusError, RelayBus};
use driver::state::{self, DeviceState, QueueSaved};
use driver::{DriverError, suspend};
use serde::{Deserialize, Serialize};
use spec::features::Features;
use spec::status::DeviceStatus;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

/// How long a device may take to suspend: requests in flight are finished first. A VMM waits 5 s.
const SUSPEND: Duration = Duration::from_secs(3);
/// How long it may take to come to its senses after that.
const SETTLE: Duration = Duration::from_secs(20);

/// The table of what a device had in flight when it died.
#[derive(Debug)]
pub struct InflightLog {
    path: PathBuf,
    file: File,
}

impl InflightLog {
    /// Opens a table, to read it.
    ///
    /// # Errors
    ///
    /// [`MediateError::BadLog`] if there is no such file.
    pub fn open(path: &Path) -> Result<Self, MediateError> {
        // To put right what a kill left half done, it must be writable.
        let file = File::options().read(true).write(true).open(path);
        Ok(Self {
            file: file.map_err(|error| MediateError::BadLog {
                path: path.display().to_string(),
                why: error.to_string(),
            })?,
            path: path.to_owned(),
        })
    }
}

/// How a move went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MoveReport {
    /// The device that the guest had.
    pub from: String,
    /// The device that it has now.
    pub to: String,
    /// The old device was dead: the new one went on from its log.
    pub takeover: bool,
    /// How long the guest's accesses were held back, in milliseconds; the device stood still for
    /// less. After a death: how long the takeover itself took.
    pub downtime_ms: f64,
    /// Of that, until the old device was suspended, with nothing in flight.
    pub suspend_ms: f64,
    /// Maps that the new device was given.
    pub maps: u64,
    /// Queues that were running.
    pub queues: usize,
    /// Requests that the guest had made available and the old device had not begun: the new one
    /// carries them out.
    pub carried_over: u64,
    /// Requests that a dead device had begun: the new one carries them out again.
    pub in_flight: u64,
    /// Pages that the old devices wrote since tracking began; absent unless they are tracked.
    pub dirty_pages: Option<u64>,
    /// Bytes of the stream in which the device's state went; 0 if its driver had not started it.
    pub stream_bytes: u64,
    /// The stream itself.
    #[serde(skip)]
    pub stream: Vec<u8>,
}

impl Mediator {
    /// Moves the guest to another device, which is reset first: nobody may be using it.
    ///
    /// If the device in use has died, the other takes over with `log`, the table of what was in
    /// flight, which it must have been started with too.
    ///
    /// # Errors
    ///
    /// [`MediateError`]; the guest stays where it was then.
    pub fn move_to(
        &self,
        name: &str,
        bus: Arc<dyn RelayBus>,
        log: Option<&InflightLog>,
    ) -> Result<MoveReport, MediateError> {
        let moved = self.try_move(name, bus, log);
        let mut inner = self.lock();
        match &moved {
            Ok(report) if report.takeover => inner.counters.takeovers += 1,
            Ok(_) => inner.counters.moves += 1,
            Err(_) => inner.counters.failed_moves += 1,
        }
        moved
    }

    fn try_move(
        &self,
        name: &str,
        bus: Arc<dyn RelayBus>,
        log: Option<&InflightLog>,
    ) -> Result<MoveReport, MediateError> {
        if let Some(old) = self.lock().back.clone() {
            old.facilities.check(&old.name, self.options.tracker)?;
        }
        let (new, face) = Back::open(name, bus)?;
        if let Some(what) = self.face.unlike(&face) {
            let name = name.to_owned();
            return Err(MediateError::Unlike { name, what });
        }
        new.facilities.check(name, self.options.tracker)?;
        // Most of what the new device must reach it is given while the guest runs.
        let device = MediateError::device(name);
        let before = self.lock().maps.clone();
        let early = program::map(&new, &Maps::default(), &before);
        let early = early.map_err(|error| device(error.into()))?;

        let began = Instant::now();
        let mut inner = self.lock();
        let mut report = MoveReport {
            from: inner.name.clone(),
            to: name.to_owned(),
            maps: early,
            ..MoveReport::default()
        };
        let old = inner.alive();
        match &old {
            Some(old) => self.move_live(&mut inner, old, &new, &before, &mut report, began)?,
            None => self.take_over(&mut inner, &new, &before, log, &mut report)?,
        }
        self.switch(inner, &new);
        report.downtime_ms = milliseconds(began);
        // Only now, for it waits for the server to close.
        drop(old);
        Ok(report)
    }

    /// The guest has the new device from here on.
    fn switch(&self, mut inner: MutexGuard<'_, Inner>, new: &Arc<Back>) {
        inner.back = Some(Arc::clone(new));
        inner.name.clone_from(&new.name);
        // An interrupt that the old device owed: one too many does no harm.
        inner.vectors.iter().flatten().for_each(signal);
        drop(inner);
        self.moved.notify_all();
        self.watch(new);
    }

    fn move_live(
        &self,
        inner: &mut Inner,
        old: &Arc<Back>,
        new: &Back,
        before: &Maps,
        report: &mut MoveReport,
        began: Instant,
    ) -> Result<(), MediateError> {
        let failed = |error| MediateError::Save {
            name: old.name.clone(),
            error,
        };
        let status = old.transport.status().map_err(failed)?;
        if status.intersects(DeviceStatus::DEVICE_NEEDS_RESET | DeviceStatus::FAILED) {
            let name = old.name.clone();
            return Err(MediateError::Broken { name });
        }
        // If nothing runs, all there is is what the guest wrote.
        let runs = status.contains(DeviceStatus::DRIVER_OK);
        let mut attempt = || {
            let saved = if runs {
                let saved = self.take(inner, old, report, began)?;
                Some(travelling::pack(&old.name, &saved)?)
            } else {
                inner.harvest()?;
                None
            };
            // An eventfd is one device's.
            program::disconnect(old).map_err(|error| failed(error.into()))?;
            self.put(inner, new, before, saved, report)
        };
        let Err(error) = attempt() else { return Ok(()) };
        // Whatever it has become: only one device may run.
        if let Err(second) = new.reset() {
            tracing::info!(error = %second, "the device that was not moved to");
        }
        match self.go_on(inner, old, runs) {
            Ok(()) => Err(error),
            Err(second) => Err(MediateError::Stuck {
                name: old.name.clone(),
                error: Box::new(error),
                second,
            }),
        }
    }

    /// Suspends the old device and takes its state.
    fn take(
        &self,
        inner: &mut Inner,
        old: &Back,
        report: &mut MoveReport,
        began: Instant,
    ) -> Result<DeviceState, MediateError> {
        let failed = |error| MediateError::Save {
            name: old.name.clone(),
            error,
        };
        let save = || {
            old.transport.adopt()?;
            suspend::suspend(&old.transport, SUSPEND)?;
            state::save(&old.transport)
        };
        let saved = save().map_err(failed)?;
        report.suspend_ms = milliseconds(began);
        // After SUSPEND there is no further mark.
        inner.harvest()?;
        let running = saved.queues.iter().filter(|queue| queue.enabled);
        for queue in running {
            report.queues += 1;
            report.carried_over += pending(&inner.maps, queue, saved.features)?;
        }
        Ok(saved)
    }

    /// Makes the new device what the old one was, by the stream that its state came in, and runs it.
    fn put(
        &self,
        inner: &mut Inner,
        new: &Back,
        before: &Maps,
        stream: Option<Vec<u8>>,
        report: &mut MoveReport,
    ) -> Result<(), MediateError> {
        let saved = stream.as_deref().map(travelling::unpack).transpose()?;
        report.stream = stream.unwrap_or_default();
        report.stream_bytes = u64::try_from(report.stream.len()).unwrap_or(u64::MAX);
        let program = |inner: &Inner| -> Result<u64, DriverError> {
            inner.shadow.configure(&self.face, &*new.bus)?;
            let maps = program::map(new, before, &inner.maps)?;
            program::connect(new, &inner.vectors)?;
            match &saved {
                Some(saved) => state::restore(&new.transport, saved)?,
                None => program::initialise(new, &self.face, &inner.shadow)?,
            }
            Ok(maps)
        };
        let refused = |error| MediateError::Restore {
            name: new.name.clone(),
            error,
        };
        report.maps += program(inner).map_err(refused)?;
        if saved.is_some() {
            // Before the device can write anything.
            inner.start_tracking(new)?;
        }
        let run = || -> Result<(), DriverError> {
            if saved.is_some() {
                new.transport.driver_ok()?;
            }
            inner.shadow.select(&self.face, &*new.bus)?;
            Ok(())
        };
        run().map_err(refused)?;
        report.dirty_pages = inner.dirty_pages();
        Ok(())
    }

    /// A move has failed: the old device goes on.
    fn go_on(&self, inner: &mut Inner, old: &Arc<Back>, runs: bool) -> Result<(), DriverError> {
        let mut resume = || -> Result<(), DriverError> {
            program::connect(old, &inner.vectors)?;
            if !runs {
                return Ok(());
            }
            // It may have been told to suspend and not have come to it.
            suspend::suspend(&old.transport, SETTLE)?;
            // The other device's tracker may have taken the place of its own.
            if let Err(error) = inner.start_tracking(old) {
                tracing::error!(%error, "pages are not tracked");
            }
            suspend::resume(&old.transport, SETTLE)?;
            inner.shadow.select(&self.face, &*old.bus)?;
            Ok(())
        };
        let result = resume();
        if let Err(DriverError::Bus(BusError::Unreachable { .. })) = &result {
            inner.lost(old);
        }
        result
    }

    /// Goes on where a device died.
    fn take_over(
        &self,
        inner: &mut Inner,
        new: &Back,
        before: &Maps,
        log: Option<&InflightLog>,
        report: &mut MoveReport,
    ) -> Result<(), MediateError> {
        report.takeover = true;
        inner.harvest()?;
        if !inner.shadow.status.contains(DeviceStatus::DRIVER_OK) {
            return self.put(inner, new, before, None, report);
        }
        let log = log.ok_or_else(|| MediateError::NoLog {
            name: inner.name.clone(),
        })?;
        let table = table(&self.face, log)?;
        let path = log.path.display().to_string();
        let accepted = inner.shadow.accepted().bits();
        if accepted & Features::RING_PACKED.bits() != 0 {
            let why = "the guest's queues are packed, and it is for split ones".to_owned();
            return Err(MediateError::BadLog { path, why });
        }
        let saved = program::described(&self.face, &inner.shadow, |queue| {
            let used = index(&inner.maps, queue, queue.device)?;
            let flying = flying(&table, queue, used).map_err(|why| MediateError::BadLog {
                path: path.clone(),
                why,
            })?;
            report.queues += 1;
            report.in_flight += u64::from(flying);
            let avail = used.wrapping_add(flying);
            let stands = QueueSaved { avail, ..*queue };
            report.carried_over += pending(&inner.maps, &stands, accepted)?;
            Ok((avail, used))
        })?;
        let stream = travelling::pack(&inner.name, &saved)?;
        self.put(inner, new, before, Some(stream), report)
    }
}

impl Inner {
    /// The device in use, if it is still there.
    fn alive(&mut self) -> Option<Arc<Back>> {
        let back = self.back.clone()?;
        let status = back.transport.status();
        if let Err(DriverError::Bus(BusError::Unreachable { .. })) = status {
            self.lost(&back);
        }
        self.back.clone()
    }
}

/// The table of what was in flight, for a device like this.
fn table(face: &Face, log: &InflightLog) -> Result<Arc<InflightTable>, MediateError> {
    let path = log.path.display().to_string();
    let shape = InflightShape {
        queues: u16::try_from(face.queues.len()).unwrap_or(u16::MAX),
        queue_size: face.queues.iter().copied().max().unwrap_or(0),
    };
    let size = log.file.metadata().map_err(|error| MediateError::BadLog {
        path: path.clone(),
        why: error.to_string(),
    })?;
    if size.len() != shape.bytes() {
        let why = format!(
            "{} bytes; {} were expected for {} queues of {} entries",
            size.len(),
            shape.bytes(),
            shape.queues,
            shape.queue_size
        );
        return Err(MediateError::BadLog { path, why });
    }
    let table = InflightTable::open(&log.file, 0, size.len(), shape);
    table.map_err(|error| MediateError::log(&path, &error))
}

/// How many requests of a queue were in flight.
fn flying(table: &Arc<InflightTable>, queue: &QueueSaved, used: u16) -> Result<u16, String> {
    let part = table.queue(queue.index);
    let mut part = part.ok_or_else(|| format!("it has no queue {}", queue.index))?;
    let heads = part.recover(queue.size, used);
    let heads = heads.map_err(|error| error.to_string())?.len();
    u16::try_from(heads).map_err(|_| format!("{heads} requests of queue {}", queue.index))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

//! A disk that this process drives itself, through the driver crate: no kernel in between.

use super::Disk;
use driver::blk::{BlkQueue, Outcome, read_config};
use driver::bus::{Bus, Interrupt};
use driver::memory::DmaMemory;
use driver::queue::Virtqueue;
use driver::transport::Notifier;
use driver::{DriverError, Transport};
use spec::blk::SECTOR_SIZE;
use spec::features::Features;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const QUEUE_SIZE: u16 = 256;
/// Requests at once, and the memory that each has for its data.
const SLOTS: u16 = 64;
const SLOT: usize = 64 << 10;
const SLOT_BYTES: u64 = 64 << 10;
/// Vector 0 is for configuration changes.
const VECTOR: u16 = 1;
/// A request that has not been answered by then is lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the end is looked for.
const TICK: Duration = Duration::from_millis(200);
/// What this driver can keep, and every device may have.
const WANTED: Features = Features::RING_INDIRECT_DESC
    .union(Features::RING_EVENT_IDX)
    .union(Features::ACCESS_PLATFORM);

/// A virtio block device on a bus. Requests come from any number of threads.
#[derive(Debug)]
pub struct DrivenDisk {
    shared: Arc<Shared>,
    data: DmaMemory,
    size: u64,
    reaper: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    transport: Transport,
    notifier: Notifier,
    inner: Mutex<Inner>,
    /// Signalled when slots have been answered.
    answered: Condvar,
}

#[derive(Debug)]
struct Inner {
    queue: BlkQueue,
    free: Vec<u16>,
    /// By slot.
    answers: Vec<Option<Outcome>>,
    /// Why nothing more will be answered.
    broken: Option<String>,
    closing: bool,
}

impl DrivenDisk {
    /// Resets the device and takes it into use.
    ///
    /// # Errors
    /// [`DriverError`] if it is no block device that can be driven.
    pub fn start(bus: Arc<dyn Bus>) -> Result<Self, DriverError> {
        let transport = Transport::new(Arc::clone(&bus))?;
        if transport.device_id() != spec::blk::DEVICE_ID {
            let why = DriverError::NoCapability("block device");
            return Err(why);
        }
        let flush = spec::blk::BlkFeatures::FLUSH.bits();
        let features = transport.initialise(WANTED | Features::from_bits_retain(flush))?;
        let alloc = |len| bus.dma_alloc(len).map_err(DriverError::from);
        let size = transport.queue_max_size(0)?.min(QUEUE_SIZE);
        let ring = alloc(Virtqueue::bytes_needed(size))?;
        let area = alloc(BlkQueue::area_needed(size))?;
        let data = alloc(u64::from(SLOTS) * SLOT_BYTES)?;
        let split = Virtqueue::new(ring, size, features)?;
        transport.setup_queue(0, &split.setup(VECTOR), None)?;
        let interrupt = bus.interrupt(VECTOR).map_err(DriverError::from)?;
        let mut queue = BlkQueue::new(split, area);
        queue.ring_mut().enable_interrupts()?;
        transport.driver_ok()?;
        let capacity = read_config(&transport)?.capacity.get();
        let shared = Arc::new(Shared {
            notifier: transport.notifier(0)?,
            transport,
            inner: Mutex::new(Inner {
                queue,
                free: (0..SLOTS).collect(),
                answers: vec![None; usize::from(SLOTS)],
                broken: None,
                closing: false,
            }),
            answered: Condvar::new(),
        });
        let reaping = Arc::clone(&shared);
        let reaper = thread::spawn(move || reaping.reap(&*interrupt));
        Ok(Self {
            shared,
            data,
            size: capacity.saturating_mul(SECTOR_SIZE),
            reaper: Some(reaper),
        })
    }

    /// One request, from its submission to its answer.
    fn request(
        &self,
        len: usize,
        fill: impl FnOnce(&DmaMemory) -> io::Result<()>,
        submit: impl FnOnce(&mut BlkQueue, (u64, u32), u64) -> Result<(), DriverError>,
        take: impl FnOnce(&DmaMemory) -> io::Result<()>,
    ) -> io::Result<()> {
        let shared = &self.shared;
        let length = u32::try_from(len)
            .ok()
            .filter(|len| u64::from(*len) <= SLOT_BYTES);
        let length = length.ok_or(io::ErrorKind::InvalidInput)?;
        let mut inner = shared.wait(|inner| inner.free.pop())?;
        let slot = inner.1;
        let at = u64::from(slot) * SLOT_BYTES;
        let window = self
            .data
            .slice(at, u64::from(length.max(1)))
            .map_err(io::Error::from)?;
        fill(&window)?;
        let submitted =
            submit(&mut inner.0.queue, (window.iova(), length), slot.into()).and_then(|()| {
                let queue = &mut inner.0.queue;
                let wanted = queue.publish()?;
                Ok(wanted.then(|| queue.ring().published()))
            });
        let published = submitted.map_err(io::Error::other)?;
        // Others may submit meanwhile.
        drop(inner);
        if let Some(next) = published {
            shared.notifier.notify(next).map_err(io::Error::other)?;
        }
        let answer = |inner: &mut Inner| inner.answers.get_mut(usize::from(slot))?.take();
        let (mut inner, outcome) = shared.wait(answer)?;
        let taken = match outcome {
            Outcome::Ok => take(&window),
            other => Err(io::Error::other(format!("the device says {other:?}"))),
        };
        inner.free.push(slot);
        drop(inner);
        shared.answered.notify_all();
        taken
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is there.
    fn wait<T>(
        &self,
        mut look: impl FnMut(&mut Inner) -> Option<T>,
    ) -> io::Result<(MutexGuard<'_, Inner>, T)> {
        let mut found = None;
        let inner = self.lock();
        let waited = self.answered.wait_timeout_while(inner, PATIENCE, |inner| {
            found = look(inner);
            found.is_none() && inner.broken.is_none()
        });
        let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match (found, &inner.broken) {
            (Some(found), _) => Ok((inner, found)),
            (None, Some(why)) => Err(io::Error::other(why.clone())),
            (None, None) => {
                let why = format!("a request was not answered within {PATIENCE:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }
        }
    }

    /// Hands answers out until the end. Looks only after an interrupt: one that is lost shows.
    fn reap(&self, interrupt: &dyn Interrupt) {
        loop {
            let fired = interrupt.wait(TICK);
            let mut inner = self.lock();
            if inner.closing {
                return;
            }
            if !fired {
                continue;
            }
            if let Err(error) = inner.take() {
                inner.broken = Some(error.to_string());
            }
            drop(inner);
            self.answered.notify_all();
        }
    }
}

impl Inner {
    fn take(&mut self) -> Result<(), DriverError> {
        loop {
            while let Some(done) = self.queue.complete()? {
                let slot = usize::try_from(done.token).unwrap_or(usize::MAX);
                if let Some(answer) = self.answers.get_mut(slot) {
                    *answer = Some(done.outcome);
                }
            }
            if !self.queue.ring_mut().enable_interrupts()? {
                return Ok(());
            }
        }
    }
}

impl Disk for DrivenDisk {
    /// More than a request takes is read request by request.
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        for (offset, part) in (offset..).step_by(SLOT).zip(data.chunks_mut(SLOT)) {
            self.request(
                part.len(),
                |_| Ok(()),
                |queue, buffer, slot| queue.read(offset / SECTOR_SIZE, &[buffer], slot),
                |memory| memory.read(0, part).map_err(io::Error::from),
            )?;
        }
        Ok(())
    }

    /// The same for writes.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        for (offset, part) in (offset..).step_by(SLOT).zip(data.chunks(SLOT)) {
            self.request(
                part.len(),
                |memory| memory.write(0, part).map_err(io::Error::from),
                |queue, buffer, slot| queue.write(offset / SECTOR_SIZE, &[buffer], slot),
                |_| Ok(()),
            )?;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.request(
            0,
            |_| Ok(()),
            |queue, _, slot| queue.flush(slot),
            |_| Ok(()),
        )
    }

    fn size(&self) -> u64 {
        self.size
    }
}

impl Drop for DrivenDisk {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        if let Some(reaper) = self.reaper.take()
            && reaper.join().is_err()
        {
            tracing::error!("the thread that takes answers has panicked");
        }
        if let Err(error) = self.shared.transport.reset(PATIENCE) {
            tracing::info!(%error, "the device is left as it is");
        }
    }
}

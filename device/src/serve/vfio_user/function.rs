//! An emulated function behind the socket.

use super::interrupts::EventFds;
use super::log::DmaLog;
use super::logging::Logging;
use super::served::{IrqRequest, Map, Migrates, Refusal, Served};
use crate::function::{MsixOwner, PciFunction};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A client's reset or stop is answered within this time. QEMU waits 5 s for any answer.
const RESET_WAIT: Duration = Duration::from_secs(4);

/// What clients have asked for since the function was made. An unmap that found nothing counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServeStats {
    /// DMA_MAP messages, those without memory included.
    pub dma_maps: u64,
    /// DMA_UNMAP messages.
    pub dma_unmaps: u64,
}

#[derive(Debug, Default)]
struct Counters {
    dma_maps: AtomicU64,
    dma_unmaps: AtomicU64,
}

/// An emulated function as a server serves it. When a client goes, the function is as after
/// power-on: reset, no memory mapped, no interrupt connected.
#[derive(Debug)]
pub struct ServedFunction {
    function: Arc<PciFunction>,
    eventfds: Arc<EventFds>,
    counters: Counters,
    log: Option<Mutex<DmaLog>>,
    /// VFIO's DMA logging, while it is on.
    logging: Mutex<Option<Logging>>,
    /// Interrupts that another function owed its driver are this one's to send when it starts.
    owes: AtomicBool,
}

impl ServedFunction {
    /// Makes a function fit to be served. Its interrupts are the server's from now on.
    pub fn new(function: Arc<PciFunction>) -> Arc<Self> {
        Self::with_log(function, None)
    }

    /// Also tells every map and unmap to `log`.
    pub fn with_log(function: Arc<PciFunction>, log: Option<DmaLog>) -> Arc<Self> {
        let eventfds = Arc::new(EventFds::new(function.vectors()));
        function.set_interrupts(Arc::clone(&eventfds) as _, MsixOwner::Vmm);
        Arc::new(Self {
            function,
            eventfds,
            counters: Counters::default(),
            log: log.map(Mutex::new),
            logging: Mutex::default(),
            owes: AtomicBool::new(false),
        })
    }

    /// The function.
    pub fn function(&self) -> &Arc<PciFunction> {
        &self.function
    }

    /// What was counted so far.
    pub fn stats(&self) -> ServeStats {
        ServeStats {
            dma_maps: self.counters.dma_maps.load(Relaxed),
            dma_unmaps: self.counters.dma_unmaps.load(Relaxed),
        }
    }

    fn log(&self, write: impl FnOnce(&mut DmaLog)) {
        if let Some(log) = &self.log {
            write(&mut log.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl ServedFunction {
    fn logging(&self) -> MutexGuard<'_, Option<Logging>> {
        self.logging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before anything by which the tracker's configuration may change.
    fn note_bitmap(&self) {
        if let Some(logging) = &mut *self.logging() {
            logging.note_bitmap(self.function.dma());
        }
    }
}

impl Served for ServedFunction {
    fn bar_size(&self, bar: u8) -> u64 {
        PciFunction::bar_size(bar)
    }

    fn vectors(&self) -> u16 {
        self.function.vectors()
    }

    /// Queues first, because they use the maps.
    fn end(&self) {
        if !self.function.reset_and_wait(RESET_WAIT) {
            tracing::warn!("the function is still resetting after its client has gone");
        }
        if let Some(logging) = self.logging().take() {
            logging.stop(self.function.dma());
        }
        self.owes.store(false, Relaxed);
        self.function.dma().unmap(0, u64::MAX);
        self.log(DmaLog::end);
        self.eventfds.clear();
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.function.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.note_bitmap();
        self.function.config_write(offset, data);
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        self.function.bar_read(bar, offset, data);
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.note_bitmap();
        self.function.bar_write(bar, offset, data);
    }

    fn map(&self, map: Map) -> Result<(), Refusal> {
        self.counters.dma_maps.fetch_add(1, Relaxed);
        // Before it is in force, so that the log knows every map through which the device writes.
        self.log(|log| log.map(&map));
        let Map {
            iova, size, perm, ..
        } = map;
        let Some((file, offset)) = map.memory else {
            tracing::debug!(iova, size, "a map without memory");
            return Ok(());
        };
        let made = self.function.dma().map(iova, size, &file, offset, perm);
        made.map_err(|error| {
            self.log(|log| log.unmap(iova, size));
            Refusal::invalid(error.to_string())
        })
    }

    fn unmap(&self, iova: u64, size: u64) {
        self.counters.dma_unmaps.fetch_add(1, Relaxed);
        self.function.dma().unmap(iova, size);
        self.log(|log| log.unmap(iova, size));
    }

    fn reset(&self) -> Result<(), Refusal> {
        self.note_bitmap();
        let done = self.function.reset_and_wait(RESET_WAIT);
        self.eventfds.forget_pending();
        if done {
            return Ok(());
        }
        let why = format!("a reset was not finished in {RESET_WAIT:?}; it goes on");
        Err(Refusal::new(Errno::TIMEDOUT, why))
    }

    fn interrupts(&self, request: IrqRequest, eventfds: Vec<File>) {
        self.eventfds.carry_out(request, eventfds);
    }

    fn migrates(&self) -> Option<&dyn Migrates> {
        self.function.is_movable().then_some(self)
    }
}

impl Migrates for ServedFunction {
    fn stop(&self) -> Result<(), Refusal> {
        if self.function.stop_and_wait(RESET_WAIT) {
            return Ok(());
        }
        let why = format!("the function did not stop in {RESET_WAIT:?}; reset it");
        Err(Refusal::new(Errno::TIMEDOUT, why))
    }

    fn start(&self) -> Result<(), Refusal> {
        if !self.function.start_and_wait(RESET_WAIT) {
            let why = format!("the function did not go on in {RESET_WAIT:?}; reset it");
            return Err(Refusal::new(Errno::TIMEDOUT, why));
        }
        if self.owes.swap(false, Relaxed) {
            let vectors = 0..usize::from(self.function.vectors());
            self.eventfds
                .carry_out(IrqRequest::Trigger(vectors), Vec::new());
        }
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        self.function.is_stopped()
    }

    fn save(&self) -> Result<Vec<u8>, Refusal> {
        if !self.function.is_stopped() {
            return Err(Refusal::invalid("the function is not stopped"));
        }
        Ok(self.function.save())
    }

    fn load(&self, state: &[u8]) -> Result<(), Refusal> {
        self.note_bitmap();
        let loaded = self.function.load(state);
        loaded.map_err(|error| Refusal::invalid(error.to_string()))?;
        // What the other had raised and not delivered yet is in no state: a driver that is told once
        // too often finds nothing new.
        self.owes.store(true, Relaxed);
        Ok(())
    }

    fn log_start(&self, page_size: u64, ranges: &[Range<u64>]) -> Result<u64, Refusal> {
        let mut logging = self.logging();
        if logging.is_some() {
            return Err(Refusal::new(Errno::BUSY, "writes are logged already"));
        }
        let started = Logging::start(self.function.dma(), page_size, ranges)?;
        Ok(logging.insert(started).page_size())
    }

    fn log_stop(&self) -> Result<(), Refusal> {
        if let Some(logging) = self.logging().take() {
            logging.stop(self.function.dma());
        }
        Ok(())
    }

    fn log_report(&self, range: &Range<u64>, unit: u64, bits: &mut [u64]) -> Result<(), Refusal> {
        let mut logging = self.logging();
        let off = || Refusal::invalid("no writes are logged; DMA_LOGGING_START comes first");
        let logging = logging.as_mut().ok_or_else(off)?;
        logging.report(self.function.dma(), range, unit, bits);
        Ok(())
    }
}

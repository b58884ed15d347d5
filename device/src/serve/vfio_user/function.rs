//! An emulated function behind the socket.

use super::interrupts::EventFds;
use super::log::DmaLog;
use super::served::{IrqRequest, Map, Served};
use crate::function::{MsixOwner, PciFunction};
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A client's reset is answered within this time. QEMU waits 5 s for any answer.
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
        self.function.dma().unmap(0, u64::MAX);
        self.log(DmaLog::end);
        self.eventfds.clear();
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.function.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.function.config_write(offset, data);
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        self.function.bar_read(bar, offset, data);
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.function.bar_write(bar, offset, data);
    }

    fn map(&self, map: Map) {
        self.counters.dma_maps.fetch_add(1, Relaxed);
        // Before it is in force, so that the log knows every map through which the device writes.
        self.log(|log| log.map(&map));
        let dma = self.function.dma();
        let Map {
            iova, size, perm, ..
        } = map;
        let Some((file, offset)) = map.memory else {
            // Whatever was there is gone.
            tracing::debug!(iova, size, "a map without memory");
            return dma.unmap(iova, size);
        };
        if let Err(error) = dma.map(iova, size, &file, offset, perm) {
            tracing::warn!(%error, "a map was refused; the range stays without memory");
            // The client thinks that it replaced what was there: better a fault than a write there.
            dma.unmap(iova, size);
        }
    }

    fn unmap(&self, iova: u64, size: u64) {
        self.counters.dma_unmaps.fetch_add(1, Relaxed);
        self.function.dma().unmap(iova, size);
        self.log(|log| log.unmap(iova, size));
    }

    fn reset(&self) {
        if !self.function.reset_and_wait(RESET_WAIT) {
            tracing::warn!("a reset was not finished in {RESET_WAIT:?}; it goes on");
        }
        self.eventfds.forget_pending();
    }

    fn interrupts(&self, request: IrqRequest, eventfds: Vec<File>) {
        self.eventfds.carry_out(request, eventfds);
    }
}

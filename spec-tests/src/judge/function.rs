//! The judging function: what a driver meets, and where each access goes.
//!
//! One lock, no thread of its own: an access is judged and answered before it returns, requests are
//! answered when [`Judge::settle`] is called, so that there is a time in which buffers are exposed.

use super::common::{self, Common};
use super::ledger::Ledger;
use super::life::Life;
use super::memory::Memory;
use super::model::Model;
use super::notify;
use super::pci::{self, Pci};
use super::plan::Plan;
use super::queue::Queue;
use super::{config, tracker};
use device::serve::vfio_user::{IrqRequest, Map, Refusal, Served};
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A function that judges its driver. It is served like any other: what a driver does comes by
/// [`Served`].
#[derive(Debug)]
pub struct Judge {
    inner: Mutex<Inner>,
    /// Signalled when there is something to settle.
    work: Condvar,
}

/// Everything that accesses read and change.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) plan: Plan,
    pub(super) book: Ledger,
    pub(super) memory: Memory,
    pub(super) pci: Pci,
    pub(super) common: Common,
    pub(super) life: Life,
    pub(super) queues: Vec<Queue>,
    pub(super) model: Model,
    pub(super) config: config::Config,
    pub(super) tracker: tracker::Tracker,
    pub(super) isr: u8,
    /// Eventfds of the vectors; MSI-X is in use when there is one.
    pub(super) vectors: Vec<Option<File>>,
    /// Requests answered since power-on.
    pub(super) answered: u64,
    pub(super) provoked: Provoked,
    kicked: bool,
    gone: bool,
}

/// Provocations that were carried out, and wait for what the driver makes of them.
#[derive(Debug, Default)]
pub(super) struct Provoked {
    pub(super) spurious: Once,
    pub(super) combined: Once,
    pub(super) changed: bool,
    pub(super) needs_reset: bool,
    /// A list of several packed descriptors was used by one element.
    pub(super) one_for_all: Once,
}

/// A provocation that is judged by whether the driver goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Once {
    #[default]
    Before,
    Waiting,
    Done,
}

impl Judge {
    /// A function after power-on.
    ///
    /// # Errors
    /// The system's, if the plan's disk cannot be opened.
    pub fn new(plan: Plan) -> io::Result<Arc<Self>> {
        let model = Model::new(&plan)?;
        let queues = common::queues(&plan);
        let vectors = plan.vectors.unwrap_or(queues + 1);
        let inner = Inner {
            pci: Pci::new(&plan, vectors),
            common: Common::default(),
            life: Life::new(&plan, &model),
            queues: (0..queues).map(|index| Queue::new(index, &plan)).collect(),
            config: config::Config::default(),
            tracker: tracker::Tracker::default(),
            vectors: (0..vectors).map(|_| None).collect(),
            book: Ledger::default(),
            memory: Memory::default(),
            isr: 0,
            answered: 0,
            provoked: Provoked::default(),
            kicked: false,
            gone: false,
            model,
            plan,
        };
        Ok(Arc::new(Self {
            inner: Mutex::new(inner),
            work: Condvar::new(),
        }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers what is exposed. `idle` says that the driver waits and does nothing else: then
    /// what it has not told the function of, it will not tell.
    pub fn settle(&self, idle: bool) {
        self.inner().settle(idle);
    }

    /// Answers requests `lag` after they are exposed, until the driver has gone for good. To be
    /// called on a thread of its own where nobody calls [`settle`](Self::settle).
    pub fn work(&self, lag: Duration) {
        let mut inner = self.inner();
        loop {
            if inner.gone {
                return;
            }
            if !inner.kicked {
                inner = self
                    .work
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // The time in which buffers are exposed; an end cuts it short.
            let waited = self
                .work
                .wait_timeout_while(inner, lag, |inner| !inner.gone)
                .unwrap_or_else(PoisonError::into_inner);
            inner = waited.0;
            inner.kicked = false;
            inner.settle(false);
        }
    }

    /// The driver will not come back: the last judgements. Ends [`work`](Self::work).
    pub fn finish(&self) {
        let mut inner = self.inner();
        inner.finish();
        inner.gone = true;
        self.work.notify_all();
    }

    /// What was seen so far.
    pub fn book<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.inner().book)
    }

    fn with<T>(&self, access: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner();
        let result = access(&mut inner);
        if inner.kicked {
            self.work.notify_all();
        }
        result
    }
}

impl Inner {
    pub(super) fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar != 0 {
            return;
        }
        match offset {
            pci::COMMON..pci::ISR => common::read(self, offset, data),
            pci::ISR..pci::DEVICE => notify::read_isr(self, data),
            pci::DEVICE..pci::NOTIFY => config::read(self, offset - pci::DEVICE, data),
            pci::NOTIFY..pci::TRACKER => {}
            _ if offset < pci::TRACKER + 32 => {
                tracker::read(self, offset - pci::TRACKER, data);
            }
            _ => pci::strayed(self, offset),
        }
    }

    pub(super) fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if bar != 0 {
            return;
        }
        match offset {
            pci::COMMON..pci::ISR => common::write(self, offset, data),
            pci::ISR..pci::DEVICE => {}
            pci::DEVICE..pci::NOTIFY => config::write(self, offset - pci::DEVICE, data),
            pci::NOTIFY..pci::TRACKER => notify::doorbell(self, offset - pci::NOTIFY, data),
            _ if offset < pci::TRACKER + 32 => {
                tracker::write(self, offset - pci::TRACKER, data);
            }
            _ => pci::strayed(self, offset),
        }
    }

    /// There is something to settle.
    pub(super) fn kick(&mut self) {
        self.kicked = true;
    }

    /// Raises a vector, where it is mapped to one.
    pub(super) fn raise(&mut self, vector: u16) {
        let fd = self.vectors.get_mut(usize::from(vector));
        if let Some(Some(fd)) = fd {
            // A counter that is full has told the driver often enough.
            let _ = fd.write_all(&1_u64.to_ne_bytes());
        }
    }

    pub(super) fn msix(&self) -> bool {
        self.vectors.iter().any(Option::is_some)
    }

    fn finish(&mut self) {
        super::life::finish(self);
    }
}

impl Served for Judge {
    fn bar_size(&self, bar: u8) -> u64 {
        match bar {
            0 => pci::BAR0,
            1 => pci::BAR1,
            _ => 0,
        }
    }
    fn vectors(&self) -> u16 {
        u16::try_from(self.inner().vectors.len()).unwrap_or(u16::MAX)
    }
    fn end(&self) {
        self.with(|inner| {
            super::life::gone(inner);
            inner.memory = Memory::default();
            inner.vectors.iter_mut().for_each(|vector| *vector = None);
        });
    }
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.with(|inner| pci::read(inner, offset, data));
    }
    fn config_write(&self, offset: u16, data: &[u8]) {
        self.with(|inner| pci::write(inner, offset, data));
    }
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        self.with(|inner| inner.bar_read(bar, offset, data));
    }
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.with(|inner| inner.bar_write(bar, offset, data));
    }
    fn map(&self, map: Map) -> Result<(), Refusal> {
        let Map { iova, size, .. } = map;
        let Some((file, offset)) = map.memory else {
            return Ok(());
        };
        self.with(|inner| {
            let made = inner.memory.map(iova, size, &file, offset);
            made.map_err(|error| {
                let what = format!("a map at {iova:#x} cannot be made");
                inner.book.step(what.clone());
                Refusal::invalid(format!("{what}: {error}"))
            })
        })
    }
    fn unmap(&self, iova: u64, size: u64) {
        self.with(|inner| inner.memory.unmap(iova, size));
    }
    fn reset(&self) -> Result<(), Refusal> {
        self.with(super::life::function_reset);
        Ok(())
    }
    fn interrupts(&self, request: IrqRequest, eventfds: Vec<File>) {
        self.with(|inner| match request {
            IrqRequest::DisableAll => inner.vectors.iter_mut().for_each(|vector| *vector = None),
            IrqRequest::Trigger(range) => {
                for vector in range.take(inner.vectors.len()) {
                    inner.raise(u16::try_from(vector).unwrap_or(u16::MAX));
                }
            }
            IrqRequest::Connect(range) => {
                let mut fds = eventfds.into_iter();
                let len = range.len();
                for vector in inner.vectors.iter_mut().skip(range.start).take(len) {
                    *vector = fds.next();
                }
            }
        });
    }
}

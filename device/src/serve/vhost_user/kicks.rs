//! Waits for the kicks of all rings, on one thread.

use super::Refused;
use crate::engine::Engine;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// What stands for the thread's own descriptor among the rings.
const WAKE: u64 = u64::MAX;
/// How often rings without a kick descriptor are looked at.
const POLLING: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// How a ring's driver is heard.
#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    None,
    /// Not at all: the ring is looked at again and again.
    Polling,
    Kick(Arc<File>),
}

/// The thread that waits for kicks. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Kicks {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    wake: OwnedFd,
    sources: Mutex<Vec<Source>>,
    closing: AtomicBool,
    engine: Arc<Engine>,
}

impl Kicks {
    /// Waits for kicks of `rings` rings, of which none has a source yet.
    pub(super) fn new(engine: Arc<Engine>, rings: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            sources: Mutex::new(vec![Source::None; rings]),
            closing: AtomicBool::new(false),
            engine,
        });
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&shared.epoll, &shared.wake, data, epoll::EventFlags::IN)?;
        let waiting = Arc::clone(&shared);
        let thread = thread::Builder::new().name("tidemark-kicks".to_owned());
        let thread = thread.spawn(move || waiting.wait())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Hears ring `index` through `file`; without one, by polling.
    pub(super) fn listen(&self, index: usize, file: Option<File>) -> Result<(), Refused> {
        self.forget(index);
        let source = match file {
            None => Source::Polling,
            Some(file) => {
                let bad = |error| Refused::Event {
                    index,
                    what: "kicks",
                    error,
                };
                nonblocking(&file).map_err(bad)?;
                let data = u64::try_from(index).map_or(WAKE, |index| index);
                let data = epoll::EventData::new_u64(data);
                epoll::add(&self.shared.epoll, &file, data, epoll::EventFlags::IN)
                    .map_err(|error| bad(error.into()))?;
                Source::Kick(Arc::new(file))
            }
        };
        if let Some(slot) = self.shared.sources().get_mut(index) {
            *slot = source;
        }
        self.shared.wake();
        Ok(())
    }

    /// Hears ring `index` no more.
    pub(super) fn forget(&self, index: usize) {
        self.shared.forget(index);
    }
}

impl Drop for Kicks {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn sources(&self) -> MutexGuard<'_, Vec<Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn forget(&self, index: usize) {
        let source = self.sources().get_mut(index).map(std::mem::take);
        if let Some(Source::Kick(file)) = source {
            let _ = epoll::delete(&self.epoll, &*file);
        }
    }

    fn wait(&self) {
        let mut events = Vec::with_capacity(16);
        while !self.closing.load(Ordering::Acquire) {
            let sources = self.sources();
            let polled: Vec<usize> = (0..sources.len())
                .filter(|&index| matches!(sources[index], Source::Polling))
                .collect();
            drop(sources);
            let timeout = (!polled.is_empty()).then_some(&POLLING);
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot wait for kicks");
                    return;
                }
            }
            polled.into_iter().for_each(|index| self.kick(index));
            for event in &events {
                match usize::try_from(event.data.u64()) {
                    Ok(index) if event.data.u64() != WAKE => self.heard(index),
                    _ => {
                        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
                    }
                }
            }
        }
    }

    /// The descriptor of ring `index` is readable.
    fn heard(&self, index: usize) {
        let source = self.sources().get(index).cloned();
        let Some(Source::Kick(file)) = source else {
            return;
        };
        match (&*file).read(&mut [0; 8]) {
            Ok(0) => {
                tracing::warn!(index, "nobody can kick the ring any more");
                self.forget(index);
            }
            Err(error)
                if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                tracing::warn!(index, %error, "the ring's kicks cannot be read");
                self.forget(index);
            }
            _ => self.kick(index),
        }
    }

    fn kick(&self, index: usize) {
        if let Ok(index) = u16::try_from(index) {
            self.engine.kick(index);
        }
    }
}

/// Makes sure that neither a read nor a write of an event descriptor waits.
pub(super) fn nonblocking(file: &File) -> io::Result<()> {
    let flags = fcntl_getfl(file)?;
    if !flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(file, flags | OFlags::NONBLOCK)?;
    }
    Ok(())
}

//! A device served over a vhost-user socket, as QEMU's `vhost-user-blk-pci` connects to one.
//!
//! The `vhost` crate reads and answers messages; what they ask for is done here, on the same memory
//! door, queues and tracker as behind every other front door. The framework on top of that crate,
//! `vhost-user-backend`, is not used: it keeps queues and memory of its own, refuses in-flight
//! tables, ignores LOG_ALL and the flags of a ring's addresses, and loses the log with a new memory
//! table. What it spares, a loop and an epoll, is less than what would have to be worked around.
//!
//! What QEMU sees as the device's virtio-pci function is QEMU's own, so SUSPEND is GET_VRING_BASE
//! of all rings here, queue state is a ring's base, and the tracker is the log.
//!
//! The frontend's messages are judged like everything from outside. One that is refused ends the
//! connection, because nothing says what both sides would agree on then; the next frontend finds
//! the device as after power-on. What no backend can defend itself against is a frontend that cuts
//! off a memory file which it has handed over: access to it ends this process.

mod kicks;
mod memory;
mod ring;
mod session;
#[cfg(test)]
mod tests;

use super::socket::{SocketError, SocketFile};
use crate::dma::Dma;
use crate::pool::Pool;
use crate::queue::InflightError;
use crate::tracker::{LogError, Marking};
use crate::virtio::{QueueError, VirtioDevice};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use session::Session;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

/// A ring that is told to stop has finished what it has in hand within this time, unless the disk
/// is stuck.
pub const DRAIN_WAIT: Duration = Duration::from_secs(10);

/// Why a message of the frontend is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Feature bits that were not offered.
    #[error("feature bits {asked:#x} of which only {offered:#x} were offered")]
    Features {
        /// What was asked for.
        asked: u64,
        /// What there is.
        offered: u64,
    },
    /// A ring that there is not.
    #[error("ring {index} of a device with {rings}")]
    NoRing {
        /// The ring.
        index: u32,
        /// How many the device has.
        rings: usize,
    },
    /// What can only be changed while rings stand still.
    #[error("{what} while a ring runs; it has to be stopped before, by GET_VRING_BASE")]
    Running {
        /// What was to change.
        what: &'static str,
    },
    /// A size or an index that no such ring has.
    #[error("ring {index}: {what}")]
    Ring {
        /// The ring.
        index: usize,
        /// What was expected and what came.
        what: String,
    },
    /// A ring cannot start with what was configured.
    #[error("ring {index} cannot start: {error}")]
    Start {
        /// The ring.
        index: usize,
        /// Why.
        error: QueueError,
    },
    /// A ring did not finish what it has in flight.
    #[error("ring {index} still has requests in flight after {DRAIN_WAIT:?}: the disk is stuck")]
    Stuck {
        /// The ring.
        index: usize,
    },
    /// A table or a region of memory that cannot be mapped, or that overlaps another.
    #[error("memory: {0}")]
    Memory(String),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The in-flight table.
    #[error(transparent)]
    Inflight(#[from] InflightError),
    /// An event descriptor that cannot be waited for or signalled.
    #[error("the descriptor for {what} of ring {index} is no eventfd: {error}")]
    Event {
        /// The ring.
        index: usize,
        /// Kick, call or error.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// A message of a part of the protocol that was not offered.
    #[error("{0} is not supported, and was not offered")]
    Unsupported(&'static str),
}

impl From<Refused> for VhostError {
    fn from(refused: Refused) -> Self {
        Self::ReqHandlerError(io::Error::other(refused))
    }
}

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no socket to listen on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No frontend can be waited for or served any more.
    #[error("cannot serve a frontend: {0}")]
    Io(#[from] io::Error),
    /// The frontend sent what is not vhost-user, or what had to be refused. Its connection was
    /// closed; the next one may come.
    #[error("the frontend's message was refused: {0}")]
    Protocol(VhostError),
    /// The frontend has gone and a ring still works for it; another frontend cannot be served.
    #[error(transparent)]
    Stuck(Refused),
}

/// What a server has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VhostUserStats {
    /// Frontends that connected.
    pub connections: u64,
    /// Rings that were started.
    pub ring_starts: u64,
    /// Requests taken over from a backend that was killed, by the in-flight table.
    pub resubmitted: u64,
    /// Rings that broke.
    pub rings_broken: u64,
    /// Memory tables and changes to them.
    pub memory_changes: u64,
    /// Logs that were put in force.
    pub logs: u64,
    /// Times that logging of data was switched on.
    pub log_starts: u64,
    /// Pages of data written while they were logged; one that is written again counts again.
    pub pages_logged: u64,
    /// Marks dropped because the log has no bit for their page.
    pub beyond_log: u64,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    ring_starts: AtomicU64,
    resubmitted: AtomicU64,
    rings_broken: AtomicU64,
    memory_changes: AtomicU64,
    logs: AtomicU64,
    log_starts: AtomicU64,
    pages_logged: AtomicU64,
    beyond_log: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// The frontend that is connected.
#[derive(Debug)]
struct Current {
    stream: UnixStream,
    dma: Arc<Dma>,
}

/// A device, served to one frontend after the other.
#[derive(Debug)]
pub struct VhostUserServer {
    device: Arc<dyn VirtioDevice>,
    marking: Marking,
    packed: bool,
    counters: Arc<Counters>,
    current: Mutex<Option<Current>>,
    stopping: AtomicBool,
    /// Readable once the server is to stop.
    stop: OwnedFd,
}

impl VhostUserServer {
    /// A server for `device`. With [`Marking::Off`] the log is accepted and never marked: the
    /// negative control of migrations.
    ///
    /// # Errors
    ///
    /// [`ServeError::Io`] if there are no descriptors left.
    pub fn new(device: Arc<dyn VirtioDevice>, marking: Marking) -> Result<Self, ServeError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from)?;
        // It counts the CPUs. When the first frontend comes, the process may have given up asking.
        drop(Pool::global());
        Ok(Self {
            device,
            marking,
            packed: false,
            counters: Arc::default(),
            current: Mutex::default(),
            stopping: AtomicBool::new(false),
            stop,
        })
    }

    /// Offers packed rings to frontends from now on, and then no in-flight tables: theirs have a
    /// layout that is not supported here, and a frontend takes them before it says which rings
    /// there will be. Default: split rings only, with in-flight tables.
    #[must_use]
    pub fn offering_packed(self, packed: bool) -> Self {
        Self { packed, ..self }
    }

    /// Serves whoever connects to `listener`, one after the other, until [`VhostUserServer::stop`].
    /// A frontend that breaks the protocol is logged.
    ///
    /// # Errors
    ///
    /// [`ServeError::Io`] or [`ServeError::Stuck`].
    pub fn run(&self, listener: &UnixListener) -> Result<(), ServeError> {
        while let Some(stream) = self.accept(listener)? {
            match self.serve(stream) {
                Err(error @ ServeError::Protocol(_)) => tracing::warn!(%error, "disconnected"),
                done => done?,
            }
        }
        Ok(())
    }

    /// Serves the first who connects to `listener`, and ends.
    ///
    /// # Errors
    ///
    /// As for [`VhostUserServer::serve`].
    pub fn run_once(&self, listener: &UnixListener) -> Result<(), ServeError> {
        match self.accept(listener)? {
            Some(stream) => self.serve(stream),
            None => Ok(()),
        }
    }

    /// Serves one frontend until it disconnects or [`VhostUserServer::stop`]; then the device is as
    /// after power-on, with nothing in flight.
    ///
    /// # Errors
    ///
    /// [`ServeError::Protocol`], after which another frontend may be served; others as for
    /// [`VhostUserServer::run`].
    pub fn serve(&self, stream: UnixStream) -> Result<(), ServeError> {
        Counters::add(&self.counters.connections, 1);
        let session = Arc::new(Session::new(
            Arc::clone(&self.device),
            self.marking,
            self.packed,
            Arc::clone(&self.counters),
        )?);
        *self.current() = Some(Current {
            stream: stream.try_clone()?,
            dma: Arc::clone(session.dma()),
        });
        let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&session));
        let ended = loop {
            if self.stopping.load(Ordering::Acquire) {
                break Ok(());
            }
            match handler.handle_request() {
                Ok(()) | Err(VhostError::SocketRetry(_)) => {}
                Err(error) => break judge(error),
            }
        };
        // Before the frontend can know that its backend is gone, which it may be connected to again
        // at once.
        let settled = session.end();
        if let Some(current) = self.current().take() {
            let stats = current.dma.tracker_stats();
            Counters::add(&self.counters.pages_logged, stats.pages);
            Counters::add(&self.counters.beyond_log, stats.beyond_length);
            // The descriptor may be another process's too.
            let _ = current.stream.shutdown(Shutdown::Both);
        }
        settled.map_err(ServeError::Stuck)?;
        ended
    }

    /// Ends [`VhostUserServer::run`] and [`VhostUserServer::serve`], which finish what is in
    /// flight. Does not wait for that.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(current) = &*self.current() {
            let _ = current.stream.shutdown(Shutdown::Both);
        }
    }

    /// What was done so far, the current frontend included.
    pub fn stats(&self) -> VhostUserStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &*self.counters;
        let now = self.current().as_ref().map(|now| now.dma.tracker_stats());
        let now = now.unwrap_or_default();
        VhostUserStats {
            connections: load(&counters.connections),
            ring_starts: load(&counters.ring_starts),
            resubmitted: load(&counters.resubmitted),
            rings_broken: load(&counters.rings_broken),
            memory_changes: load(&counters.memory_changes),
            logs: load(&counters.logs),
            log_starts: load(&counters.log_starts),
            pages_logged: load(&counters.pages_logged) + now.pages,
            beyond_log: load(&counters.beyond_log) + now.beyond_length,
        }
    }

    /// The next frontend; `None` when the server is to stop.
    fn accept(&self, listener: &UnixListener) -> Result<Option<UnixStream>, ServeError> {
        loop {
            let mut ready = [
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::new(listener, PollFlags::IN),
            ];
            match poll(&mut ready, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.map_err(io::Error::from)?,
            };
            if self.stopping.load(Ordering::Acquire) {
                return Ok(None);
            }
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(Some(stream));
                }
                // Who connected has gone already.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::Interrupted
                            | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A frontend may go at any time and in the middle of a message: that is an end like any other.
fn judge(error: VhostError) -> Result<(), ServeError> {
    match error {
        VhostError::Disconnected
        | VhostError::PartialMessage
        | VhostError::SocketBroken(_)
        | VhostError::SocketError(_) => {
            tracing::info!(%error, "the frontend is gone");
            Ok(())
        }
        other => Err(ServeError::Protocol(other)),
    }
}

/// A socket to listen on, with a file that goes when this is dropped.
#[derive(Debug)]
pub struct VhostUserListener {
    listener: UnixListener,
    file: SocketFile,
}

impl VhostUserListener {
    /// Listens on `path`, in place of a server that was killed.
    ///
    /// # Errors
    ///
    /// [`ServeError::Socket`].
    pub fn bind(path: &Path) -> Result<Self, ServeError> {
        let (listener, file) = SocketFile::listen(path)?;
        Ok(Self { listener, file })
    }

    /// The listening socket.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

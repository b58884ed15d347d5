//! Functions served over vfio-user sockets, as QEMU's `vfio-user-pci` connects to them.
//!
//! One client at a time. Its messages are read and answered one after the other, on the thread that
//! calls [`VfioUserServer::run`]: a frame of stated bounds ([`Session`] has no more than that, and
//! no socket), then its meaning, judged before it goes to what is [`Served`]. Every message is
//! answered, if only with the errno that says why it was not carried out; only what makes it
//! impossible to tell where the next message begins ends a session.

mod dma;
mod feature;
mod frame;
mod function;
mod interrupts;
mod irqs;
mod log;
mod logging;
mod message;
mod migration;
mod regions;
mod served;
mod session;
mod stop;
#[cfg(test)]
mod tests;
mod version;

pub use dma::{FILES_MAX, MAPS_MAX};
pub use frame::{DATA_MAX, FDS_MAX, MESSAGE_MAX, ProtocolError};
pub use function::{ServeStats, ServedFunction};
pub use log::DmaLog;
pub use migration::STATE_MAX;
pub use served::{IrqRequest, Map, Migrates, Refusal, Served};
pub use session::Session;

use super::socket::{Inherited, SocketError, SocketFile};
use frame::Frame;
use message::Header;
use rustix::io::Errno;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use stop::Stop;

/// Why a function cannot be served, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no socket to listen on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// There is no descriptor by which the server could be stopped.
    #[error("cannot make an eventfd: {0}; let this process have more descriptors")]
    Resources(#[source] io::Error),
    /// No client can be accepted any more.
    #[error("cannot accept a client: {0}")]
    Accept(#[source] io::Error),
    /// The client sent what is not vfio-user. Its connection was closed.
    #[error("the client broke the vfio-user protocol: {0}")]
    Protocol(#[from] ProtocolError),
}

/// How a client's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The client has gone; the next one may come.
    Client,
    /// And nobody can come any more: the server was stopped, or has served the one client there was.
    Last,
}

/// Where clients come from.
#[derive(Debug)]
enum Door {
    Listener(UnixListener),
    /// The one client, until it is served.
    Connected(Mutex<Option<UnixStream>>),
}

/// A function behind a socket.
#[derive(Debug)]
pub struct VfioUserServer {
    door: Door,
    socket: Option<SocketFile>,
    served: Arc<dyn Served>,
    stop: Stop,
}

impl VfioUserServer {
    /// Listens on `path`. A client can connect from when this returns.
    ///
    /// The socket of a server that died is replaced. The socket's file is removed with the server.
    ///
    /// # Errors
    ///
    /// [`ServeError::Socket`] or [`ServeError::Resources`].
    pub fn bind(path: &Path, served: Arc<dyn Served>) -> Result<Self, ServeError> {
        let (listener, socket) = SocketFile::listen(path)?;
        let server = Self::on(Inherited::Listening(listener), served)?;
        Ok(Self {
            socket: Some(socket),
            ..server
        })
    }

    /// Serves those who connect to a socket whose file is somebody else's; or the one client that is
    /// connected to it.
    ///
    /// # Errors
    ///
    /// [`ServeError::Resources`].
    pub fn on(socket: Inherited, served: Arc<dyn Served>) -> Result<Self, ServeError> {
        Ok(Self {
            door: match socket {
                Inherited::Listening(listener) => Door::Listener(listener),
                Inherited::Connected(stream) => Door::Connected(Mutex::new(Some(stream))),
            },
            socket: None,
            served,
            stop: Stop::new().map_err(ServeError::Resources)?,
        })
    }

    /// Serves one client until it disconnects, or until the server is [stopped](Self::stop). May be
    /// called again for the next client; who connects meanwhile waits.
    ///
    /// A client may go at any time, also in the middle of a message: that is an end like any other.
    ///
    /// # Errors
    ///
    /// [`ServeError::Accept`], or [`ServeError::Protocol`], after which the next client may come.
    pub fn run(&self) -> Result<Ended, ServeError> {
        let Some(stream) = self.next_client()? else {
            return Ok(Ended::Last);
        };
        let stream = Arc::new(stream);
        if !self.stop.watch(&stream) {
            return Ok(Ended::Last);
        }
        let ended = serve(&stream, Session::new(Arc::clone(&self.served)));
        self.stop.forget();
        match ended {
            Err(error) if !error.is_end() => return Err(error.into()),
            Err(error) => tracing::info!(%error, "the client is gone"),
            Ok(()) => {}
        }
        match self.door {
            Door::Listener(_) if !self.stop.is_set() => Ok(Ended::Client),
            _ => Ok(Ended::Last),
        }
    }

    /// Ends the serving, now and for good: the client is disconnected, and [`run`](Self::run)
    /// returns. May be called from any thread, any number of times; does not wait.
    pub fn stop(&self) {
        self.stop.set();
    }

    /// The next client; `None` if there will be none.
    fn next_client(&self) -> Result<Option<UnixStream>, ServeError> {
        let listener = match &self.door {
            Door::Connected(client) => {
                let client = client.lock().unwrap_or_else(PoisonError::into_inner).take();
                let Some(client) = client else {
                    return Ok(None);
                };
                // Whoever handed it down may have had it otherwise.
                client.set_nonblocking(false).map_err(ServeError::Accept)?;
                return Ok(Some(client));
            }
            Door::Listener(listener) => listener,
        };
        while self.stop.wait_for(listener).map_err(ServeError::Accept)? {
            match listener.accept() {
                Ok((client, _)) => return Ok(Some(client)),
                // Who came has gone already, or is somebody else's on a socket that others share.
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(ServeError::Accept(error)),
            }
        }
        Ok(None)
    }

    /// Where the server listens; `None` on a socket that it was given.
    pub fn path(&self) -> Option<&Path> {
        self.socket.as_ref().map(SocketFile::path)
    }

    /// Removes the socket's file, if it is still this server's. Who is connected stays so.
    pub fn remove_socket(&self) {
        if let Some(socket) = &self.socket {
            socket.remove();
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock)
}

/// Reads and answers messages until the client goes.
fn serve(stream: &UnixStream, mut session: Session) -> Result<(), ProtocolError> {
    let mut frame = Frame::default();
    while frame.read_header(stream)? {
        let (header, size) = Header::judge(&frame.bytes);
        let size = match size {
            Ok(size) => size,
            Err(error) => {
                if matches!(error, ProtocolError::Size { .. }) {
                    let refusal = Refusal::new(Errno::MSGSIZE, error.to_string());
                    session.refuse(&header, &refusal);
                    // What is wrong matters more than whether the client waits to hear it.
                    let _ = frame::write(stream, session.answer());
                }
                return Err(error);
            }
        };
        frame.read_payload(stream, size)?;
        let fds = std::mem::take(&mut frame.fds);
        let done = if frame.lost {
            let why = format!("more descriptors than the {FDS_MAX} that one message may bring");
            session.refuse(&header, &Refusal::new(Errno::MFILE, why));
            Ok(())
        } else {
            session.message(&frame.bytes, fds)
        };
        let written = frame::write(stream, session.answer());
        done.and(written)?;
    }
    Ok(())
}

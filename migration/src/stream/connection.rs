//! A connection of any kind: a unix socket, TCP, or TLS over either.

use super::vectored::{GatherWrite, ScatterRead};
use crate::tls::{Credentials, HandshakeError, Session};
use driver::memory::DmaMemory;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{Shutdown, shutdown};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// Bytes taken at once where memory cannot be filled by the kernel.
const CHUNK: usize = 64 << 10;

/// A connected stream socket. Clones are the same connection, so that somebody else can hang up.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    Plain(OwnedFd),
    Tls(Box<Session>),
}

impl From<UnixStream> for Connection {
    fn from(socket: UnixStream) -> Self {
        Self(Arc::new(Kind::Plain(socket.into())))
    }
}

impl From<TcpStream> for Connection {
    fn from(socket: TcpStream) -> Self {
        Self(Arc::new(Kind::Plain(socket.into())))
    }
}

impl Connection {
    /// Two ends of one connection.
    ///
    /// # Errors
    /// What the system says.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (here, there) = UnixStream::pair()?;
        Ok((here.into(), there.into()))
    }

    /// TLS to an end that waited for this one. Both show the certificate that the other one pinned.
    ///
    /// # Errors
    /// [`HandshakeError`], after `limit` at the latest.
    pub fn secure(
        socket: impl Into<OwnedFd>,
        keys: &Credentials,
        limit: Duration,
    ) -> Result<Self, HandshakeError> {
        let session = Session::connect(socket.into(), keys, limit)?;
        Ok(Self(Arc::new(Kind::Tls(Box::new(session)))))
    }

    /// TLS with an end that this one waited for.
    ///
    /// # Errors
    /// As [`secure`](Self::secure).
    pub fn accept_secure(
        socket: impl Into<OwnedFd>,
        keys: &Credentials,
        limit: Duration,
    ) -> Result<Self, HandshakeError> {
        let session = Session::accept(socket.into(), keys, limit)?;
        Ok(Self(Arc::new(Kind::Tls(Box::new(session)))))
    }

    fn socket(&self) -> BorrowedFd<'_> {
        match &*self.0 {
            Kind::Plain(socket) => socket.as_fd(),
            Kind::Tls(session) => session.socket(),
        }
    }

    /// Sets how long a read or a write may stand still before it fails.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        set_socket_timeout(self.socket(), Timeout::Recv, time)?;
        set_socket_timeout(self.socket(), Timeout::Send, time)?;
        Ok(())
    }

    /// Ends both ways, for all clones. What was under way may or may not arrive.
    pub fn hang_up(&self) {
        if let Kind::Tls(session) = &*self.0 {
            session.farewell();
        }
        let done = shutdown(self.socket(), Shutdown::Both);
        tracing::debug!(?done, "hanging up");
    }

    /// Ends whatever is being read, and leaves the other way open.
    pub fn stop_reading(&self) {
        let done = shutdown(self.socket(), Shutdown::Read);
        tracing::debug!(?done, "reading no more");
    }

    /// Says that nothing more will be written.
    pub fn stop_writing(&self) {
        let done = match &*self.0 {
            Kind::Plain(socket) => shutdown(socket, Shutdown::Write).map_err(io::Error::from),
            Kind::Tls(session) => session.stop_writing(),
        };
        tracing::debug!(?done, "writing no more");
    }
}

impl Read for &Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &*self.0 {
            Kind::Plain(socket) => Ok(rustix::io::read(socket, into)?),
            Kind::Tls(session) => session.read(into),
        }
    }
}

impl Write for &Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &*self.0 {
            Kind::Plain(socket) => Ok(rustix::io::write(socket, bytes)?),
            Kind::Tls(session) => session.write_all(bytes).map(|()| bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl GatherWrite for &Connection {
    fn write_gathered(
        &mut self,
        head: &[u8],
        memory: &DmaMemory,
        ranges: &[(u64, usize)],
    ) -> io::Result<()> {
        match &*self.0 {
            Kind::Plain(socket) => memory.write_all_to(socket.as_fd(), head, ranges),
            Kind::Tls(session) => session.write_gathered(head, memory, ranges),
        }
    }
}

impl ScatterRead for &Connection {
    fn read_scattered(&mut self, memory: &DmaMemory, ranges: &[(u64, usize)]) -> io::Result<usize> {
        if let Kind::Plain(socket) = &*self.0 {
            return memory.read_from(socket.as_fd(), ranges);
        }
        let mut chunk = vec![0; CHUNK];
        let mut came = 0;
        for &(offset, length) in ranges {
            let mut done = 0;
            while done < length {
                let most = (length - done).min(CHUNK);
                let now = self.read(chunk.get_mut(..most).unwrap_or_default())?;
                if now == 0 {
                    return Ok(came);
                }
                let at = offset + u64::try_from(done).unwrap_or(u64::MAX);
                memory.write(at, chunk.get(..now).unwrap_or_default())?;
                done += now;
                came += now;
            }
        }
        Ok(came)
    }
}

impl Read for Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&*self).read(into)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl GatherWrite for Connection {
    fn write_gathered(
        &mut self,
        head: &[u8],
        memory: &DmaMemory,
        ranges: &[(u64, usize)],
    ) -> io::Result<()> {
        (&*self).write_gathered(head, memory, ranges)
    }
}

impl ScatterRead for Connection {
    fn read_scattered(&mut self, memory: &DmaMemory, ranges: &[(u64, usize)]) -> io::Result<usize> {
        (&*self).read_scattered(memory, ranges)
    }
}

/// What an error of a connection means: a time limit shows as a socket that would block.
pub(super) fn explain(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock {
        let why = "nothing moved within the time limit";
        return io::Error::new(io::ErrorKind::TimedOut, why);
    }
    error
}

//! A connection of any kind: a unix socket or TCP.

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{Shutdown, shutdown};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// A connected stream socket. Clones are the same connection, so that somebody else can hang up.
#[derive(Clone, Debug)]
pub struct Connection(Arc<OwnedFd>);

impl From<UnixStream> for Connection {
    fn from(socket: UnixStream) -> Self {
        Self(Arc::new(socket.into()))
    }
}

impl From<TcpStream> for Connection {
    fn from(socket: TcpStream) -> Self {
        Self(Arc::new(socket.into()))
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

    /// Sets how long a read or a write may stand still before it fails.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        set_socket_timeout(&self.0, Timeout::Recv, time)?;
        set_socket_timeout(&self.0, Timeout::Send, time)?;
        Ok(())
    }

    /// Ends both ways, for all clones. What was under way may or may not arrive.
    pub fn hang_up(&self) {
        let done = shutdown(&self.0, Shutdown::Both);
        tracing::debug!(?done, "hanging up");
    }

    /// Ends whatever is being read, and leaves the other way open.
    pub fn stop_reading(&self) {
        let done = shutdown(&self.0, Shutdown::Read);
        tracing::debug!(?done, "reading no more");
    }

    /// Says that nothing more will be written.
    pub fn stop_writing(&self) {
        let done = shutdown(&self.0, Shutdown::Write);
        tracing::debug!(?done, "writing no more");
    }
}

impl Read for Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, into)?)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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

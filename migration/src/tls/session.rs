//! A connection with TLS, which two threads may use at once: one reads while the other writes.

use super::handshake::{self, HandshakeError};
use super::pin::Credentials;
use driver::memory::DmaMemory;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use rustls::Connection;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of the socket taken at once.
const CHUNK: usize = 64 << 10;
/// Bytes that become records at once, and that are copied out of memory for it.
const PORTION: usize = 256 << 10;

/// A session over a connected socket. `state` is never held while the socket is waited for.
pub(crate) struct Session {
    socket: OwnedFd,
    state: Mutex<Connection>,
    /// Whoever reads has it.
    incoming: Mutex<Incoming>,
    /// Whoever writes has it: records go out in the order in which they were made.
    outgoing: Mutex<Vec<u8>>,
}

/// What came from the socket and has not been looked at.
struct Incoming {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:?})", self.socket)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    pub(super) fn new(socket: OwnedFd, state: Connection) -> Self {
        Self {
            socket,
            state: Mutex::new(state),
            incoming: Mutex::new(Incoming {
                bytes: vec![0; CHUNK].into(),
                from: 0,
                to: 0,
            }),
            outgoing: Mutex::default(),
        }
    }

    /// Over a connection that the other end waited for, within a limit of time.
    pub(crate) fn connect(
        socket: OwnedFd,
        keys: &Credentials,
        limit: Duration,
    ) -> Result<Self, HandshakeError> {
        handshake::connect(socket, keys, limit)
    }

    /// Over a connection that this end waited for.
    pub(crate) fn accept(
        socket: OwnedFd,
        keys: &Credentials,
        limit: Duration,
    ) -> Result<Self, HandshakeError> {
        handshake::accept(socket, keys, limit)
    }

    /// The socket, for its options.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what there is, or waits. No bytes: the other end said that it ends.
    pub(crate) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        loop {
            if let Some(count) = self.take(&mut incoming, into)? {
                return Ok(count);
            }
            let Incoming { bytes, from, to } = &mut *incoming;
            *from = 0;
            *to = 0;
            let count = rustix::io::read(&self.socket, &mut **bytes)?;
            if count == 0 {
                let why = "the connection ended without TLS's word for it: it was cut";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
            }
            *to = count;
        }
    }

    /// What has come already. None: more must come from the socket.
    fn take(&self, incoming: &mut Incoming, into: &mut [u8]) -> io::Result<Option<usize>> {
        let mut state = lock(&self.state);
        loop {
            match state.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done.map(Some),
            }
            let mut rest = incoming
                .bytes
                .get(incoming.from..incoming.to)
                .unwrap_or_default();
            if rest.is_empty() {
                return Ok(None);
            }
            incoming.from += state.read_tls(&mut rest)?;
            let taken = state.process_new_packets();
            taken.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, Damaged(error)))?;
        }
    }

    /// Writes all of it.
    pub(crate) fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        self.send(&mut outgoing, bytes)
    }

    fn send(&self, outgoing: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
        for portion in bytes.chunks(PORTION) {
            outgoing.clear();
            self.seal(portion, outgoing)?;
            let mut rest = outgoing.as_slice();
            while !rest.is_empty() {
                match rustix::io::write(&self.socket, rest) {
                    Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Makes records of bytes.
    fn seal(&self, mut bytes: &[u8], into: &mut Vec<u8>) -> io::Result<()> {
        let mut state = lock(&self.state);
        while !bytes.is_empty() {
            let count = state.writer().write(bytes)?;
            bytes = bytes.get(count..).unwrap_or_default();
            drain(&mut state, into)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Writes `head`, then ranges (offset, length) of memory, each byte of which is read once.
    pub(crate) fn write_gathered(
        &self,
        head: &[u8],
        memory: &DmaMemory,
        ranges: &[(u64, usize)],
    ) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        let mut plain = Vec::with_capacity(PORTION + head.len());
        plain.extend(head);
        for &(offset, length) in ranges {
            let mut done = 0;
            while done < length {
                let now = (length - done).min(PORTION);
                let start = plain.len();
                plain.resize(start + now, 0);
                let at = offset + u64::try_from(done).unwrap_or(u64::MAX);
                memory.read(at, plain.get_mut(start..).unwrap_or_default())?;
                done += now;
                if plain.len() >= PORTION {
                    self.send(&mut outgoing, &plain)?;
                    plain.clear();
                }
            }
        }
        self.send(&mut outgoing, &plain)
    }

    /// Says that nothing more will be written.
    pub(crate) fn stop_writing(&self) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        outgoing.clear();
        {
            let mut state = lock(&self.state);
            state.send_close_notify();
            drain(&mut state, &mut outgoing)?;
        }
        let farewell = std::mem::take(&mut *outgoing);
        let mut rest = farewell.as_slice();
        while !rest.is_empty() {
            let count = rustix::io::write(&self.socket, rest)?;
            rest = rest.get(count..).unwrap_or_default();
        }
        Ok(shutdown(&self.socket, Shutdown::Write)?)
    }

    /// Says so without waiting for anybody, if it can be said at all.
    pub(crate) fn farewell(&self) {
        // Somebody who writes at the moment leaves a record in halves: nothing can follow it.
        let Ok(mut outgoing) = self.outgoing.try_lock() else {
            return;
        };
        outgoing.clear();
        let mut state = lock(&self.state);
        state.send_close_notify();
        let made = drain(&mut state, &mut outgoing);
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = send(&self.socket, &outgoing, flags);
        tracing::trace!(?made, ?sent, "farewell");
    }
}

fn drain(state: &mut Connection, into: &mut Vec<u8>) -> io::Result<()> {
    while state.wants_write() {
        state.write_tls(into)?;
    }
    Ok(())
}

/// What came is not what was sent.
#[derive(Debug, thiserror::Error)]
#[error(
    "expected what the other end sent, got {0}: somebody changed it on its way, or the other end gave up"
)]
struct Damaged(rustls::Error);

impl Drop for Session {
    fn drop(&mut self) {
        self.farewell();
    }
}

//! Where a guest goes to and comes from: unix sockets and TCP.
//!
//! Plain TCP shows a guest's memory to everybody on the way and takes one from anybody, so it is
//! for loopback addresses only, unless whoever asks says otherwise.

use crate::error::MigrationError;
use crate::stream::Connection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

/// Somewhere to connect to or to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP, HOST:PORT.
    Tcp(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(name) => write!(f, "tcp:{name}"),
        }
    }
}

/// How connections are made.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How many of them.
    pub connections: usize,
    /// How long one may stand still before it counts as broken.
    pub timeout: Duration,
    /// Plain TCP to other machines as well.
    pub insecure: bool,
}

fn failed(doing: impl Into<String>) -> impl FnOnce(io::Error) -> MigrationError {
    let doing = doing.into();
    move |source| MigrationError::Connection { doing, source }
}

fn resolve(name: &str, terms: &Terms) -> io::Result<SocketAddr> {
    let found = name.to_socket_addrs()?.next();
    let address = found.ok_or_else(|| io::Error::other("the name has no address"))?;
    if address.ip().is_loopback() || terms.insecure {
        return Ok(address);
    }
    let why = format!(
        "{address} is another machine, and plain TCP shows the guest's memory on the way there; \
         use a loopback address and a tunnel, or pass --insecure"
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

/// Connects.
///
/// # Errors
/// [`MigrationError::Connection`].
pub fn connect(to: &Address, terms: &Terms) -> Result<Vec<Connection>, MigrationError> {
    let doing = || format!("cannot reach {to}");
    let one = || -> io::Result<Connection> {
        let connection = match to {
            Address::Unix(path) => UnixStream::connect(path)?.into(),
            Address::Tcp(name) => {
                let address = resolve(name, terms)?;
                of_tcp(TcpStream::connect_timeout(&address, terms.timeout)?)?
            }
        };
        Connection::set_timeout(&connection, Some(terms.timeout))?;
        Ok(connection)
    };
    let made: io::Result<Vec<Connection>> = (0..terms.connections).map(|_| one()).collect();
    made.map_err(failed(doing()))
}

fn of_tcp(socket: TcpStream) -> io::Result<Connection> {
    // Answers are small and waited for.
    socket.set_nodelay(true)?;
    Ok(socket.into())
}

/// Waits for a source.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// [`MigrationError::Connection`].
    pub fn bind(at: &Address, terms: &Terms) -> Result<Self, MigrationError> {
        let bound = || -> io::Result<Self> {
            Ok(match at {
                Address::Unix(path) => Self {
                    socket: Socket::Unix(UnixListener::bind(path)?),
                    address: at.clone(),
                },
                Address::Tcp(name) => {
                    let socket = TcpListener::bind(resolve(name, terms)?)?;
                    let address = Address::Tcp(socket.local_addr()?.to_string());
                    Self {
                        socket: Socket::Tcp(socket),
                        address,
                    }
                }
            })
        };
        bound().map_err(failed(format!("cannot listen on {at}")))
    }

    /// Where it listens: with the port that the system chose, if it was to choose one.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Takes the connections of one source: waits for the first as long as it takes, for the others
    /// no longer than a connection may stand still. A unix socket's name is gone afterwards.
    ///
    /// # Errors
    /// [`MigrationError::Connection`].
    pub fn accept(self, terms: &Terms) -> Result<Vec<Connection>, MigrationError> {
        let mut taken = Vec::new();
        for number in 0..terms.connections {
            let doing = format!(
                "waiting for connection {} of {}",
                number + 1,
                terms.connections
            );
            let limit = (number > 0).then_some(terms.timeout);
            taken.push(self.one(terms, limit).map_err(failed(doing))?);
        }
        if let Address::Unix(path) = &self.address {
            std::fs::remove_file(path).map_err(failed("removing the socket's name"))?;
        }
        Ok(taken)
    }

    fn one(&self, terms: &Terms, limit: Option<Duration>) -> io::Result<Connection> {
        let connection = match &self.socket {
            Socket::Unix(socket) => {
                wait(socket, limit)?;
                socket.accept()?.0.into()
            }
            Socket::Tcp(socket) => {
                wait(socket, limit)?;
                of_tcp(socket.accept()?.0)?
            }
        };
        Connection::set_timeout(&connection, Some(terms.timeout))?;
        Ok(connection)
    }
}

fn wait(socket: &impl AsFd, limit: Option<Duration>) -> io::Result<()> {
    let Some(limit) = limit else { return Ok(()) };
    let mut waiting = [PollFd::new(socket, PollFlags::IN)];
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    loop {
        match poll(&mut waiting, Some(&limit)) {
            Ok(0) => {
                let why = "nobody connected within the time limit; start both sides with the same \
                           --connections";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

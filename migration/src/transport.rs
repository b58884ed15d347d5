//! Where a guest goes to and comes from: unix sockets, TCP, and TLS over TCP.
//!
//! Plain TCP shows a guest's memory to everybody on the way and takes one from anybody, so it is
//! for loopback addresses only, unless whoever asks says otherwise. With TLS each end has the other's
//! certificate beforehand and talks to nobody else.

use crate::error::MigrationError;
use crate::stream::Connection;
use crate::tls::{Credentials, HandshakeError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Somewhere to connect to or to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP, HOST:PORT.
    Tcp(String),
    /// TLS over TCP, HOST:PORT.
    Tls(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(name) => write!(f, "tcp:{name}"),
            Self::Tls(name) => write!(f, "tls:{name}"),
        }
    }
}

/// How connections are made.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How many of them.
    pub connections: usize,
    /// How long one may stand still before it counts as broken.
    pub timeout: Duration,
    /// Plain TCP to other machines as well.
    pub insecure: bool,
    /// Certificates, which TLS takes.
    pub tls: Option<Credentials>,
}

fn failed(doing: impl Into<String>) -> impl FnOnce(io::Error) -> MigrationError {
    let doing = doing.into();
    move |source| MigrationError::Connection { doing, source }
}

fn resolve(name: &str) -> io::Result<SocketAddr> {
    let found = name.to_socket_addrs()?.next();
    found.ok_or_else(|| io::Error::other("the name has no address"))
}

fn resolve_plain(name: &str, terms: &Terms) -> io::Result<SocketAddr> {
    let address = resolve(name)?;
    if address.ip().is_loopback() || terms.insecure {
        return Ok(address);
    }
    let why = format!(
        "{address} is another machine, and plain TCP shows the guest's memory on the way there; \
         use tls:HOST:PORT with certificates, or pass --insecure"
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
                let address = resolve_plain(name, terms)?;
                of_tcp(TcpStream::connect_timeout(&address, terms.timeout)?)?.into()
            }
            Address::Tls(name) => {
                let keys = credentials(terms)?;
                let socket = TcpStream::connect_timeout(&resolve(name)?, terms.timeout)?;
                let secure = Connection::secure(of_tcp(socket)?, keys, terms.timeout);
                secure.map_err(of_handshake)?
            }
        };
        Connection::set_timeout(&connection, Some(terms.timeout))?;
        Ok(connection)
    };
    let made: io::Result<Vec<Connection>> = (0..terms.connections).map(|_| one()).collect();
    made.map_err(failed(doing()))
}

fn of_tcp(socket: TcpStream) -> io::Result<TcpStream> {
    // Answers are small and waited for.
    socket.set_nodelay(true)?;
    Ok(socket)
}

fn of_handshake(error: HandshakeError) -> io::Error {
    match error {
        HandshakeError::System(error) => error,
        other => io::Error::other(other),
    }
}

fn credentials(terms: &Terms) -> io::Result<&Credentials> {
    terms.tls.as_ref().ok_or_else(|| {
        let why = "TLS takes certificates: pass --tls-cert, --tls-key and --tls-peer";
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })
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
    Tls(TcpListener),
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
                    let socket = TcpListener::bind(resolve_plain(name, terms)?)?;
                    let address = Address::Tcp(socket.local_addr()?.to_string());
                    Self {
                        socket: Socket::Tcp(socket),
                        address,
                    }
                }
                Address::Tls(name) => {
                    credentials(terms)?;
                    let socket = TcpListener::bind(resolve(name)?)?;
                    let address = Address::Tls(socket.local_addr()?.to_string());
                    Self {
                        socket: Socket::Tls(socket),
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
    /// no longer than a connection may stand still. Whoever fails TLS's handshake is turned away, with
    /// a warning, and the wait goes on. A unix socket's name is gone afterwards.
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
            let until = (number > 0).then(|| Instant::now() + terms.timeout);
            taken.push(self.one(terms, until).map_err(failed(doing))?);
        }
        if let Address::Unix(path) = &self.address {
            std::fs::remove_file(path).map_err(failed("removing the socket's name"))?;
        }
        Ok(taken)
    }

    fn one(&self, terms: &Terms, until: Option<Instant>) -> io::Result<Connection> {
        let connection = match &self.socket {
            Socket::Unix(socket) => {
                wait(socket, until)?;
                socket.accept()?.0.into()
            }
            Socket::Tcp(socket) => {
                wait(socket, until)?;
                of_tcp(socket.accept()?.0)?.into()
            }
            Socket::Tls(socket) => loop {
                wait(socket, until)?;
                let (stream, from) = socket.accept()?;
                let keys = credentials(terms)?;
                match Connection::accept_secure(of_tcp(stream)?, keys, terms.timeout) {
                    Ok(connection) => break connection,
                    // Anybody can connect, and shall not end what waits for somebody else.
                    Err(error) => tracing::warn!(%from, "turned away: {error}"),
                }
            },
        };
        Connection::set_timeout(&connection, Some(terms.timeout))?;
        Ok(connection)
    }
}

fn wait(socket: &impl AsFd, until: Option<Instant>) -> io::Result<()> {
    let Some(until) = until else { return Ok(()) };
    let mut waiting = [PollFd::new(socket, PollFlags::IN)];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let limit = Timespec::try_from(left).map_err(io::Error::other)?;
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

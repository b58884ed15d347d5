//! Listening sockets: their files, made, told from a dead server's, and removed; and those that a
//! parent process hands down.

use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketType, getpeername, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why there is no socket to serve.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A server listens on the socket already.
    #[error("{path} is in use: another server listens on it; stop it or choose another path")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else than a socket is at the path.
    #[error("{path} exists and is no socket; a path to be created was expected, choose another")]
    NotASocket {
        /// What was in the way.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error(
        "cannot listen on {path}: {error}; a path of at most 107 bytes in a folder that can be written was expected"
    )]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A descriptor that was handed down is not what can be served.
    #[error("descriptor {fd} {what}; a Unix stream socket was expected, listening or connected")]
    Inherited {
        /// The descriptor's number.
        fd: RawFd,
        /// What it is instead.
        what: String,
    },
}

/// A Unix stream socket that this process was started with.
#[derive(Debug)]
pub enum Inherited {
    /// It listens, as socket activation hands one down.
    Listening(UnixListener),
    /// It is connected to the one client there will be.
    Connected(UnixStream),
}

/// A socket's file that a listener of this process made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: the file is removed only while it is this one.
    id: Option<(u64, u64)>,
}

impl SocketFile {
    /// Listens on `path`, in place of a server that died. The file goes with the result.
    ///
    /// # Errors
    ///
    /// [`SocketError`].
    pub fn listen(path: &Path) -> Result<(UnixListener, Self), SocketError> {
        let bind = |error| SocketError::Bind {
            path: path.to_owned(),
            error,
        };
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(SocketError::NotASocket {
                    path: path.to_owned(),
                });
            }
            Ok(_) if is_dead(path).map_err(bind)? => {
                tracing::info!(?path, "removing the socket of a server that died");
                fs::remove_file(path).map_err(bind)?;
            }
            Ok(_) => {
                return Err(SocketError::InUse {
                    path: path.to_owned(),
                });
            }
            // Not there, or a reason that binding will name.
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(bind)?;
        let file = Self {
            path: path.to_owned(),
            id: id(path),
        };
        Ok((listener, file))
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, if it is still this listener's.
    pub fn remove(&self) {
        if self.id.is_some() && id(&self.path) == self.id {
            // It goes at the latest when the next server finds nobody listening.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

fn id(path: &Path) -> Option<(u64, u64)> {
    let there = fs::symlink_metadata(path).ok()?;
    Some((there.dev(), there.ino()))
}

/// Whether nobody has the socket open. A server takes the first that connects for its one client,
/// so this asks with a datagram socket: the kernel refuses the connection if the file has no owner,
/// and finds the type wrong if it has one, who does not notice.
fn is_dead(path: &Path) -> io::Result<bool> {
    match UnixDatagram::unbound()?.connect(path) {
        Err(error) => Ok(error.kind() == io::ErrorKind::ConnectionRefused),
        Ok(()) => Ok(false),
    }
}

/// The socket that this process was started with as descriptor `fd`.
///
/// Works on a duplicate that the kernel makes; the descriptor itself stays as it is.
///
/// # Errors
///
/// [`SocketError::Inherited`] if there is no such descriptor, or it is anything else.
pub fn inherited(fd: RawFd) -> Result<Inherited, SocketError> {
    let bad = |what: String| SocketError::Inherited { fd, what };
    let failed = |error: rustix::io::Errno| bad(format!("cannot be used: {error}"));
    let duplicate = || -> rustix::io::Result<OwnedFd> {
        let this = pidfd_open(getpid(), PidfdFlags::empty())?;
        let socket = pidfd_getfd(this, fd, PidfdGetfdFlags::empty())?;
        rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
        Ok(socket)
    };
    let socket = duplicate().map_err(|error| match error {
        rustix::io::Errno::BADF => bad("is not open".to_owned()),
        other => failed(other),
    })?;
    match sockopt::socket_domain(&socket) {
        Err(rustix::io::Errno::NOTSOCK) => return Err(bad("is no socket".to_owned())),
        Err(error) => return Err(failed(error)),
        Ok(AddressFamily::UNIX) => {}
        Ok(other) => return Err(bad(format!("is a socket of another family ({other:?})"))),
    }
    let kind = sockopt::socket_type(&socket).map_err(failed)?;
    let listens = sockopt::socket_acceptconn(&socket).map_err(failed)?;
    match (kind, listens) {
        (SocketType::STREAM, true) => Ok(Inherited::Listening(socket.into())),
        (SocketType::STREAM, false) => {
            if let Err(error) = getpeername(&socket) {
                return Err(bad(format!("neither listens nor is connected ({error})")));
            }
            Ok(Inherited::Connected(socket.into()))
        }
        (other, _) => Err(bad(format!("is a socket of another type ({other:?})"))),
    }
}

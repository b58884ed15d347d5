//! Listening sockets: their files, made, told from a dead server's, and removed; and those that a
//! parent process hands down.

use super::ServeError;
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

/// A socket's file that a listener of this process made.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode: the file is removed only while it is this one.
    id: Option<(u64, u64)>,
}

impl SocketFile {
    /// Listens on `path`, in place of a server that died.
    pub(super) fn listen(path: &Path) -> Result<(UnixListener, Self), ServeError> {
        let bind = |error| ServeError::Bind {
            path: path.to_owned(),
            error,
        };
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(ServeError::NotASocket {
                    path: path.to_owned(),
                });
            }
            Ok(_) if is_dead(path).map_err(bind)? => {
                tracing::info!(?path, "removing the socket of a server that died");
                fs::remove_file(path).map_err(bind)?;
            }
            Ok(_) => {
                return Err(ServeError::InUse {
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

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn remove(&self) {
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

/// The listening socket that this process was started with as descriptor `fd`.
///
/// Works on a duplicate that the kernel makes; the descriptor itself stays as it is.
///
/// # Errors
///
/// [`ServeError::Inherited`] if there is no such descriptor, or it is anything else.
pub fn inherited(fd: RawFd) -> Result<UnixListener, ServeError> {
    let bad = |what: String| ServeError::Inherited { fd, what };
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
        (SocketType::STREAM, true) => Ok(socket.into()),
        (SocketType::STREAM, false) => Err(bad("does not listen".to_owned())),
        (other, _) => Err(bad(format!("is a socket of another type ({other:?})"))),
    }
}

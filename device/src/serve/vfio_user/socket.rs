//! The file of a listening socket: made, told from a dead server's, and removed.

use super::ServeError;
use std::fs;
use std::io;
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

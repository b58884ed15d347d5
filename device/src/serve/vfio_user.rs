//! Functions served over vfio-user sockets, as QEMU's `vfio-user-pci` connects to them.
//!
//! The `vfio_user` crate reads one client's messages, one after the other, on the thread that
//! calls [`VfioUserServer::run`]. It has one rule for whoever is behind it: an error answer to a
//! message takes the stream out of step, because the crate sends it with another length than the
//! client expects, and sends it for posted writes too. So nothing that a client or its guest
//! sends is answered with an error: what cannot be done is logged, and its effect is what hardware
//! would do, reads of ones and lost writes.

mod backend;
mod function;
mod interrupts;
mod log;
mod served;
#[cfg(test)]
mod tests;

pub use function::{ServeStats, ServedFunction};
pub use log::DmaLog;
pub use served::{IrqRequest, Map, Served};

use super::socket::{SocketError, SocketFile};
use backend::Backend;
use std::fmt;
use std::io;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_NORESIZE, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};
use vfio_user::{IrqInfo, Server, ServerRegion};

/// Bytes of configuration space: extended capabilities need all of PCI Express's.
const CONFIG_SIZE: u64 = 4096;

/// Why a function cannot be served, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no socket to listen on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No client can be accepted any more.
    #[error("cannot accept a client: {0}")]
    Accept(#[source] io::Error),
    /// The client sent what is not vfio-user. Its connection was closed.
    #[error("the client broke the vfio-user protocol: {0}")]
    Protocol(String),
}

/// A function behind a listening socket.
pub struct VfioUserServer {
    server: Server,
    socket: Option<SocketFile>,
    served: Arc<dyn Served>,
}

impl fmt::Debug for VfioUserServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioUserServer")
            .field("socket", &self.socket)
            .field("served", &self.served)
            .finish_non_exhaustive()
    }
}

impl VfioUserServer {
    /// Listens on `path`. A client can connect from when this returns.
    ///
    /// The socket of a server that died is replaced. The socket's file is removed with the server.
    ///
    /// # Errors
    ///
    /// [`ServeError::Socket`].
    pub fn bind(path: &Path, served: Arc<dyn Served>) -> Result<Self, ServeError> {
        let (listener, socket) = SocketFile::listen(path)?;
        let server = Self::on(listener, served);
        Ok(Self {
            socket: Some(socket),
            ..server
        })
    }

    /// Serves those who connect to `listener`, whose file is somebody else's.
    pub fn on(listener: UnixListener, served: Arc<dyn Served>) -> Self {
        let (irqs, regions) = (irqs(&*served), regions(&*served));
        Self {
            server: Server::from_owned_fd(listener.into(), true, irqs, regions),
            socket: None,
            served,
        }
    }

    /// Serves one client until it disconnects. May be called again for the next client; who
    /// connects meanwhile waits.
    ///
    /// There is no way to end it from outside: who must stop early resets the function, removes
    /// the socket's file and lets the process end.
    ///
    /// # Errors
    ///
    /// [`ServeError::Accept`], or [`ServeError::Protocol`], after which the next client may come.
    pub fn run(&self) -> Result<(), ServeError> {
        let mut backend = Backend(Arc::clone(&self.served));
        // The crate panics on a VERSION message without its JSON text.
        let ended = catch_unwind(AssertUnwindSafe(|| self.server.run(&mut backend)));
        self.served.end();
        match ended {
            Ok(result) => result.or_else(judge),
            Err(_) => Err(ServeError::Protocol(
                "its VERSION message is malformed; version 0.x with a JSON text was expected"
                    .to_owned(),
            )),
        }
    }

    /// Where the server listens; `None` on a listener that it was given.
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

/// A client may go at any time and in the middle of a message: that is an end like any other.
fn judge(error: vfio_user::Error) -> Result<(), ServeError> {
    use vfio_user::Error;
    match error {
        Error::SocketAccept(error) => Err(ServeError::Accept(error)),
        Error::StreamRead(error) | Error::StreamWrite(error) => {
            tracing::info!(%error, "the client is gone");
            Ok(())
        }
        Error::ReceiveWithFd(error) => {
            tracing::info!(%error, "the client is gone");
            Ok(())
        }
        other => Err(ServeError::Protocol(other.to_string())),
    }
}

/// All regions that VFIO knows; those that the function lacks have no bytes.
fn regions(served: &dyn Served) -> Vec<ServerRegion> {
    let region = |index| {
        let size = region_size(served, index);
        let flags = match size {
            0 => 0,
            _ => VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
        };
        ServerRegion {
            region_info: vfio_region_info {
                argsz: u32::try_from(size_of::<vfio_region_info>()).unwrap_or(u32::MAX),
                flags,
                index,
                cap_offset: 0,
                size,
                offset: 0,
            },
            sparse_areas: Vec::new(),
            mmap_fd: None,
        }
    };
    (0..VFIO_PCI_NUM_REGIONS).map(region).collect()
}

/// Bytes of a region, 0 if the function has none.
fn region_size(served: &dyn Served, index: u32) -> u64 {
    match index {
        VFIO_PCI_CONFIG_REGION_INDEX => CONFIG_SIZE,
        // 6 would be the expansion ROM.
        0..=5 => u8::try_from(index).map_or(0, |bar| served.bar_size(bar)),
        _ => 0,
    }
}

/// All kinds of interrupts that VFIO knows; only MSI-X has vectors.
fn irqs(served: &dyn Served) -> Vec<IrqInfo> {
    let irq = |index| {
        let (flags, count) = match index {
            VFIO_PCI_MSIX_IRQ_INDEX => (
                VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE,
                u32::from(served.vectors()),
            ),
            _ => (0, 0),
        };
        IrqInfo {
            index,
            flags,
            count,
        }
    };
    (0..VFIO_PCI_NUM_IRQS).map(irq).collect()
}

//! What can go wrong with an emulated guest.

use driver::DriverError;
use driver::bus::BusError;
use driver::memory::MemoryError;
use std::io;
use std::path::PathBuf;

/// Why a guest could not be built, run, moved or judged.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The guest's shape makes no sense: the caller's input is wrong.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// Which property.
        what: &'static str,
        /// What would do.
        expected: String,
        /// What came.
        got: String,
    },
    /// A file could not be opened, read or written.
    #[error("cannot {doing} {path}: {source}", path = path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused something that is not about a file: memory, a thread.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The driver failed.
    #[error("while {doing}: {source}")]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// What the driver said.
        source: DriverError,
    },
    /// The tracker failed.
    #[error("while tracking: {0}")]
    Dirty(#[from] driver::dirty::DirtyError),
    /// The emulated device cannot be made.
    #[error("cannot make the device: {0}")]
    Device(String),
    /// A virtual CPU stopped by itself.
    #[error("virtual CPU {vcpu} stopped: {why}")]
    Vcpu {
        /// Its number.
        vcpu: usize,
        /// Why.
        why: String,
    },
    /// The guest is running and should not be, or the other way round.
    #[error("the guest is {is}, cannot {operation}")]
    Wrong {
        /// Running or stopped.
        is: &'static str,
        /// What was asked.
        operation: &'static str,
    },
    /// Those who start, suspend and resume its devices together could not.
    #[error("{0}")]
    Agents(String),
    /// A saved state does not fit the guest.
    #[error("saved state of {what}: {why}")]
    BadState {
        /// Of what.
        what: String,
        /// Why not.
        why: String,
    },
}

impl VmError {
    pub(crate) fn file(
        doing: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            doing,
            path,
            source,
        }
    }

    pub(crate) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { doing, source }
    }

    pub(crate) fn driver<E: Into<DriverError>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Driver {
            doing,
            source: source.into(),
        }
    }

    pub(crate) fn shape(
        what: &'static str,
        expected: impl Into<String>,
        got: impl std::fmt::Display,
    ) -> Self {
        Self::Shape {
            what,
            expected: expected.into(),
            got: got.to_string(),
        }
    }
}

impl From<MemoryError> for VmError {
    fn from(error: MemoryError) -> Self {
        Self::driver("touching guest memory")(error)
    }
}

impl From<BusError> for VmError {
    fn from(error: BusError) -> Self {
        Self::driver("using the bus")(error)
    }
}

//! What can go wrong between a frontend and its backend.

use crate::memory::MemoryError;
use spec::features::Features;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a frontend could not do what was asked.
///
/// After [`Request`](Self::Request) and [`Silent`](Self::Silent) the connection is not to be used
/// any more: connect anew, to this backend or to another one.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// Nobody listens at the socket: start the backend, or check the path.
    #[error("cannot connect to a vhost-user backend at {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// This side cannot set up what the connection needs: a descriptor or a thread.
    #[error("cannot {what}: {source}")]
    Setup {
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The backend refused a request, answered another one, or closed the connection.
    #[error("the backend does not carry out {request}: {source}")]
    Request {
        /// Name of the request in the vhost-user specification.
        request: &'static str,
        /// What the protocol's crate said.
        source: vhost::Error,
    },
    /// The backend did not answer in time; the connection has been closed.
    #[error("the backend does not answer {request} within {waited:?}; the connection is closed")]
    Silent {
        /// Name of the request in the vhost-user specification.
        request: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The backend does not offer features that are needed.
    #[error("the backend does not offer {0:?}")]
    FeaturesMissing(Features),
    /// The backend does not offer a protocol feature that is needed.
    #[error("the backend does not offer the protocol feature {0}")]
    ProtocolMissing(&'static str),
    /// The backend has no such queue.
    #[error("there is no queue {index}: the backend has {have}")]
    NoSuchQueue {
        /// Queue number.
        index: u16,
        /// How many there are.
        have: u16,
    },
    /// A queue was to be started that runs, or stopped that does not.
    #[error("queue {index} {state}")]
    QueueState {
        /// Queue number.
        index: u16,
        /// How it is, against what was expected.
        state: &'static str,
    },
    /// Memory with these addresses cannot be shared, or a queue lies outside what is shared.
    #[error("{what} at guest address {address:#x}: {why}")]
    Address {
        /// What was to be there.
        what: &'static str,
        /// Guest address.
        address: u64,
        /// What was expected.
        why: &'static str,
    },
    /// The dirty log is off.
    #[error("the dirty log is off; start it first")]
    NotLogging,
    /// The backend's answer makes no sense.
    #[error("{request} returned {what}")]
    Nonsense {
        /// Name of the request in the vhost-user specification.
        request: &'static str,
        /// What came, and what was expected.
        what: String,
    },
    /// A window of shared memory does not fit its purpose.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

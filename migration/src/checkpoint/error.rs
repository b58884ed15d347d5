//! Why a pair came apart.

use super::failover::FailoverError;
use super::message::Side;
use super::order::ProtocolError;
use crate::error::GuestError;
use crate::stream::StreamError;
use driver::dirty::DirtyError;
use std::io;

/// Why checkpoints ended. The guest's last whole checkpoint stands; who runs it is decided by a
/// failover, and not by this.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The peer said what the protocol does not have there.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The connection broke.
    #[error("the {peer} vanished while {doing}: {source}")]
    Peer {
        /// Who was at its other end.
        peer: Side,
        /// What was being done.
        doing: String,
        /// What the system said, its number included.
        source: io::Error,
    },
    /// The stream between the messages is cut or malformed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// An epoch does not fit the guest, or is not what was announced.
    #[error("an epoch that cannot be taken: {0}")]
    Epoch(String),
    /// The guest could not be stopped, saved, loaded or let go on.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A dirty source failed.
    #[error("dirty source '{name}' failed: {source}")]
    Source {
        /// Its name.
        name: String,
        /// Its error.
        #[source]
        source: DirtyError,
    },
    /// Somebody asked for a failover: no checkpoint is begun or finished any more.
    #[error(transparent)]
    Failover(#[from] FailoverError),
}

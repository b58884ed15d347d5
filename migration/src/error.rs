//! What can go wrong while a guest moves.

use crate::stream::StreamError;
use driver::dirty::DirtyError;
use std::io;
use std::path::PathBuf;

/// A guest could not do what the migration asked of it. The text is for people: it says what was
/// asked, what was expected and what came.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct GuestError(pub String);

impl GuestError {
    /// Wraps whatever went wrong inside the guest, with what was being done.
    pub fn new(doing: &str, cause: impl std::fmt::Display) -> Self {
        Self(format!("{doing}: {cause}"))
    }
}

/// Why a migration did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The other side is gone: the socket ended or broke. The caller decides who runs the guest.
    #[error("the {peer} vanished while {doing}: {source}")]
    PeerVanished {
        /// "source" or "destination".
        peer: &'static str,
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// A connection could not be made, or not be made what it must be.
    #[error("{doing}: {source}")]
    Connection {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// The stream is not one this version can read, or a file that ends too early.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The destination answered with something else than was due.
    #[error(
        "while {doing}: expected {expected} from the destination, got {got}; it is not a \
         `tidemark receive` of this version"
    )]
    Answer {
        /// What was being done.
        doing: String,
        /// The answer that was due.
        expected: String,
        /// What came.
        got: String,
    },
    /// The file that the guest is saved to failed.
    #[error("{doing} to {}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// The destination refused, in its own words.
    #[error("the destination refused: {0}")]
    Refused(String),
    /// A dirty source failed: what it did not report must be taken for dirty.
    #[error("dirty source '{name}' failed: {source}")]
    Source {
        /// Name of the source.
        name: String,
        /// Its error.
        #[source]
        source: DirtyError,
    },
    /// The guest could not be paused, resumed, saved or restored.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The guest dirties memory faster than it can be sent, and the policy says that it stays then.
    #[error("the guest does not converge: {0}")]
    NotConverged(String),
    /// The caller cancelled the migration.
    #[error("cancelled")]
    Cancelled,
    /// The judge of the switch-over found a difference; the guest stays at its source.
    #[error("switch-over refused: {0}")]
    Judged(String),
    /// The source gave the guest up on purpose; seen at the destination.
    #[error("the source aborted the migration")]
    Aborted,
    /// The destination was told to run the guest and then fell silent: it may be running, so the
    /// source must not.
    #[error(
        "the destination was told to go and did not answer ({0}): the guest may be running there, \
         so it stays suspended here"
    )]
    Uncertain(String),
}

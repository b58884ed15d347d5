//! What can go wrong with a store.

use crate::error::GuestError;
use crate::names::{Malformed, Name};
use crate::stream::StreamError;
use std::io;
use std::path::PathBuf;

/// Why a store did not do what it was asked. What was stored under a name before stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder of the store failed.
    #[error("{doing} {}: {cause}", .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The place where bodies are failed.
    #[error("{doing} {object}: {cause}")]
    Bodies {
        /// What was being done.
        doing: &'static str,
        /// The object.
        object: String,
        /// What the place said, with all that it was caused by.
        cause: Box<object_store::Error>,
    },
    /// The place where names are failed.
    #[error("{doing} {place}: {cause}")]
    Names {
        /// What was being done.
        doing: &'static str,
        /// The file or the address.
        place: String,
        /// What it said.
        cause: String,
    },
    /// Something in the store is not what was put there.
    #[error(
        "{what} is damaged: expected {expected}, got {got}; `tidemark store verify` lists all names \
         that it is part of: put those again from their sources"
    )]
    Damaged {
        /// The object or the entry.
        what: String,
        /// What was put there.
        expected: String,
        /// What is there.
        got: String,
    },
    /// There is no store.
    #[error("there is no store at {0}: `tidemark store put` makes one")]
    NoStore(String),
    /// Nothing has the name.
    #[error("nothing is stored as '{0}'; `tidemark store list` shows what is")]
    Unknown(Name),
    /// An increment was made on a checkpoint that has lost its name since, or got another body.
    #[error("'{0}', on which the new checkpoint builds, is not what it was: put it again, whole")]
    BaseGone(Name),
    /// The announcement of a body that was being put has expired: its objects may be gone.
    #[error(
        "the body was not put within the lease of its announcement, which was not renewed in time: \
         put it again"
    )]
    Expired,
    /// Somebody else held the lock of the names for too long.
    #[error(
        "the names are locked by {holder}, and were for {waited} s: try again; the lock goes with \
         its holder, after its lease at the latest"
    )]
    Locked {
        /// Who holds it.
        holder: String,
        /// How long was waited, in seconds.
        waited: u64,
    },
    /// The lock of the names was lost before the batch was committed; nothing of it is visible.
    #[error("the lock of the names was lost before the batch was whole: none of it is; try again")]
    LockLost,
    /// The body is no stream of a guest.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The body is a stream, and not one that can be stored.
    #[error("the body cannot be stored: expected {expected}, got {got}")]
    Body {
        /// What a body must have.
        expected: &'static str,
        /// What it has.
        got: String,
    },
    /// The stream could not be written.
    #[error("writing the stream: {0}")]
    Out(io::Error),
    /// The guest did not take what was stored.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// An address is none.
    #[error("'{text}' is no place for {what}: {why}")]
    Address {
        /// What was given.
        text: String,
        /// For what: bodies or names.
        what: &'static str,
        /// What was expected.
        why: String,
    },
    /// A stored name is none.
    #[error("an entry of {place} has no well-formed name: {why}; somebody else wrote it")]
    Name {
        /// The file or the address.
        place: String,
        /// What is wrong with it.
        why: Malformed,
    },
}

/// For `map_err`: what was being done to which file.
pub(super) fn file(
    doing: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.into();
    move |cause| StoreError::File { doing, path, cause }
}

/// Something that is not what was put there.
pub(super) fn damaged(
    what: impl ToString,
    expected: impl ToString,
    got: impl ToString,
) -> StoreError {
    StoreError::Damaged {
        what: what.to_string(),
        expected: expected.to_string(),
        got: got.to_string(),
    }
}

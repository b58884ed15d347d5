//! TLS: the files it takes, and connections whose two ends know each other's certificate.
//!
//! Agents trust authorities ([`crate::agent::Identity`]); the two ends of a migration are known to
//! each other beforehand and [pin](Pinned) certificates instead. Both read their files here.

mod handshake;
mod pin;
mod session;

pub use handshake::HandshakeError;
pub use pin::{Credentials, Fingerprint, Pinned};
pub(crate) use session::Session;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not what it should be.
    #[error("{}: expected {expected} in PEM: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What is wrong.
        why: String,
    },
    /// What the files hold does not fit together.
    #[error("the certificates and the key do not fit together: {0}")]
    Unfit(String),
}

pub(crate) fn unfit(error: impl std::fmt::Display) -> TlsError {
    TlsError::Unfit(error.to_string())
}

/// The certificates in a file, at least one.
pub(crate) fn certificates(
    path: &Path,
    expected: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |why: String| TlsError::File {
        path: path.to_owned(),
        expected,
        why,
    };
    let found = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    let found: Result<Vec<_>, _> = found.collect();
    let found = found.map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() {
        return Err(wrong("there is none".to_owned()));
    }
    Ok(found)
}

/// The private key in a file.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| TlsError::File {
        path: path.to_owned(),
        expected: "a private key",
        why: error.to_string(),
    })
}

/// Whether bytes are the start of a TLS record: {u8 type, 20 to 24, u8 3, u8 minor}.
pub(crate) fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [20..=24, 3, 0..=4, ..])
}

/// What to do where TLS came to an end that has none.
pub(crate) const TLS_CAME: &str = "the other end speaks TLS: start both sides with tls:HOST:PORT, or \
                                   both with tcp:HOST:PORT";

/// What to do where one end has TLS and the other has not.
pub(crate) const BOTH_OR_NONE: &str =
    "start both sides with tls:HOST:PORT, or both with tcp:HOST:PORT";

#[cfg(test)]
mod tests;

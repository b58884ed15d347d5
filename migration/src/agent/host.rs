//! The devices of one host, by their names.

use crate::agent::desk::Desk;
use crate::agent::{Journal, JournalError, Managed, NAME_MAX, Status};
use crate::lock::{RemoteError, Token};
use rustix::fs::{FlockOperation, flock};
use rustls::pki_types::{CertificateDer, ServerName};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Why an agent does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// What the device's layers say.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The promise cannot be kept, so it is not made.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// There is no such device.
    #[error("there is no device '{0}' here; GET /v1/devices lists those that are")]
    Unknown(String),
    /// No name for a device.
    #[error(
        "device '{0}': expected a name of 1 to {NAME_MAX} letters, digits, '-', '_' and '.', not beginning with '.'"
    )]
    Name(String),
    /// Two devices of one name.
    #[error("device '{0}' is named twice; name each once")]
    Twice(String),
    /// A device cannot be brought up.
    #[error("device '{device}' cannot be configured: {reason}")]
    Device {
        /// Its name.
        device: String,
        /// Why not.
        reason: String,
    },
    /// The caller's certificate is another's.
    #[error("the certificate is not one of '{0}'; use the name that stands in it")]
    Forbidden(String),
}

/// Makes the folder, and locks it against other agents until this one has ended in whatever way.
fn hold(folder: &Path) -> Result<File, JournalError> {
    let failed = |doing: &'static str| {
        move |error: io::Error| JournalError::Io {
            path: folder.to_owned(),
            doing,
            error,
        }
    };
    fs::create_dir_all(folder).map_err(failed("make the folder"))?;
    let held = File::open(folder).map_err(failed("open the folder"))?;
    flock(&held, FlockOperation::NonBlockingLockExclusive)
        .map_err(io::Error::from)
        .map_err(failed("lock the folder, which another agent may have"))?;
    Ok(held)
}

/// Who asks, as far as the connection shows it.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Someone that the file system let through to the socket.
    Local,
    /// The owner of a certificate that was verified.
    Certified(CertificateDer<'static>),
}

impl Caller {
    /// Whether it may use this name: with a certificate, one that stands in it.
    ///
    /// # Errors
    /// [`HostError::Forbidden`].
    pub(super) fn is(&self, who: &str) -> Result<(), HostError> {
        let Self::Certified(certificate) = self else {
            return Ok(());
        };
        let forbidden = || HostError::Forbidden(who.to_owned());
        let certificate = webpki::EndEntityCert::try_from(certificate).map_err(|_| forbidden())?;
        let name = ServerName::try_from(who).map_err(|_| forbidden())?;
        let valid = certificate.verify_is_valid_for_subject_name(&name);
        valid.map_err(|_| forbidden())
    }
}

/// The devices that an agent answers for.
#[derive(Debug)]
pub struct Host {
    desks: BTreeMap<String, Desk>,
    lease: Duration,
    /// Locked as long as this lives.
    _folder: File,
}

impl Host {
    /// Takes up what is kept in `folder` of each device, and brings it back to that. Nobody else may use
    /// the folder. A holder may be silent for a `lease`, counted anew from here.
    ///
    /// # Errors
    /// [`HostError`]: what is wrong with which device.
    pub fn open(
        devices: Vec<(String, Box<dyn Managed>)>,
        folder: &Path,
        lease: Duration,
    ) -> Result<Self, HostError> {
        let held = hold(folder)?;
        let mut desks = BTreeMap::new();
        for (name, device) in devices {
            let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if name.is_empty()
                || name.len() > NAME_MAX
                || name.starts_with('.')
                || !name.bytes().all(letter)
            {
                return Err(HostError::Name(name));
            }
            if desks.contains_key(&name) {
                return Err(HostError::Twice(name));
            }
            let journal = Journal::open(folder, &name)?;
            let desk = Desk::open(&name, device, journal, lease)?;
            desks.insert(name, desk);
        }
        Ok(Self {
            desks,
            lease,
            _folder: held,
        })
    }

    pub(super) fn desk(&self, name: &str) -> Result<&Desk, HostError> {
        let desk = self.desks.get(name);
        desk.ok_or_else(|| HostError::Unknown(name.chars().take(NAME_MAX).collect()))
    }

    /// What anyone may know of every device, sorted by name.
    pub fn statuses(&self) -> Vec<Status> {
        self.desks.values().map(Desk::status).collect()
    }

    /// How often leases are to be looked at.
    pub(super) fn sweep_interval(&self) -> Duration {
        (self.lease / 8).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }

    /// Ends the leases that have run out.
    pub fn sweep(&self) {
        for desk in self.desks.values() {
            desk.sweep();
        }
    }

    /// Hears of the holder of this token.
    ///
    /// # Errors
    /// [`HostError`]: the token is void.
    pub fn renew(&self, device: &str, token: Token) -> Result<(), HostError> {
        self.desk(device)?.renew(token)
    }
}

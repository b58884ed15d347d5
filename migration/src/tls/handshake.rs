//! How a session begins: within a limit of time, with both certificates, and a word of the end that
//! listens, by which the other one knows that it has been let in.

use super::pin::{Credentials, Fingerprint, Stranger};
use super::session::Session;
use super::{BOTH_OR_NONE, is_tls};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConnection, Connection, OtherError, ServerConnection};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the end that listens says once it has seen a certificate that it knows. In TLS 1.3 the other
/// end has sent its own and gone on by then.
const WELCOME: [u8; 8] = *b"TIDEMARK";
/// Bytes taken at once.
const CHUNK: usize = 4 << 10;
/// The name that certificates are not asked for: they are known whole.
const NAME: &str = "tidemark";

/// Why a connection did not come to be one with TLS.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The other end has no TLS.
    #[error("expected TLS, got the bytes {got:02x?}: the other end speaks plainly; {BOTH_OR_NONE}")]
    Plain {
        /// Its first bytes.
        got: Vec<u8>,
    },
    /// The other end showed another certificate than the one that was pinned.
    #[error(
        "the other end's certificate: {0}; give --tls-peer the certificate that it has, if it is who it should be"
    )]
    Certificate(String),
    /// The other end showed none.
    #[error("expected the other end's certificate, got none; it wants --tls-cert and --tls-key")]
    NoCertificate,
    /// The other end refused.
    #[error(
        "the other end refused this side: {alert}; this side's certificate is {own}: the other end's --tls-peer must hold it"
    )]
    Refused {
        /// What it said.
        alert: String,
        /// The certificate that it saw, if it came so far.
        own: Fingerprint,
    },
    /// The connection ended within the handshake.
    #[error(
        "expected the rest of the handshake, got the connection's end after {got} bytes; see there why, or whether anything listens there with TLS"
    )]
    Cut {
        /// Bytes that had come.
        got: u64,
    },
    /// It was not done in time.
    #[error("expected the whole handshake within {limit:?}, got {got} bytes in that time")]
    Slow {
        /// The limit.
        limit: Duration,
        /// Bytes that had come.
        got: u64,
    },
    /// TLS, but no Tidemark behind it.
    #[error("expected the welcome {WELCOME:02x?}, got {got:02x?}: another service listens there")]
    Unwelcome {
        /// What came instead.
        got: Vec<u8>,
    },
    /// Anything else that TLS finds wrong.
    #[error("TLS: {0}")]
    Protocol(rustls::Error),
    /// The system's refusal.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// A handshake under way.
struct Shake<'a> {
    socket: &'a OwnedFd,
    state: &'a mut Connection,
    own: Fingerprint,
    limit: Duration,
    until: Instant,
    /// Bytes that have come.
    got: u64,
}

/// Makes a session of a connection that the other end waited for.
pub(super) fn connect(
    socket: OwnedFd,
    keys: &Credentials,
    limit: Duration,
) -> Result<Session, HandshakeError> {
    let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
    let state = ClientConnection::new(Arc::clone(&keys.client), name);
    let state = state.map_err(HandshakeError::Protocol)?;
    shake(socket, state.into(), keys, limit, |shake| {
        let mut got = Vec::new();
        while got.len() < WELCOME.len() {
            let mut word = [0; WELCOME.len()];
            let word = word.get_mut(got.len()..).unwrap_or_default();
            match shake.state.reader().read(word) {
                Ok(0) => return Err(HandshakeError::Cut { got: shake.got }),
                Ok(count) => got.extend(word.iter().take(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => shake.hear()?,
                Err(error) => return Err(error.into()),
            }
        }
        if got != WELCOME {
            return Err(HandshakeError::Unwelcome { got });
        }
        Ok(())
    })
}

/// Makes a session of a connection that this end waited for.
pub(super) fn accept(
    socket: OwnedFd,
    keys: &Credentials,
    limit: Duration,
) -> Result<Session, HandshakeError> {
    let state = ServerConnection::new(Arc::clone(&keys.server));
    let state = state.map_err(HandshakeError::Protocol)?;
    shake(socket, state.into(), keys, limit, |shake| {
        shake.state.writer().write_all(&WELCOME)?;
        shake.say()
    })
}

fn shake(
    socket: OwnedFd,
    mut state: Connection,
    keys: &Credentials,
    limit: Duration,
    then: impl FnOnce(&mut Shake<'_>) -> Result<(), HandshakeError>,
) -> Result<Session, HandshakeError> {
    let mut shake = Shake {
        socket: &socket,
        state: &mut state,
        own: keys.own,
        limit,
        until: Instant::now() + limit,
        got: 0,
    };
    shake.say()?;
    while shake.state.is_handshaking() {
        shake.hear()?;
        shake.say()?;
    }
    then(&mut shake)?;
    set_socket_timeout(&socket, Timeout::Recv, None).map_err(io::Error::from)?;
    Ok(Session::new(socket, state))
}

impl Shake<'_> {
    /// Sends what there is to send.
    fn say(&mut self) -> Result<(), HandshakeError> {
        let mut bytes = Vec::new();
        while self.state.wants_write() {
            self.state.write_tls(&mut bytes)?;
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match rustix::io::write(self.socket, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                // Whoever hung up may have said why.
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => return Ok(()),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    /// Takes what has come, or waits until something has.
    fn hear(&mut self) -> Result<(), HandshakeError> {
        let slow = HandshakeError::Slow {
            limit: self.limit,
            got: self.got,
        };
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(slow);
        }
        set_socket_timeout(self.socket, Timeout::Recv, Some(left)).map_err(io::Error::from)?;
        let mut chunk = [0; CHUNK];
        let count = match rustix::io::read(self.socket, &mut chunk) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(rustix::io::Errno::AGAIN) => return Err(slow),
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(error) => return Err(io::Error::from(error).into()),
        };
        if count == 0 {
            return Err(HandshakeError::Cut { got: self.got });
        }
        let mut came = chunk.get(..count).unwrap_or_default();
        let plain = (self.got == 0 && count >= 3 && !is_tls(came)).then(|| {
            let first = came.iter().take(8).copied();
            HandshakeError::Plain {
                got: first.collect(),
            }
        });
        self.got += u64::try_from(count).unwrap_or(0);
        while !came.is_empty() {
            self.state.read_tls(&mut came)?;
            let taken = self.state.process_new_packets();
            if let Err(error) = taken {
                // The other end is told as TLS has it, whatever it speaks.
                let told = self.say();
                tracing::debug!(?told, "refusing");
                return Err(plain.unwrap_or_else(|| self.explain(error)));
            }
        }
        Ok(())
    }

    fn explain(&self, error: rustls::Error) -> HandshakeError {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why)))
                if why.is::<Stranger>() =>
            {
                HandshakeError::Certificate(why.to_string())
            }
            rustls::Error::NoCertificatesPresented => HandshakeError::NoCertificate,
            rustls::Error::AlertReceived(alert) => HandshakeError::Refused {
                alert: format!("{alert:?}"),
                own: self.own,
            },
            other => HandshakeError::Protocol(other),
        }
    }
}

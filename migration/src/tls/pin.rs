//! Certificates that are known beforehand: no authority, no name and no date decides, but whether
//! the certificate is the very one.

use super::{TlsError, certificates, private_key, unfit};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    ServerConfig, SignatureScheme,
};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Files in PEM with what one end of a migration takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// This side's certificate; one that it signed itself serves.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The other side's certificate. Where there are several, each is good.
    pub peer: PathBuf,
}

impl Pinned {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(&self) -> Result<Credentials, TlsError> {
        let chain = certificates(&self.certificate, "a certificate")?;
        let pins = certificates(&self.peer, "the other side's certificate")?;
        let own = chain.first().map(Fingerprint::of);
        let own = own.ok_or_else(|| unfit("there is no certificate"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(Verifier {
            pins: pins.iter().map(Fingerprint::of).collect(),
            provider: Arc::clone(&provider),
        });
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unfit)?
            .with_client_cert_verifier(Arc::clone(&verifier) as Arc<dyn ClientCertVerifier>)
            .with_single_cert(chain.clone(), private_key(&self.key)?)
            .map_err(unfit)?;
        // Each connection shows its certificate: nothing is remembered of another.
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unfit)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain, private_key(&self.key)?)
            .map_err(unfit)?;
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        Ok(Credentials {
            server: Arc::new(server),
            client: Arc::new(client),
            own,
        })
    }
}

/// What one end of a migration shows, and what it expects.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
    /// This side's certificate.
    pub(super) own: Fingerprint,
}

/// The SHA-256 of a certificate, by which messages call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SHA-256 ")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Another certificate than the one that was pinned.
#[derive(Clone, Debug, thiserror::Error)]
#[error("expected {}, got {got}", list(.pins))]
pub(super) struct Stranger {
    pins: Vec<Fingerprint>,
    got: Fingerprint,
}

fn list(pins: &[Fingerprint]) -> String {
    let all: Vec<String> = pins.iter().map(ToString::to_string).collect();
    all.join(" or ")
}

#[derive(Debug)]
struct Verifier {
    pins: Vec<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn judge(&self, shown: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let got = Fingerprint::of(shown);
        if self.pins.contains(&got) {
            return Ok(());
        }
        let stranger = Stranger {
            pins: self.pins.clone(),
            got,
        };
        let other = OtherError(Arc::new(stranger));
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(
            other,
        )))
    }

    fn signature_12(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, known)
    }

    fn signature_13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, known)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        let known = &self.provider.signature_verification_algorithms;
        known.supported_schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(shown)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature_12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature_13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(shown)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature_12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature_13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

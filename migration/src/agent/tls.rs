//! Certificates: who this side is, and whom it trusts.

use crate::tls::{TlsError, certificates, private_key, unfit};
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::PathBuf;
use std::sync::Arc;

/// Files in PEM with what TLS between agents and managers takes. Both sides show a certificate, always.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificates of those who may have issued the other side's.
    pub authorities: PathBuf,
    /// This side's certificate, and those up to an authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Identity {
    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        certificates(&self.certificate, "a certificate")
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.authorities, "certificates of authorities")? {
            roots.add(certificate).map_err(unfit)?;
        }
        Ok(Arc::new(roots))
    }

    pub(super) fn server(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider))
                .build()
                .map_err(unfit)?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unfit)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain()?, private_key(&self.key)?)
            .map_err(unfit)?;
        Ok(Arc::new(config))
    }

    pub(super) fn client(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unfit)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain()?, private_key(&self.key)?)
            .map_err(unfit)?;
        Ok(Arc::new(config))
    }
}

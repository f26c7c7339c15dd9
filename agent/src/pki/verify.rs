//! Who is on the other side.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use shoal_types::ClusterId;
use shoal_types::pki::CertRole;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{PkiError, provider, spki_digest};

/// Accepts a manager of one cluster: signed by its CA, for the name managers have, with their role.
#[derive(Debug)]
pub struct ManagerVerifier {
    chain: Arc<WebPkiServerVerifier>,
    cluster: ClusterId,
}

impl ManagerVerifier {
    /// For the cluster with this CA.
    pub fn new(ca_der: &[u8], cluster: &ClusterId) -> Result<Self, PkiError> {
        Ok(Self { chain: chain_verifier(ca_der)?, cluster: cluster.clone() })
    }
}

fn chain_verifier(ca_der: &[u8]) -> Result<Arc<WebPkiServerVerifier>, PkiError> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(ca_der.to_vec()))
        .map_err(|error| PkiError::Authority(error.to_string()))?;
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider()))
        .build()
        .map_err(|error| PkiError::Authority(error.to_string()))
}

/// Organisation and role of a certificate's subject.
fn subject(cert: &[u8]) -> Option<(String, CertRole)> {
    let (_, parsed) = X509Certificate::from_der(cert).ok()?;
    let organisation = parsed.subject().iter_organization().next()?.as_str().ok()?.to_owned();
    let role = parsed.subject().iter_organizational_unit().next()?.as_str().ok()?.parse().ok()?;
    Some((organisation, role))
}

fn refused() -> Error {
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

impl ServerCertVerifier for ManagerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        match subject(end_entity) {
            Some((organisation, CertRole::Manager)) if organisation == self.cluster.as_str() => Ok(verified),
            _ => Err(refused()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Accepts a manager whose CA has the public key that a join token pins. The CA's certificate comes along with the
/// manager's; it is believed only for its digest.
#[derive(Debug)]
pub struct PinnedVerifier {
    pin: [u8; 32],
    schemes: Vec<SignatureScheme>,
    other_ca: AtomicBool,
}

impl PinnedVerifier {
    /// For the CA with this digest.
    pub fn new(pin: [u8; 32]) -> Self {
        let schemes = provider().signature_verification_algorithms.supported_schemes();
        Self { pin, schemes, other_ca: AtomicBool::new(false) }
    }

    /// Whether a connection was refused because the CA was another one.
    pub fn met_other_ca(&self) -> bool {
        self.other_ca.load(Ordering::Relaxed)
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(ca) = intermediates.iter().find(|cert| spki_digest(cert) == Some(self.pin)) else {
            self.other_ca.store(true, Ordering::Relaxed);
            return Err(refused());
        };
        let chain = chain_verifier(ca).map_err(|error| Error::General(error.to_string()))?;
        let verified = chain.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        match subject(end_entity) {
            Some((_, CertRole::Manager)) => Ok(verified),
            _ => Err(refused()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

//! The node's identity: its key, its certificate, the cluster's CA, and TLS made of them.
//!
//! TLS 1.3 only, without resumption: a resumed session would keep an identity that was replaced.

mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use ring::digest::{SHA256, digest};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use shoal_types::ClusterId;
use shoal_types::pki::BACKDATE;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::durable::{self, FileError};

pub use verify::{ManagerVerifier, PinnedVerifier};

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that should be there.
    #[error("{} is missing; leave the swarm with --force and join again", .0.display())]
    Missing(PathBuf),
    /// Making a key or a request.
    #[error("cannot make a key")]
    Generate(#[source] rcgen::Error),
    /// TLS does not take the key or the certificate.
    #[error("the node's certificate and key do not make a TLS identity")]
    Tls(#[source] rustls::Error),
    /// A certificate that does not parse.
    #[error("a certificate does not parse")]
    Certificate,
    /// The CA does not work as a trust anchor.
    #[error("the cluster's CA certificate cannot be used: {0}")]
    Authority(String),
}

/// The key of a certificate that is about to be written.
const NEXT_KEY: &str = "node.key.next";

/// A new key and the request for a certificate of it.
#[derive(Debug)]
pub struct NewKey {
    /// PKCS#8.
    pub key_der: Vec<u8>,
    /// PKCS#10; the CA takes nothing from it but the public key.
    pub csr_der: Vec<u8>,
}

impl NewKey {
    /// Draws a key.
    pub fn generate() -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(PkiError::Generate)?;
        let request = CertificateParams::default().serialize_request(&key).map_err(PkiError::Generate)?;
        Ok(Self { key_der: key.serialize_der(), csr_der: request.der().to_vec() })
    }
}

/// Key, certificate and CA of a node.
#[derive(Clone)]
pub struct Identity {
    /// PKCS#8.
    pub key_der: Vec<u8>,
    /// The node's certificate.
    pub cert_der: Vec<u8>,
    /// The cluster's CA.
    pub ca_der: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the identity in a directory.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let read = |name: &str| -> Result<Vec<u8>, PkiError> {
            let path = dir.join(name);
            durable::read(&path)?.ok_or(PkiError::Missing(path))
        };
        let identity =
            Self { key_der: read("node.key")?, cert_der: read("node.crt")?, ca_der: read("ca.crt")? };
        if let Some(key_der) = durable::read(&dir.join(NEXT_KEY))? {
            let renewed = Self { key_der, ..identity.clone() };
            if renewed.certified_key().is_ok() {
                return Ok(renewed);
            }
        }
        Ok(identity)
    }

    /// Writes the identity to a directory. A crash in between leaves the old one or the new one: the key of either
    /// certificate is there until the certificate is replaced.
    pub fn store(&self, dir: &Path) -> Result<(), PkiError> {
        durable::ensure_dir(dir, 0o700)?;
        durable::write(&dir.join(NEXT_KEY), &self.key_der, 0o600)?;
        durable::write(&dir.join("ca.crt"), &self.ca_der, 0o600)?;
        durable::write(&dir.join("node.crt"), &self.cert_der, 0o600)?;
        durable::write(&dir.join("node.key"), &self.key_der, 0o600)?;
        durable::remove(&dir.join(NEXT_KEY))?;
        Ok(())
    }

    /// When the certificate was issued, and when its life ends.
    pub fn life(&self) -> Result<(SystemTime, SystemTime), PkiError> {
        let (_, cert) = X509Certificate::from_der(&self.cert_der).map_err(|_| PkiError::Certificate)?;
        let at = |seconds: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
        };
        let issued = at(cert.validity().not_before.timestamp()) + BACKDATE;
        Ok((issued, at(cert.validity().not_after.timestamp())))
    }

    fn certified_key(&self) -> Result<CertifiedKey, PkiError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_der.clone()));
        let chain = vec![CertificateDer::from(self.cert_der.clone())];
        CertifiedKey::from_der(chain, key, &provider()).map_err(PkiError::Tls)
    }
}

/// The one crypto provider.
pub fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo: what a join token pins.
pub fn spki_digest(cert: &[u8]) -> Option<[u8; 32]> {
    let (_, parsed) = X509Certificate::from_der(cert).ok()?;
    digest(&SHA256, parsed.public_key().raw).as_ref().try_into().ok()
}

/// A node's TLS identity that can be renewed under running connections.
#[derive(Debug, Clone)]
pub struct Credentials {
    current: Arc<ArcSwap<CertifiedKey>>,
    config: Arc<ClientConfig>,
}

/// Hands out whatever certificate is current.
#[derive(Debug)]
struct Current(Arc<ArcSwap<CertifiedKey>>);

impl ResolvesClientCert for Current {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl Credentials {
    /// TLS to the managers of a cluster, and to nobody else.
    pub fn new(identity: &Identity, cluster: &ClusterId) -> Result<Self, PkiError> {
        let current = Arc::new(ArcSwap::from_pointee(identity.certified_key()?));
        let verifier = ManagerVerifier::new(&identity.ca_der, cluster)?;
        let mut config = client_builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(Current(Arc::clone(&current))));
        finish(&mut config);
        Ok(Self { current, config: Arc::new(config) })
    }

    /// New connections use this identity.
    pub fn renew(&self, identity: &Identity) -> Result<(), PkiError> {
        self.current.store(Arc::new(identity.certified_key()?));
        Ok(())
    }

    /// The TLS settings.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }
}

/// TLS to whoever holds the CA that a token pins, without a certificate of ours.
pub fn joining_config(verifier: Arc<PinnedVerifier>) -> Result<Arc<ClientConfig>, PkiError> {
    let mut config =
        client_builder()?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    finish(&mut config);
    Ok(Arc::new(config))
}

fn client_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, PkiError> {
    ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(PkiError::Tls)
}

fn finish(config: &mut ClientConfig) {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
}

#[cfg(test)]
mod tests;

//! The cluster's certificate authority.
//!
//! Made once at bootstrap: an ECDSA P-256 root whose key lives only sealed inside the Raft state. A certificate takes
//! nothing from a signing request but the public key; subject, names, use and life time are the CA's own.
//!
//! The root key is sealed with the data key of the manager that made the cluster. That is enough for one voter; with
//! several, a manager that is promoted has to be handed the root key over the mutually authenticated manager channel
//! and seal it with its own data key, kept beside the state instead of in it.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use ring::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use shoal_types::object::Cluster;
use shoal_types::pki::{BACKDATE, CertRole, MANAGER_SERVER_NAME, node_server_name};
use shoal_types::{ClusterId, NodeId, Timestamp};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::clock;
use crate::seal::{self, DataKey, SealError};

pub mod identity;
pub mod meter;
pub mod service;

const CA_LIFETIME: Duration = Duration::from_hours(20 * 365 * 24);
const KEY_CONTEXT: &str = "cluster/ca-key";

/// Why the CA could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Generating or signing.
    #[error("cannot {action}")]
    Sign {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// The root key in the state.
    #[error("cannot open the cluster's CA key with this manager's data key")]
    Key(#[source] SealError),
    /// The CA certificate in the state.
    #[error("the cluster's CA certificate does not parse")]
    Certificate,
    /// The request of a node.
    #[error("the certificate signing request {0}")]
    Request(&'static str),
    /// Not enough randomness.
    #[error(transparent)]
    Random(SealError),
}

/// A public key that its holder proved to own, taken out of a signing request.
pub struct RequestedKey(SubjectPublicKeyInfo);

impl RequestedKey {
    /// Reads a PKCS#10 request, checks its self-signature, and drops everything but the key.
    pub fn from_csr(der: &[u8]) -> Result<Self, CaError> {
        let (rest, csr) =
            X509CertificationRequest::from_der(der).map_err(|_| CaError::Request("is not valid DER"))?;
        if !rest.is_empty() {
            return Err(CaError::Request("has bytes after its end"));
        }
        csr.verify_signature().map_err(|_| CaError::Request("is not signed by its own key"))?;
        let key = SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw)
            .map_err(|_| CaError::Request("has a key of an unknown kind"))?;
        Self::checked(key)
    }

    /// The public half of a key of this process.
    pub fn of(pair: &KeyPair) -> Result<Self, CaError> {
        let key = SubjectPublicKeyInfo::from_der(&pair.subject_public_key_info())
            .map_err(|_| CaError::Request("has a key of an unknown kind"))?;
        Self::checked(key)
    }

    fn checked(key: SubjectPublicKeyInfo) -> Result<Self, CaError> {
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::Request("has a key that is not ECDSA P-256"));
        }
        Ok(Self(key))
    }
}

/// The CA, ready to sign.
pub struct Authority {
    cluster: ClusterId,
    cert: CertificateDer<'static>,
    digest: [u8; 32],
    issuer: Issuer<'static, KeyPair>,
    lifetime: Duration,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// A new CA: its certificate, and its key sealed for the state.
pub struct NewAuthority {
    /// Self-signed certificate, DER.
    pub cert_der: Vec<u8>,
    /// Key, sealed with the data key.
    pub key_sealed: Vec<u8>,
}

/// Makes the CA of a new cluster.
pub fn create(cluster: &ClusterId, data_key: &DataKey, now: Timestamp) -> Result<NewAuthority, CaError> {
    let sign = |source| CaError::Sign { action: "make the cluster's CA", source };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(sign)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, cluster.as_str());
    params.distinguished_name.push(DnType::CommonName, "shoal cluster CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(serial()?);
    set_validity(&mut params, now, CA_LIFETIME);
    let cert = params.self_signed(&key).map_err(sign)?;
    let key_sealed = data_key.seal(KEY_CONTEXT, key.serialized_der()).map_err(CaError::Key)?;
    Ok(NewAuthority { cert_der: cert.der().to_vec(), key_sealed })
}

impl Authority {
    /// The CA of the cluster in the state.
    pub fn open(cluster: &Cluster, data_key: &DataKey) -> Result<Self, CaError> {
        let key = data_key.open(KEY_CONTEXT, &cluster.ca_key_sealed).map_err(CaError::Key)?;
        let sign = |source| CaError::Sign { action: "load the cluster's CA", source };
        let key = KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(key.as_slice()),
            &PKCS_ECDSA_P256_SHA256,
        )
        .map_err(sign)?;
        let cert = CertificateDer::from(cluster.ca_cert_der.clone());
        let digest = spki_digest(&cert)?;
        let issuer = Issuer::from_ca_cert_der(&cert, key).map_err(sign)?;
        let lifetime = Duration::from_millis(cluster.cert_lifetime_ms);
        Ok(Self { cluster: cluster.id.clone(), cert, digest, issuer, lifetime })
    }

    /// The CA certificate.
    pub fn cert(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// What a join token pins: SHA-256 of the certificate's SubjectPublicKeyInfo.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The cluster it signs for.
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// Signs a node's certificate.
    pub fn issue(
        &self,
        key: &RequestedKey,
        node: &NodeId,
        role: CertRole,
        now: Timestamp,
    ) -> Result<CertificateDer<'static>, CaError> {
        self.issue_for(key, node, role, now, self.lifetime)
    }

    fn issue_for(
        &self,
        key: &RequestedKey,
        node: &NodeId,
        role: CertRole,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, CaError> {
        let sign = |source| CaError::Sign { action: "sign a node certificate", source };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, self.cluster.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, role.as_str());
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // An agent dials out only: its certificate must not do as a server's.
        let (names, usages) = match role {
            CertRole::Agent => (vec![node_server_name(node)], vec![ExtendedKeyUsagePurpose::ClientAuth]),
            CertRole::Manager => (
                vec![node_server_name(node), MANAGER_SERVER_NAME.to_owned()],
                vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
            ),
        };
        params.extended_key_usages = usages;
        params.subject_alt_names = names
            .into_iter()
            .map(|name| name.as_str().try_into().map(SanType::DnsName))
            .collect::<Result<_, _>>()
            .map_err(sign)?;
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        set_validity(&mut params, now, lifetime);
        let cert = params.signed_by(&key.0, &self.issuer).map_err(sign)?;
        Ok(cert.into())
    }

    /// A certificate whose life ended `ago` before `now`; for tests of the peers that must refuse it.
    #[doc(hidden)]
    pub fn issue_expired(
        &self,
        key: &RequestedKey,
        node: &NodeId,
        role: CertRole,
        now: Timestamp,
    ) -> Result<CertificateDer<'static>, CaError> {
        let then = Timestamp(now.0.saturating_sub(2 * 3_600_000));
        self.issue_for(key, node, role, then, Duration::from_mins(30))
    }
}

/// A CA shared by services.
pub type SharedAuthority = Arc<Authority>;

/// SHA-256 of a certificate's SubjectPublicKeyInfo, DER.
pub fn spki_digest(cert: &CertificateDer<'_>) -> Result<[u8; 32], CaError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).map_err(|_| CaError::Certificate)?;
    let hash = digest(&SHA256, parsed.public_key().raw);
    hash.as_ref().try_into().map_err(|_| CaError::Certificate)
}

fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes: [u8; 16] = seal::random().map_err(CaError::Random)?;
    // Positive and of full length (RFC 5280 section 4.1.2.2).
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, lifetime: Duration) {
    let now = clock::system_time(now);
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
}

#[cfg(test)]
mod tests;

//! Who the holder of a certificate is.

use std::str::FromStr;

use shoal_types::pki::CertRole;
use shoal_types::{ClusterId, NodeId, Timestamp};
use x509_parser::certificate::X509Certificate;
use x509_parser::x509::AttributeTypeAndValue;

/// Subject of a verified certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// O: the cluster.
    pub cluster: ClusterId,
    /// OU: what the holder may do.
    pub role: CertRole,
    /// CN: the node.
    pub node: NodeId,
    /// Serial number, hex; for the log.
    pub serial: String,
    /// Start of its life.
    pub not_before: Timestamp,
    /// End of its life.
    pub not_after: Timestamp,
}

/// Why a certificate names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a certificate.
    #[error("the certificate does not parse")]
    Malformed,
    /// A subject field is missing, double or not valid.
    #[error("the certificate's subject has no valid {0}")]
    Subject(&'static str),
}

impl Identity {
    /// Reads the subject of a certificate. The chain was verified before, by TLS.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|_| IdentityError::Malformed)?;
        let subject = cert.subject();
        Ok(Self {
            cluster: single("O (cluster id)", subject.iter_organization())?,
            role: single("OU (role)", subject.iter_organizational_unit())?,
            node: single("CN (node id)", subject.iter_common_name())?,
            serial: cert.tbs_certificate.raw_serial_as_string().replace(':', ""),
            not_before: time(&cert, |v| v.not_before.timestamp()),
            not_after: time(&cert, |v| v.not_after.timestamp()),
        })
    }
}

fn single<'a, T: FromStr>(
    what: &'static str,
    mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
) -> Result<T, IdentityError> {
    let error = IdentityError::Subject(what);
    match (values.next(), values.next()) {
        (Some(only), None) => only.as_str().ok().and_then(|text| text.parse().ok()).ok_or(error),
        _ => Err(error),
    }
}

fn time(
    cert: &X509Certificate<'_>,
    pick: impl FnOnce(&x509_parser::certificate::Validity) -> i64,
) -> Timestamp {
    Timestamp(u64::try_from(pick(cert.validity())).unwrap_or(0).saturating_mul(1_000))
}

//! This manager's own certificate: kept in files of its own, renewed by itself, swapped while connections are open.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use shoal_types::pki::{BACKDATE, CertRole};
use shoal_types::{NodeId, Timestamp};
use tokio_util::sync::CancellationToken;

use super::{SwapCert, TlsError};
use crate::ca::identity::Identity;
use crate::ca::{CaError, RequestedKey, SharedAuthority};
use crate::clock;
use crate::seal::{self, SealError, write_private};

const KEY: &str = "manager.key";
const CERT: &str = "manager.der";
const CA: &str = "ca.der";
/// Renewal that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(30);
/// Between two renewals at least, however short certificates live.
const PAUSE: Duration = Duration::from_secs(1);
/// However long the certificate lives, the clock is looked at this often: it jumps, and timers don't count the time that
/// a machine was stopped.
const LONGEST: Duration = Duration::from_hours(1);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum OwnCertError {
    /// Its files.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A new key.
    #[error("cannot make a key")]
    Key(#[from] rcgen::Error),
    /// The CA.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Randomness.
    #[error(transparent)]
    Random(#[from] SealError),
}

/// A certificate with its key and the CA it hangs on.
struct Pair {
    key: Vec<u8>,
    cert: CertificateDer<'static>,
    ca: CertificateDer<'static>,
    identity: Identity,
}

impl Pair {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.cert.clone(), self.ca.clone()]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

/// The certificate and where it lives.
pub struct OwnCert {
    dir: PathBuf,
    pair: Pair,
    swap: Arc<SwapCert>,
}

impl OwnCert {
    /// Takes the certificate in `dir`, when there is one of this node that is still good. No CA key is needed for
    /// that: a manager that starts again talks to its peers before it has the state.
    pub fn load(dir: &Path, node: &NodeId) -> Result<Option<Self>, OwnCertError> {
        match load(dir, node) {
            Some(pair) => Self::of(dir, pair).map(Some),
            None => Ok(None),
        }
    }

    /// Issues a new one.
    pub fn issue(dir: &Path, authority: &SharedAuthority, node: &NodeId) -> Result<Self, OwnCertError> {
        let at = |source| OwnCertError::File { path: dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at)?;
        Self::of(dir, issue(dir, authority, node)?)
    }

    fn of(dir: &Path, pair: Pair) -> Result<Self, OwnCertError> {
        let swap = SwapCert::new(pair.chain(), pair.key())?;
        Ok(Self { dir: dir.to_owned(), pair, swap })
    }

    /// For the TLS configurations.
    pub fn swap(&self) -> Arc<SwapCert> {
        Arc::clone(&self.swap)
    }

    /// The CA it hangs on.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.pair.ca
    }

    /// Renews until stopped.
    pub async fn keep_fresh(self, authority: SharedAuthority, stop: CancellationToken) {
        self.keep_fresh_by(clock::now, &authority, &stop).await;
    }

    /// The same by another clock.
    async fn keep_fresh_by(
        mut self,
        now: impl Fn() -> Timestamp,
        authority: &SharedAuthority,
        stop: &CancellationToken,
    ) {
        let draw =
            |identity: &Identity| renewal_time(identity, seal::random::<1>().map_or(128, |[byte]| byte));
        let mut due = draw(&self.pair.identity);
        let mut pause = PAUSE;
        loop {
            let time = now();
            // A clock that was put back made it one of the future: nobody takes it.
            let until = if time < self.pair.identity.not_before { time } else { due };
            let wait = Duration::from_millis(until.since_ms(time)).max(pause);
            // Cancel safe: both only wait.
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait.min(LONGEST)) => {}
            }
            if wait > LONGEST {
                continue;
            }
            pause = match self.renew(authority) {
                Ok(()) => {
                    due = draw(&self.pair.identity);
                    PAUSE
                }
                Err(error) => {
                    tracing::error!(%error, "cannot renew this manager's certificate; trying again");
                    RETRY
                }
            };
        }
    }

    fn renew(&mut self, authority: &SharedAuthority) -> Result<(), OwnCertError> {
        let node = self.pair.identity.node.clone();
        self.pair = issue(&self.dir, authority, &node)?;
        self.swap.replace(self.pair.chain(), self.pair.key())?;
        tracing::info!(
            not_after_ms = self.pair.identity.not_after.0,
            "this manager's certificate was renewed"
        );
        Ok(())
    }
}

/// Between 50 and 80 % of the certificate's life, by `share` of 255. The life began when it was issued, not at the
/// earlier date it carries for the sake of clocks that are behind.
pub fn renewal_time(identity: &Identity, share: u8) -> Timestamp {
    let backdate = u64::try_from(BACKDATE.as_millis()).unwrap_or(0);
    let issued = Timestamp(identity.not_before.0.saturating_add(backdate));
    let life = identity.not_after.since_ms(issued);
    Timestamp(issued.0 + life / 2 + life * 3 / 10 * u64::from(share) / 255)
}

fn load(dir: &Path, node: &NodeId) -> Option<Pair> {
    let read = |name| fs::read(dir.join(name)).ok();
    let key = read(KEY)?;
    let (cert, ca) = (CertificateDer::from(read(CERT)?), CertificateDer::from(read(CA)?));
    let identity = Identity::from_der(&cert).ok()?;
    let pair = KeyPair::try_from(key.as_slice()).ok()?;
    let fits = {
        let (_, parsed) = x509_parser::parse_x509_certificate(&cert).ok()?;
        let (_, issuer) = x509_parser::parse_x509_certificate(&ca).ok()?;
        identity.node == *node
            && identity.role == CertRole::Manager
            && parsed.verify_signature(Some(issuer.public_key())).is_ok()
            && parsed.public_key().subject_public_key.data.as_ref() == pair.public_key_raw()
            && (identity.not_before..identity.not_after).contains(&clock::now())
    };
    fits.then_some(Pair { key, cert, ca, identity })
}

fn issue(dir: &Path, authority: &SharedAuthority, node: &NodeId) -> Result<Pair, OwnCertError> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let cert = authority.issue(&RequestedKey::of(&pair)?, node, CertRole::Manager, clock::now())?;
    let identity = Identity::from_der(&cert).map_err(|_| CaError::Certificate)?;
    let key = pair.serialize_der();
    let at = |source| OwnCertError::File { path: dir.to_owned(), source };
    // A crash in between leaves parts that do not fit together, which the next start replaces.
    write_private(&dir.join(CA), authority.cert()).map_err(at)?;
    write_private(&dir.join(KEY), &key).map_err(at)?;
    write_private(&dir.join(CERT), &cert).map_err(at)?;
    Ok(Pair { key, cert, ca: authority.cert().clone(), identity })
}

#[cfg(test)]
pub(super) mod tests;

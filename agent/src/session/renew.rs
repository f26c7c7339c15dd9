//! Renewal of the node's certificate, between 50 and 80 % of its life.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::RngExt as _;
use shoal_api::pb;
use shoal_api::pb::bootstrap_client::BootstrapClient;
use shoal_api::pb::ca_client::CaClient;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::ManagerAddrs;
use crate::dial;
use crate::pki::{Credentials, Identity, NewKey, PkiError};
use crate::reconciler::chain;
use crate::stats::Stats;

/// Between two tries at most.
const RETRY: Duration = Duration::from_secs(30);
/// Between two tries, and between two renewals, at least.
const PAUSE: Duration = Duration::from_secs(1);
/// A manager may take so long to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Shares of its life after which a certificate is renewed: by chance in between, so that nodes don't come all at once.
const EARLIEST: f64 = 0.5;
const LATEST: f64 = 0.8;
/// However long a certificate lives, it is looked at this often: clocks jump.
const LONGEST: Duration = Duration::from_hours(1);

/// Keeps the node's certificate fresh.
pub struct Renewal {
    /// Where it is kept.
    pub dir: PathBuf,
    /// What uses it.
    pub credentials: Credentials,
    /// Who signs it.
    pub managers: ManagerAddrs,
    /// Socket of the manager that runs beside it, if one does. It is asked first: it signs for a certificate that has
    /// ended, too, as after a long time switched off.
    pub local: Option<PathBuf>,
    /// Where its end is shown.
    pub stats: Arc<Stats>,
    /// Ends it.
    pub closing: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("no manager answers")]
    Unreachable(#[source] std::io::Error),
    #[error("cannot talk to the manager")]
    Transport(#[from] tonic::transport::Error),
    #[error("the manager refused: {}", .0.message())]
    Refused(Box<tonic::Status>),
    #[error("the manager does not answer")]
    Silent(#[from] tokio::time::error::Elapsed),
}

impl Renewal {
    /// Runs until it is told to close.
    pub async fn run(self) {
        loop {
            let (wait, retry) = match Identity::load(&self.dir).and_then(|identity| identity.life()) {
                Ok((issued, end)) => {
                    self.show(issued, end);
                    let now = SystemTime::now();
                    let due = due(issued, end, rand::rng().random_range(EARLIEST..LATEST));
                    (until(due, now).max(PAUSE), retry(until(end, now)))
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the node certificate can't be read");
                    (RETRY, RETRY)
                }
            };
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = tokio::time::sleep(wait.min(LONGEST)) => {}
            }
            if wait > LONGEST {
                continue;
            }
            match self.renew().await {
                Ok(()) => tracing::info!("node certificate renewed"),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the node certificate was not renewed");
                    tokio::select! {
                        () = self.closing.cancelled() => return,
                        () = tokio::time::sleep(retry) => {}
                    }
                }
            }
        }
    }

    fn show(&self, issued: SystemTime, end: SystemTime) {
        Stats::set(&self.stats.cert_issued_ms, unix_ms(issued));
        Stats::set(&self.stats.cert_expires_ms, unix_ms(end));
    }

    async fn renew(&self) -> Result<(), RenewError> {
        let key = NewKey::generate()?;
        let certificate = self.signed(&key.csr_der).await?;
        let identity =
            Identity { key_der: key.key_der, cert_der: certificate.cert_der, ca_der: certificate.ca_der };
        // Proves that key and certificate belong together before anything is overwritten.
        self.credentials.renew(&identity)?;
        identity.store(&self.dir)?;
        Ok(())
    }

    /// The answer of the first manager that signs; if none does, what the last one said.
    async fn signed(&self, csr: &[u8]) -> Result<pb::Certificate, RenewError> {
        let request = || pb::RenewRequest { csr_der: csr.to_vec() };
        let mut last = RenewError::Unreachable(std::io::ErrorKind::NotFound.into());
        if let Some(socket) = &self.local {
            match timeout(ANSWER, ask_local(socket, request())).await.map_err(RenewError::from).flatten() {
                Ok(certificate) => return Ok(certificate),
                Err(error) => last = error,
            }
        }
        let addresses = self.managers.borrow().clone();
        for address in addresses {
            match timeout(ANSWER, self.ask(address, request())).await.map_err(RenewError::from).flatten() {
                Ok(certificate) => return Ok(certificate),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask(
        &self,
        address: SocketAddr,
        request: pb::RenewRequest,
    ) -> Result<pb::Certificate, RenewError> {
        let stream = dial::tls(address, self.credentials.config()).await.map_err(RenewError::Unreachable)?;
        let answer = CaClient::new(dial::over(stream).await?).renew(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| RenewError::Refused(Box::new(status)))
    }
}

async fn ask_local(socket: &Path, request: pb::RenewRequest) -> Result<pb::Certificate, RenewError> {
    let answer = BootstrapClient::new(dial::local(socket).await?).issue_local(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| RenewError::Refused(Box::new(status)))
}

/// Whether a certificate should have been renewed by now, in milliseconds of Unix time: its tries have failed. Of none,
/// whose end is 0, nothing is due.
pub fn is_overdue(issued: u64, end: u64, now: u64) -> bool {
    let at = |ms| UNIX_EPOCH + Duration::from_millis(ms);
    end > 0 && at(now) >= due(at(issued), at(end), LATEST)
}

fn unix_ms(time: SystemTime) -> u64 {
    u64::try_from(until(time, UNIX_EPOCH).as_millis()).unwrap_or(0)
}

/// When that share of a life is over.
fn due(issued: SystemTime, end: SystemTime, share: f64) -> SystemTime {
    issued + until(end, issued).mul_f64(share)
}

fn until(then: SystemTime, now: SystemTime) -> Duration {
    then.duration_since(now).unwrap_or_default()
}

/// How long to wait after a failure: several tries fit into what is left of the certificate's life.
fn retry(left: Duration) -> Duration {
    (left / 4).clamp(PAUSE, RETRY)
}

#[cfg(test)]
mod tests {
    use shoal_types::pki::BACKDATE;

    use super::*;

    /// An identity as the CA makes it, with a life of so many seconds from `issued`.
    fn identity(issued: SystemTime, life: Duration) -> Identity {
        let mut params = rcgen::CertificateParams::default();
        params.not_before = (issued - BACKDATE).into();
        params.not_after = (issued + life).into();
        let key = rcgen::KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("signed").der().to_vec();
        Identity { key_der: key.serialize_der(), ca_der: cert.clone(), cert_der: cert }
    }

    #[test]
    fn renewal_is_between_half_and_four_fifths_of_the_life_however_short() {
        let now = SystemTime::now();
        for life in [60, 600, 7 * 86_400].map(Duration::from_secs) {
            let (issued, end) = identity(now, life).life().expect("parses");
            for share in [EARLIEST, 0.65, LATEST] {
                let wait = until(due(issued, end, share), now);
                // Certificates count whole seconds.
                let off = wait.abs_diff(life.mul_f64(share));
                assert!(off <= Duration::from_secs(1), "{wait:?} at {share} of {life:?}");
            }
        }
    }

    #[test]
    fn a_renewal_is_overdue_when_no_draw_is_as_late_whatever_the_life() {
        const DAY: u64 = 86_400_000;
        for life in [60_000, 3_600_000, 7 * DAY, 90 * DAY] {
            let issued = 1_000_000;
            let at = |percent| is_overdue(issued, issued + life, issued + life / 100 * percent);
            assert_eq!([50, 79, 80, 99, 101].map(at), [false, false, true, true, true], "{life} ms");
        }
        assert!(!is_overdue(0, 0, 7 * DAY), "there is none yet");
    }

    #[test]
    fn a_failed_renewal_is_tried_again_before_the_end() {
        let seconds = |seconds| retry(Duration::from_secs(seconds)).as_secs();
        assert_eq!((seconds(86_400), seconds(12), seconds(0)), (30, 3, 1));
    }
}

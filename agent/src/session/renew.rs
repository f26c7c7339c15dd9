//! Renewal of the node's certificate, between 50 and 80 % of its life.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::RngExt as _;
use shoal_api::pb;
use shoal_api::pb::ca_client::CaClient;
use tokio_util::sync::CancellationToken;

use super::ManagerAddrs;
use crate::dial;
use crate::pki::{Credentials, Identity, NewKey, PkiError};
use crate::reconciler::chain;
use crate::stats::Stats;

const RETRY: Duration = Duration::from_secs(30);
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
}

impl Renewal {
    /// Runs until it is told to close.
    pub async fn run(self) {
        loop {
            let wait = match Identity::load(&self.dir).and_then(|identity| identity.validity()) {
                Ok((start, end)) => {
                    self.show(end);
                    wait(start, end)
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the node certificate can't be read");
                    RETRY
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
                        () = tokio::time::sleep(RETRY) => {}
                    }
                }
            }
        }
    }

    fn show(&self, end: SystemTime) {
        let since = end.duration_since(UNIX_EPOCH).unwrap_or_default();
        Stats::set(&self.stats.cert_expires_ms, u64::try_from(since.as_millis()).unwrap_or(0));
    }

    async fn renew(&self) -> Result<(), RenewError> {
        let key = NewKey::generate()?;
        let addresses = self.managers.borrow().clone();
        let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
        for address in addresses {
            match dial::tls(address, self.credentials.config()).await {
                Ok(stream) => {
                    let mut client = CaClient::new(dial::over(stream).await?);
                    let request = pb::RenewRequest { csr_der: key.csr_der.clone() };
                    let answer = client
                        .renew(request)
                        .await
                        .map_err(|status| RenewError::Refused(Box::new(status)))?;
                    let certificate = answer.into_inner();
                    let identity = Identity {
                        key_der: key.key_der,
                        cert_der: certificate.cert_der,
                        ca_der: certificate.ca_der,
                    };
                    // Proves that key and certificate belong together before anything is overwritten.
                    self.credentials.renew(&identity)?;
                    identity.store(&self.dir)?;
                    return Ok(());
                }
                Err(error) => last = error,
            }
        }
        Err(RenewError::Unreachable(last))
    }
}

/// The time until some point between 50 and 80 % of a life.
fn wait(start: SystemTime, end: SystemTime) -> Duration {
    let life = end.duration_since(start).unwrap_or_default();
    let due = start + life.mul_f64(rand::rng().random_range(0.5..0.8));
    due.duration_since(SystemTime::now()).unwrap_or_default()
}

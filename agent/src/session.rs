//! The session with a manager: one stream that brings assignments and takes reports.
//!
//! Level-triggered on both sides: after a reconnect the manager sends a snapshot and the node says all it knows. While
//! no manager answers, the node goes on with what its ledger holds.

mod inbound;
mod logs;
mod renew;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use shoal_api::pb;
use shoal_api::pb::agent_message::Body;
use shoal_api::pb::dispatcher_client::DispatcherClient;
use shoal_types::object::{NodeDescription, TaskStatus};
use shoal_types::{TaskId, assignment::Assignment};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::dial;
use crate::drivers::runtime::Runtime;
use crate::ledger::{Ledger, LedgerError};
use crate::node;
use crate::pki::Credentials;
use crate::reconciler::{Applied, Reports, chain, now};
use crate::stats::Stats;

use inbound::Inbound;

pub use renew::{Renewal, is_overdue};

const HEARTBEAT: Duration = Duration::from_millis(500);
/// What probes find is said this often, if it is something else.
const PROBES: Duration = Duration::from_secs(2);
/// A manager that acknowledges nothing for so long is left for another one.
const SILENCE: Duration = Duration::from_secs(4);
/// The same in heartbeats of this process: while it was stopped or starved it could hear nobody.
const UNANSWERED: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection.
    #[error("cannot connect to {0}")]
    Connect(SocketAddr, #[source] std::io::Error),
    /// The connection is no HTTP/2.
    #[error("cannot talk to the manager")]
    Transport(#[from] tonic::transport::Error),
    /// The manager refused or went away.
    #[error("the manager ended the session: {}", .0.message())]
    Refused(Box<tonic::Status>),
    /// What it sent does not make sense.
    #[error("the manager sent something invalid")]
    Invalid(#[from] shoal_api::wire::WireError),
    /// What it sent can't be taken.
    #[error("the assignment can't be taken")]
    Ledger(#[from] LedgerError),
    /// It stopped answering.
    #[error("the manager acknowledged nothing for {} s", SILENCE.as_secs())]
    Silent,
    /// The stream ended.
    #[error("the manager closed the session")]
    Closed,
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// Where managers are, shared with the node's record.
pub type ManagerAddrs = Arc<watch::Sender<Vec<SocketAddr>>>;

/// What a session works with.
pub struct Session {
    /// TLS to the managers.
    pub credentials: Credentials,
    /// Where they are.
    pub managers: ManagerAddrs,
    /// What the node was told last.
    pub ledger: Ledger,
    /// To the reconciler.
    pub assignment: Arc<watch::Sender<Arc<Assignment>>>,
    /// From the reconciler.
    pub reports: Reports,
    /// Logs of tasks.
    pub runtime: Arc<dyn Runtime>,
    /// Who the node is.
    pub description: NodeDescription,
    /// Where its tunnel packets come from.
    pub data_addr: std::net::IpAddr,
    /// What it counts.
    pub stats: Arc<Stats>,
    /// Ends it.
    pub closing: CancellationToken,
}

impl Session {
    /// Keeps a session until it is told to close.
    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let (mut turn, mut trouble) = (0, String::new());
        let closing = self.closing.clone();
        loop {
            let addresses = self.managers.borrow().clone();
            let begin = Instant::now();
            if let Some(address) = addresses.get(turn % addresses.len().max(1)).copied() {
                // Dropping a session at any point is what a lost connection does as well.
                let ended = tokio::select! {
                    () = closing.cancelled() => return,
                    ended = self.once(address) => ended,
                };
                Stats::set(&self.stats.session_since_ms, 0);
                self.stats.told.set(false);
                if let Err(error) = ended {
                    let error = chain(&error);
                    if error == trouble {
                        tracing::debug!(%address, error, "still no session");
                    } else {
                        tracing::warn!(%address, error, "no session");
                    }
                    trouble = error;
                }
            }
            if begin.elapsed() > SILENCE {
                pause = FIRST_PAUSE;
            }
            turn += 1;
            self.ledger.store_again();
            let jitter = rand::rng().random_range(0.5..1.5);
            tokio::select! {
                () = closing.cancelled() => return,
                () = tokio::time::sleep(pause.mul_f64(jitter)) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn once(&mut self, address: SocketAddr) -> Result<(), SessionError> {
        let stream = dial::tls(address, self.credentials.config())
            .await
            .map_err(|source| SessionError::Connect(address, source))?;
        let mut client = DispatcherClient::new(dial::over(stream).await?);
        let (send, outbound) = mpsc::channel(256);
        let out = Outbound { send };
        out.say(Body::Hello(pb::Hello {
            description: Some((&self.description).into()),
            data_addr: self.data_addr.to_string(),
            generation: self.ledger.generation().0,
        }))
        .await?;
        let answer = timeout(SILENCE, client.session(ReceiverStream::new(outbound)))
            .await
            .map_err(|_| SessionError::Silent)??;
        tracing::info!(%address, "session");
        Stats::set(&self.stats.session_since_ms, now().0);
        self.exchange(answer.into_inner(), out).await
    }

    async fn exchange(
        &mut self,
        mut stream: tonic::Streaming<pb::ManagerMessage>,
        out: Outbound,
    ) -> Result<(), SessionError> {
        let mut applied = self.reports.applied();
        let mut statuses = self.reports.statuses();
        applied.mark_changed();
        statuses.mark_changed();
        let mut said = BTreeMap::new();
        // A task of its own: taking an assignment waits for the disk, and that must not look like silence.
        let _heart = AbortOnDropHandle::new(tokio::spawn(beat(out.clone())));
        let mut patience = interval(HEARTBEAT);
        patience.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unanswered = 0;
        let (mut probes, mut troubles) = (interval(PROBES), Vec::new());
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut shadowed = self.stats.shadowed.subscribe();
        let mut inbound = Inbound::new(Arc::clone(&self.runtime), out.clone());
        loop {
            // Every arm waits for one thing and loses nothing when another is first.
            tokio::select! {
                message = stream.message() => {
                    unanswered = 0;
                    let message = message?.ok_or(SessionError::Closed)?;
                    inbound.take(self, message)?;
                }
                _ = patience.tick() => {
                    if unanswered >= UNANSWERED {
                        return Err(SessionError::Silent);
                    }
                    unanswered += 1;
                }
                () = either(&mut probes, &mut shadowed) => {
                    self.ledger.store_again();
                    let found = node::troubles(&self.stats);
                    if found != troubles {
                        troubles.clone_from(&found);
                        out.say(Body::Peers(pb::PeerReport { troubles: found })).await?;
                    }
                }
                changed = applied.changed() => {
                    changed.map_err(|_| SessionError::Closed)?;
                    let report = applied.borrow_and_update().clone();
                    if let Some(report) = report {
                        out.say(Body::Applied(applied_message(&report))).await?;
                    }
                }
                changed = statuses.changed() => {
                    changed.map_err(|_| SessionError::Closed)?;
                    let updates = task_updates(&statuses.borrow_and_update(), &mut said);
                    if !updates.is_empty() {
                        out.say(Body::Tasks(pb::TaskReport { updates })).await?;
                    }
                }
            }
        }
    }

    /// Hands the ledger's content to the reconciler.
    fn publish(&self) {
        Stats::set(&self.stats.generation, self.ledger.generation().0);
        self.assignment.send_replace(Arc::new(self.ledger.assignment().clone()));
    }
}

/// Waits until it is time to look at what probes found, or there is news of shadowed listeners.
async fn either(probes: &mut Interval, shadowed: &mut watch::Receiver<Vec<String>>) {
    // Both only wait. The sender is as old as the daemon.
    tokio::select! {
        _ = probes.tick() => {}
        Ok(()) = shadowed.changed() => {}
    }
}

/// Says that this node is alive, until the session ends.
async fn beat(out: Outbound) {
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for seq in 1.. {
        heartbeat.tick().await;
        if out.say(Body::Heartbeat(pb::Heartbeat { seq })).await.is_err() {
            return;
        }
    }
}

/// The node's side of the stream.
#[derive(Debug, Clone)]
struct Outbound {
    send: mpsc::Sender<pb::AgentMessage>,
}

impl Outbound {
    async fn say(&self, body: Body) -> Result<(), SessionError> {
        self.send.send(pb::AgentMessage { body: Some(body) }).await.map_err(|_| SessionError::Closed)
    }
}

fn applied_message(report: &Applied) -> pb::Applied {
    pb::Applied {
        generation: report.generation.0,
        errors: report.errors.clone(),
        took_ms: u64::try_from(report.took.as_millis()).unwrap_or(u64::MAX),
        kernel_writes: report.writes,
        lb: Some(report.lb.into()),
    }
}

/// What was not said yet in this session.
fn task_updates(
    statuses: &BTreeMap<TaskId, TaskStatus>,
    said: &mut BTreeMap<TaskId, TaskStatus>,
) -> Vec<pb::TaskUpdate> {
    said.retain(|id, _| statuses.contains_key(id));
    let mut updates = Vec::new();
    for (id, status) in statuses {
        if said.get(id) != Some(status) {
            updates.push(pb::TaskUpdate { task: id.to_string(), status: Some(status.into()) });
            said.insert(id.clone(), status.clone());
        }
    }
    updates
}

#[cfg(test)]
mod tests;

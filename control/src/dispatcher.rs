//! Sessions of nodes: assignments down, reports up.
//!
//! Files: [`sessions`] who is connected and what each has programmed, [`inbound`] what a node says, [`outbound`] an
//! assignment as messages, [`logs`] lines on their way to operators. One task per session owns its node's last sent
//! assignment; it wakes for messages of the node, for changes of the state, and for its own end. Another one listens. Only the leader has sessions: silence is
//! judged by the one who hears.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use shoal_api::pb;
use shoal_api::pb::agent_message::Body as Up;
use shoal_api::pb::dispatcher_server::Dispatcher;
use shoal_api::status::ApiError;
use shoal_core::{Command, assignment};
use shoal_types::assignment::Assignment;
use shoal_types::object::{NodeDescription, TaskStatus};
use shoal_types::{ErrorCode, LbInUse, NodeId, TaskId};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::authz::Caller;
use crate::consensus::{Leadership, StateView, until_leading};
use crate::manager::Manager;

mod inbound;
pub mod logs;
pub mod outbound;
pub mod sessions;

use inbound::Report;
use sessions::{Outbound, Seat};

const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A node that does not take its messages for so long is cut off; it comes back with a snapshot.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Changes of the state within this time share one delta.
const COALESCE: Duration = Duration::from_millis(5);
const OUTBOUND: usize = 64;
/// Task updates of one report that go into one command.
const UPDATES_PER_COMMAND: usize = 256;

/// The dispatcher, on the control port.
pub struct DispatcherService(pub Arc<Manager>);

fn caller_node<T>(request: &Request<T>) -> Result<NodeId, Status> {
    match request.extensions().get::<Caller>() {
        Some(Caller::Node(identity)) => Ok(identity.node.clone()),
        _ => Err(Status::internal("a session without an identity")),
    }
}

#[tonic::async_trait]
impl Dispatcher for DispatcherService {
    type SessionStream = ReceiverStream<Result<pb::ManagerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let node = caller_node(&request)?;
        let leadership = self.0.consensus.leadership().borrow().clone();
        if !leadership.is_self {
            return Err(not_leader(&self.0.now(), &leadership));
        }
        let inbound = request.into_inner();
        let (outbound, stream) = mpsc::channel(OUTBOUND);
        let manager = Arc::clone(&self.0);
        tokio::spawn(async move {
            let ended = run(&manager, &node, inbound, &outbound).await;
            match ended {
                Ok(()) => tracing::info!(%node, "session ended"),
                Err(status) => {
                    tracing::info!(%node, reason = status.message(), "session ended");
                    // The node may have gone first.
                    drop(outbound.try_send(Err(status)));
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn leave(&self, request: Request<pb::Empty>) -> Result<Response<pb::Empty>, Status> {
        let id = caller_node(&request)?;
        self.0.write("", Command::NodeLeft { id: id.clone() }).await?;
        tracing::info!(node = %id, "the node left");
        Ok(Response::new(pb::Empty {}))
    }
}

fn not_leader(view: &StateView, leadership: &Leadership) -> Status {
    let error =
        ApiError::new(ErrorCode::NoLeader, "sessions are served by the leader, which this manager is not");
    let leader = leadership.leader.as_ref().and_then(|id| view.state.nodes().get(id)?.control_addr);
    match leader {
        Some(addr) => error.with_context(format!("leader: {addr}")).into(),
        None => error.into(),
    }
}

async fn run(
    manager: &Arc<Manager>,
    node: &NodeId,
    mut inbound: Streaming<pb::AgentMessage>,
    outbound: &Outbound,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello came"))??;
    let Some(Up::Hello(hello)) = first.and_then(|message| message.body) else {
        return Err(Status::invalid_argument("the first message of a session is hello"));
    };
    manager.sessions.contact(node);
    greet(manager, node, hello).await?;
    let seat = manager.sessions.open(node, outbound.clone());
    let mut session = Session {
        manager: Arc::clone(manager),
        node: node.clone(),
        seat,
        outbound: outbound.clone(),
        last: None,
        looked_at: Instant::now(),
    };
    session.serve(inbound).await
}

async fn greet(manager: &Manager, node: &NodeId, hello: pb::Hello) -> Result<(), Status> {
    let data_addr: IpAddr = hello.data_addr.parse().map_err(|_| {
        let message = format!("data_addr: '{}' is not an IP address", hello.data_addr);
        Status::from(ApiError::new(ErrorCode::InvalidField, message))
    })?;
    let description = NodeDescription::try_from(hello.description.unwrap_or_default())
        .map_err(|error| Status::from(ApiError::from(error.within("description"))))?;
    tracing::info!(%node, %data_addr, version = description.version, "session begins");
    let command = Command::NodeHello { id: node.clone(), description, data_addr };
    manager.write("", command).await.map(|_| ())
}

/// One node's session, owned by its task.
struct Session {
    manager: Arc<Manager>,
    node: NodeId,
    seat: Seat,
    outbound: Outbound,
    /// What the node was last sent.
    last: Option<Assignment>,
    looked_at: Instant,
}

impl Session {
    async fn serve(&mut self, inbound: Streaming<pb::AgentMessage>) -> Result<(), Status> {
        let (_ear, mut reports) = inbound::listen(&self.manager, &self.node, inbound, self.outbound.clone());
        let mut state = self.manager.consensus.state();
        let mut leadership = self.manager.consensus.leadership();
        let replaced = self.seat.replaced.clone();
        let stop = self.manager.stop.clone();
        self.follow(&mut state).await?;
        loop {
            // Cancel safe: tokens, watches and channels lose nothing when dropped. In no fixed order: a state that never
            // rests must not keep the node's reports waiting.
            tokio::select! {
                () = stop.cancelled() => return Err(Status::unavailable("this manager is stopping")),
                () = replaced.cancelled() => return Err(self.cut()),
                lost = until_leading(&mut leadership, false) => {
                    return Err(not_leader(&self.manager.now(), &lost.unwrap_or_default()));
                }
                changed = state.changed() => {
                    changed.map_err(|_| Status::unavailable("this manager is stopping"))?;
                    self.follow(&mut state).await?;
                }
                report = reports.recv() => match report {
                    Some(report) => self.hear(report?).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    fn cut(&self) -> Status {
        if self.manager.now().state.nodes().contains_key(&self.node) {
            ApiError::new(ErrorCode::VersionConflict, "another session of this node has begun").into()
        } else {
            removed(&self.node)
        }
    }

    /// Looks at the latest state and sends what it changes for this node.
    async fn follow(&mut self, state: &mut watch::Receiver<StateView>) -> Result<(), Status> {
        if self.last.is_some() {
            tokio::time::sleep_until(self.looked_at + COALESCE).await;
        }
        self.looked_at = Instant::now();
        let view = state.borrow_and_update().clone();
        let next =
            assignment::for_node(&view.state, &self.node, view.index).ok_or_else(|| removed(&self.node))?;
        let messages = match &self.last {
            None => outbound::snapshot(&next),
            Some(last) => outbound::change(last, &next),
        };
        if messages.is_empty() {
            self.seat.evaluated(view.index);
            return Ok(());
        }
        self.seat.sent(next.generation.0);
        self.last = Some(next);
        for message in messages {
            self.send(message).await?;
        }
        Ok(())
    }

    async fn send(&self, message: pb::ManagerMessage) -> Result<(), Status> {
        match tokio::time::timeout(SEND_TIMEOUT, self.outbound.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the node is gone")),
            Err(_) => Err(Status::resource_exhausted("the node does not take its messages")),
        }
    }

    async fn hear(&mut self, report: Report) -> Result<(), Status> {
        match report {
            Report::Applied(applied) => {
                self.applied(&applied);
                match applied.lb {
                    Some(lb) => self.balances(lb).await,
                    None => Ok(()),
                }
            }
            Report::Tasks(report) => self.report(report).await,
        }
    }

    fn applied(&self, applied: &pb::Applied) {
        for error in &applied.errors {
            tracing::warn!(node = %self.node, generation = applied.generation, %error, "not programmed");
        }
        tracing::debug!(
            node = %self.node,
            generation = applied.generation,
            took_ms = applied.took_ms,
            kernel_writes = applied.kernel_writes,
            "programmed"
        );
        self.seat.reported(applied.generation, &applied.errors);
    }

    /// How the node balances is written when it is not what the state says.
    async fn balances(&self, lb: pb::LbInUse) -> Result<(), Status> {
        let lb = match LbInUse::try_from(lb) {
            Ok(lb) => lb,
            // An engine of a newer agent must not cost it its session.
            Err(error) => {
                tracing::warn!(node = %self.node, %error, "how the node balances is not understood");
                return Ok(());
            }
        };
        let view = self.manager.now();
        let known = view.state.nodes().get(&self.node).and_then(|n| n.description.lb.in_use);
        if known == Some(lb) {
            return Ok(());
        }
        tracing::info!(node = %self.node, engine = %lb.engine, ipvs = lb.ipvs, lingering = lb.lingering, "balancing");
        self.manager.write("", Command::ReportLb { node: self.node.clone(), lb }).await.map(|_| ())
    }

    async fn report(&self, report: pb::TaskReport) -> Result<(), Status> {
        let mut updates = Vec::with_capacity(report.updates.len());
        for update in report.updates {
            let parsed = parse_update(update);
            updates.push(parsed.map_err(|error| Status::from(ApiError::from(error)))?);
        }
        for part in updates.chunks(UPDATES_PER_COMMAND) {
            let command = Command::ReportTasks { node: self.node.clone(), updates: part.to_vec() };
            self.manager.write("", command).await?;
        }
        Ok(())
    }
}

fn parse_update(update: pb::TaskUpdate) -> Result<(TaskId, TaskStatus), shoal_api::wire::WireError> {
    let task = shoal_api::wire::field("task", &update.task)?;
    let status = shoal_api::wire::required("status", update.status)?.try_into()?;
    Ok((task, status))
}

fn removed(node: &NodeId) -> Status {
    let error =
        ApiError::new(ErrorCode::PermissionDenied, format!("node {node} was removed from the cluster"));
    error.with_help("run 'shoal swarm leave' on it, then join it again with a token").into()
}

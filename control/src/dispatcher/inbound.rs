//! What a node says. A task of its own listens: that a node is alive must not depend on how long a report takes to be
//! written, or on how fast the node takes its assignment.

use std::sync::Arc;

use shoal_api::pb;
use shoal_api::pb::agent_message::Body as Up;
use shoal_api::pb::manager_message::Body as Down;
use shoal_types::NodeId;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming};

use super::sessions::Outbound;
use crate::manager::Manager;

/// Reports that wait for the session.
const REPORTS: usize = 64;

/// What concerns the session itself.
pub(super) enum Report {
    /// What is programmed.
    Applied(pb::Applied),
    /// What became of tasks.
    Tasks(pb::TaskReport),
}

/// Listens until the stream ends or the handle is dropped. Heartbeats, log lines and what probes
/// find are dealt with at once.
pub(super) fn listen(
    manager: &Arc<Manager>,
    node: &NodeId,
    inbound: Streaming<pb::AgentMessage>,
    outbound: Outbound,
) -> (AbortOnDropHandle<()>, mpsc::Receiver<Result<Report, Status>>) {
    let (tell, reports) = mpsc::channel(REPORTS);
    let ear = Ear { manager: Arc::clone(manager), node: node.clone(), outbound };
    let listening = async move {
        if let Err(status) = ear.listen(inbound, &tell).await {
            // A session that has ended by itself does not want to know.
            drop(tell.send(Err(status)).await);
        }
    };
    (AbortOnDropHandle::new(tokio::spawn(listening)), reports)
}

struct Ear {
    manager: Arc<Manager>,
    node: NodeId,
    outbound: Outbound,
}

impl Ear {
    async fn listen(
        &self,
        mut inbound: Streaming<pb::AgentMessage>,
        tell: &mpsc::Sender<Result<Report, Status>>,
    ) -> Result<(), Status> {
        while let Some(message) = inbound.message().await? {
            self.manager.sessions.contact(&self.node);
            let report = match message.body {
                Some(Up::Heartbeat(beat)) => {
                    self.acknowledge(beat);
                    continue;
                }
                Some(Up::Log(chunk)) => {
                    self.log(chunk);
                    continue;
                }
                Some(Up::Peers(report)) => {
                    self.manager.sessions.heard_of_peers(&self.node, report.troubles);
                    continue;
                }
                Some(Up::Applied(applied)) => Report::Applied(applied),
                Some(Up::Tasks(report)) => Report::Tasks(report),
                Some(Up::Hello(_)) => return Err(Status::invalid_argument("hello came twice")),
                // A message of a newer agent.
                None => continue,
            };
            if tell.send(Ok(report)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn acknowledge(&self, beat: pb::Heartbeat) {
        let ack = pb::HeartbeatAck { seq: beat.seq, manager_addrs: self.manager.manager_addrs() };
        self.say(Down::HeartbeatAck(ack));
    }

    fn log(&self, chunk: pb::LogChunk) {
        let request = chunk.request;
        if !self.manager.logs.deliver(chunk) {
            self.say(Down::LogStop(pb::LogStop { request }));
        }
    }

    /// Says what may be lost: while the way to the node is full it hears other things from us, and the next heartbeat or
    /// line comes soon.
    fn say(&self, body: Down) {
        drop(self.outbound.try_send(Ok(pb::ManagerMessage { body: Some(body) })));
    }
}

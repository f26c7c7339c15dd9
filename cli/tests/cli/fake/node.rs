//! The node daemon's socket.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use shoal_api::pb;
use shoal_api::pb::node_server::Node;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::World;

pub(super) struct FakeNode(pub(super) Arc<Mutex<World>>);

#[tonic::async_trait]
impl Node for FakeNode {
    async fn info(&self, _: Request<pb::Empty>) -> Result<Response<pb::LocalNode>, Status> {
        let mut world = self.0.lock().unwrap();
        world.check("info")?;
        // A node that is joining gets its session between two looks.
        let local = world.local.clone();
        if world.local.membership() == pb::Membership::Joining {
            world.local.set_membership(pb::Membership::Active);
            world.local.connected = true;
        }
        Ok(Response::new(local))
    }

    async fn init(&self, request: Request<pb::InitRequest>) -> Result<Response<pb::InitReply>, Status> {
        let mut world = self.0.lock().unwrap();
        world.check("init")?;
        world.inits.push(request.into_inner());
        Ok(Response::new(pb::InitReply {
            node: Some(world.local.clone()),
            worker_token: "SHOAL-1-digest-id-secret".into(),
            join_addr: "10.0.3.11:7377".into(),
            token_expires_at_ms: in_a_day(),
            token_uses: 10,
        }))
    }

    async fn join(&self, request: Request<pb::LocalJoinRequest>) -> Result<Response<pb::LocalNode>, Status> {
        let mut world = self.0.lock().unwrap();
        world.check("join")?;
        world.joins.push(request.into_inner());
        world.local.set_membership(pb::Membership::Joining);
        world.local.set_role(pb::NodeRole::Worker);
        world.local.connected = false;
        Ok(Response::new(world.local.clone()))
    }

    async fn diagnose(
        &self,
        request: Request<pb::DiagnoseRequest>,
    ) -> Result<Response<pb::Diagnosis>, Status> {
        let mut world = self.0.lock().unwrap();
        world.check("diagnose")?;
        let mut checks = world.checks.clone();
        checks.extend(request.into_inner().peers.into_iter().map(|peer| pb::Check {
            name: "managers".into(),
            verdict: pb::Verdict::Ok.into(),
            evidence: format!("{peer} answers"),
            fix: String::new(),
        }));
        Ok(Response::new(pb::Diagnosis { checks }))
    }

    type LeaveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaveProgress, Status>> + Send>>;

    async fn leave(&self, request: Request<pb::LeaveRequest>) -> Result<Response<Self::LeaveStream>, Status> {
        let mut world = self.0.lock().unwrap();
        world.check("leave")?;
        world.leaves.push(request.into_inner());
        let step = |step: &str, done| Ok(pb::LeaveProgress { step: step.into(), done });
        Ok(Response::new(Box::pin(tokio_stream::iter([step("tasks stopped", false), step("", true)]))))
    }
}

/// Tomorrow, for tokens.
pub(super) fn in_a_day() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap() + 86_400_000
}

//! What the services of one manager share, and the two ways to the state: a linearizable read, a proposed write.

use std::sync::{Arc, OnceLock};

use shoal_api::status::ApiError;
use shoal_core::{Command, LeaderView, Outcome, Rejection};
use shoal_types::{ErrorCode, NodeId};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::ca::SharedAuthority;
use crate::ca::meter::CompareMeter;
use crate::consensus::{Consensus, ConsensusError, StateView};
use crate::counters::Counters;
use crate::dispatcher::logs::LogBroker;
use crate::dispatcher::sessions::Sessions;
use crate::proposer::Proposer;

/// See the module.
pub struct Manager {
    /// The node this manager runs on.
    pub own: NodeId,
    /// Consensus.
    pub consensus: Arc<dyn Consensus>,
    /// The door to the log.
    pub proposer: Proposer,
    /// The CA; empty until the state is there.
    pub ca: OnceLock<SharedAuthority>,
    /// Guesses at join secrets.
    pub meter: CompareMeter,
    /// Sessions of nodes.
    pub sessions: Arc<Sessions>,
    /// Log streams on their way from nodes to operators.
    pub logs: Arc<LogBroker>,
    /// Counters.
    pub counters: Arc<Counters>,
    /// Cancelled when the manager stops.
    pub stop: CancellationToken,
}

impl Manager {
    /// The state with everything that was acknowledged before the call.
    pub async fn read(&self) -> Result<StateView, Status> {
        self.consensus.read_barrier().await.map_err(consensus_error)?;
        Ok(self.now())
    }

    /// The state as it is here, maybe behind.
    pub fn now(&self) -> StateView {
        self.consensus.state().borrow().clone()
    }

    /// Writes a command and waits until it is applied.
    pub async fn write(&self, request_id: &str, command: Command) -> Result<Outcome, Status> {
        let verdict = self.proposer.propose(request_id, command).await.map_err(consensus_error)?;
        Ok(verdict.map_err(rejection)?)
    }

    /// Writes, or only shows what would become of it. The view is the one in which the outcome is true.
    pub async fn write_or_preview(
        &self,
        request_id: &str,
        dry_run: bool,
        command: Command,
    ) -> Result<(Outcome, StateView), Status> {
        if dry_run {
            let view = self.read().await?;
            let (state, outcome) =
                view.state.preview(self.consensus.log_time(), &command).map_err(rejection)?;
            return Ok((outcome, StateView { index: view.index, state: Arc::new(state) }));
        }
        let outcome = self.write(request_id, command).await?;
        Ok((outcome, self.now()))
    }

    /// The CA.
    pub fn authority(&self) -> Result<&SharedAuthority, Status> {
        self.ca.get().ok_or_else(|| consensus_error(ConsensusError::NoLeader))
    }

    /// What this manager knows of the nodes beside the state.
    pub fn leader_view(&self) -> LeaderView {
        self.sessions.leader_view()
    }

    /// Where the managers can be dialled.
    pub fn manager_addrs(&self) -> Vec<String> {
        let view = self.now();
        view.state.nodes().values().filter_map(|n| n.control_addr).map(|a| a.to_string()).collect()
    }
}

/// A rejection as it travels.
#[expect(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
pub fn rejection(rejection: Rejection) -> ApiError {
    ApiError {
        code: rejection.code(),
        message: rejection.to_string(),
        context: rejection.context(),
        help: rejection.help(),
    }
}

/// A failure of consensus as it travels.
#[expect(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
pub fn consensus_error(error: ConsensusError) -> Status {
    let (code, help) = match error {
        ConsensusError::NoLeader | ConsensusError::Stopped(_) => (
            ErrorCode::NoLeader,
            "try again in a few seconds; if it stays so, a majority of the managers is not running or not reachable",
        ),
        ConsensusError::Timeout => {
            (ErrorCode::Timeout, "it may still be applied; run the same command again, it is applied once")
        }
        ConsensusError::Membership(_) => (ErrorCode::NodeBusy, "wait until the running change has ended"),
    };
    ApiError::new(code, error.to_string()).with_help(help).into()
}

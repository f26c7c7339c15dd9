//! Leaving a swarm: nothing of it stays.

use std::time::Duration;

use shoal_api::pb;
use shoal_api::pb::dispatcher_client::DispatcherClient;
use shoal_api::status::ApiError;
use shoal_types::ErrorCode;
use shoal_types::object::NodeRole;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Status;

use super::member::Member;
use super::{Node, failed};
use crate::cleanup;
use crate::dial;
use crate::reconciler::chain;
use crate::stats::Stats;

/// Saying goodbye may take so long.
const GOODBYE: Duration = Duration::from_secs(10);
/// Grace of tasks when the node leaves.
const GRACE: Duration = Duration::from_secs(10);

/// Where progress goes.
pub(super) type Progress = mpsc::Sender<Result<pb::LeaveProgress, Status>>;

async fn tell(progress: &Progress, step: &str, done: bool) {
    tracing::info!(step, "leave");
    // Whoever asked may be gone; leaving goes on.
    drop(progress.send(Ok(pb::LeaveProgress { step: step.to_owned(), done })).await);
}

impl Node {
    /// Leaves the swarm, telling how it goes.
    pub async fn leave(&self, force: bool, progress: mpsc::Sender<Result<pb::LeaveProgress, Status>>) {
        // Boxed: it holds all that taking a node down needs at once.
        if let Err(error) = Box::pin(self.try_leave(force, &progress)).await {
            drop(progress.send(Err(error.into())).await);
        }
    }

    async fn try_leave(&self, force: bool, progress: &Progress) -> Result<(), ApiError> {
        let mut slot = self.member.lock().await;
        let Some(member) = slot.as_ref() else {
            return Err(ApiError::new(ErrorCode::NotMember, "this node is in no swarm"));
        };
        let role = member.record().role;
        if role == NodeRole::Manager && !force {
            return Err(ApiError::new(
                ErrorCode::NodeBusy,
                "this node is a manager: if it leaves, its share of the swarm's state is lost",
            )
            .with_help("to give that up: shoal swarm leave --force"));
        }
        if role == NodeRole::Worker {
            match goodbye(member).await {
                Ok(()) => tell(progress, "the managers know", false).await,
                Err(error) if force => {
                    tell(progress, &format!("the managers were not told: {error}"), false).await;
                }
                Err(error) => {
                    return Err(error.with_help(
                        "start a manager, or leave without telling them: shoal swarm leave --force",
                    ));
                }
            }
        }
        self.set_membership(pb::Membership::Leaving);
        let Some(member) = slot.take() else { return Ok(()) };
        let (facility, netlink) = member.close().await;
        tell(progress, "stopping tasks", false).await;
        let tasks = cleanup::remove_tasks(&self.runtime, GRACE).await;
        tell(progress, "taking the data path away", false).await;
        let taken = match facility {
            Some(facility) => Box::pin(cleanup::take_down(facility, &self.config)).await,
            None => Err(anyhow::anyhow!("the reconciler panicked; run 'shoald cleanup'")),
        };
        netlink.close().await;
        self.forget_files();
        self.reset_stats();
        self.set_membership(pb::Membership::None);
        for outcome in [tasks, taken] {
            outcome.map_err(|error| {
                ApiError::new(ErrorCode::Internal, format!("left, but something stayed: {error:#}"))
                    .with_help("see what it is with 'shoald cleanup --check'; 'shoald cleanup' removes it")
            })?;
        }
        tell(progress, "left", true).await;
        Ok(())
    }

    fn reset_stats(&self) {
        let stats = &self.stats;
        for gauge in [
            &stats.generation,
            &stats.applied,
            &stats.adopted,
            &stats.session_since_ms,
            &stats.cert_issued_ms,
            &stats.cert_expires_ms,
            &stats.tasks_running,
        ] {
            Stats::set(gauge, 0);
        }
        stats.set_warnings(Vec::new());
    }
}

/// Tells the managers that this node goes.
async fn goodbye(member: &Member) -> Result<(), ApiError> {
    let mut last = ApiError::new(ErrorCode::NoLeader, "no manager is known");
    for manager in &member.record().managers {
        let call = async {
            let stream = dial::tls(*manager, member.credentials.config())
                .await
                .map_err(|error| failed(ErrorCode::NoLeader, &format!("cannot reach {manager}"), &error))?;
            let channel = dial::over(stream)
                .await
                .map_err(|error| failed(ErrorCode::NoLeader, "cannot talk to the manager", &error))?;
            DispatcherClient::new(channel).leave(pb::Empty {}).await.map_err(|status| {
                ApiError::from_status(&status)
                    .unwrap_or_else(|| ApiError::new(ErrorCode::NoLeader, chain(&status)))
            })?;
            Ok(())
        };
        match timeout(GOODBYE, call).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => last = error,
            Err(_) => last = ApiError::new(ErrorCode::NoLeader, format!("{manager} does not answer")),
        }
    }
    Err(last)
}

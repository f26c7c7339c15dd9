//! A service on its way to what was asked.

use std::sync::Arc;
use std::time::Duration;

use shoal_api::pb;
use shoal_core::view;
use shoal_types::ServiceId;
use tokio::sync::mpsc;
use tonic::Status;

use super::{Stream, describe, tasks};
use crate::consensus::StateView;
use crate::manager::{Manager, rejection};

const BUFFER: usize = 4;
/// Changes within this time share one message.
const PAUSE: Duration = Duration::from_millis(20);
/// What the nodes have programmed also changes with time alone.
const SWEEP: Duration = Duration::from_secs(1);

pub(super) async fn service(
    manager: &Arc<Manager>,
    request: pb::WatchServiceRequest,
) -> Result<Stream<pb::ServiceProgress>, Status> {
    let seen = manager.read().await?;
    let id = view::find_service(&seen.state, &request.target).map_err(rejection)?.id.clone();
    let (progress, stream) = mpsc::channel(BUFFER);
    let manager = Arc::clone(manager);
    tokio::spawn(async move {
        // Cancel safe: whatever is half done here is only shown.
        tokio::select! {
            () = follow(&manager, &id, &progress) => {}
            () = progress.closed() => {}
            () = manager.stop.cancelled() => {
                drop(progress.try_send(Err(Status::unavailable("this manager is stopping"))));
            }
        }
    });
    Ok(Stream::new(stream))
}

async fn follow(
    manager: &Manager,
    id: &ServiceId,
    progress: &mpsc::Sender<Result<pb::ServiceProgress, Status>>,
) {
    let mut state = manager.consensus.state();
    let mut programmed = manager.sessions.watch();
    let mut shown: Option<pb::ServiceProgress> = None;
    loop {
        let seen = state.borrow_and_update().clone();
        programmed.mark_unchanged();
        let now = look(manager, &seen, id);
        let ended = now.converged || now.gone;
        if shown.as_ref() != Some(&now) {
            if progress.send(Ok(now.clone())).await.is_err() {
                return;
            }
            shown = Some(now);
        }
        if ended {
            return;
        }
        tokio::time::sleep(PAUSE).await;
        // Cancel safe: watches and a timer. A change during the pause is seen here at once.
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            changed = programmed.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(SWEEP) => {}
        }
    }
}

fn look(manager: &Manager, seen: &StateView, id: &ServiceId) -> pb::ServiceProgress {
    let state = seen.state.as_ref();
    let Some(service) = state.services().get(id) else {
        return pb::ServiceProgress { gone: true, ..pb::ServiceProgress::default() };
    };
    let service = describe::service(state, &manager.leader_view(), service);
    let mut tasks = tasks::current(state.tasks_of_service(id).collect());
    tasks::sort(state, &mut tasks);
    pb::ServiceProgress {
        converged: service.converged && !service.removing,
        service: Some(service),
        tasks: tasks.into_iter().map(|task| describe::task(state, task)).collect(),
        gone: false,
    }
}

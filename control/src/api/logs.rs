//! Logs of a service or a task: asked of the nodes, merged as they come. One absent node is a gap, not a failure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shoal_api::pb;
use shoal_api::pb::manager_message::Body;
use shoal_core::{State, view};
use shoal_types::object::Task;
use shoal_types::{ServiceId, TaskId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Status;

use super::{Stream, tasks};
use crate::dispatcher::logs::{LogPiece, LogRequest};
use crate::dispatcher::sessions::Outbound;
use crate::manager::{Manager, rejection};

const BUFFER: usize = 256;
/// A node that says nothing for so long, when only what is there was asked for, is left out.
const SILENCE: Duration = Duration::from_secs(10);
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
const RECHECK: Duration = Duration::from_secs(1);

type Entries = mpsc::Sender<Result<pb::LogEntry, Status>>;

/// What was asked for.
#[derive(Clone)]
enum Target {
    Service(ServiceId),
    Task(TaskId),
}

#[derive(Clone, Copy)]
struct Mode {
    follow: bool,
    tail: Option<u32>,
}

pub(super) async fn open(
    manager: &Arc<Manager>,
    request: pb::LogsRequest,
) -> Result<Stream<pb::LogEntry>, Status> {
    let seen = manager.read().await?;
    let target = match view::find_service(&seen.state, &request.target) {
        Ok(service) => Target::Service(service.id.clone()),
        // The error speaks of services: that is what the call is for.
        Err(error) => match view::find_task(&seen.state, &request.target) {
            Ok(task) => Target::Task(task.id.clone()),
            Err(_) => return Err(rejection(error).into()),
        },
    };
    let mode = Mode { follow: request.follow, tail: request.tail };
    let (entries, stream) = mpsc::channel(BUFFER);
    let manager = Arc::clone(manager);
    tokio::spawn(async move {
        // Cancel safe: dropping the readers closes their requests.
        tokio::select! {
            () = collect(&manager, &target, mode, &entries) => {}
            () = entries.closed() => {}
            () = manager.stop.cancelled() => {
                drop(entries.try_send(Err(Status::unavailable("this manager is stopping"))));
            }
        }
    });
    Ok(Stream::new(stream))
}

fn wanted<'a>(state: &'a State, target: &Target) -> Vec<&'a Task> {
    let mut found = match target {
        Target::Service(id) => tasks::current(state.tasks_of_service(id).collect()),
        Target::Task(id) => state.tasks().get(id).into_iter().collect(),
    };
    found.retain(|task| task.node.is_some());
    tasks::sort(state, &mut found);
    found
}

async fn collect(manager: &Arc<Manager>, target: &Target, mode: Mode, entries: &Entries) {
    let mut state = manager.consensus.state();
    let mut asked: BTreeSet<TaskId> = BTreeSet::new();
    let mut readers = JoinSet::new();
    loop {
        let seen = state.borrow_and_update().clone();
        for task in wanted(&seen.state, target) {
            if asked.insert(task.id.clone()) {
                let source = Source::of(manager, &seen.state, task, entries.clone());
                readers.spawn(source.read(Arc::clone(manager), mode));
            }
        }
        if !mode.follow {
            while readers.join_next().await.is_some() {}
            return;
        }
        if let Target::Service(id) = target
            && !seen.state.services().contains_key(id)
        {
            return;
        }
        // Cancel safe: a watch, a set of tasks and a timer.
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            Some(_) = readers.join_next() => {}
            () = tokio::time::sleep(RECHECK) => {}
        }
        if matches!(target, Target::Task(_)) && readers.is_empty() {
            return;
        }
    }
}

/// One task's log.
struct Source {
    task: TaskId,
    task_name: String,
    node_name: String,
    outbound: Option<Outbound>,
    entries: Entries,
}

impl Source {
    fn of(manager: &Manager, state: &State, task: &Task, entries: Entries) -> Self {
        let node = task.node.as_ref().and_then(|id| state.nodes().get(id));
        Self {
            task: task.id.clone(),
            task_name: view::task_name(state, task),
            node_name: node.map_or_else(|| "a removed node".to_owned(), |n| n.name.to_string()),
            outbound: node.and_then(|n| manager.sessions.outbound(&n.id)),
            entries,
        }
    }

    async fn read(self, manager: Arc<Manager>, mode: Mode) {
        let Some(outbound) = self.outbound.clone() else {
            self.gap(format!("{}: no session", self.node_name)).await;
            return;
        };
        let request = manager.logs.open();
        let start = pb::LogStart {
            request: request.number,
            task: self.task.to_string(),
            follow: mode.follow,
            tail: mode.tail,
        };
        let asked = outbound.send(Ok(pb::ManagerMessage { body: Some(Body::LogStart(start)) }));
        if !matches!(tokio::time::timeout(ASK_TIMEOUT, asked).await, Ok(Ok(()))) {
            self.gap(format!("{}: does not take requests", self.node_name)).await;
            return;
        }
        let stop = StopOnDrop { outbound: outbound.clone(), request: request.number };
        self.copy(request, &outbound, mode).await;
        drop(stop);
    }

    async fn copy(&self, mut request: LogRequest, outbound: &Outbound, mode: Mode) {
        loop {
            // Cancel safe: recv and closed lose nothing when dropped.
            let piece = tokio::select! {
                piece = request.pieces.recv() => piece,
                () = outbound.closed() => return self.gap(format!("{}: session lost", self.node_name)).await,
                () = tokio::time::sleep(SILENCE), if !mode.follow => {
                    return self.gap(format!("{}: no answer in 10 s", self.node_name)).await;
                }
            };
            match piece {
                Some(LogPiece::Line { time_ms, stderr, line }) => {
                    let entry = pb::LogEntry { time_ms, stderr, line, ..self.entry() };
                    if self.entries.send(Ok(entry)).await.is_err() {
                        return;
                    }
                }
                Some(LogPiece::Lost(lines)) => self.gap(format!("{lines} lines: read too slowly")).await,
                Some(LogPiece::End(Some(reason))) => {
                    return self.gap(format!("{}: {reason}", self.node_name)).await;
                }
                Some(LogPiece::End(None)) | None => return,
            }
        }
    }

    fn entry(&self) -> pb::LogEntry {
        pb::LogEntry {
            task_name: self.task_name.clone(),
            node_name: self.node_name.clone(),
            ..pb::LogEntry::default()
        }
    }

    async fn gap(&self, gap: String) {
        // The reader may be gone.
        drop(self.entries.send(Ok(pb::LogEntry { gap, ..self.entry() })).await);
    }
}

/// Tells the node to stop when nobody reads any more.
struct StopOnDrop {
    outbound: Outbound,
    request: u64,
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let stop = Body::LogStop(pb::LogStop { request: self.request });
        // When the queue is full, the answer to the node's next line says the same.
        drop(self.outbound.try_send(Ok(pb::ManagerMessage { body: Some(stop) })));
    }
}

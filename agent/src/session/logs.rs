//! Logs of tasks, sent on request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use futures_util::StreamExt;
use shoal_api::pb;
use shoal_api::pb::agent_message::Body;
use tokio::task::JoinHandle;

use super::Outbound;
use crate::drivers::runtime::{LogQuery, LogSource, Runtime};
use crate::reconciler::chain;

/// Requests being answered; they end with the session.
pub(super) struct LogRequests {
    runtime: Arc<dyn Runtime>,
    out: Outbound,
    running: BTreeMap<u64, JoinHandle<()>>,
}

impl LogRequests {
    pub(super) fn new(runtime: Arc<dyn Runtime>, out: Outbound) -> Self {
        Self { runtime, out, running: BTreeMap::new() }
    }

    pub(super) fn start(&mut self, start: pb::LogStart) {
        self.running.retain(|_, task| !task.is_finished());
        let (request, runtime, out) = (start.request, Arc::clone(&self.runtime), self.out.clone());
        let task = tokio::spawn(answer(runtime, out, start));
        if let Some(before) = self.running.insert(request, task) {
            before.abort();
        }
    }

    pub(super) fn stop(&mut self, request: u64) {
        if let Some(task) = self.running.remove(&request) {
            task.abort();
        }
    }
}

impl Drop for LogRequests {
    fn drop(&mut self) {
        self.running.values().for_each(JoinHandle::abort);
    }
}

async fn answer(runtime: Arc<dyn Runtime>, out: Outbound, start: pb::LogStart) {
    let blank = pb::LogChunk { request: start.request, task: start.task.clone(), ..Default::default() };
    let query = LogQuery {
        since: None,
        tail: start.tail.map(|tail| usize::try_from(tail).unwrap_or(usize::MAX)),
        follow: start.follow,
    };
    let mut error = String::new();
    match runtime.logs(&start.task, query).await {
        Ok(mut entries) => {
            while let Some(entry) = entries.next().await {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(cause) => {
                        error = chain(&cause);
                        break;
                    }
                };
                let since = entry.at.duration_since(UNIX_EPOCH).unwrap_or_default();
                let chunk = pb::LogChunk {
                    time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
                    stderr: entry.source == LogSource::Stderr,
                    line: entry.line,
                    ..blank.clone()
                };
                if out.say(Body::Log(chunk)).await.is_err() {
                    return;
                }
            }
        }
        Err(cause) => error = chain(&cause),
    }
    // The session may be over: there is nobody to tell then.
    drop(out.say(Body::Log(pb::LogChunk { end: true, error, ..blank })).await);
}

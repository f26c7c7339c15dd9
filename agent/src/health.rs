//! Health checks of this node's tasks: asked, judged, reported, remembered.
//!
//! Files: [`ask`] puts the question, [`record`] keeps what came of it on disk, so that an agent that starts again takes
//! no healthy task for a starting one. One background task per checked task; a bounded number of questions at a time.

mod ask;
mod record;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shoal_plan::health::{Answer, Checked};
use shoal_types::TaskId;
use shoal_types::object::{Health, TaskState};
use shoal_types::spec::HealthCheck;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::drivers::runtime::Runtime;
use crate::reconciler::{Evidence, Reports, now};
use crate::stats::Stats;

use record::Records;

/// Results, as metrics name them.
pub(crate) const GOOD: &str = "success";
/// See [`GOOD`].
pub(crate) const WRONG: &str = "failure";
/// See [`GOOD`].
pub(crate) const SILENT: &str = "timeout";
/// See [`GOOD`].
pub(crate) const UNASKED: &str = "unasked";

/// Questions at a time: hundreds of tasks must not be asked at once.
const AT_A_TIME: usize = 16;

/// A task that is to be checked.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) id: &'a TaskId,
    pub(crate) check: &'a HealthCheck,
    /// Its network namespace.
    pub(crate) netns: &'a Path,
    /// Its program's process id on the host.
    pub(crate) pid: i32,
    /// When its program started, in milliseconds of Unix time.
    pub(crate) started_at_ms: u64,
}

/// The checks of all tasks.
#[derive(Debug)]
pub(crate) struct Checks {
    shared: Arc<Shared>,
    known: BTreeMap<TaskId, Known>,
    /// Whether records of tasks that went while no agent ran are gone, too.
    swept: bool,
}

struct Shared {
    runtime: Arc<dyn Runtime>,
    reports: Reports,
    stats: Arc<Stats>,
    records: Records,
    permits: Semaphore,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("records", &self.records).finish_non_exhaustive()
    }
}

/// A task that was checked at least once, or is about to be.
#[derive(Debug)]
struct Known {
    checked: Arc<Mutex<Checked>>,
    checker: Option<AbortHandle>,
}

impl Drop for Known {
    fn drop(&mut self) {
        if let Some(checker) = self.checker.take() {
            checker.abort();
        }
    }
}

fn lock(checked: &Mutex<Checked>) -> MutexGuard<'_, Checked> {
    checked.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Checks {
    /// Checks that keep what they found in a directory.
    pub(crate) fn new(runtime: Arc<dyn Runtime>, reports: Reports, stats: Arc<Stats>, dir: PathBuf) -> Self {
        let permits = Semaphore::new(AT_A_TIME);
        let shared = Shared { runtime, reports, stats, records: Records::new(dir), permits };
        Self { shared: Arc::new(shared), known: BTreeMap::new(), swept: false }
    }

    fn known(&mut self, id: &TaskId) -> &mut Known {
        self.known.entry(id.clone()).or_insert_with(|| Known {
            checked: Arc::new(Mutex::new(self.shared.records.read(id))),
            checker: None,
        })
    }

    /// Sees to it that a running task is asked, and reports where it stands.
    pub(crate) fn follow(&mut self, subject: &Subject<'_>) {
        let shared = Arc::clone(&self.shared);
        let known = self.known(subject.id);
        let pid = u32::try_from(subject.pid).ok();
        // Under the lock: an older view must not be reported after a newer one.
        let checked = lock(&known.checked);
        report(&shared.reports, subject.id, pid, &checked);
        drop(checked);
        if known.checker.is_some() {
            return;
        }
        let age = Duration::from_millis(now().0.saturating_sub(subject.started_at_ms));
        let checker = Checker {
            shared,
            checked: Arc::clone(&known.checked),
            id: subject.id.clone(),
            check: subject.check.clone(),
            netns: subject.netns.to_owned(),
            pid,
            start: Instant::now().checked_sub(age).unwrap_or_else(Instant::now),
        };
        known.checker = Some(tokio::spawn(checker.run()).abort_handle());
    }

    /// A task does not run any more, or is not to: it is not asked, and what was found stays.
    pub(crate) fn rest(&mut self, id: &TaskId) {
        if let Some(known) = self.known.get_mut(id)
            && let Some(checker) = known.checker.take()
        {
            checker.abort();
        }
    }

    /// Why a task that has ended was unhealthy, if it was.
    pub(crate) fn verdict(&mut self, id: &TaskId) -> Option<String> {
        let known = self.known(id);
        let checked = lock(&known.checked);
        (checked.health == Health::Unhealthy).then(|| checked.line.clone())
    }

    /// Forgets tasks that nobody speaks of any more.
    pub(crate) fn retain(&mut self, keep: impl Fn(&TaskId) -> bool) {
        if !self.swept {
            self.swept = true;
            self.shared.records.retain(&keep);
        }
        self.known.retain(|id, _| {
            let stays = keep(id);
            if !stays {
                self.shared.records.remove(id);
            }
            stays
        });
    }
}

/// What managers are told of a task that runs.
fn report(reports: &Reports, id: &TaskId, pid: Option<u32>, checked: &Checked) {
    let state = if checked.been_healthy { TaskState::Running } else { TaskState::Starting };
    let message = match checked.health {
        Health::Healthy => String::new(),
        Health::Unhealthy => format!("unhealthy: {}", checked.line),
        _ if checked.line.is_empty() => "waiting for health".to_owned(),
        _ => format!("waiting for health: {}", checked.line),
    };
    reports.task(id, state, Evidence { health: checked.health, message, pid, exit_code: None });
}

/// One task's background task.
struct Checker {
    shared: Arc<Shared>,
    checked: Arc<Mutex<Checked>>,
    id: TaskId,
    check: HealthCheck,
    netns: PathBuf,
    pid: Option<u32>,
    start: Instant,
}

impl Checker {
    async fn run(self) {
        // One that was found healthy was asked before this agent began: it is due after an interval.
        if lock(&self.checked).health != Health::Starting {
            sleep(self.pause()).await;
        }
        let mut able = true;
        loop {
            let answer = {
                // Never closed.
                let Ok(_permit) = self.shared.permits.acquire().await else { return };
                self.ask().await
            };
            match answer {
                Ok(answer) => {
                    able = true;
                    self.take(answer);
                }
                // Said once: it concerns all tasks, and may last.
                Err(error) => {
                    if std::mem::replace(&mut able, false) {
                        tracing::warn!(task = %self.id, error, "this node can't ask how a task is; nothing is made of it");
                    }
                }
            }
            sleep(self.pause()).await;
        }
    }

    fn since_start_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(lock(&self.checked).pause_ms(&self.check, self.since_start_ms()))
    }

    /// The answer, or why there could be none.
    async fn ask(&self) -> Result<Answer, String> {
        let limit = Duration::from_millis(self.check.timeout_ms);
        let question =
            ask::ask(self.shared.runtime.as_ref(), &self.id, &self.netns, &self.check.probe, limit);
        // A program is ended by its own limit, together with its group; what is beyond that is the helper's slack.
        let answered = match self.check.probe {
            shoal_types::spec::HealthProbe::Command(_) => Ok(question.await),
            _ => timeout(limit, question).await,
        };
        let (result, answer) = match answered {
            Ok(ask::Reply::Good) => (GOOD, Ok(Answer::Good)),
            Ok(ask::Reply::Wrong(why)) => (WRONG, Ok(Answer::Wrong(why))),
            Ok(ask::Reply::Silent(what)) => (SILENT, Ok(Answer::Wrong(silence(limit, &what)))),
            Ok(ask::Reply::Unasked(why)) => (UNASKED, Err(why)),
            Err(_) => (SILENT, Ok(Answer::Wrong(silence(limit, "")))),
        };
        self.shared.stats.health_checked(result);
        answer
    }

    fn take(&self, answer: Answer) {
        let mut checked = lock(&self.checked);
        let next = checked.after(&self.check, self.since_start_ms(), answer);
        let news = next.is_news_after(&checked);
        if next.health != checked.health {
            // Before it is told: an agent that starts again in between says the same.
            self.shared.records.write(&self.id, &next);
        }
        *checked = next;
        if news {
            report(&self.shared.reports, &self.id, self.pid, &checked);
        }
    }
}

fn silence(limit: Duration, output: &str) -> String {
    let limit = if limit.as_millis().is_multiple_of(1_000) {
        format!("{} s", limit.as_secs())
    } else {
        format!("{} ms", limit.as_millis())
    };
    if output.is_empty() {
        format!("no answer within {limit}")
    } else {
        format!("no answer within {limit}: {output}")
    }
}

#[cfg(test)]
mod tests;

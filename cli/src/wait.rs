//! Waiting until a service has converged or is gone, with progress on standard error. Ends at the deadline of
//! `--timeout` at the latest.

mod tracker;

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_api::pb;
use shoal_types::ErrorCode;
use tonic::Streaming;

use crate::client::{Control, Ctx};
use crate::failure::Failure;
use crate::output::Output;
use tracker::{Tracker, Verdict};

pub(crate) use tracker::Goal;

/// A service counts as converged when the same tasks have run for so long.
const STABLE: Duration = Duration::from_secs(1);
/// Pause before a broken watch is opened again.
const REOPEN: Duration = Duration::from_millis(300);

/// Waits for the service `id`, called `name`.
pub(crate) async fn wait(
    ctx: &Ctx,
    control: &Control,
    id: &str,
    name: &str,
    goal: Goal,
) -> Result<(), Failure> {
    ctx.set_goes_on(match goal {
        Goal::Gone => format!("service '{name}' goes on stopping in the background"),
        _ => format!(
            "service '{name}' goes on converging in the background; 'shoal service ps {name}' shows it"
        ),
    });
    let mut painter = Painter::new(&ctx.out);
    let mut waiter = Waiter { ctx, control, id, name, goal, tracker: Tracker::new(goal, name) };
    let outcome = match tokio::time::timeout_at(ctx.deadline(), waiter.run(&mut painter)).await {
        Ok(Err(failure)) if failure.code() == Some(ErrorCode::Timeout) => Err(waiter.too_late()),
        Ok(outcome) => outcome,
        Err(_) => Err(waiter.too_late()),
    };
    painter.finish();
    ctx.set_goes_on("nothing more goes on in the background");
    outcome
}

struct Waiter<'a> {
    ctx: &'a Ctx,
    control: &'a Control,
    id: &'a str,
    name: &'a str,
    goal: Goal,
    tracker: Tracker,
}

/// Why one watch ended.
enum Watched {
    Done(Verdict),
    Broken,
}

impl Waiter<'_> {
    async fn run(&mut self, painter: &mut Painter<'_>) -> Result<(), Failure> {
        loop {
            match self.watch(painter).await? {
                Watched::Broken => tokio::time::sleep(REOPEN).await,
                Watched::Done(Verdict::Gone) if self.goal == Goal::Gone => return Ok(()),
                Watched::Done(Verdict::Gone) => {
                    return Err(Failure::new(
                        ErrorCode::NotFound,
                        format!("service '{}' was removed meanwhile", self.name),
                        "",
                    ));
                }
                Watched::Done(Verdict::Hopeless(why)) => return Err(self.hopeless(&why)),
                Watched::Done(Verdict::Converged(tasks)) => {
                    if tasks.is_empty() || self.is_stable(&tasks, painter).await? {
                        return Ok(());
                    }
                }
                Watched::Done(Verdict::GoOn) => {}
            }
        }
    }

    /// Follows one watch to its end. A service that is not found any more is gone.
    async fn watch(&mut self, painter: &mut Painter<'_>) -> Result<Watched, Failure> {
        let Some(mut stream) = self.open().await? else { return Ok(Watched::Done(Verdict::Gone)) };
        loop {
            match stream.message().await {
                Ok(Some(progress)) => {
                    for line in self.tracker.events(&progress) {
                        painter.event(&line);
                    }
                    painter.state(&self.tracker.summary(&progress));
                    match self.tracker.verdict(&progress) {
                        Verdict::GoOn => {}
                        verdict => return Ok(Watched::Done(verdict)),
                    }
                }
                Ok(None) => return Ok(Watched::Broken),
                Err(status) => {
                    return match self.control.stream_failure(&status) {
                        failure if failure.code() == Some(ErrorCode::NoLeader) => Ok(Watched::Broken),
                        failure if failure.code() == Some(ErrorCode::NotFound) => {
                            Ok(Watched::Done(Verdict::Gone))
                        }
                        failure => Err(failure),
                    };
                }
            }
        }
    }

    async fn open(&self) -> Result<Option<Streaming<pb::ServiceProgress>>, Failure> {
        let request = pb::WatchServiceRequest { target: self.id.to_owned() };
        let opened = self
            .control
            .call(request, |mut api, request| async move { api.watch_service(request).await })
            .await;
        match opened {
            Ok(stream) => Ok(Some(stream)),
            Err(failure) if failure.code() == Some(ErrorCode::NotFound) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Looks again after a while: still converged, and by the same tasks? A program that ends right after its start
    /// does not pass.
    async fn is_stable(&self, tasks: &BTreeSet<String>, painter: &mut Painter<'_>) -> Result<bool, Failure> {
        tokio::time::sleep(STABLE).await;
        let Some(mut stream) = self.open().await? else { return Ok(false) };
        let Ok(Some(progress)) = stream.message().await else { return Ok(false) };
        let stable = matches!(self.tracker.verdict(&progress), Verdict::Converged(now) if &now == tasks);
        if stable {
            painter.state(&format!("{}  stable {} s", self.tracker.summary(&progress), STABLE.as_secs()));
        }
        Ok(stable)
    }

    fn hopeless(&self, why: &str) -> Failure {
        let name = self.name;
        Failure::new(
            ErrorCode::TasksFailing,
            why,
            format!(
                "the service stays: 'shoal service logs {name}' shows what it wrote, 'shoal service update {name}' \
                 mends it, 'shoal service rm {name}' removes it"
            ),
        )
    }

    fn too_late(&self) -> Failure {
        let (name, time) = (self.name, self.ctx.timeout_text());
        let message = match self.goal {
            Goal::Gone => format!("service '{name}' is not gone after {time}; it goes on stopping"),
            _ => format!("service '{name}' has not converged after {time}; it goes on in the background"),
        };
        Failure::new(ErrorCode::Timeout, message, format!("'shoal service ps {name}' shows where it stands"))
    }
}

/// Writes progress: on a terminal one line that is rewritten, elsewhere a line per change.
struct Painter<'a> {
    out: &'a Output,
    shown: String,
    width: usize,
}

impl<'a> Painter<'a> {
    fn new(out: &'a Output) -> Self {
        let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse::<usize>().ok());
        Self { out, shown: String::new(), width: columns.unwrap_or(100).max(20) - 1 }
    }

    fn state(&mut self, line: &str) {
        if line == self.shown {
            return;
        }
        line.clone_into(&mut self.shown);
        if !self.out.live {
            self.out.note(line);
        } else if !self.out.quiet {
            let short: String = line.chars().take(self.width).collect();
            self.out.error_stream(&format!("\r\x1b[2K{short}"));
        }
    }

    fn event(&mut self, line: &str) {
        if self.out.live && !self.out.quiet && !self.shown.is_empty() {
            self.out.error_stream("\r\x1b[2K");
            self.shown.clear();
        }
        self.out.note(line);
    }

    fn finish(&mut self) {
        if self.out.live && !self.out.quiet && !self.shown.is_empty() {
            self.out.error_stream("\n");
        }
    }
}

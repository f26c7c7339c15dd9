//! The one door to the log: groups commands into batch entries, bounds what is in flight, times every write.

use std::sync::Arc;
use std::time::Duration;

use shoal_core::{Command, Entry};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::consensus::{Consensus, ConsensusError, Verdict};

/// How long a caller waits for a write.
pub const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Commands in one entry.
const BATCH_COMMANDS: usize = 256;
/// Entries on their way at the same time. Few, so that what arrives meanwhile shares the next fsync.
const IN_FLIGHT: usize = 4;
const QUEUE: usize = 1024;

type Answer = oneshot::Sender<Result<Vec<Verdict>, ConsensusError>>;

struct Request {
    entries: Vec<Entry>,
    answer: Answer,
}

/// Handle of the proposer; clones share it.
#[derive(Clone)]
pub struct Proposer {
    requests: mpsc::Sender<Request>,
    consensus: Arc<dyn Consensus>,
}

impl Proposer {
    /// Starts the task that groups and proposes.
    pub fn start(consensus: Arc<dyn Consensus>, stop: CancellationToken) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE);
        tokio::spawn(run(Arc::clone(&consensus), queue, stop));
        Self { requests, consensus }
    }

    /// Proposes one command of an operator or a node; a retry under the same request id is applied once.
    pub async fn propose(&self, request_id: &str, command: Command) -> Result<Verdict, ConsensusError> {
        let request_id = (!request_id.is_empty()).then(|| request_id.to_owned());
        let entry = Entry { now: self.consensus.log_time(), request_id, command };
        let mut verdicts = self.propose_entries(vec![entry]).await?;
        verdicts.pop().ok_or_else(|| ConsensusError::Stopped("a write was answered without a verdict".into()))
    }

    /// Proposes commands that belong together; they stay together and in order.
    pub async fn propose_all(&self, commands: Vec<Command>) -> Result<Vec<Verdict>, ConsensusError> {
        let now = self.consensus.log_time();
        let entries = commands.into_iter().map(|command| Entry { now, request_id: None, command }).collect();
        self.propose_entries(entries).await
    }

    async fn propose_entries(&self, entries: Vec<Entry>) -> Result<Vec<Verdict>, ConsensusError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let (answer, answered) = oneshot::channel();
        let stopped = || ConsensusError::Stopped("it is shutting down".into());
        let exchange = async {
            self.requests.send(Request { entries, answer }).await.map_err(|_| stopped())?;
            answered.await.map_err(|_| stopped())?
        };
        tokio::time::timeout(PROPOSE_TIMEOUT, exchange).await.map_err(|_| ConsensusError::Timeout)?
    }
}

async fn run(consensus: Arc<dyn Consensus>, mut queue: mpsc::Receiver<Request>, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(IN_FLIGHT));
    loop {
        // Cancel safe: recv and cancelled lose nothing when dropped.
        let first = tokio::select! {
            () = stop.cancelled() => return,
            request = queue.recv() => match request { Some(request) => request, None => return },
        };
        // The semaphore is never closed; while waiting for a slot the queue fills, and the next batch is larger.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let mut entries = first.entries;
        let mut waiting = vec![(entries.len(), first.answer)];
        while entries.len() < BATCH_COMMANDS {
            let Ok(next) = queue.try_recv() else { break };
            waiting.push((next.entries.len(), next.answer));
            entries.extend(next.entries);
        }
        let consensus = Arc::clone(&consensus);
        tokio::spawn(async move {
            let proposed = tokio::time::timeout(PROPOSE_TIMEOUT, consensus.propose(entries)).await;
            drop(slot);
            distribute(waiting, proposed.unwrap_or(Err(ConsensusError::Timeout)));
        });
    }
}

fn distribute(waiting: Vec<(usize, Answer)>, proposed: Result<Vec<Verdict>, ConsensusError>) {
    let wanted: usize = waiting.iter().map(|(count, _)| count).sum();
    let mut verdicts = match proposed {
        Ok(verdicts) if verdicts.len() == wanted => Ok(verdicts.into_iter()),
        Ok(verdicts) => {
            Err(ConsensusError::Stopped(format!("{} verdicts for {wanted} commands", verdicts.len())))
        }
        Err(error) => Err(error),
    };
    for (count, answer) in waiting {
        let part = match &mut verdicts {
            Ok(verdicts) => Ok(verdicts.by_ref().take(count).collect()),
            Err(error) => Err(error.clone()),
        };
        // A caller that gave up no longer listens.
        drop(answer.send(part));
    }
}

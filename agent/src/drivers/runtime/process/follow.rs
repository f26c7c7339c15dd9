//! A task's log as a stream of entries.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::drivers::runtime::{LogEntry, LogQuery, LogStream, RuntimeError};

use super::log::LogReader;
use super::record::TaskDir;

/// Entries read at once, and kept for a slow receiver.
const BATCH: usize = 256;
/// How long new output may wait for a follower.
const POLL: Duration = Duration::from_millis(100);

/// Reads the log of a task in the background, for as long as the stream is kept.
pub(super) fn stream(
    task: String,
    dir: TaskDir,
    query: LogQuery,
    is_over: impl Fn() -> bool + Send + 'static,
) -> LogStream {
    let (to, entries) = mpsc::channel(BATCH);
    tokio::spawn(async move {
        let reader = LogReader::new(dir.path());
        if let Err(source) = read(reader, query, is_over, &to).await {
            let path = dir.file("log");
            // A receiver that left doesn't want to know.
            let _left = to.send(Err(RuntimeError::Io { task, action: "read", path, source })).await;
        }
    });
    Box::pin(ReceiverStream::new(entries))
}

async fn read(
    mut reader: LogReader,
    query: LogQuery,
    is_over: impl Fn() -> bool,
    to: &mpsc::Sender<Result<LogEntry, RuntimeError>>,
) -> io::Result<()> {
    let mut tail = query.tail.map(|count| (count, VecDeque::new()));
    loop {
        // Asked before reading to the end: nothing is written after that.
        let over = !query.follow || is_over();
        loop {
            let (returned, batch) = read_batch(reader).await?;
            reader = returned;
            if batch.is_empty() {
                break;
            }
            let wanted = batch.into_iter().filter(|entry| query.since.is_none_or(|since| entry.at >= since));
            match &mut tail {
                None => {
                    for entry in wanted {
                        if to.send(Ok(entry)).await.is_err() {
                            return Ok(());
                        }
                    }
                }
                Some((count, kept)) => {
                    for entry in wanted {
                        kept.push_back(entry);
                        if kept.len() > *count {
                            kept.pop_front();
                        }
                    }
                }
            }
        }
        // The newest of what was there; from now on everything.
        for entry in tail.take().map(|(_, kept)| kept).into_iter().flatten() {
            if to.send(Ok(entry)).await.is_err() {
                return Ok(());
            }
        }
        if over {
            return Ok(());
        }
        tokio::select! {
            // Cancel safe: each arm only waits.
            () = tokio::time::sleep(POLL) => {}
            () = to.closed() => return Ok(()),
        }
    }
}

async fn read_batch(mut reader: LogReader) -> io::Result<(LogReader, Vec<LogEntry>)> {
    tokio::task::spawn_blocking(move || {
        let batch = reader.read(BATCH)?;
        Ok((reader, batch))
    })
    .await
    .map_err(io::Error::other)?
}

//! Log lines on their way from nodes to an operator.
//!
//! Each stream has a bounded buffer. A reader that is too slow loses lines, never the session of the node, and is told
//! how many; what cannot be had at all is told as a gap.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shoal_api::pb;
use tokio::sync::mpsc;

const BUFFER: usize = 1024;

/// A piece of one task's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPiece {
    /// A line.
    Line {
        /// When it was written.
        time_ms: u64,
        /// On which of the two streams.
        stderr: bool,
        /// Without the newline.
        line: Vec<u8>,
    },
    /// Lines that were lost here, because the reader was too slow.
    Lost(u64),
    /// There is no more, for this reason when it isn't the usual one.
    End(Option<String>),
}

struct Reader {
    pieces: mpsc::Sender<LogPiece>,
    lost: u64,
}

/// See the module.
#[derive(Default)]
pub struct LogBroker {
    next: AtomicU64,
    readers: Mutex<BTreeMap<u64, Reader>>,
}

/// One open request; closed when dropped.
pub struct LogRequest {
    /// Its number on the wire.
    pub number: u64,
    /// What the node sends.
    pub pieces: mpsc::Receiver<LogPiece>,
    _close: Close,
}

struct Close {
    broker: Arc<LogBroker>,
    number: u64,
}

impl Drop for Close {
    fn drop(&mut self) {
        self.broker.lock().remove(&self.number);
    }
}

impl LogBroker {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Reader>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a request.
    pub fn open(self: &Arc<Self>) -> LogRequest {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, pieces) = mpsc::channel(BUFFER);
        self.lock().insert(number, Reader { pieces: sender, lost: 0 });
        LogRequest { number, pieces, _close: Close { broker: Arc::clone(self), number } }
    }

    /// Takes a chunk from a node. False when nobody reads it: the node should stop.
    pub fn deliver(&self, chunk: pb::LogChunk) -> bool {
        let mut readers = self.lock();
        let Some(reader) = readers.get_mut(&chunk.request) else { return chunk.end };
        if reader.lost > 0 && reader.pieces.try_send(LogPiece::Lost(reader.lost)).is_ok() {
            reader.lost = 0;
        }
        if !chunk.line.is_empty() || (!chunk.end && chunk.error.is_empty()) {
            let piece = LogPiece::Line { time_ms: chunk.time_ms, stderr: chunk.stderr, line: chunk.line };
            if reader.lost > 0 || reader.pieces.try_send(piece).is_err() {
                reader.lost += 1;
            }
        }
        if chunk.end || !chunk.error.is_empty() {
            let reason = (!chunk.error.is_empty()).then_some(chunk.error);
            // When even this does not fit, the channel's end says it.
            drop(reader.pieces.try_send(LogPiece::End(reason)));
            readers.remove(&chunk.request);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(request: u64, line: &str) -> pb::LogChunk {
        pb::LogChunk { request, line: line.as_bytes().to_vec(), ..pb::LogChunk::default() }
    }

    #[test]
    fn a_slow_reader_loses_lines_and_is_told_how_many() {
        let broker = Arc::new(LogBroker::default());
        let mut request = broker.open();
        for n in 0..BUFFER + 7 {
            assert!(broker.deliver(chunk(request.number, &n.to_string())));
        }
        for _ in 0..BUFFER {
            assert!(matches!(request.pieces.try_recv(), Ok(LogPiece::Line { .. })));
        }
        assert!(broker.deliver(chunk(request.number, "after")));
        assert_eq!(request.pieces.try_recv(), Ok(LogPiece::Lost(7)));
        assert!(matches!(request.pieces.try_recv(), Ok(LogPiece::Line { line, .. }) if line == b"after"));
    }

    #[test]
    fn an_end_closes_the_request_and_a_dropped_request_stops_the_node() {
        let broker = Arc::new(LogBroker::default());
        let mut request = broker.open();
        let end = pb::LogChunk { request: request.number, end: true, ..pb::LogChunk::default() };
        assert!(broker.deliver(end));
        assert_eq!(request.pieces.try_recv(), Ok(LogPiece::End(None)));
        let request = broker.open();
        let number = request.number;
        assert!(broker.deliver(chunk(number, "x")));
        drop(request);
        assert!(!broker.deliver(chunk(number, "x")));
    }
}

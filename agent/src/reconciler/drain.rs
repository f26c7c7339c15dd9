//! Connections of tasks that drain: counted once every ready node has withdrawn the task, told to the managers, who end
//! the drain when none is left.
//!
//! What is counted are the sockets in the task's own network namespace: whatever way a connection came, it ends there.
//! Files: [`sockets`] reads the kernel's tables.

mod sockets;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use shoal_types::TaskId;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::report::{Reports, chain};
use crate::netns::{Netns, NetnsError};

use sockets::Seen;
pub(crate) use sockets::{Listener, listeners};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(250);
/// Of the time, a look takes this part at most: the tables of a busy machine are long.
const SHARE: u32 = 20;
/// For so long there must have been no connection: a first packet that was lost on its way is sent again after a second,
/// and still comes here.
const QUIET: Duration = Duration::from_millis(1_500);
/// Pause between two reports of other numbers than none.
const NEWS: Duration = Duration::from_secs(2);

/// The tasks that are counted for.
#[derive(Debug)]
pub(super) struct Drains {
    reports: Reports,
    counters: BTreeMap<TaskId, AbortHandle>,
}

impl Drop for Drains {
    fn drop(&mut self) {
        self.counters.values().for_each(AbortHandle::abort);
    }
}

impl Drains {
    /// Nobody is counted for yet.
    pub(super) fn new(reports: Reports) -> Self {
        Self { reports, counters: BTreeMap::new() }
    }

    /// Sees to it that the connections of a task are counted, in its network namespace.
    pub(super) fn follow(&mut self, id: &TaskId, netns: &Path) {
        if !self.counters.contains_key(id) {
            let counting = count(id.clone(), netns.to_owned(), self.reports.clone());
            self.counters.insert(id.clone(), tokio::spawn(counting).abort_handle());
        }
    }

    /// Counts for no others any more.
    pub(super) fn retain(&mut self, keep: impl Fn(&TaskId) -> bool) {
        self.counters.retain(|id, counter| {
            let stays = keep(id);
            if !stays {
                counter.abort();
            }
            stays
        });
    }
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Connections, at least one.
    Open(u32),
    /// Nothing that anybody could still use.
    Idle,
    /// Datagrams are served: nobody can tell when that is over.
    Datagrams,
}

/// What looks come to.
#[derive(Debug, Default)]
struct Tally {
    /// Since when there was nothing.
    idle_since: Option<Instant>,
    told: Option<(Instant, u32)>,
    /// Servers of datagrams at the last look, by inode. A socket that only asks something is soon gone.
    servers: BTreeSet<u64>,
}

impl Tally {
    fn look(&mut self, seen: &Seen) -> Look {
        let servers = std::mem::replace(&mut self.servers, seen.servers.clone());
        if seen.connections > 0 {
            Look::Open(seen.connections)
        } else if servers.intersection(&seen.servers).next().is_some() {
            Look::Datagrams
        } else {
            Look::Idle
        }
    }

    /// What is to be told after a look, if anything.
    fn after(&mut self, look: Look, now: Instant) -> Option<u32> {
        let count = match look {
            Look::Datagrams => {
                self.idle_since = None;
                return None;
            }
            Look::Open(count) => {
                self.idle_since = None;
                count
            }
            Look::Idle => {
                let since = *self.idle_since.get_or_insert(now);
                if now.duration_since(since) < QUIET {
                    return None;
                }
                0
            }
        };
        let is_news = self.told.is_none_or(|(at, told)| {
            // That it is idle, or is not idle any more, is not put off.
            told != count && (told == 0 || count == 0 || now.duration_since(at) >= NEWS)
        });
        if is_news {
            self.told = Some((now, count));
        }
        is_news.then_some(count)
    }
}

/// Looks again and again. A task whose sockets can't be seen drains for its whole time.
async fn count(id: TaskId, netns: PathBuf, reports: Reports) {
    let mut tally = Tally::default();
    loop {
        let begin = Instant::now();
        let path = netns.clone();
        let seen = match tokio::task::spawn_blocking(move || see(&path)).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(error)) => {
                let error = chain(&error);
                tracing::warn!(task = %id, error, "its connections can't be counted: it drains for its whole time");
                return;
            }
            // The daemon closes.
            Err(_) => return,
        };
        let look = tally.look(&seen);
        if let Some(connections) = tally.after(look, Instant::now()) {
            reports.connections(&id, connections);
        }
        sleep(PAUSE.max(begin.elapsed() * SHARE)).await;
    }
}

/// Why connections can't be counted.
#[derive(Debug, thiserror::Error)]
enum CountError {
    /// The namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A table.
    #[error(transparent)]
    Table(#[from] sockets::TableError),
}

fn see(netns: &Path) -> Result<Seen, CountError> {
    Ok(Netns::open(netns)?.run(sockets::read)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(connections: u32, servers: &[u64]) -> Seen {
        Seen { connections, servers: servers.iter().copied().collect() }
    }

    /// What is told after looks a quarter of a second apart.
    fn told(looks: impl IntoIterator<Item = Seen>) -> Vec<(usize, u32)> {
        let (mut tally, mut now) = (Tally::default(), Instant::now());
        let mut told = Vec::new();
        for (turn, seen) in looks.into_iter().enumerate() {
            let look = tally.look(&seen);
            told.extend(tally.after(look, now).map(|count| (turn, count)));
            now += PAUSE;
        }
        told
    }

    fn times(count: usize, seen: &Seen) -> Vec<Seen> {
        vec![seen.clone(); count]
    }

    #[test]
    fn none_is_told_once_it_has_lasted() {
        assert_eq!(told(times(20, &seen(0, &[]))), [(6, 0)], "six pauses are a second and a half");
        let late = [times(5, &seen(0, &[])), times(1, &seen(1, &[])), times(20, &seen(0, &[]))].concat();
        assert_eq!(told(late), [(5, 1), (12, 0)]);
    }

    #[test]
    fn other_numbers_are_told_at_most_every_two_seconds_and_the_end_at_once() {
        let falling = (0..20).map(|turn| seen(100 - turn, &[]));
        assert_eq!(told(falling), [(0, 100), (8, 92), (16, 84)]);
        let back = [times(7, &seen(0, &[])), times(1, &seen(3, &[])), times(7, &seen(0, &[]))].concat();
        assert_eq!(told(back), [(6, 0), (7, 3), (14, 0)]);
    }

    #[test]
    fn a_server_of_datagrams_is_never_idle_and_one_who_asks_is() {
        assert_eq!(told(times(40, &seen(0, &[7]))), []);
        let asking = (0..20).map(|turn| seen(0, &[turn]));
        assert_eq!(told(asking), [(6, 0)]);
        assert_eq!(told(times(20, &seen(2, &[7]))), [(0, 2)]);
    }
}

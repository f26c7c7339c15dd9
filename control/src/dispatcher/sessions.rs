//! Which nodes have a session here, when they were last heard, and what each has programmed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shoal_api::pb;
use shoal_core::LeaderView;
use shoal_types::{NodeId, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Messages to one node.
pub type Outbound = mpsc::Sender<Result<pb::ManagerMessage, Status>>;

/// How long objects that a node could not program hold back what waits for it, when no new flow hangs on them: the node
/// reports the generation, with errors. An agent repairs within seconds; what it can't repair must not block every
/// update of the cluster.
const ERROR_PATIENCE: Duration = Duration::from_secs(10);

/// How long a node that fails at what new flows hang on is waited for: it reports errors and an old generation. After
/// that it has stalled ([`LeaderView::stalled`]), until it reports a newer one. Longer than the other patience, as it
/// goes on sending flows by what it was told before.
const STALL_PATIENCE: Duration = Duration::from_secs(30);

/// Of what a node could not program, so much of the first line is kept.
const ERROR_LINE: usize = 300;

/// Of what one node's probes find, so many lines of so many characters are kept.
const PEER_LINES: usize = 64;
const PEER_LINE: usize = 300;

/// What a node was sent and what it said of it.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// State index up to which its assignment was looked at.
    evaluated: u64,
    /// Generation of the last assignment sent.
    sent: u64,
    /// Generation it last reported.
    reported: u64,
    /// Generation it last reported without errors.
    clean: u64,
    /// Since when its reports have errors.
    failing_since: Option<Instant>,
    /// Since when it fails at a newer generation than it reports, and reports the same.
    behind_since: Option<Instant>,
    /// What it could not program: the first line, and how many there are.
    errors: (String, usize),
}

impl Progress {
    fn send(&mut self, generation: u64, now: Instant) {
        self.sent = generation;
        self.evaluated = generation;
        // One that fails already, and at this gets as far as before, says nothing new: an agent says the same only once.
        if self.failing_since.is_some() {
            self.behind_since.get_or_insert(now);
        }
    }

    fn note(&mut self, generation: u64, errors: &[String], now: Instant) {
        // What it says of another time than this session's counts for nothing.
        let generation = generation.min(self.sent);
        let moved = generation > self.reported;
        self.reported = self.reported.max(generation);
        let first = errors.first().map(|line| line.chars().take(ERROR_LINE).collect());
        self.errors = (first.unwrap_or_default(), errors.len());
        if errors.is_empty() {
            self.clean = self.clean.max(generation);
            self.failing_since = None;
        } else {
            self.failing_since.get_or_insert(now);
        }
        self.behind_since = if errors.is_empty() || self.reported >= self.sent {
            None
        } else if moved {
            // An agent says the same only once: this may be all that is heard of what comes next.
            Some(now)
        } else {
            self.behind_since.or(Some(now))
        };
    }

    /// Whether it fails and gets no further.
    fn is_stalled(&self, now: Instant) -> bool {
        self.behind_since.is_some_and(|since| now.duration_since(since) >= STALL_PATIENCE)
    }

    /// The state index this node has programmed: when nothing is outstanding, all that was looked at.
    fn effective(&self, now: Instant) -> u64 {
        let patient = self.failing_since.is_some_and(|since| now.duration_since(since) < ERROR_PATIENCE);
        let counted = if patient { self.clean } else { self.reported };
        if counted >= self.sent && self.sent > 0 { self.evaluated } else { counted }
    }
}

struct Live {
    number: u64,
    outbound: Outbound,
    replaced: CancellationToken,
    progress: Progress,
    /// What it finds that others should know of.
    peers: Vec<String>,
}

#[derive(Default)]
struct Registry {
    next: u64,
    live: BTreeMap<NodeId, Live>,
    contacts: BTreeMap<NodeId, Timestamp>,
}

/// See the module.
pub struct Sessions {
    registry: Mutex<Registry>,
    /// Monotonic clock of contacts: a jump of the wall clock must not kill nodes.
    started: Instant,
    changed: watch::Sender<u64>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { registry: Mutex::default(), started: Instant::now(), changed: watch::Sender::new(0) }
    }
}

/// A node that can't program all that it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// Which.
    pub node: NodeId,
    /// Whether new flows hang on it: it leads them by what it was told before.
    pub behind: bool,
    /// For how long.
    pub lasting: Duration,
    /// The first of what it can't.
    pub first: String,
    /// Of how many.
    pub count: usize,
}

/// A session's place; only the latest of a node counts.
pub struct Seat {
    sessions: Arc<Sessions>,
    node: NodeId,
    number: u64,
    /// Cancelled when another session of the node has begun, or the node was removed.
    pub replaced: CancellationToken,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    /// Changes whenever a session comes, goes or reports.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Milliseconds on the clock of contacts.
    pub fn monotonic(&self) -> Timestamp {
        Timestamp(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Begins a session; an older one of the same node is cut.
    pub fn open(self: &Arc<Self>, node: &NodeId, outbound: Outbound) -> Seat {
        let replaced = CancellationToken::new();
        let mut registry = self.lock();
        registry.next += 1;
        let number = registry.next;
        let live = Live {
            number,
            outbound,
            replaced: replaced.clone(),
            progress: Progress::default(),
            peers: Vec::new(),
        };
        if let Some(older) = registry.live.insert(node.clone(), live) {
            older.replaced.cancel();
        }
        drop(registry);
        self.wake();
        Seat { sessions: Arc::clone(self), node: node.clone(), number, replaced }
    }

    /// Notes that the node was heard.
    pub fn contact(&self, node: &NodeId) {
        let now = self.monotonic();
        self.lock().contacts.insert(node.clone(), now);
    }

    /// When the node was last heard, on the clock of contacts.
    pub fn last_contact(&self, node: &NodeId) -> Option<Timestamp> {
        self.lock().contacts.get(node).copied()
    }

    /// Forgets what another term heard.
    pub fn forget_contacts(&self) {
        self.lock().contacts.clear();
    }

    /// Forgets nodes that are gone and cuts their sessions.
    pub fn retain(&self, member: impl Fn(&NodeId) -> bool) {
        let mut registry = self.lock();
        registry.contacts.retain(|node, _| member(node));
        let gone: Vec<NodeId> = registry.live.keys().filter(|node| !member(node)).cloned().collect();
        for node in gone {
            if let Some(live) = registry.live.get(&node) {
                live.replaced.cancel();
            }
        }
    }

    /// What the nodes with a session have programmed.
    pub fn leader_view(&self) -> LeaderView {
        let now = Instant::now();
        let registry = self.lock();
        let applied = registry.live.iter().map(|(node, live)| (node.clone(), live.progress.effective(now)));
        let stalled = registry.live.iter().filter(|(_, live)| live.progress.is_stalled(now));
        LeaderView { applied: applied.collect(), stalled: stalled.map(|(node, _)| node.clone()).collect() }
    }

    /// What nodes have failed to program for longer than it takes to repair.
    pub fn failing(&self) -> Vec<Failing> {
        self.failing_at(Instant::now())
    }

    fn failing_at(&self, now: Instant) -> Vec<Failing> {
        let registry = self.lock();
        let failing = registry.live.iter().filter_map(|(node, live)| {
            let lasts = |since: &Instant| now.duration_since(*since) >= ERROR_PATIENCE;
            let behind = live.progress.behind_since.filter(lasts);
            let since = behind.or(live.progress.failing_since.filter(lasts))?;
            let lasting = now.duration_since(since);
            let (first, count) = live.progress.errors.clone();
            Some(Failing { node: node.clone(), behind: behind.is_some(), lasting, first, count })
        });
        failing.collect()
    }

    /// The generation a node last reported; 0 without a session.
    pub fn reported(&self, node: &NodeId) -> u64 {
        self.lock().live.get(node).map_or(0, |live| live.progress.reported)
    }

    /// Whether everything that was sent to the node is programmed, without errors.
    pub fn is_programmed(&self, node: &NodeId) -> bool {
        self.lock()
            .live
            .get(node)
            .is_some_and(|live| live.progress.sent > 0 && live.progress.clean >= live.progress.sent)
    }

    /// Notes what a node's probes of others find, as much of it as is worth keeping.
    pub fn heard_of_peers(&self, node: &NodeId, troubles: Vec<String>) {
        let short = |line: String| line.chars().take(PEER_LINE).collect();
        let peers = troubles.into_iter().take(PEER_LINES).map(short).collect();
        if let Some(live) = self.lock().live.get_mut(node) {
            live.peers = peers;
        }
    }

    /// What nodes with a session find wrong with the ways to others: who says it, and what.
    pub fn peer_troubles(&self) -> Vec<(NodeId, String)> {
        let registry = self.lock();
        let lines = |(node, live): (&NodeId, &Live)| {
            live.peers.iter().map(|line| (node.clone(), line.clone())).collect::<Vec<_>>()
        };
        registry.live.iter().flat_map(lines).collect()
    }

    /// The way to a node, when it has a session.
    pub fn outbound(&self, node: &NodeId) -> Option<Outbound> {
        self.lock().live.get(node).map(|live| live.outbound.clone())
    }
}

impl Seat {
    fn update(&self, change: impl FnOnce(&mut Progress)) {
        let mut registry = self.sessions.lock();
        if let Some(live) = registry.live.get_mut(&self.node)
            && live.number == self.number
        {
            change(&mut live.progress);
        }
        drop(registry);
        self.sessions.wake();
    }

    /// The assignment was looked at up to this state index, and found the same.
    pub fn evaluated(&self, index: u64) {
        self.update(|progress| progress.evaluated = index);
    }

    /// An assignment of this generation, which is a state index, is on its way.
    pub fn sent(&self, generation: u64) {
        self.update(|progress| progress.send(generation, Instant::now()));
    }

    /// The node reported this generation, and what it could not program.
    pub fn reported(&self, generation: u64, errors: &[String]) {
        self.update(|progress| progress.note(generation, errors, Instant::now()));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut registry = self.sessions.lock();
        if registry.live.get(&self.node).is_some_and(|live| live.number == self.number) {
            registry.live.remove(&self.node);
        }
        drop(registry);
        self.sessions.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u128) -> NodeId {
        NodeId::from_entropy(n)
    }

    fn applied(sessions: &Sessions, n: u128) -> Option<u64> {
        sessions.leader_view().applied.get(&node(n)).copied()
    }

    #[test]
    fn a_node_with_nothing_outstanding_has_programmed_all_that_was_looked_at() {
        let sessions = Arc::new(Sessions::default());
        let (outbound, _inbound) = mpsc::channel(1);
        let seat = sessions.open(&node(1), outbound);
        assert_eq!(applied(&sessions, 1), Some(0), "nothing was sent yet");
        seat.sent(10);
        assert_eq!(applied(&sessions, 1), Some(0));
        seat.reported(10, &[]);
        assert_eq!(applied(&sessions, 1), Some(10));
        seat.evaluated(15);
        assert_eq!(applied(&sessions, 1), Some(15));
        seat.sent(16);
        assert_eq!(applied(&sessions, 1), Some(10), "16 is outstanding");
        assert!(!sessions.is_programmed(&node(1)));
        seat.reported(16, &["no".to_owned()]);
        assert_eq!(applied(&sessions, 1), Some(10), "held back while it fails");
        seat.reported(16, &[]);
        assert_eq!(applied(&sessions, 1), Some(16));
        assert!(sessions.is_programmed(&node(1)));
        drop(seat);
        assert_eq!(applied(&sessions, 1), None);
    }

    #[test]
    fn a_node_that_fails_and_gets_no_further_has_stalled_until_it_does() {
        let (begin, no) = (Instant::now(), ["no".to_owned()]);
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut progress = Progress { sent: 10, ..Progress::default() };
        assert!(!progress.is_stalled(at(3_600)), "its first assignment takes it long, and nothing fails");
        progress.note(10, &no, at(0));
        assert!(!progress.is_stalled(at(3_600)), "what no new flow hangs on");
        progress.send(11, at(3_600));
        assert!(!progress.is_stalled(at(3_629)), "it may say something of 11 yet");
        assert!(progress.is_stalled(at(3_630)), "what would be the same is said only once");
        progress.note(10, &no, at(3_620));
        assert!(!progress.is_stalled(at(3_629)) && progress.is_stalled(at(3_630)));
        assert_eq!(progress.effective(at(3_630)), 10, "it has programmed no more for that");
        progress.send(12, at(3_631));
        progress.note(11, &no, at(3_640));
        assert!(!progress.is_stalled(at(3_669)), "it gets on");
        assert!(progress.is_stalled(at(3_670)), "and no further");
        progress.note(12, &[], at(3_690));
        progress.send(13, at(3_691));
        assert!(!progress.is_stalled(at(9_999)), "it is slow, and nothing fails");
    }

    #[test]
    fn who_fails_for_long_is_told_with_what() {
        let sessions = Arc::new(Sessions::default());
        let (outbound, _inbound) = mpsc::channel(1);
        let seat = sessions.open(&node(1), outbound);
        seat.sent(10);
        seat.reported(10, &["x".repeat(1000), "no".to_owned()]);
        assert_eq!(sessions.failing(), [], "it may be repaired in a moment");
        let later = Instant::now() + ERROR_PATIENCE;
        let told = sessions.failing_at(later);
        assert_eq!((&told[0].node, told[0].behind, told[0].count), (&node(1), false, 2));
        assert_eq!(told[0].first.len(), ERROR_LINE, "a node can't fill the manager");
        let before = Instant::now() + ERROR_PATIENCE;
        seat.sent(11);
        let told = sessions.failing_at(before);
        assert!(told.iter().all(|failing| !failing.behind), "that it is behind is new: {told:?}");
        assert_eq!(told.len(), 1, "that it fails is not");
        assert!(sessions.failing_at(Instant::now() + ERROR_PATIENCE)[0].behind);
        seat.reported(11, &[]);
        assert_eq!(sessions.failing_at(Instant::now() + 2 * ERROR_PATIENCE), []);
    }

    #[test]
    fn a_report_of_an_earlier_life_counts_for_nothing() {
        let sessions = Arc::new(Sessions::default());
        let (outbound, _inbound) = mpsc::channel(1);
        let seat = sessions.open(&node(1), outbound);
        seat.reported(99, &[]);
        assert_eq!(applied(&sessions, 1), Some(0));
        seat.sent(10);
        assert_eq!(applied(&sessions, 1), Some(0));
    }

    #[test]
    fn what_probes_find_is_kept_as_long_as_the_session() {
        let sessions = Arc::new(Sessions::default());
        let (outbound, _inbound) = mpsc::channel(1);
        let seat = sessions.open(&node(1), outbound);
        sessions.heard_of_peers(&node(1), vec!["x".repeat(1000); 1000]);
        let kept = sessions.peer_troubles();
        assert_eq!((kept.len(), kept[0].1.len()), (PEER_LINES, PEER_LINE), "a node can't fill the manager");
        sessions.heard_of_peers(&node(1), vec!["n3 is gone".to_owned()]);
        sessions.heard_of_peers(&node(2), vec!["no session".to_owned()]);
        assert_eq!(sessions.peer_troubles(), [(node(1), "n3 is gone".to_owned())]);
        drop(seat);
        assert_eq!(sessions.peer_troubles(), []);
    }

    #[test]
    fn the_latest_session_counts_and_the_older_is_cut() {
        let sessions = Arc::new(Sessions::default());
        let (outbound, _inbound) = mpsc::channel(1);
        let first = sessions.open(&node(1), outbound.clone());
        first.sent(5);
        let second = sessions.open(&node(1), outbound);
        assert!(first.replaced.is_cancelled() && !second.replaced.is_cancelled());
        first.reported(5, &[]);
        assert_eq!(applied(&sessions, 1), Some(0), "the older one no longer counts");
        drop(first);
        assert_eq!(applied(&sessions, 1), Some(0), "and does not take the newer away");
        sessions.retain(|_| false);
        assert!(second.replaced.is_cancelled());
    }
}

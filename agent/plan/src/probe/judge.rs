//! What the rounds with a peer come to.

use std::net::IpAddr;
use std::time::Duration;

use shoal_types::id::Name;

use super::Time;

/// An answer that takes longer is late: no network takes so long, a daemon without CPU does.
const LATE: Duration = Duration::from_secs(1);
/// So many rounds in a row must agree.
pub(super) const ROUNDS: usize = 3;

/// A frame that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) at: Time,
    pub(super) answered: Option<Duration>,
}

/// One size in a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) length: u16,
    pub(super) sent: Vec<Sent>,
}

impl Class {
    /// The time the fastest answer took.
    pub(super) fn best(&self) -> Option<Duration> {
        self.sent.iter().filter_map(|sent| sent.answered).min()
    }
}

/// A round with one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Round {
    pub(super) number: u32,
    pub(super) began: Time,
    /// Smallest first.
    pub(super) classes: Vec<Class>,
}

impl Round {
    fn is_silent(&self) -> bool {
        self.classes.iter().all(|class| class.best().is_none())
    }

    /// Whether every size was answered.
    pub(super) fn is_whole(&self) -> bool {
        self.classes.iter().all(|class| class.best().is_some())
    }

    pub(super) fn fastest(&self) -> Option<Duration> {
        self.classes.iter().filter_map(Class::best).min()
    }

    /// The largest size that was answered.
    pub(super) fn passes(&self) -> u16 {
        self.classes
            .iter()
            .filter(|class| class.best().is_some())
            .map(|class| class.length)
            .max()
            .unwrap_or(0)
    }
}

/// How a peer's clock differs from the own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// What the peer's is ahead, milliseconds.
    pub ahead_ms: i64,
    /// By so much it may be wrong, milliseconds: half of the time the answer took.
    pub within_ms: u64,
}

impl Offset {
    /// Clocks that differ by more are worth a word.
    const WORTH_MS: u64 = 250;

    /// Of an answer that took `rtt`.
    pub(super) fn of(theirs_ms: u64, own_ms: u64, rtt: Duration) -> Self {
        let half = u64::try_from(rtt.as_millis() / 2).unwrap_or(u64::MAX);
        let middle = i128::from(own_ms) - i128::from(half);
        let ahead = i128::from(theirs_ms) - middle;
        let ahead_ms = i64::try_from(ahead).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX });
        Self { ahead_ms, within_ms: half.saturating_add(1) }
    }

    /// Whether the clocks differ for certain, and by enough to matter.
    pub const fn is_worth_telling(self) -> bool {
        self.ahead_ms.unsigned_abs().saturating_sub(self.within_ms) > Self::WORTH_MS
    }
}

/// What is known of the way to a peer and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not enough rounds yet to tell.
    Untried,
    /// All sizes are answered in time.
    Fine,
    /// Answers come, but so much later that one of both has no CPU for them.
    Late(Duration),
    /// Frames of one size arrive there, those of a larger one don't. Lengths of IP packets, bytes.
    Narrow {
        /// The largest that passes.
        passes: u16,
        /// The smallest that doesn't.
        fails: u16,
    },
    /// No answer comes, though the peer has answered or asked before.
    Silent {
        /// The peer's own probes arrive, so it is the way there that is closed.
        heard: bool,
    },
    /// The peer has neither answered nor asked since this node's daemon started. It may be of a version that knows no
    /// probes.
    Unanswering,
}

/// What is known of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its name.
    pub name: Name,
    /// Where its tunnel packets come from.
    pub address: IpAddr,
    /// The state of the way.
    pub state: State,
    /// Time that the fastest answer of the last answered round took, both daemons included; `None` if none of the last
    /// three was.
    pub rtt: Option<Duration>,
    /// Largest size that was answered in that round, length of the IP packet in bytes; 0: none.
    pub passes: u16,
    /// When it answered last.
    pub answered_at: Option<Time>,
    /// Difference of the clocks.
    pub offset: Option<Offset>,
    /// Frames sent, answered, and answered late, since it is known.
    pub counts: Counts,
}

/// Frames, since the peer is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sent.
    pub sent: u64,
    /// Answered, late ones included.
    pub answered: u64,
    /// Answered late.
    pub late: u64,
}

impl Counts {
    pub(super) fn answered(&mut self, rtt: Duration) {
        self.answered += 1;
        self.late += u64::from(rtt >= LATE);
    }
}

/// What a peer is known by, besides its rounds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Heard {
    /// Its last answer.
    pub(super) answer: Option<Time>,
    /// Its last own probe.
    pub(super) probe: Option<Time>,
}

/// Judges rounds that are over, latest first.
pub(super) fn judge(rounds: &[&Round], heard: Heard) -> State {
    let Some(first) = rounds.last() else { return State::Untried };
    if rounds.iter().all(|round| round.is_silent()) {
        let has_probed = heard.probe.is_some_and(|at| at >= first.began);
        return match (heard.answer, heard.probe) {
            (None, None) => State::Unanswering,
            _ => State::Silent { heard: has_probed },
        };
    }
    if let Some(narrow) = narrow(rounds) {
        return narrow;
    }
    // A round without an answer says nothing of how fast answers are.
    let fastest = rounds.iter().filter_map(|round| round.fastest()).min();
    match fastest {
        Some(fastest) if fastest >= LATE => State::Late(fastest),
        _ => State::Fine,
    }
}

/// A size that none of the rounds got through, although each got a smaller one through.
fn narrow(rounds: &[&Round]) -> Option<State> {
    if rounds.iter().any(|round| round.is_silent()) {
        return None;
    }
    let passes = rounds.iter().map(|round| round.passes()).max()?;
    let classes = &rounds.first()?.classes;
    let fails = classes.iter().map(|class| class.length).find(|length| *length > passes)?;
    Some(State::Narrow { passes, fails })
}

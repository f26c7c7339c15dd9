//! Whom to ask when, and what was answered.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use shoal_types::NodeId;

use super::frame::{Ends, Kind, Message, SMALLEST, Says};
use super::judge::{Class, Counts, Heard, Offset, ROUNDS, Report, Round, Sent, State, judge};
use super::{Own, Peer, Time};
use crate::doors::{Addresses, Told};

/// Every peer has a round this often,
const PERIOD: Duration = Duration::from_secs(10);
/// but rounds begin no closer together than this: at 1,000 nodes a peer's turn comes each 50 s.
const CLOSEST: Duration = Duration::from_millis(50);
/// So many peers at once are asked before their turn, because they are new or did not answer.
const URGENT: usize = 16;
/// So many are asked when somebody wants to know now.
const CHECKED: usize = 64;
/// What most links carry.
const COMMON: u16 = 1400;

/// Addresses are forgotten so long after they were told last, or when so many of the peer's rounds have gone by without.
const FORGET: Duration = Duration::from_mins(3);
const FORGET_ROUNDS: u32 = 4;

/// How a round goes on while it is not answered.
#[derive(Debug, Clone, Copy)]
struct Pace {
    attempts: usize,
    gap: Duration,
}

/// In turn.
const CALM: Pace = Pace { attempts: 3, gap: Duration::from_secs(1) };
/// When somebody waits: as long, and more often, since this round alone is judged by.
const EAGER: Pace = Pace { attempts: 10, gap: Duration::from_millis(300) };

/// A frame to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Out {
    /// From whom to whom.
    pub ends: Ends,
    /// What it says; the wall clock is the sender's to fill in.
    pub message: Message,
}

/// Rounds that were begun for somebody who waits.
#[derive(Debug, Clone)]
pub struct Ticket {
    rounds: Vec<(NodeId, u32)>,
    /// Peers that are not among them.
    pub left_out: usize,
}

/// A round that is to begin.
struct Next<'a> {
    at: Time,
    node: &'a NodeId,
    in_turn: bool,
}

#[derive(Debug)]
struct Watched {
    peer: Peer,
    open: Option<(Round, Pace)>,
    /// A round that was cut short: answers to it may still come.
    cut: Option<Round>,
    /// Latest first.
    over: VecDeque<Round>,
    /// Rounds that were not whole when their time was over, since one that was.
    wanting: usize,
    heard: Heard,
    /// The addresses it told last, and when.
    told: Option<(Arc<Addresses>, Time)>,
    offset: Option<Offset>,
    counts: Counts,
}

/// All that is known of the peers.
#[derive(Debug, Default)]
pub struct Book {
    run: u64,
    own: Option<Own>,
    /// There is no way to send.
    paused: bool,
    /// Lengths of IP packets to try, smallest first.
    sizes: Vec<u16>,
    peers: BTreeMap<NodeId, Watched>,
    /// Addresses that were known before this run, of nodes that are no peers yet, and when they were recalled.
    recalled: BTreeMap<NodeId, (Arc<Addresses>, Time)>,
    round: u32,
    /// When a round began last.
    began: Option<Time>,
    /// Whose turn it was last, and when. At first the node itself, so that not all nodes ask the same one.
    turn: Option<(Time, NodeId)>,
}

impl Book {
    /// An empty one; `run` is a number no other run of a daemon has.
    pub fn new(run: u64) -> Self {
        Self { run, ..Self::default() }
    }

    /// Takes over who is there and how large a frame's IP packet can be. What is known of those who stay is kept, unless
    /// the sizes are others now; of those with another name or address, what they told.
    pub fn set(&mut self, own: Own, node: &NodeId, mtu: u16, peers: Vec<Peer>) {
        let sizes = [SMALLEST, COMMON.min(mtu), mtu].into_iter();
        let mut sizes: Vec<u16> = sizes.filter(|size| *size >= SMALLEST).collect();
        sizes.dedup();
        self.turn.get_or_insert_with(|| (Time::ZERO, node.clone()));
        if self.sizes != sizes || self.own != Some(own) {
            self.forget_rounds();
        }
        (self.own, self.sizes, self.paused) = (Some(own), sizes, false);
        let mut before = std::mem::take(&mut self.peers);
        for peer in peers {
            let node = peer.node.clone();
            let recalled = self.recalled.remove(&node);
            let known = match before.remove(&node) {
                Some(known) if known.peer == peer => known,
                Some(known) if known.peer.mac == peer.mac => {
                    Watched { told: known.told, ..Watched::new(peer) }
                }
                _ => Watched { told: recalled, ..Watched::new(peer) },
            };
            self.peers.insert(node, known);
        }
        self.recalled.clear();
    }

    /// There is no way to send just now: rounds that are under way count for nothing.
    pub fn pause(&mut self) {
        self.paused = true;
        for peer in self.peers.values_mut() {
            peer.open = None;
        }
    }

    /// Forgets everybody.
    pub fn clear(&mut self) {
        *self = Self { round: self.round, ..Self::new(self.run) };
    }

    /// Who asks, if that is possible.
    fn asker(&self) -> Option<Own> {
        self.own.filter(|_| !self.paused)
    }

    fn forget_rounds(&mut self) {
        for peer in self.peers.values_mut() {
            peer.open = None;
            peer.over.clear();
            peer.wanting = 0;
        }
    }

    /// Begins a round at once with each peer, or if there are too many with those that are worst known first. `None`
    /// while nothing can be sent.
    pub fn check(&mut self, now: Time) -> Option<Ticket> {
        self.asker()?;
        let mut order: Vec<(bool, Option<Time>, NodeId)> = self
            .peers
            .iter()
            .map(|(node, peer)| (peer.state() == State::Fine, peer.heard.answer, node.clone()))
            .collect();
        order.sort();
        let left_out = order.len().saturating_sub(CHECKED);
        let mut rounds = Vec::new();
        for (_, _, node) in order.into_iter().take(CHECKED) {
            rounds.extend(self.begin(&node, now, EAGER).map(|number| (node, number)));
        }
        Some(Ticket { rounds, left_out })
    }

    /// What the rounds of a ticket came to, once all of them are over; each is judged by that round alone.
    pub fn checked(&self, ticket: &Ticket) -> Option<Vec<Report>> {
        let mut reports = Vec::new();
        for (node, number) in &ticket.rounds {
            let Some(peer) = self.peers.get(node) else { continue };
            if peer.open.as_ref().is_some_and(|(round, _)| round.number == *number) {
                return None;
            }
            if let Some(round) = peer.over.iter().find(|round| round.number == *number) {
                reports.push(peer.report(judge(&[round], peer.heard)));
            }
        }
        Some(reports)
    }

    /// What is known of every peer.
    pub fn reports(&self) -> impl Iterator<Item = Report> + '_ {
        self.peers.values().map(|peer| peer.report(peer.state()))
    }

    /// What is to be sent now. Answers that have come must have been noted before.
    pub fn due(&mut self, now: Time) -> Vec<Out> {
        let Some(own) = self.asker() else { return Vec::new() };
        self.close(now);
        self.begin_due(now);
        let mut out = Vec::new();
        for peer in self.peers.values_mut() {
            let Some((round, pace)) = &mut peer.open else { continue };
            let resend = now >= round.next_at(*pace);
            for (class, of) in (0_u8..).zip(&mut round.classes) {
                if of.best().is_some() || !(resend || of.sent.is_empty()) {
                    continue;
                }
                let message = Message {
                    kind: Kind::Probe,
                    run: self.run,
                    round: round.number,
                    class,
                    attempt: u8::try_from(of.sent.len()).unwrap_or(u8::MAX),
                    length: of.length,
                    clock_ms: 0,
                };
                of.sent.push(Sent { at: now, answered: None });
                peer.counts.sent += 1;
                out.push(Out { ends: own.to(&peer.peer), message });
            }
        }
        out
    }

    /// When [`Self::due`] has something to do next; `None`: not before something else changes.
    pub fn next(&self) -> Option<Time> {
        self.asker()?;
        let open = self.peers.values().filter_map(|peer| peer.open.as_ref());
        let resend = open.map(|(round, pace)| round.next_at(*pace)).min();
        let begin = self.next_round().map(|next| next.at);
        [resend, begin].into_iter().flatten().min()
    }

    /// Notes an answer. `own_ms` is the wall clock, milliseconds of Unix time. What was not asked is nobody's answer.
    pub fn answered(&mut self, ends: &Ends, message: &Message, now: Time, own_ms: u64) {
        let run = self.run;
        let Some(peer) = self.known(ends) else { return };
        if message.run != run {
            return;
        }
        let open = peer.open.iter_mut().map(|(round, _)| round);
        let Some(round) =
            open.chain(&mut peer.cut).chain(&mut peer.over).find(|round| round.number == message.round)
        else {
            return;
        };
        let class = round.classes.get_mut(usize::from(message.class));
        let Some(class) = class.filter(|class| class.length == message.length) else { return };
        let sent = class.sent.get_mut(usize::from(message.attempt));
        let Some(sent) = sent.filter(|sent| sent.answered.is_none()) else { return };
        let rtt = now.saturating_sub(sent.at);
        sent.answered = Some(rtt);
        let is_whole = round.is_whole();
        peer.counts.answered(rtt);
        peer.heard.answer = Some(now);
        let offset = Offset::of(message.clock_ms, own_ms, rtt);
        // The fastest answer of a round tells best; a new round starts anew.
        if message.class == 0 || peer.offset.is_none_or(|known| known.within_ms >= offset.within_ms) {
            peer.offset = Some(offset);
        }
        if is_whole && peer.open.as_ref().is_some_and(|(round, _)| round.number == message.round) {
            peer.close();
        }
    }

    /// Notes a peer's own probe; the way to answer it. Nobody else is answered.
    pub fn asked(&mut self, ends: &Ends, now: Time) -> Option<Ends> {
        let peer = self.known(ends)?;
        peer.heard.probe = Some(now);
        Some(ends.turned())
    }

    /// Notes what a peer's probe that has room for addresses ([`Message::has_room`]) says of its own. Nobody else is listened
    /// to.
    pub fn heard(&mut self, ends: &Ends, says: Says, now: Time) {
        let Some(peer) = self.known(ends) else { return };
        match (says, &mut peer.told) {
            (Says::Nothing, told) => *told = None,
            // It has just been started: what it told before is as good as it was.
            (Says::Later, _) => {}
            (Says::Addresses(now_told), Some((told, at))) if **told == now_told => *at = now,
            (Says::Addresses(now_told), told) => *told = Some((Arc::new(now_told), now)),
        }
    }

    /// Takes over what an earlier run was told, as if it had been told now: until a peer is heard, and no longer than any
    /// other silence lasts.
    pub fn recall(&mut self, told: &Told, now: Time) {
        for (node, told) in told {
            let told = (Arc::clone(told), now);
            match self.peers.get_mut(node) {
                Some(peer) => {
                    peer.told.get_or_insert(told);
                }
                None => {
                    self.recalled.insert(node.clone(), told);
                }
            }
        }
    }

    /// The addresses of the peers that tell them.
    pub fn told(&self, now: Time) -> Told {
        let many = u32::try_from(self.peers.len()).unwrap_or(u32::MAX).max(1);
        let forget = FORGET.max(PERIOD.max(CLOSEST * many) * FORGET_ROUNDS);
        let all = self.peers.iter().filter_map(|(node, peer)| Some((node, peer.told.as_ref()?)));
        all.chain(&self.recalled)
            .filter(|(_, (_, at))| now.saturating_sub(*at) < forget)
            .map(|(node, (told, _))| (node.clone(), Arc::clone(told)))
            .collect()
    }

    /// The peer that sent a frame to this node, by both of its addresses.
    fn known(&mut self, ends: &Ends) -> Option<&mut Watched> {
        let own = self.own?;
        self.peers.values_mut().find(|watched| {
            let there = own.to(&watched.peer);
            there.turned() == *ends
        })
    }

    /// Ends the rounds whose last attempt has had its time.
    fn close(&mut self, now: Time) {
        for peer in self.peers.values_mut() {
            let ended = peer.open.as_ref().is_some_and(|(round, pace)| {
                round.attempts() >= pace.attempts && now >= round.next_at(*pace)
            });
            if ended {
                peer.close();
            }
        }
    }

    fn begin_due(&mut self, now: Time) {
        let Some(next) = self.next_round().filter(|next| next.at <= now) else { return };
        let (node, in_turn) = (next.node.clone(), next.in_turn);
        self.begin(&node, now, CALM);
        self.began = Some(now);
        if in_turn {
            self.turn = Some((now, node));
        }
    }

    fn next_round(&self) -> Option<Next<'_>> {
        let free = self.began.map_or(Time::ZERO, |began| began + CLOSEST);
        let turn = self.next_turn()?;
        match self.next_urgent() {
            Some(node) if turn.at > free => Some(Next { at: free, node, in_turn: false }),
            _ => Some(Next { at: turn.at.max(free), ..turn }),
        }
    }

    /// A peer to be asked before its turn: it is new, or its last round was not whole, and it is not clear yet.
    fn next_urgent(&self) -> Option<&NodeId> {
        let busy = self.peers.values().filter(|peer| peer.open.is_some() && peer.is_doubted()).count();
        let mut doubted = self.peers.iter().filter(|(_, peer)| peer.open.is_none() && peer.is_doubted());
        if busy < URGENT { doubted.next().map(|(node, _)| node) } else { None }
    }

    fn next_turn(&self) -> Option<Next<'_>> {
        let many = u32::try_from(self.peers.len()).unwrap_or(u32::MAX).max(1);
        let (last_at, last) = self.turn.as_ref()?;
        let after = (Bound::Excluded(last), Bound::Unbounded);
        let node = self.peers.range::<NodeId, _>(after).next().or_else(|| self.peers.iter().next())?.0;
        Some(Next { at: *last_at + (PERIOD / many).max(CLOSEST), node, in_turn: true })
    }

    /// Begins a round, unless one is under way. Whoever waits wants to know how it is from now on: a round in turn is
    /// cut short then, and tells nothing.
    fn begin(&mut self, node: &NodeId, now: Time, pace: Pace) -> Option<u32> {
        let peer = self.peers.get_mut(node)?;
        match peer.open.take() {
            Some((round, under_way)) if pace.gap >= under_way.gap => {
                let number = round.number;
                peer.open = Some((round, under_way));
                return Some(number);
            }
            Some((round, _)) => peer.cut = Some(round),
            None => {}
        }
        self.round = self.round.wrapping_add(1);
        let classes = self.sizes.iter().map(|length| Class { length: *length, sent: Vec::new() }).collect();
        peer.open = Some((Round { number: self.round, began: now, classes }, pace));
        Some(self.round)
    }
}

impl Round {
    fn attempts(&self) -> usize {
        self.classes.iter().map(|class| class.sent.len()).max().unwrap_or(0)
    }

    /// When what is not answered is sent again, or given up.
    fn next_at(&self, pace: Pace) -> Time {
        let last = self.classes.iter().flat_map(|class| &class.sent).map(|sent| sent.at).max();
        last.map_or(self.began, |last| last + pace.gap)
    }
}

impl Watched {
    fn new(peer: Peer) -> Self {
        Self {
            peer,
            open: None,
            cut: None,
            over: VecDeque::new(),
            wanting: 0,
            heard: Heard::default(),
            told: None,
            offset: None,
            counts: Counts::default(),
        }
    }

    fn close(&mut self) {
        if let Some((round, _)) = self.open.take() {
            self.wanting = if round.is_whole() { 0 } else { self.wanting.saturating_add(1) };
            self.over.push_front(round);
            self.over.truncate(ROUNDS);
        }
    }

    /// Whether it is new, or the last round was not whole and there are too few of that kind to tell.
    fn is_doubted(&self) -> bool {
        self.over.is_empty() || (1..ROUNDS).contains(&self.wanting)
    }

    fn state(&self) -> State {
        let rounds: Vec<&Round> = self.over.iter().collect();
        match rounds.first() {
            // One whole round in time is enough to be well again.
            Some(last) if last.is_whole() && judge(&[last], self.heard) == State::Fine => State::Fine,
            Some(_) if rounds.len() >= ROUNDS => judge(&rounds, self.heard),
            _ => State::Untried,
        }
    }

    fn report(&self, state: State) -> Report {
        let answered = self.over.iter().find(|round| round.fastest().is_some());
        Report {
            name: self.peer.name.clone(),
            address: self.peer.address,
            state,
            rtt: answered.and_then(Round::fastest),
            passes: answered.map_or(0, Round::passes),
            answered_at: self.heard.answer,
            offset: self.offset,
            counts: self.counts,
        }
    }
}

//! The reference model: what may become of a packet, said in plain sets and maps.
//!
//! It knows flows by what their client sees and by what their task sees, and nothing of keys, hashes and slots. Where
//! the mesh has a choice the model takes what was chosen, sees whether it was allowed, and holds the mesh to it. What a
//! node may have forgotten (its tables are finite), it may choose anew; the model keeps account of that, too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use shoal_ebpf_common::maglev::Policy;
use shoal_ebpf_common::reason::Reason;

use super::flow::{Flow, Leg, Peer, State, View, as_seen, is_syn, seconds, without_macs};
use super::mesh::Fate;
use super::place::{self, Client, Line, PORTS, Place, Target};
use super::support::packet::{ACK, FIN, RST, SYN, Segment, TCP};

/// Where a packet may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    /// To a task's port; from this port, if it must be.
    To(usize, u16, Option<u16>),
    /// To the stack, which has it as if there were no mesh.
    Stack,
    /// Nobody can have it, and that is counted.
    NoEndpoint,
}

/// What happened on the way, for the test of the test.
pub(crate) type Tally = BTreeMap<&'static str, u64>;

type Id = (usize, usize);
/// Who may be drawn for whom: the same always draws the same.
type Draw = (Option<usize>, IpAddr, Leg, usize, BTreeSet<usize>);

pub(crate) struct Model {
    place: Place,
    pub(crate) lines: Vec<Line>,
    pub(crate) views: Vec<View>,
    /// Whether the ring of new flows is so small that one which only begins may go at once.
    pub(crate) forgets_beginners: bool,
    flows: BTreeMap<Id, Flow>,
    /// Whom a task means by what it sees.
    peers: BTreeMap<Peer, Id>,
    /// How a line's client was last seen.
    seen: BTreeMap<usize, Peer>,
    drawn: BTreeMap<Draw, usize>,
    /// Flows whose clients are led to another task by now: the node of the old one doesn't know.
    left: BTreeMap<(Peer, Id), Flow>,
    /// Flows whose port was once translated.
    aliased: BTreeSet<Id>,
    now: u32,
    pub(crate) tally: Tally,
}

impl Model {
    pub(crate) fn new(place: &Place, lines: Vec<Line>, views: Vec<View>, forgets_beginners: bool) -> Self {
        Self {
            place: place.clone(),
            lines,
            views,
            forgets_beginners,
            flows: BTreeMap::new(),
            peers: BTreeMap::new(),
            seen: BTreeMap::new(),
            drawn: BTreeMap::new(),
            left: BTreeMap::new(),
            aliased: BTreeSet::new(),
            now: 0,
            tally: Tally::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    pub(crate) fn pass_time(&mut self, ticks: u32) {
        self.now += ticks;
    }

    /// How the task that has a line's flow last saw the client.
    pub(crate) fn seen(&self, line: usize) -> Option<Peer> {
        self.seen.get(&line).copied()
    }

    fn may_be_over(&self, flow: &Flow) -> bool {
        // Whose answers pass by, its client's last word may have been the end of.
        let may_have_ended = flow.tampered || self.place.dsr && flow.client_fin;
        let limit = if may_have_ended { 60 } else { flow.limit() };
        let begins = !flow.open || may_have_ended;
        flow.dead
            || flow.is_closed()
            || begins && self.forgets_beginners
            || seconds(self.now - flow.last) + 2 >= limit
    }

    fn must_live(&self, flow: &Flow) -> bool {
        flow.request && flow.answers && !self.may_be_over(flow)
    }

    /// What a node publishes: the service and its port.
    fn published(&self, n: usize, line: &Line) -> Option<(usize, u16)> {
        let published = self.views[n].published;
        match (line.target, line.port) {
            (Target::Vip(service), port) => Some((service, port)),
            (_, port) if port == PORTS[0] && published[0] => Some((0, 80)),
            (_, port) if port == PORTS[1] && published[1] => Some((1, 90)),
            (Target::Floating(0), port) if port == PORTS[2] && published[2] => Some((0, 91)),
            _ => None,
        }
    }

    fn is_usable(&self, n: usize, task: usize, line: &Line) -> bool {
        self.views[n].state[task] == State::In && self.place.tasks[task].has(line.v4)
    }

    /// Where a packet may go that begins a flow, as far as its node knows.
    fn fresh(&self, n: usize, line: &Line, flags: u8) -> Vec<Right> {
        let is_vip = matches!(line.target, Target::Vip(_));
        let Some((service, tport)) = self.published(n, line) else { return vec![Right::Stack] };
        if line.proto == TCP && flags & (SYN | ACK) == SYN | ACK && !is_vip {
            return vec![Right::Stack];
        }
        let slots = &self.views[n].slots[service];
        let usable = slots.iter().filter(|&&task| self.is_usable(n, task, line));
        let mut right: Vec<Right> = usable.map(|&task| Right::To(task, tport, None)).collect();
        // A table that names others, too, may be searched in vain.
        if right.is_empty() || right.len() < slots.len() {
            right.push(Right::NoEndpoint);
        }
        right
    }

    /// Where a packet of a flow that its node knows goes on to.
    fn held(&self, n: usize, line: &Line, flow: &Flow, flags: u8) -> Vec<Right> {
        let task = flow.peer.task;
        let port = flow.answers.then_some(flow.peer.port);
        if !is_syn(line.proto, flags) {
            return match self.views[n].state[task] {
                State::In | State::Draining => vec![Right::To(task, flow.peer.tport, port)],
                State::Gone if line.proto == TCP => vec![Right::NoEndpoint],
                State::Gone => self.fresh(n, line, flags),
            };
        }
        let is_own_server = line.client == Client::Task(task);
        let goes_on = self
            .published(n, line)
            .filter(|&(service, _)| service == flow.service && self.is_usable(n, task, line));
        match goes_on {
            // Others come before itself.
            Some((_, tport)) if is_own_server => {
                let mut right = self.fresh(n, line, flags);
                right.push(Right::To(task, tport, None));
                right
            }
            Some((_, tport)) => vec![Right::To(task, tport, None)],
            None => self.fresh(n, line, flags),
        }
    }

    /// A packet of a line was sent by way of a node; says what is wrong with its fate.
    pub(crate) fn sent(&mut self, c: usize, n: usize, segment: &Segment, fate: &Fate) -> Result<(), String> {
        let line = self.lines[c];
        let flags = segment.flags;
        let before = self.flows.get(&(n, c)).cloned();
        let mut right = match &before {
            Some(flow) => self.held(n, &line, flow, flags),
            None => self.fresh(n, &line, flags),
        };
        let stands = before.as_ref().is_some_and(|flow| flow.request && !self.may_be_over(flow));
        if before.is_some() && !stands {
            right = right
                .into_iter()
                .map(|one| match one {
                    Right::To(task, tport, _) => Right::To(task, tport, None),
                    other => other,
                })
                .collect();
            right.extend(self.fresh(n, &line, flags));
        }
        // An answer to itself that nobody knows for one looks like a question: then the question looks like its answer.
        if let Some(flow) = before.as_ref().filter(|flow| flow.tampered)
            && line.client == Client::Task(flow.peer.task)
        {
            right.push(Right::To(flow.peer.task, flow.peer.tport, None));
        }
        let (task, leg, got) = match fate {
            Fate::Task(task, leg, got) => (*task, *leg, got),
            Fate::Stack(at, None) if *at == n && right.contains(&Right::Stack) => {
                self.count("left to the stack");
                return Ok(());
            }
            Fate::Stack(at, Some(Reason::NoEndpoint))
                if *at == n
                    && right.contains(&Right::NoEndpoint)
                    && !matches!(line.target, Target::Vip(_)) =>
            {
                self.count("refused");
                return Ok(());
            }
            Fate::Dropped(Some(Reason::NoEndpoint))
                if right.contains(&Right::NoEndpoint) && matches!(line.target, Target::Vip(_)) =>
            {
                self.count("dropped without an endpoint");
                return Ok(());
            }
            _ => return Err(format!("may be {right:?}")),
        };
        let peer = as_seen(&line, n, (task, leg, got), segment)?;
        let fits = |one: &Right| {
            matches!(*one, Right::To(to, tport, port)
                if to == task && tport == peer.tport && port.is_none_or(|port| port == peer.port))
        };
        if !right.iter().any(fits) {
            return Err(format!("may be {right:?}, but the task sees {peer:?}"));
        }
        self.check_draw(n, c, before.is_none(), peer, flags)?;
        let inherits = self.check_port(n, c, before.as_ref(), peer, flags)?;
        self.note_sent(n, c, before, peer, flags);
        if inherits && !is_syn(line.proto, flags) {
            // To the task's node it goes on with what has ended.
            let flow = self.flows.get_mut(&(n, c)).expect("it was just noted");
            flow.tampered = true;
            (flow.client_fin, flow.server_fin) = (true, true);
        }
        Ok(())
    }

    /// The same flow, among the same endpoints, is led to the same one wherever it comes in.
    fn check_draw(&mut self, n: usize, c: usize, is_new: bool, peer: Peer, flags: u8) -> Result<(), String> {
        let line = self.lines[c];
        let Some((service, _)) = self.published(n, &line) else { return Ok(()) };
        let view = &self.views[n];
        let slots = &view.slots[service];
        let is_clean = slots.iter().all(|&task| self.is_usable(n, task, &line));
        let whose = match view.policy[service] {
            Policy::Turn | Policy::Random => return Ok(()),
            Policy::Flow => Some(c),
            Policy::Source => None,
        };
        let own = matches!(line.client, Client::Task(client) if slots.contains(&client));
        if !is_clean || own || !is_new {
            return Ok(());
        }
        let begins = self.flows.keys().all(|id| id.1 != c);
        let draw = (whose, peer.addr, peer.leg, service, slots.clone());
        let first = *self.drawn.entry(draw).or_insert(peer.task);
        if first != peer.task {
            return Err(format!("by any node it goes to task {first}"));
        }
        if !begins && flags & SYN == 0 && slots.len() > 1 {
            self.count("found again by another node");
        }
        Ok(())
    }

    /// No two live flows look alike to their task, and none is given another port without need. Returns whether it has the
    /// place of one that was over.
    fn check_port(
        &mut self,
        n: usize,
        c: usize,
        before: Option<&Flow>,
        peer: Peer,
        flags: u8,
    ) -> Result<bool, String> {
        let line = self.lines[c];
        let is_known =
            before.is_some_and(|flow| flow.peer == peer && !flow.dead) && !is_syn(line.proto, flags);
        let others: Vec<Id> = self
            .flows
            .iter()
            .filter(|&(&id, flow)| id != (n, c) && flow.peer == peer)
            .map(|(&id, _)| id)
            .collect();
        let mut inherits = self.left.keys().any(|&(left, _)| left == peer) && !is_known;
        for id in others {
            let other = &self.flows[&id];
            let lives = self.must_live(other);
            // A connection that goes on by another node than before has moved with its address.
            let moves = line.proto == TCP && !is_syn(line.proto, flags) && id.0 != n;
            // A flow whose answers were forgotten finds out with the next tick that another has its place.
            let is_unaware = before.is_some_and(|flow| {
                flow.peer.task == peer.task && flow.request && flow.tampered && flow.last == self.now
            });
            if lives && !is_known && !moves && !is_unaware {
                return Err(format!("looks like the flow of {} by node {}", self.lines[id.1], id.0));
            }
            let flow = self.flows.get_mut(&id).expect("it is one of them");
            flow.answers = false;
            flow.tampered = true;
            flow.dead |= !lives && !is_known;
            inherits |= flow.dead && !is_known;
            if lives {
                self.count("taken over");
            }
        }
        let own = Peer { port: line.cport, ..peer };
        // By the node it enters by, or by the task's, which may have translated a port already.
        // A connection that goes on by another node than before is not in its own way.
        let goes_on = line.proto == TCP && !is_syn(line.proto, flags);
        let now = self.flows.iter().map(|(&id, flow)| (id, flow));
        let before_now = self.left.iter().map(|(&(_, id), flow)| (id, flow));
        let is_taken = now.filter(|&(id, _)| id != (n, c)).chain(before_now).any(|(id, flow)| {
            let between = Peer { port: self.lines[id.1].cport, ..flow.peer };
            !(goes_on && id.1 == c)
                && (flow.peer == own || id.0 == n && between == own)
                && !flow.is_over(self.now)
        });
        if peer.port != line.cport && !is_known {
            if !is_taken && !self.aliased.contains(&(n, c)) {
                return Err("its port is translated, and nobody else has it".to_owned());
            }
            self.count("port translated");
            self.aliased.insert((n, c));
        }
        Ok(inherits)
    }

    fn note_sent(&mut self, n: usize, c: usize, before: Option<Flow>, peer: Peer, flags: u8) {
        let line = self.lines[c];
        let syn = is_syn(line.proto, flags);
        // If the packet was taken for one of the flow that was, nothing was written.
        let answers =
            before.as_ref().is_none_or(|flow| syn || flow.peer.task != peer.task || self.now > flow.last);
        if let Some(flow) = before.as_ref().filter(|flow| flow.peer != peer) {
            self.left.insert((flow.peer, (n, c)), flow.clone());
        }
        let is_doubtful =
            line.client == Client::Task(peer.task) && before.as_ref().is_some_and(|flow| flow.tampered);
        let goes_on = before.filter(|flow| flow.peer == peer && !syn);
        let tcp = line.proto == TCP;
        let flow = if let Some(mut flow) = goes_on {
            // It may have begun anew.
            flow.tampered |= !flow.request || self.may_be_over(&flow);
            flow.answers |= self.now > flow.last;
            flow.dead = false;
            flow.request = true;
            flow.open = true;
            flow.reset = flags & RST != 0 && tcp;
            flow.client_fin |= flags & FIN != 0 && tcp;
            flow.last = self.now;
            self.count("went on");
            flow
        } else {
            self.count(if tcp && !syn { "went on where nobody knew it" } else { "began" });
            Flow {
                peer,
                service: self.published(n, &line).map_or(usize::MAX, |(service, _)| service),
                open: tcp && !syn,
                client_fin: false,
                server_fin: false,
                reset: false,
                last: self.now,
                request: true,
                answers,
                // What it was before is not known.
                tampered: is_doubtful || tcp && flags & (FIN | RST) != 0,
                dead: false,
            }
        };
        self.flows.insert((n, c), flow);
        self.peers.insert(peer, (n, c));
        self.seen.insert(c, peer);
        if line.client == Client::Task(peer.task) {
            self.count("to itself");
        }
    }

    /// What a client must get of an answer.
    fn answer_to(&self, (n, c): Id, answer: &Segment) -> (Fate, Line) {
        let line = self.lines[c];
        let want = Segment {
            src: line.destination(),
            dst: line.source(),
            sport: line.port,
            dport: line.cport,
            ..answer.clone()
        };
        let fate = match line.client {
            Client::Outside(_) => Fate::Outside(n, want),
            Client::OnNode(_) => Fate::OnNode(n, want),
            Client::Task(task) => Fate::Task(task, Leg::Overlay, want),
        };
        (fate, line)
    }

    /// What a client gets of an answer that a node of a task sends by itself, if it may.
    fn by_itself(&self, id: Id, task: usize, answer: &Segment) -> Option<Fate> {
        let node = self.place.tasks[task].node;
        let line = self.lines[id.1];
        let is_known = matches!(line.target, Target::Node(_) | Target::Floating(0));
        if !self.place.dsr || node == id.0 || !is_known {
            return None;
        }
        match self.answer_to(id, answer).0 {
            Fate::Outside(_, segment) => Some(without_macs(Fate::Outside(node, segment))),
            _ => None,
        }
    }

    /// An answer that its node may have noted, or not, of all flows that look so to its task.
    fn may_be_noted(&mut self, peer: Peer, answer: &Segment) {
        for flow in self.flows.values_mut().filter(|flow| flow.peer == peer) {
            flow.tampered = true;
            flow.server_fin |= answer.flags & FIN != 0;
            flow.reset |= answer.flags & RST != 0;
        }
    }

    /// A task answered what it sees; says what is wrong with the answer's fate.
    pub(crate) fn answered(&mut self, peer: Peer, answer: &Segment, fate: &Fate) -> Result<(), String> {
        let Some(&id) = self.peers.get(&peer) else { return Ok(()) };
        let Some(flow) = self.flows.get(&id) else { return Ok(()) };
        // It may be seen by another port by now: then this one is nobody's, or another's.
        let is_seen_so = flow.peer == peer;
        let must = is_seen_so && flow.answers && !self.may_be_over(flow);
        // If nobody knows it for an answer, it asks the service.
        let is_own_server = self.lines[id.1].client == Client::Task(peer.task);
        let is_doubtful = is_own_server && (flow.tampered || !must);
        let (want, line) = self.answer_to(id, answer);
        let fate = without_macs(fate.clone());
        if self.by_itself(id, peer.task, answer).is_some_and(|direct| direct == fate) {
            // The node that the client asked sees nothing of it.
            self.may_be_noted(peer, answer);
            self.count("answered by itself");
            return Ok(());
        }
        if fate != without_macs(want.clone()) {
            let is_lost = matches!(fate, Fate::Stack(..) | Fate::Dropped(_) | Fate::Astray(_));
            let now = self.flows.iter().map(|(&other, flow)| (flow.peer, other));
            let is_anothers = now.chain(self.left.keys().copied()).any(|(seen, other)| {
                let by_itself = || self.by_itself(other, peer.task, answer).as_ref() == Some(&fate);
                seen == peer && (without_macs(self.answer_to(other, answer).0) == fate || by_itself())
            });
            // Within a network it finds the client all the same, who has asked somebody else.
            let is_plain = matches!(&fate, Fate::Task(task, Leg::Overlay, got)
                if line.client == Client::Task(*task) && *got == answer.clone().macs([0; 6], [0; 6]));
            if !is_doubtful && (must || !(is_lost || is_anothers || is_plain)) {
                return Err(format!("should be {want:?}"));
            }
            // It may have been noted before it was lost, and of whatever flow it was taken for.
            self.may_be_noted(peer, answer);
            self.count("answer lost with what was forgotten");
            return Ok(());
        }
        if !is_seen_so {
            return Ok(());
        }
        let now = self.now;
        let flow = self.flows.get_mut(&id).expect("found above");
        flow.tampered |= is_doubtful;
        let tcp = line.proto == TCP;
        let heals = !flow.request && now > flow.last && !flow.dead;
        flow.request |= heals;
        flow.open |= !tcp;
        flow.reset = tcp && answer.flags & RST != 0;
        flow.server_fin |= tcp && answer.flags & FIN != 0;
        flow.last = now;
        if heals {
            self.count("made whole by an answer");
        }
        self.count("answered");
        Ok(())
    }

    /// A node forgot where a client's packets go, by their addresses and ports.
    pub(crate) fn forgot_request(&mut self, n: usize, proto: u8, src: (IpAddr, u16), dst: (IpAddr, u16)) {
        let Self { flows, lines, place, aliased, .. } = self;
        for (&(entry, c), flow) in flows {
            let line = lines[c];
            let may_be_between = aliased.contains(&(entry, c)) || line.cport == src.1;
            let by_entry = entry == n
                && (line.source(), line.cport, line.destination(), line.port) == (src.0, src.1, dst.0, dst.1);
            // The node of the task remembers which port it gave to a flow.
            let by_task = place.tasks[flow.peer.task].node == n
                && place::ingress(flow.peer.task, line.v4) == dst.0
                && may_be_between
                && (flow.peer.addr, flow.peer.tport) == (src.0, dst.1);
            if line.proto == proto && (by_entry || by_task) {
                flow.request = false;
                flow.answers &= by_entry;
                flow.tampered = true;
            }
        }
    }

    /// A node forgot how answers come back.
    pub(crate) fn forgot_answers(&mut self, n: usize, proto: u8, src: (IpAddr, u16), dst: (IpAddr, u16)) {
        let Self { flows, lines, place, aliased, .. } = self;
        for (&(entry, c), flow) in flows {
            // Between the two nodes a flow may have a third port.
            let may_be_between = entry == n && (aliased.contains(&(entry, c)) || lines[c].cport == dst.1);
            let (task, v4) = (flow.peer.task, lines[c].v4);
            let is_here = entry == n || place.tasks[task].node == n;
            let is_from = place::ingress(task, v4) == src.0 || place::overlay(task, v4) == src.0;
            let is_port = flow.peer.port == dst.1 || may_be_between;
            let peer = (flow.peer.addr, flow.peer.tport, flow.peer.proto);
            if is_here && is_from && is_port && peer == (dst.0, src.1, proto) {
                flow.answers = false;
                flow.tampered = true;
            }
        }
    }
}

//! Histories: what happens to a mesh, one step after the other, and whether model and programs agree on it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use shoal_ebpf_common::keys::FlowKey;
use shoal_ebpf_common::maglev::Policy;

use super::flow::{Leg, Peer, State, View};
use super::mesh::Mesh;
use super::place::{self, Client, FLOATING, Line, PORTS, Place, SERVICES, Target};
use super::rules::{Model, Tally};
use super::support::fuzz::Random;
use super::support::packet::{ACK, FIN, RST, SYN, Segment, TCP};

/// A node, or all of them.
type At = Option<usize>;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// The client of a line sends.
    Send {
        line: usize,
        flags: u8,
    },
    /// The task that has a line's flow answers, by the leg of its default route if so said, and from the address there.
    Answer {
        line: usize,
        flags: u8,
        leg: Leg,
        by_address: bool,
    },
    Endpoint {
        at: At,
        task: usize,
        state: State,
    },
    /// A table is written anew, of the endpoints that are in.
    Slots {
        at: At,
        service: usize,
    },
    Policy {
        service: usize,
        policy: Policy,
    },
    Publish {
        at: At,
        port: usize,
        on: bool,
    },
    Move {
        floating: usize,
        to: usize,
    },
    Time {
        ticks: u32,
    },
    Evict {
        at: usize,
        nth: usize,
    },
    Propose {
        at: usize,
    },
    Collect {
        at: usize,
    },
}

#[derive(Clone)]
pub(crate) struct History {
    pub(crate) place: Place,
    pub(crate) lines: Vec<Line>,
    policy: [Policy; SERVICES],
    ring: Option<u32>,
    pub(crate) steps: Vec<Step>,
}

impl History {
    pub(crate) fn generate(seed: u64) -> Self {
        let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let r = &mut random;
        // The first numbers of near seeds are near.
        for _ in 0..8 {
            r.next();
        }
        let place = Place::generate(r);
        let mut lines: Vec<Line> = Vec::new();
        // Of one family and protocol, mostly: others are in nobody's way.
        let first = Line::generate(r, &place);
        for _ in 0..3 + r.below(6) {
            let line = Line::generate(r, &place);
            let line = if r.below(8) > 0 { Line { v4: first.v4, proto: first.proto, ..line } } else { line };
            if !lines.contains(&line) && may_send(&place, &line) {
                lines.push(line);
            }
        }
        let lines = if lines.is_empty() { vec![Line { v4: true, ..first }] } else { lines };
        let policy = [(); SERVICES].map(|()| any_policy(r));
        let ring = (r.below(4) == 0).then(|| 2 + u32::try_from(r.below(6)).expect("small"));
        let count = 20 + r.below(80);
        let mut steps = Vec::new();
        while steps.len() < count {
            push(r, &place, &lines, &mut steps);
        }
        Self { place, lines, policy, ring, steps }
    }

    fn view(&self) -> View {
        let count = self.place.tasks.len();
        let of = |s| (0..count).filter(|&t| self.place.tasks[t].service == s).collect();
        View {
            published: [true; 3],
            state: vec![State::In; count],
            slots: (0..SERVICES).map(of).collect(),
            policy: self.policy.to_vec(),
        }
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { nodes, dsr, .. } = &self.place;
        writeln!(f, "{nodes} nodes; dsr {dsr}; policies {:?}; ring {:?}", self.policy, self.ring)?;
        for (t, task) in self.place.tasks.iter().enumerate() {
            writeln!(f, "  task {t}: {task:?}")?;
        }
        for (n, line) in self.lines.iter().enumerate() {
            writeln!(f, "  line {n}: {line}")?;
        }
        for (n, step) in self.steps.iter().enumerate() {
            writeln!(f, "  {n:3}. {step:?}")?;
        }
        Ok(())
    }
}

/// A task needs an address of the family.
fn may_send(place: &Place, line: &Line) -> bool {
    match line.client {
        Client::Task(task) => place.tasks[task].has(line.v4),
        _ => true,
    }
}

fn any_policy(r: &mut Random) -> Policy {
    r.pick(&[Policy::Flow, Policy::Flow, Policy::Source, Policy::Turn, Policy::Random])
}

fn push(r: &mut Random, place: &Place, lines: &[Line], steps: &mut Vec<Step>) {
    let line = r.below(lines.len());
    let at = (r.below(3) == 0).then(|| r.below(place.nodes));
    let node = r.below(place.nodes);
    let task = r.below(place.tasks.len());
    let leg = r.pick(&[Leg::Ingress, Leg::Egress]);
    let by_address = r.below(2) == 0;
    let answer = |flags| Step::Answer { line, flags, leg, by_address };
    match r.below(100) {
        0..12 => {
            steps.extend([Step::Send { line, flags: SYN }, answer(SYN | ACK)]);
            steps.push(Step::Send { line, flags: ACK });
        }
        12..38 => {
            let flags = r.pick(&[SYN, SYN, ACK, ACK, ACK, ACK, ACK | FIN, ACK | FIN, RST, SYN | ACK]);
            steps.push(Step::Send { line, flags });
        }
        38..64 => steps.push(answer(r.pick(&[ACK, ACK, ACK, ACK, ACK, ACK | FIN, ACK | FIN, RST]))),
        64..68 => steps.extend([Step::Send { line, flags: ACK | FIN }, answer(ACK | FIN)]),
        68..75 => {
            let state = r.pick(&[State::In, State::In, State::Draining, State::Gone]);
            steps.push(Step::Endpoint { at, task, state });
        }
        75..80 => steps.push(Step::Slots { at, service: r.below(SERVICES) }),
        80 => steps.push(Step::Policy { service: r.below(SERVICES), policy: any_policy(r) }),
        81..84 => steps.push(Step::Publish { at, port: r.below(3), on: r.below(3) > 0 }),
        84..88 => steps.push(Step::Move { floating: r.below(FLOATING), to: node }),
        88..94 => {
            let ticks = r.pick(&[1, 1, 1, 2, 30, 56, 60, 100, 170, 200, 400_000]);
            steps.push(Step::Time { ticks });
        }
        94..96 => steps.push(Step::Evict { at: node, nth: r.below(64) }),
        96..98 => steps.push(Step::Propose { at: node }),
        98 => steps.push(Step::Collect { at: node }),
        _ => steps.extend((0..place.nodes).flat_map(|at| [Step::Propose { at }, Step::Collect { at }])),
    }
}

/// A history that is under way.
struct Run<'a> {
    history: &'a History,
    mesh: Mesh,
    model: Model,
    holder: [usize; FLOATING],
}

impl<'a> Run<'a> {
    fn new(history: &'a History) -> Self {
        let place = &history.place;
        let views = vec![history.view(); place.nodes];
        let model = Model::new(place, history.lines.clone(), views, history.ring.is_some());
        let mut holder = [0; FLOATING];
        (0..FLOATING).for_each(|f| holder[f] = f % place.nodes);
        let mut run = Self { history, mesh: Mesh::new(place, history.ring), model, holder };
        for n in 0..place.nodes {
            for t in 0..place.tasks.len() {
                run.mesh.set_endpoint(n, t, State::In);
            }
            for s in 0..SERVICES {
                run.set_slots(n, s);
            }
            for port in 0..3 {
                run.publish(n, port, true);
            }
        }
        run
    }

    fn at(&self, at: At) -> Vec<usize> {
        at.map_or_else(|| (0..self.history.place.nodes).collect(), |n| vec![n])
    }

    fn set_slots(&mut self, n: usize, service: usize) {
        let view = &mut self.model.views[n];
        let tasks: BTreeSet<usize> = (0..view.state.len())
            .filter(|&t| view.state[t] == State::In && self.history.place.tasks[t].service == service)
            .collect();
        view.slots[service].clone_from(&tasks);
        let tasks: Vec<usize> = tasks.into_iter().collect();
        self.mesh.set_slots(n, service, &tasks, view.policy[service]);
    }

    fn publish(&mut self, n: usize, port: usize, on: bool) {
        self.model.views[n].published[port] = on;
        let (scope, to) = [(None, (0, 80)), (None, (1, 90)), (Some(0), (0, 91))][port];
        self.mesh.publish(n, scope, PORTS[port], on.then_some(to));
    }

    fn step(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Send { line, flags } => return self.send(line, flags),
            Step::Answer { line, flags, leg, by_address } => {
                return match self.model.seen(line) {
                    Some(peer) => self.answer(peer, flags, leg, by_address),
                    None => Ok(()),
                };
            }
            Step::Endpoint { at, task, state } => {
                for n in self.at(at) {
                    self.model.views[n].state[task] = state;
                    self.mesh.set_endpoint(n, task, state);
                }
            }
            Step::Slots { at, service } => {
                for n in self.at(at) {
                    self.set_slots(n, service);
                }
            }
            Step::Policy { service, policy } => {
                for n in self.at(None) {
                    self.model.views[n].policy[service] = policy;
                    self.set_slots(n, service);
                }
            }
            Step::Publish { at, port, on } => {
                for n in self.at(at) {
                    self.publish(n, port, on);
                }
            }
            Step::Move { floating, to } => {
                self.holder[floating] = to;
                self.mesh.move_address(floating, to);
            }
            Step::Time { ticks } => {
                self.mesh.pass_time(ticks);
                self.model.pass_time(ticks);
            }
            Step::Evict { at, nth } => self.evict(at, nth),
            Step::Propose { at } => self.mesh.propose(at),
            Step::Collect { at } => {
                *self.model.tally.entry("collected").or_default() += u64::from(self.mesh.collect(at));
            }
        }
        Ok(())
    }

    fn send(&mut self, c: usize, flags: u8) -> Result<(), String> {
        let line = self.history.lines[c];
        let flags = if line.proto == TCP { flags } else { 0 };
        let mut segment = segment(line.proto, (line.source(), line.cport), (line.destination(), line.port));
        segment.flags = flags;
        let (n, fate) = match (line.client, line.target) {
            (Client::Task(task), target) => {
                if let Target::Vip(service) = target {
                    segment.dst_mac = place::vip_mac(service);
                }
                let node = self.history.place.tasks[task].node;
                (node, self.mesh.task_sends(task, Leg::Overlay, &segment))
            }
            (Client::OnNode(node), _) => (node, self.mesh.node_sends(node, &segment)),
            (Client::Outside(_), Target::Floating(f)) => {
                (self.holder[f], self.mesh.outside_sends(self.holder[f], &segment))
            }
            (Client::Outside(_), Target::Node(node)) => (node, self.mesh.outside_sends(node, &segment)),
            (Client::Outside(_), _) => return Ok(()),
        };
        let verdict = self.model.sent(c, n, &segment, &fate);
        verdict.map_err(|why| format!("a packet by node {n}: {fate:?}\nbut it {why}"))
    }

    fn answer(&mut self, peer: Peer, flags: u8, leg: Leg, by_address: bool) -> Result<(), String> {
        let (v4, is_udp) = (peer.addr.is_ipv4(), peer.proto != TCP);
        // A datagram may be sent from whatever address its route suggests.
        let (leg, own) = match (peer.leg, leg) {
            (Leg::Overlay, _) => (Leg::Overlay, place::overlay(peer.task, v4)),
            (_, Leg::Egress) if by_address && is_udp => (Leg::Egress, place::egress(peer.task, v4)),
            (_, leg) => (leg, place::ingress(peer.task, v4)),
        };
        let mut answer = segment(peer.proto, (own, peer.tport), (peer.addr, peer.port));
        answer.flags = if is_udp { 0 } else { flags };
        if peer.leg == Leg::Overlay {
            answer.dst_mac = self.owner_mac(peer.addr);
        }
        let fate = self.mesh.task_sends(peer.task, leg, &answer);
        let verdict = self.model.answered(peer, &answer, &fate);
        verdict.map_err(|why| format!("an answer to {peer:?}: {fate:?}\nbut it {why}"))
    }

    /// The Ethernet address that a task finds for another in its network, or for a virtual address.
    fn owner_mac(&self, addr: IpAddr) -> [u8; 6] {
        let v4 = addr.is_ipv4();
        let tasks = 0..self.history.place.tasks.len();
        let task = tasks.into_iter().find(|&t| place::overlay(t, v4) == addr).map(place::overlay_mac);
        let vip = || (0..SERVICES).find(|&s| place::vip(s, v4) == addr).map(place::vip_mac);
        task.or_else(vip).unwrap_or_default()
    }

    fn evict(&mut self, n: usize, nth: usize) {
        let Some((key, is_request)) = self.mesh.evict(n, nth) else { return };
        let FlowKey { src, dst, sport, dport, .. } = key;
        let (src, dst): (IpAddr, IpAddr) = (src.into(), dst.into());
        if is_request {
            self.model.forgot_request(n, key.proto(), (src, sport), (dst, dport));
        } else {
            self.model.forgot_answers(n, key.proto(), (src, sport), (dst, dport));
        }
    }
}

fn segment(proto: u8, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Segment {
    let mut segment = Segment::new(proto, ("::", src.1), ("::", dst.1));
    (segment.src, segment.dst) = (src.0, dst.0);
    segment
}

/// Why a history is not as it should be: the step, and what is wrong with it.
pub(crate) type Failure = (usize, String);

/// Runs a history.
pub(crate) fn run(history: &History) -> Result<Tally, Failure> {
    let mut run = Run::new(history);
    for (n, &step) in history.steps.iter().enumerate() {
        // A packet that can't be taken apart ends the test that takes it apart.
        let result = catch_unwind(AssertUnwindSafe(|| run.step(step)))
            .unwrap_or_else(|panic| Err(format!("panics: {:?}", panic.downcast_ref::<String>())));
        result.map_err(|why| (n, why))?;
    }
    Ok(run.model.tally)
}

/// A history that fails as well, and has no step that it doesn't need for that.
pub(crate) fn shrink(history: &History, failure: Failure) -> (History, Failure) {
    let (mut least, mut why) = (history.clone(), failure);
    least.steps.truncate(why.0 + 1);
    let mut size = least.steps.len();
    while size > 0 {
        let mut at = 0;
        while at < least.steps.len() {
            let mut fewer = least.clone();
            fewer.steps.drain(at..(at + size).min(least.steps.len()));
            if let Err(failure) = run(&fewer) {
                fewer.steps.truncate(failure.0 + 1);
                (least, why) = (fewer, failure);
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    (least, why)
}

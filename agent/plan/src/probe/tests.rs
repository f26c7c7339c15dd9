//! Books of nodes on a simulated network.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::frame::{Ends, Kind, Message, Says};
use super::*;
use crate::doors::{Addresses, Told};

const MTU: u16 = 1450;
const MS: Duration = Duration::from_millis(1);

fn node(n: u8) -> NodeId {
    NodeId::from_entropy(u128::from(n))
}

fn own(n: u8) -> Own {
    Own { mac: MacAddr([2, 0x73, 0, 0, 0, n]), ip: Ipv4Addr::new(10, 9, 0, n) }
}

fn peer(n: u8) -> Peer {
    let Own { mac, ip } = own(n);
    let name = format!("n{n}").parse().expect("a name");
    Peer { node: node(n), name, address: Ipv4Addr::new(192, 0, 2, n).into(), mac, ip }
}

/// What the network does to a frame from one node to another.
type Way = Box<dyn FnMut(u8, u8, &Out) -> Option<Duration>>;

struct World {
    now: Time,
    books: BTreeMap<u8, Book>,
    way: Way,
    /// Frames on their way: when, to whom, what.
    flying: Vec<(Time, u8, Out)>,
    /// What each node's wall clock is ahead, milliseconds.
    ahead: BTreeMap<u8, i64>,
    sent: VecDeque<Time>,
    most_in_a_second: usize,
}

fn at(ends: &Ends) -> (u8, u8) {
    (ends.src.octets()[3], ends.dst.octets()[3])
}

impl World {
    fn new(nodes: &[u8], way: Way) -> Self {
        let books = nodes.iter().map(|n| {
            let mut book = Book::new(u64::from(*n) + 1);
            let peers = nodes.iter().filter(|other| *other != n).map(|other| peer(*other)).collect();
            book.set(own(*n), &node(*n), MTU, peers);
            (*n, book)
        });
        Self {
            now: Time::ZERO,
            books: books.collect(),
            way,
            flying: Vec::new(),
            ahead: BTreeMap::new(),
            sent: VecDeque::new(),
            most_in_a_second: 0,
        }
    }

    fn clock(&self, n: u8) -> u64 {
        let now = 1_000_000 + i64::try_from(self.now.as_millis()).expect("small");
        u64::try_from(now + self.ahead.get(&n).copied().unwrap_or(0)).expect("positive")
    }

    fn send(&mut self, out: Out) {
        let (from, to) = at(&out.ends);
        if out.message.kind == Kind::Probe {
            self.sent.push_back(self.now);
            while self.sent.front().is_some_and(|at| *at + Duration::from_secs(1) <= self.now) {
                self.sent.pop_front();
            }
            self.most_in_a_second = self.most_in_a_second.max(self.sent.len());
        }
        if let Some(delay) = (self.way)(from, to, &out) {
            self.flying.push((self.now + delay, to, out));
        }
    }

    fn arrive(&mut self, to: u8, out: &Out) {
        let clock = self.clock(to);
        let Some(book) = self.books.get_mut(&to) else { return };
        match out.message.kind {
            Kind::Probe => {
                if let Some(ends) = book.asked(&out.ends, self.now) {
                    self.send(Out { ends, message: out.message.answer(clock) });
                }
            }
            Kind::Answer => book.answered(&out.ends, &out.message, self.now, clock),
        }
    }

    /// Runs until `until`; frames arrive before anything new is sent, as the daemon reads before it sends.
    fn run(&mut self, until: Time) {
        loop {
            let next_frame = self.flying.iter().map(|(at, ..)| *at).min();
            let next_send = self.books.values().filter_map(Book::next).min();
            let Some(next) = [next_frame, next_send].into_iter().flatten().min().filter(|at| *at <= until)
            else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            let (here, there): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.flying).into_iter().partition(|(at, ..)| *at <= self.now);
            self.flying = there;
            for (_, to, out) in here {
                self.arrive(to, &out);
            }
            for n in self.books.keys().copied().collect::<Vec<_>>() {
                let out = self.books.get_mut(&n).map(|book| book.due(self.now)).unwrap_or_default();
                for out in out {
                    self.send(out);
                }
            }
        }
    }

    fn report(&self, of: u8, about: u8) -> Report {
        let name = format!("n{about}");
        self.books[&of].reports().find(|report| report.name.as_str() == name).expect("a peer")
    }

    fn check(&mut self, of: u8) -> (Vec<Report>, Duration) {
        let now = self.now;
        let ticket = self.books.get_mut(&of).expect("a node").check(now).expect("it can send");
        for _ in 0..10_000 {
            if let Some(reports) = self.books[&of].checked(&ticket) {
                return (reports, self.now.saturating_sub(now));
            }
            self.run(self.now + MS);
        }
        panic!("the check does not end");
    }
}

fn seconds(n: u64) -> Time {
    Duration::from_secs(n)
}

fn open_way() -> Way {
    Box::new(|_, _, _| Some(MS))
}

#[test]
fn who_answers_every_size_is_fine_at_once_and_stays_so() {
    let mut world = World::new(&[1, 2, 3], open_way());
    world.run(seconds(1));
    for (of, about) in [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)] {
        let report = world.report(of, about);
        assert_eq!((report.state, report.passes), (State::Fine, MTU), "{of} {about}");
        assert_eq!(report.rtt, Some(2 * MS));
    }
    world.run(seconds(60));
    let report = world.report(1, 2);
    assert_eq!(report.state, State::Fine);
    assert_eq!(report.counts.sent, report.counts.answered);
    assert_eq!(report.counts.sent, 3 * 7, "one round at once, then each 10 s: {report:?}");
}

#[test]
fn a_way_that_is_closed_in_one_direction_is_told_from_one_that_is_closed_in_both() {
    let mut world = World::new(&[1, 2, 3], open_way());
    world.run(seconds(30));
    world.way = Box::new(|from, to, _| ((from, to) != (1, 2)).then_some(MS));
    world.run(seconds(55));
    assert_eq!(world.report(1, 2).state, State::Silent { heard: true });
    assert_eq!(world.report(2, 1).state, State::Silent { heard: false }, "neither answers nor probes come");
    assert_eq!(world.report(1, 2).passes, 0);
    assert_eq!(world.report(1, 3).state, State::Fine);
    world.way = Box::new(|from, to, _| (from != 3 && to != 3).then_some(MS));
    world.run(seconds(90));
    assert_eq!(world.report(1, 3).state, State::Silent { heard: false });
    assert_eq!(world.report(1, 2).state, State::Fine, "well again after one round");
}

#[test]
fn a_size_that_does_not_pass_is_found_in_the_direction_it_does_not_pass() {
    let narrow = |from, to, out: &Out| {
        ((from, to) != (1, 2) || out.message.kind == Kind::Answer || out.message.length <= 1400).then_some(MS)
    };
    let mut world = World::new(&[1, 2], Box::new(narrow));
    world.run(seconds(15));
    let state = State::Narrow { passes: 1400, fails: MTU };
    assert_eq!(world.report(1, 2).state, state);
    assert_eq!(world.report(1, 2).passes, 1400);
    assert_eq!(world.report(2, 1).state, State::Fine, "the other direction is whole");
    let (reports, took) = world.check(1);
    assert_eq!(reports.iter().map(|report| report.state).collect::<Vec<_>>(), [state]);
    assert!(took <= Duration::from_millis(3_100), "{took:?}");
    world.way = open_way();
    let (reports, took) = world.check(1);
    assert_eq!(reports[0].state, State::Fine);
    assert!(took < Duration::from_millis(20), "nobody waits for what is answered: {took:?}");
}

#[test]
fn who_asks_now_is_not_told_of_before() {
    let mut world = World::new(&[1, 2], Box::new(|_, _, out| (out.message.length == 64).then_some(MS)));
    // The round is under way, and has found something, when the way is closed.
    world.run(Duration::from_millis(500));
    world.way = Box::new(|_, _, _| None);
    let (reports, _) = world.check(1);
    assert_eq!(reports[0].state, State::Silent { heard: false }, "{reports:?}");
    assert_eq!(reports[0].counts.sent, 3 + 30 + 3, "one attempt in turn, ten for who waits, and on");
}

#[test]
fn who_never_spoke_is_only_said_not_to_answer() {
    let mut world = World::new(&[1, 2], open_way());
    // A node of another version gets frames and says nothing.
    world.books.remove(&2);
    world.run(seconds(8));
    assert_eq!(world.report(1, 2).state, State::Untried, "two rounds tell nothing");
    world.run(seconds(30));
    assert_eq!(world.report(1, 2).state, State::Unanswering);
}

#[test]
fn answers_that_come_late_are_no_loss() {
    let slow = Duration::from_millis(7_500);
    let mut world = World::new(&[1, 2], Box::new(move |from, _, _| Some(if from == 2 { slow } else { MS })));
    world.run(seconds(60));
    let report = world.report(1, 2);
    assert_eq!(report.state, State::Late(slow + MS));
    assert!(report.counts.late > 0 && report.counts.late == report.counts.answered, "{report:?}");
    assert!(
        report.counts.answered + 9 >= report.counts.sent,
        "only what is on its way is missing: {report:?}"
    );
    assert!(report.counts.sent <= 9 * 9, "no more than three rounds at once, then one each 10 s: {report:?}");
}

#[test]
fn a_daemon_that_was_stopped_finds_the_answers_where_they_wait() {
    let mut world = World::new(&[1, 2], open_way());
    world.run(seconds(25));
    // It sends, is stopped for a minute, and reads what came meanwhile before it goes on.
    let now = world.now;
    let mut book = world.books.remove(&1).expect("there");
    let out = {
        book.check(now);
        book.due(now)
    };
    assert_eq!(out.len(), 3);
    let later = now + seconds(60);
    for out in &out {
        book.answered(&out.ends.turned(), &out.message.answer(0), later, 0);
    }
    let states: Vec<State> = book.reports().map(|report| report.state).collect();
    book.due(later);
    assert_eq!(states, [State::Fine], "one late round is no news");
}

#[test]
fn only_peers_are_answered_and_only_what_was_asked_counts() {
    let mut book = Book::new(7);
    book.set(own(1), &node(1), MTU, vec![peer(2)]);
    let from = |n: u8, to: u8| own(n).to(&peer(to));
    assert_eq!(book.asked(&from(2, 1), MS), Some(from(1, 2)));
    assert_eq!(book.asked(&from(3, 1), MS), None, "no member");
    assert_eq!(book.asked(&from(2, 3), MS), None, "for somebody else");
    let spoofed = Ends { src_mac: MacAddr([2, 0x73, 0, 0, 0, 9]), ..from(2, 1) };
    assert_eq!(book.asked(&spoofed, MS), None, "another Ethernet address");
    let out = book.due(MS);
    assert_eq!(out.iter().map(|out| out.message.length).collect::<Vec<_>>(), [64, 1400, MTU]);
    let answer = out[0].message.answer(0);
    let wrong = [
        Message { run: 8, ..answer },
        Message { round: answer.round + 1, ..answer },
        Message { class: 3, ..answer },
        Message { attempt: 1, ..answer },
        Message { length: 65, ..answer },
    ];
    for message in wrong {
        book.answered(&from(2, 1), &message, 2 * MS, 0);
    }
    assert_eq!(book.reports().map(|report| report.counts.answered).sum::<u64>(), 0);
    book.answered(&from(2, 1), &answer, 2 * MS, 0);
    book.answered(&from(2, 1), &answer, 3 * MS, 0);
    assert_eq!(book.reports().map(|report| report.counts.answered).sum::<u64>(), 1, "each once");
}

fn addresses(last: u8) -> Addresses {
    Addresses::of([Ipv4Addr::new(198, 51, 100, last).into()])
}

fn told(book: &Book, now: Time) -> Vec<(NodeId, Addresses)> {
    book.told(now).into_iter().map(|(node, told)| (node, (*told).clone())).collect()
}

#[test]
fn addresses_are_those_that_a_peer_told_last() {
    let mut book = Book::new(1);
    book.set(own(1), &node(1), MTU, vec![peer(2), peer(3)]);
    let from = |n| own(n).to(&peer(1));
    assert_eq!(told(&book, seconds(0)), []);
    book.heard(&from(2), Says::Addresses(addresses(7)), seconds(1));
    book.heard(&from(3), Says::Addresses(Addresses::default()), seconds(1));
    // Not of the swarm, or in another's name.
    book.heard(&from(4), Says::Addresses(addresses(9)), seconds(1));
    book.heard(&Ends { src: own(3).ip, ..from(2) }, Says::Addresses(addresses(9)), seconds(1));
    let both = [(node(2), addresses(7)), (node(3), Addresses::default())];
    assert_eq!(told(&book, seconds(2)), both);
    let known = Arc::clone(&book.told(seconds(2))[&node(2)]);
    book.heard(&from(2), Says::Addresses(addresses(7)), seconds(3));
    assert!(Arc::ptr_eq(&known, &book.told(seconds(3))[&node(2)]), "the same is no news");
    book.heard(&from(2), Says::Addresses(addresses(8)), seconds(3));
    assert_eq!(told(&book, seconds(3))[0], (node(2), addresses(8)));
    book.heard(&from(3), Says::Later, seconds(4));
    assert_eq!(told(&book, seconds(4)).len(), 2, "it has just been started");
    // An older version now.
    book.heard(&from(3), Says::Nothing, seconds(4));
    assert_eq!(told(&book, seconds(4)), [(node(2), addresses(8))]);
    book.pause();
    assert_eq!(told(&book, seconds(3 + 179)), [(node(2), addresses(8))]);
    assert_eq!(told(&book, seconds(3 + 180)), [], "silent");
    book.heard(&from(2), Says::Addresses(addresses(8)), seconds(200));
    book.set(own(1), &node(1), MTU, vec![peer(3)]);
    assert_eq!(told(&book, seconds(200)), [], "gone");
}

#[test]
fn who_has_another_name_or_address_is_still_who_told() {
    let mut book = Book::new(1);
    book.set(own(1), &node(1), MTU, vec![peer(2)]);
    let with = |ip, name: &str, mac| Peer { ip, name: name.parse().expect("a name"), mac, ..peer(2) };
    let moved = Ipv4Addr::new(10, 9, 0, 77);
    book.heard(&own(2).to(&peer(1)), Says::Addresses(addresses(7)), seconds(1));
    book.set(own(1), &node(1), MTU, vec![with(moved, "other", peer(2).mac)]);
    assert_eq!(told(&book, seconds(2)), [(node(2), addresses(7))]);
    assert_eq!(told(&book, seconds(181)), [], "no later than before");
    book.set(own(1), &node(1), MTU, vec![with(moved, "other", peer(3).mac)]);
    assert_eq!(told(&book, seconds(2)), [], "another router");
}

#[test]
fn what_an_earlier_run_was_told_holds_until_a_peer_is_heard() {
    let mut book = Book::new(1);
    let of = |nodes: &[u8]| nodes.iter().map(|n| (node(*n), Arc::new(addresses(*n)))).collect::<Told>();
    book.recall(&of(&[2, 3, 9]), seconds(1));
    assert_eq!(book.told(seconds(2)), of(&[2, 3, 9]), "nobody knows the peers yet");
    book.set(own(1), &node(1), MTU, vec![peer(2), peer(3), peer(4)]);
    assert_eq!(book.told(seconds(2)), of(&[2, 3]), "the other is none any more");
    book.heard(&own(2).to(&peer(1)), Says::Nothing, seconds(3));
    book.heard(&own(3).to(&peer(1)), Says::Addresses(addresses(3)), seconds(60));
    assert_eq!(book.told(seconds(60)), of(&[3]));
    book.recall(&of(&[3, 4]), seconds(100));
    assert_eq!(book.told(seconds(60 + 179)), of(&[3, 4]));
    assert_eq!(book.told(seconds(60 + 180)), of(&[4]), "what was heard counts");
    assert_eq!(book.told(seconds(100 + 180)), of(&[]));
}

#[test]
fn in_a_large_swarm_a_peer_has_more_time_to_tell() {
    let mut book = Book::new(1);
    let many = (0..6000_u16).map(|n| {
        let [high, low] = n.to_be_bytes();
        let ip = Ipv4Addr::new(10, 8, high, low);
        Peer {
            node: NodeId::from_entropy(u128::from(n) + 1000),
            ip,
            mac: MacAddr([2, 0x73, 0, 1, high, low]),
            ..peer(2)
        }
    });
    book.set(own(1), &node(1), MTU, many.chain([peer(2)]).collect());
    book.heard(&own(2).to(&peer(1)), Says::Addresses(addresses(7)), seconds(0));
    // A round of all takes 300 s.
    assert_eq!(told(&book, seconds(1200)).len(), 1);
    assert_eq!(told(&book, seconds(1201)).len(), 0);
}

#[test]
fn clocks_are_compared_within_the_time_an_answer_takes() {
    let mut world = World::new(&[1, 2, 3], open_way());
    world.ahead = BTreeMap::from([(2, 310), (3, -90_000)]);
    world.run(seconds(12));
    let offset = |about| world.report(1, about).offset.expect("answered");
    assert!((309..=311).contains(&offset(2).ahead_ms) && offset(2).is_worth_telling(), "{:?}", offset(2));
    assert!((-90_001..=-89_999).contains(&offset(3).ahead_ms) && offset(3).is_worth_telling());
    assert!(!Offset { ahead_ms: 200, within_ms: 1 }.is_worth_telling());
    assert!(!Offset { ahead_ms: 2_000, within_ms: 1_900 }.is_worth_telling(), "a slow answer proves little");
}

#[test]
fn a_thousand_peers_are_asked_at_a_bounded_rate() {
    let mut book = Book::new(1);
    let many = |n: u32| {
        let [_, _, a, b] = n.to_be_bytes();
        let (mac, ip) = (MacAddr([2, 0x73, 0, 0, a, b]), Ipv4Addr::new(10, 9, a, b));
        let name = format!("n{n}").parse().expect("a name");
        Peer { node: NodeId::from_entropy(n.into()), name, address: ip.into(), mac, ip }
    };
    book.set(own(1), &node(1), MTU, (2..=1_000).map(many).collect());
    let (mut frames, mut asked, mut most) = (0, std::collections::BTreeSet::new(), 0);
    for second in 0..60 {
        let (end, mut in_second) = (seconds(second + 1), 0);
        while let Some(next) = book.next().filter(|at| *at < end) {
            for out in book.due(next) {
                in_second += 1;
                asked.insert(out.ends.dst);
                book.answered(&out.ends.turned(), &out.message.answer(0), next + MS, 0);
            }
        }
        (frames, most) = (frames + in_second, most.max(in_second));
    }
    assert_eq!(asked.len(), 999, "everybody within a minute");
    assert!(most <= 63, "{most} in a second");
    assert_eq!(frames, 60 * 20 * 3);
    assert_eq!(book.check(seconds(60)).map(|ticket| ticket.left_out), Some(999 - 64));
}

#[test]
fn many_peers_that_do_not_answer_cost_little_more() {
    let all: Vec<u8> = (1..=200).collect();
    let mut world = World::new(&all, Box::new(|_, _, _| None));
    world.books.retain(|n, _| *n == 1);
    world.run(seconds(60));
    assert!(world.most_in_a_second <= 200, "{}", world.most_in_a_second);
}

#[test]
fn nothing_is_sent_while_nothing_can_be() {
    let mut world = World::new(&[1, 2], open_way());
    world.run(seconds(5));
    let book = world.books.get_mut(&1).expect("there");
    book.pause();
    assert_eq!((book.next(), book.due(seconds(20)).len()), (None, 0));
    assert!(book.check(seconds(20)).is_none());
    book.set(own(1), &node(1), MTU, vec![peer(2), peer(3)]);
    assert_eq!(world.report(1, 2).state, State::Fine, "what is known stays");
    assert_eq!(world.report(1, 3).state, State::Untried);
    world.books.get_mut(&1).expect("there").set(own(1), &node(1), 8950, vec![peer(2)]);
    assert_eq!(world.report(1, 2).state, State::Untried, "other sizes, other rounds");
    assert_eq!(world.books[&1].reports().count(), 1, "who is gone is forgotten");
}

/// Looks at what nodes say of one another while three of ten packets are lost at random: how many, and how many of them say
/// that somebody is unreachable or narrow.
fn with_losses(seed: u64) -> (u32, u32) {
    let mut state = seed;
    let lossy = move |_, _, _: &Out| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % 10 >= 3).then_some(MS)
    };
    let mut world = World::new(&[1, 2, 3], Box::new(lossy));
    let (mut looks, mut wrong) = (0, 0);
    for second in 5..300 {
        world.run(seconds(second));
        for (of, about) in [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)] {
            looks += 1;
            wrong += u32::from(!matches!(world.report(of, about).state, State::Fine | State::Untried));
        }
    }
    let report = world.report(1, 2);
    assert!(report.counts.answered < report.counts.sent, "nothing was lost");
    (looks, wrong)
}

/// Nobody is said to be so for long. A seed can be unlucky, so the same ones are taken in every run, and all together.
#[test]
fn loss_is_no_cut() {
    let runs: Vec<(u32, u32)> =
        (0..24).map(|n: u64| with_losses(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)).collect();
    let (looks, wrong) = runs.iter().fold((0, 0), |sum, run| (sum.0 + run.0, sum.1 + run.1));
    assert!(wrong * 100 < looks, "{wrong} of {looks}: {runs:?}");
}

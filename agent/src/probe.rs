//! Probes of the other nodes, through the tunnels: sends and answers them, and keeps what they tell.
//!
//! They go by the VXLAN device of the ingress network, as what the bridge sends there does: through the host's firewall
//! and the kernel's tunnel to the peer's port, past its admission of members, and out of its device. Nothing of it is in
//! the way of anybody's traffic; while this daemon is away, probes of others are not answered, and that is all.

mod tap;
mod tell;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shoal_plan::IfName;
use shoal_plan::desired::wants_direct;
use shoal_plan::doors::{self, Addresses};
use shoal_plan::probe::frame::{self, Kind};
use shoal_plan::probe::{Book, Out, Own, Peer, Report, Ticket};
use shoal_types::NodeId;
use shoal_types::assignment::{Assignment, Member};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::drivers::link::{Link, Nl};
use crate::reconciler::{chain, now};
use crate::stats::Stats;

use tap::Tap;

pub(crate) use tell::clock;
pub use tell::{Told, Way};

/// The device is looked at this often, and so long after an assignment has come.
const LOOK: Duration = Duration::from_secs(5);
const SETTLE: Duration = Duration::from_millis(500);
/// The same while it is not there.
const RETRY: Duration = Duration::from_secs(1);
/// Rounds that somebody waits for take half of it.
const PATIENCE: Duration = Duration::from_secs(6);
const GLANCE: Duration = Duration::from_millis(20);
/// Addresses that others tell are handed on no more often: at first each round tells more of them,
const HAND_ON: Duration = Duration::from_secs(1);
/// and in a large swarm a round takes longer, as does a look at everything.
const HAND_ON_EACH: Duration = Duration::from_millis(5);
/// The largest frame there is.
const FRAME: usize = 1 << 16;

/// What the probes of this node tell, shared between those who send them and those who ask.
#[derive(Debug)]
pub struct Probes {
    book: Mutex<Book>,
    way: Mutex<Way>,
    /// Why nothing is sent.
    trouble: Mutex<Option<String>>,
    began: Instant,
    /// Who waits for a check to begin.
    waiting: Mutex<Vec<oneshot::Sender<Option<Ticket>>>>,
    asked: Notify,
    /// What this node tells of its addresses, once they are known.
    own: Mutex<Option<Arc<Addresses>>>,
    /// What others tell of theirs, while it matters.
    peers: watch::Sender<Arc<doors::Told>>,
}

impl Default for Probes {
    fn default() -> Self {
        Self {
            book: Mutex::new(Book::new(rand::random())),
            way: Mutex::default(),
            trouble: Mutex::default(),
            began: Instant::now(),
            waiting: Mutex::default(),
            asked: Notify::new(),
            own: Mutex::default(),
            peers: watch::Sender::default(),
        }
    }
}

impl Probes {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What is known of every peer.
    pub fn reports(&self) -> Vec<Report> {
        self.book().reports().collect()
    }

    /// A report in words.
    pub fn told(&self, report: &Report) -> Told {
        tell::told(report, self.elapsed(), &self.way())
    }

    /// How long ago something was, in the time of reports.
    pub fn since(&self, at: Duration) -> Duration {
        self.elapsed().saturating_sub(at)
    }

    fn way(&self) -> Way {
        self.way.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why nothing can be sent.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over the addresses that this node tells others of.
    pub(crate) fn tell(&self, own: Addresses) {
        let mut known = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() != Some(&own) {
            *known = Some(Arc::new(own));
        }
    }

    fn own(&self) -> Option<Arc<Addresses>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The addresses that other nodes tell, while a published port has them answer each other's clients.
    pub(crate) fn peers(&self) -> watch::Receiver<Arc<doors::Told>> {
        self.peers.subscribe()
    }

    /// Takes over what others told an earlier run, but of those that this one has heard already.
    pub(crate) fn recall(&self, told: &doors::Told) {
        let told = {
            let (mut book, now) = (self.book(), self.elapsed());
            book.recall(told, now);
            book.told(now)
        };
        self.hand_on(told);
    }

    /// Hands on what others tell, if it is something else than before. Else nobody is woken.
    pub(crate) fn hand_on(&self, told: doors::Told) {
        self.peers.send_if_modified(|known| {
            let is_new = **known != told;
            if is_new {
                *known = Arc::new(told);
            }
            is_new
        });
    }

    /// Asks the peers now: what came of it, and how many were left out because there are too many. `None` if nothing can
    /// be sent, or was in time.
    pub async fn check(&self) -> Option<(Vec<Report>, usize)> {
        let (tell, begun) = oneshot::channel();
        self.waiting().push(tell);
        self.asked.notify_one();
        let over = async {
            let ticket = begun.await.ok()??;
            loop {
                if let Some(reports) = self.book().checked(&ticket) {
                    return Some((reports, ticket.left_out));
                }
                sleep(GLANCE).await;
            }
        };
        timeout(PATIENCE, over).await.ok()?
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<oneshot::Sender<Option<Ticket>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins what is waited for.
    fn begin_check(&self) {
        let waiting = std::mem::take(&mut *self.waiting());
        let ticket = self.book().check(self.elapsed());
        for tell in waiting {
            // Who has gone does not want to know.
            drop(tell.send(ticket.clone()));
        }
    }

    fn set_trouble(&self, trouble: Option<String>) {
        let mut known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(trouble) = &trouble
            && known.as_ref() != Some(trouble)
        {
            tracing::debug!(trouble, "other nodes are not probed");
        }
        *known = trouble;
    }
}

/// What sends and answers probes while the node is a member.
pub(crate) struct Prober {
    /// Links of the host.
    nl: Nl,
    /// What the node was told.
    assignment: watch::Receiver<Arc<Assignment>>,
    /// Where what is found goes.
    stats: Arc<Stats>,
    /// Ends it.
    closing: CancellationToken,
    /// Whether a published port has the nodes of its tasks answer; not known without an assignment.
    is_direct: Option<bool>,
}

/// Where probes go in and out.
struct Place {
    node: NodeId,
    own: Own,
    way: Way,
    device: Link,
    peers: Vec<Peer>,
}

impl Prober {
    /// One that has not looked at anything yet.
    pub(crate) const fn new(
        nl: Nl,
        assignment: watch::Receiver<Arc<Assignment>>,
        stats: Arc<Stats>,
        closing: CancellationToken,
    ) -> Self {
        Self { nl, assignment, stats, closing, is_direct: None }
    }

    /// Runs until it is told to close. What was known is forgotten then.
    pub(crate) async fn run(mut self) {
        let mut tap = None;
        let mut buffer = vec![0; FRAME];
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_soon = false;
        let mut hand_on = interval(HAND_ON);
        hand_on.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next = self.stats.probes.book().next().map(|at| self.stats.probes.began + at);
            // Every arm waits for one thing; one that loses loses nothing.
            tokio::select! {
                () = self.closing.cancelled() => break,
                changed = self.assignment.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    // Many come together.
                    if !is_soon {
                        look.reset_after(SETTLE);
                        is_soon = true;
                    }
                }
                _ = look.tick() => {
                    is_soon = false;
                    self.look(&mut tap).await;
                    if tap.is_none() {
                        look.reset_after(RETRY);
                    }
                }
                _ = hand_on.tick() => {
                    let peers = self.hand_on();
                    hand_on.reset_after(HAND_ON + HAND_ON_EACH * u32::try_from(peers).unwrap_or(u32::MAX));
                }
                () = self.stats.probes.asked.notified() => {
                    // As the device is now.
                    self.look(&mut tap).await;
                    self.stats.probes.begin_check();
                }
                ready = readable(tap.as_ref()) => {
                    if ready.is_err() {
                        tap = None;
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            if let Some(open) = &tap
                && let Err(error) = self.exchange(open, &mut buffer)
            {
                self.give_up(format!("the tunnel's device takes no frames: {error}"));
                tap = None;
            }
        }
        self.stats.probes.book().clear();
    }

    /// Reads what has come, answers, and sends what is due: in this order, as what has come may make sending needless.
    fn exchange(&self, tap: &Tap, buffer: &mut [u8]) -> std::io::Result<()> {
        let probes = &self.stats.probes;
        let mut answers = Vec::new();
        tap.drain(buffer, |bytes| {
            let Some((ends, message)) = frame::parse(bytes) else { return };
            let (at, clock) = (probes.elapsed(), now().0);
            match message.kind {
                Kind::Answer => probes.book().answered(&ends, &message, at, clock),
                Kind::Probe => {
                    if message.has_room() {
                        probes.book().heard(&ends, frame::addresses(bytes), at);
                    }
                    let back = probes.book().asked(&ends, at);
                    answers.extend(back.map(|ends| frame::build(&ends, &message.answer(clock), None)));
                }
            }
        })?;
        let due = probes.book().due(probes.elapsed());
        let clock_ms = now().0;
        let own = probes.own();
        let frame =
            |out: &Out| frame::build(&out.ends, &frame::Message { clock_ms, ..out.message }, own.as_deref());
        let due = due.iter().map(frame);
        for frame in answers.into_iter().chain(due) {
            match tap.send(&frame) {
                Err(error) if is_fatal(&error) => return Err(error),
                // Not sent is as good as lost.
                _ => {}
            }
        }
        Ok(())
    }

    /// Hands on what others tell, while it matters: it makes the node look at everything. Returns of how many.
    fn hand_on(&self) -> usize {
        let probes = &self.stats.probes;
        let told = match self.is_direct {
            Some(true) => probes.book().told(probes.elapsed()),
            Some(false) => doors::Told::new(),
            None => return 0,
        };
        let peers = told.len();
        probes.hand_on(told);
        peers
    }

    async fn look(&mut self, tap: &mut Option<Tap>) {
        let assignment = self.assignment.borrow().clone();
        self.is_direct = assignment.cluster().map(|_| wants_direct(&assignment));
        let place = match self.place().await {
            Ok(place) => place,
            Err(trouble) => {
                *tap = None;
                return self.give_up(trouble);
            }
        };
        let (own, device) = (place.own, place.device.index);
        if tap.as_ref().is_none_or(|open| (open.device, open.ip) != (device, own.ip)) {
            match Tap::open(device, own.ip) {
                Ok(open) => *tap = Some(open),
                Err(error) => {
                    *tap = None;
                    return self.give_up(format!("no socket at {}: {error}", place.device.name));
                }
            }
        }
        let mtu = u16::try_from(place.device.mtu).unwrap_or(u16::MAX);
        let probes = &self.stats.probes;
        probes.book().set(own, &place.node, mtu, place.peers);
        *probes.way.lock().unwrap_or_else(PoisonError::into_inner) = place.way;
        probes.set_trouble(None);
    }

    fn give_up(&self, trouble: String) {
        self.stats.probes.book().pause();
        self.stats.probes.set_trouble(Some(trouble));
    }

    async fn place(&self) -> Result<Place, String> {
        let assignment = self.assignment.borrow().clone();
        let nothing = || "no manager has said yet what the swarm is".to_owned();
        let cluster = assignment.cluster().ok_or_else(nothing)?;
        let ingress = assignment.networks().find(|network| network.ingress).ok_or_else(nothing)?;
        let name = IfName::vxlan(&ingress.id);
        let device = match self.nl.link(&name).await {
            Ok(Some(link)) if link.up => link,
            Ok(Some(_)) => return Err(format!("the tunnel's device {name} is down")),
            Ok(None) => return Err(format!("the tunnel's device {name} is not there")),
            Err(error) => return Err(chain(&error)),
        };
        let (own, others): (Vec<_>, Vec<_>) =
            assignment.members().partition(|member| member.node == cluster.node);
        let own = own.first().ok_or_else(nothing)?;
        Ok(Place {
            node: cluster.node.clone(),
            own: Own { mac: own.router.mac(), ip: own.router.addr.v4 },
            way: Way::new(own.data_addr, cluster.data_port),
            device,
            peers: others.into_iter().map(peer).collect(),
        })
    }
}

fn peer(member: &Member) -> Peer {
    Peer {
        node: member.node.clone(),
        name: member.name.clone(),
        address: member.data_addr,
        mac: member.router.mac(),
        ip: member.router.addr.v4,
    }
}

/// Whether the socket is of no more use: its device is down or gone.
fn is_fatal(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::ENODEV | libc::ENXIO))
}

async fn readable(tap: Option<&Tap>) -> std::io::Result<()> {
    match tap {
        Some(tap) => tap.readable().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use shoal_plan::probe::frame::{Ends, Says};
    use shoal_types::MacAddr;

    use super::*;

    /// A router.
    fn at(last: u8) -> Own {
        Own { mac: MacAddr([2, 0x73, 0, 0, 0, last]), ip: Ipv4Addr::new(10, 9, 0, last) }
    }

    fn peer(last: u8) -> Peer {
        let Own { mac, ip } = at(last);
        let (node, address) = (NodeId::from_entropy(last.into()), Ipv4Addr::new(192, 0, 2, last).into());
        Peer { node, name: "other".parse().expect("a name"), address, mac, ip }
    }

    fn addresses(last: u8) -> Addresses {
        Addresses::of([Ipv4Addr::new(198, 51, 100, last).into()])
    }

    #[test]
    fn an_earlier_run_tells_nothing_of_those_who_were_heard_meanwhile() {
        let probes = Probes::default();
        let known = |all: &[(u8, u8)]| -> doors::Told {
            all.iter().map(|(n, last)| (peer(*n).node, Arc::new(addresses(*last)))).collect()
        };
        probes.recall(&known(&[(2, 7)]));
        probes.book().set(at(1), &peer(1).node, 1450, vec![peer(2), peer(3)]);
        let ends = Ends { src_mac: at(2).mac, dst_mac: at(1).mac, src: at(2).ip, dst: at(1).ip };
        probes.book().heard(&ends, Says::Addresses(addresses(8)), probes.elapsed());
        probes.recall(&known(&[(2, 7), (3, 9)]));
        assert_eq!(**probes.peers().borrow(), known(&[(2, 8), (3, 9)]));
    }
}

//! Programs of the host that published ports leave nothing to: they listen on the number of one, and the data plane takes
//! what clients send before their sockets do. Nothing is refused for that, as it may be meant; it is told, with the port.
//!
//! One task, beside the reconciler, which waits for nothing here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use shoal_types::assignment::{AssignedService, Assignment};
use shoal_types::{Protocol, PublishedPort};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::reconciler::{Listener, chain, listeners};
use crate::stats::Stats;

/// Programs come and go without a word, so it is looked for them this often.
const LOOK: Duration = Duration::from_secs(10);
/// Between two looks at least, however many changes there are.
const PAUSE: Duration = Duration::from_millis(500);
/// So many are told one by one.
const TOLD: usize = 16;

/// Looks for them.
pub(crate) struct Shadows {
    /// What is published.
    pub(crate) assignment: watch::Receiver<Arc<Assignment>>,
    /// Where the host's addresses are, and what is found goes.
    pub(crate) stats: Arc<Stats>,
    /// Ends it.
    pub(crate) closing: CancellationToken,
}

impl Shadows {
    /// Runs until it is told to close. What was found is forgotten then.
    pub(crate) async fn run(mut self) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Every arm waits for one thing; one that loses loses nothing.
            tokio::select! {
                () = self.closing.cancelled() => break,
                changed = self.assignment.changed() => if changed.is_err() { break },
                _ = look.tick() => {}
            }
            self.look().await;
            tokio::select! {
                () = self.closing.cancelled() => break,
                () = sleep(PAUSE) => {}
            }
        }
        self.stats.set_shadowed(Vec::new());
    }

    async fn look(&mut self) {
        let assignment = Arc::clone(&self.assignment.borrow_and_update());
        if assignment.services().all(|service| service.ports.is_empty()) {
            return self.stats.set_shadowed(Vec::new());
        }
        match tokio::task::spawn_blocking(listeners).await {
            Ok(Ok(found)) => {
                self.stats.set_shadowed(shadowed(&assignment, &found, &self.stats.uplink_addrs()));
            }
            Ok(Err(error)) => tracing::debug!(error = chain(&error), "listeners of the host can't be told"),
            // A panic in it was logged.
            Err(_) => {}
        }
    }
}

/// The listeners that get nothing, a line each. `own` are the addresses that published ports answer on.
fn shadowed(assignment: &Assignment, listeners: &[Listener], own: &BTreeSet<IpAddr>) -> Vec<String> {
    let Some(cluster) = assignment.cluster() else { return Vec::new() };
    let mut at: BTreeMap<(Protocol, u16), BTreeSet<IpAddr>> = BTreeMap::new();
    for listener in listeners {
        at.entry((listener.protocol, listener.port)).or_default().insert(listener.addr);
    }
    let has_task = |service: &AssignedService| {
        assignment.endpoints().any(|e| e.node == cluster.node && e.service == service.id)
    };
    let taken = |service: &AssignedService, port: &PublishedPort| {
        let addr = at.get(&(port.protocol, port.published))?.iter().find(|at| takes(port, **at, own))?;
        (!port.is_host() || has_task(service)).then(|| {
            let (place, socket) = (port.place(), std::net::SocketAddr::new(*addr, port.published));
            format!(
                "service '{}' publishes {place}, and a program here listens on {socket}: clients reach the service, not \
                 the program",
                service.name
            )
        })
    };
    let mut lines: Vec<String> = assignment
        .services()
        .flat_map(|service| service.ports.iter().map(move |port| (service, port)))
        .filter_map(|(service, port)| taken(service, port))
        .collect();
    let more = lines.len().saturating_sub(TOLD);
    if more > 0 {
        lines.truncate(TOLD);
        lines.push(format!("{more} more published ports have listeners here; 'ss -lntup' shows them"));
    }
    lines
}

/// Whether a published port takes packets that a socket at `addr` would get.
fn takes(port: &PublishedPort, addr: IpAddr, own: &BTreeSet<IpAddr>) -> bool {
    match port.binding.addr {
        Some(bound) if own.contains(&bound) => {
            addr == bound || (addr.is_unspecified() && (addr.is_ipv6() || bound.is_ipv4()))
        }
        Some(_) => false,
        // Of the loopback addresses, these two are answered, too.
        None => {
            let loopback: [IpAddr; 2] = [[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()];
            addr.is_unspecified() || loopback.contains(&addr) || own.contains(&addr)
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_types::{Binding, PublishMode};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("literal")
    }

    #[test]
    fn a_port_takes_what_comes_to_its_own_addresses() {
        let own = BTreeSet::from([ip("10.0.0.1"), ip("fd00::1")]);
        let port = |addr: Option<&str>| PublishedPort {
            binding: Binding { mode: PublishMode::Ingress, addr: addr.map(ip) },
            ..PublishedPort::everywhere(Protocol::Tcp, 22, 22)
        };
        for (bound, listener, taken) in [
            (None, "0.0.0.0", true),
            (None, "::", true),
            (None, "127.0.0.1", true),
            (None, "::1", true),
            (None, "10.0.0.1", true),
            (None, "127.0.0.53", false),
            (None, "172.17.0.1", false),
            (Some("10.0.0.1"), "10.0.0.1", true),
            (Some("10.0.0.1"), "0.0.0.0", true),
            (Some("10.0.0.1"), "::", true),
            (Some("10.0.0.1"), "127.0.0.1", false),
            (Some("fd00::1"), "0.0.0.0", false),
            (Some("fd00::1"), "::", true),
            (Some("10.0.0.9"), "0.0.0.0", false),
        ] {
            assert_eq!(takes(&port(bound), ip(listener), &own), taken, "{bound:?} and {listener}");
        }
    }
}

//! Changes of links and addresses, and losses of what hangs on our links, as the kernel tells them.

use std::collections::BTreeSet;
use std::io;

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::RouteAttribute;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::AddressFamily;
use shoal_plan::IfName;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Tc,
];

/// A stream of "something changed".
#[derive(Debug)]
pub struct KernelEvents {
    receiver: mpsc::Receiver<()>,
    tasks: Vec<JoinHandle<()>>,
}

impl KernelEvents {
    /// Listens in the namespace of the calling thread.
    pub fn listen() -> io::Result<Self> {
        let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
        let (tell, receiver) = mpsc::channel(1);
        let forward = tokio::spawn(async move {
            // The handle keeps the connection open.
            let mut ours = OurLinks::default();
            let mut links = handle.link().get().execute();
            // Without the list, only links that come later are known: sweeps find what happens to the others.
            while let Ok(Some(link)) = links.try_next().await {
                ours.note(&link);
            }
            while let Some((message, _)) = messages.next().await {
                // What is no message of the kernel's (an overrun) may hide anything.
                if let NetlinkPayload::InnerMessage(message) = &message.payload
                    && !ours.concerns(message)
                {
                    continue;
                }
                // A full channel already says that something changed.
                if let Err(mpsc::error::TrySendError::Closed(())) = tell.try_send(()) {
                    return;
                }
            }
        });
        Ok(Self { receiver, tasks: vec![tokio::spawn(connection), forward] })
    }

    /// Told by somebody else.
    #[cfg(test)]
    pub(super) const fn told_by(receiver: mpsc::Receiver<()>) -> Self {
        Self { receiver, tasks: Vec::new() }
    }

    /// The next change, told no earlier than `from`. Cancel safe.
    pub(super) async fn next(&mut self, from: Instant) {
        sleep_until(from).await;
        if self.receiver.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Forgets the changes so far.
    pub(super) fn drain(&mut self) {
        while self.receiver.try_recv().is_ok() {}
    }
}

impl Drop for KernelEvents {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Indexes of the links that carry our names.
#[derive(Debug, Default)]
struct OurLinks(BTreeSet<u32>);

impl OurLinks {
    fn note(&mut self, link: &LinkMessage) {
        let is_ours = link.attributes.iter().any(|attribute| {
            matches!(attribute, LinkAttribute::IfName(name) if IfName::new(name).has_our_prefix())
        });
        if is_ours {
            self.0.insert(link.header.index);
        }
    }

    /// Whether a message is worth a look at everything. Every change of a link or an address is. Of queueing disciplines and
    /// filters the loss is. Of neighbors, forwarding entries and routes only losses on links of ours are: a host learns and forgets others all the time,
    /// and what is made there was made by us, or is found by the next sweep.
    fn concerns(&mut self, message: &RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewLink(link) => {
                self.note(link);
                true
            }
            RouteNetlinkMessage::DelLink(link) => {
                // A port that leaves its bridge is told in the same words, in the bridge's family.
                if link.header.interface_family != AddressFamily::Bridge {
                    self.0.remove(&link.header.index);
                }
                true
            }
            RouteNetlinkMessage::DelNeighbour(neighbor) => self.0.contains(&neighbor.header.ifindex),
            RouteNetlinkMessage::DelRoute(route) => route
                .attributes
                .iter()
                .any(|attribute| matches!(attribute, RouteAttribute::Oif(index) if self.0.contains(index))),
            RouteNetlinkMessage::NewNeighbour(_)
            | RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::NewQueueDiscipline(_)
            | RouteNetlinkMessage::NewTrafficFilter(_) => false,
            // Programs are on links of the host's, too, so the loss of any filter may be ours.
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::neighbour::NeighbourMessage;
    use netlink_packet_route::route::RouteMessage;
    use netlink_packet_route::tc::TcMessage;

    use super::*;

    fn link(index: u32, name: &str) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        link
    }

    fn neighbor(index: u32) -> NeighbourMessage {
        let mut neighbor = NeighbourMessage::default();
        neighbor.header.ifindex = index;
        neighbor
    }

    fn route(index: u32) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.attributes.push(RouteAttribute::Oif(index));
        route
    }

    #[test]
    fn losses_on_our_links_are_told_and_the_hosts_own_are_not() {
        let mut ours = OurLinks::default();
        ours.note(&link(3, "shx-1"));
        assert!(ours.concerns(&RouteNetlinkMessage::NewLink(link(4, "eth0"))));
        assert!(ours.concerns(&RouteNetlinkMessage::NewLink(link(5, "shb-1"))));
        for (index, is_ours) in [(3, true), (4, false), (5, true)] {
            assert_eq!(
                ours.concerns(&RouteNetlinkMessage::DelNeighbour(neighbor(index))),
                is_ours,
                "{index}"
            );
            assert_eq!(ours.concerns(&RouteNetlinkMessage::DelRoute(route(index))), is_ours, "{index}");
            assert!(!ours.concerns(&RouteNetlinkMessage::NewNeighbour(neighbor(index))), "{index}");
            assert!(!ours.concerns(&RouteNetlinkMessage::NewRoute(route(index))), "{index}");
        }
    }

    #[test]
    fn the_loss_of_a_filter_is_told_wherever_it_was() {
        let mut ours = OurLinks::default();
        let filter = TcMessage::default();
        assert!(ours.concerns(&RouteNetlinkMessage::DelTrafficFilter(filter.clone())));
        assert!(ours.concerns(&RouteNetlinkMessage::DelQueueDiscipline(filter.clone())));
        assert!(!ours.concerns(&RouteNetlinkMessage::NewTrafficFilter(filter.clone())));
        assert!(!ours.concerns(&RouteNetlinkMessage::NewQueueDiscipline(filter)));
    }

    #[test]
    fn a_link_is_ours_until_it_is_gone_not_until_it_leaves_its_bridge() {
        let mut ours = OurLinks::default();
        ours.note(&link(3, "shx-1"));
        let mut port = link(3, "shx-1");
        port.header.interface_family = AddressFamily::Bridge;
        assert!(ours.concerns(&RouteNetlinkMessage::DelLink(port)));
        assert!(ours.concerns(&RouteNetlinkMessage::DelNeighbour(neighbor(3))));
        assert!(ours.concerns(&RouteNetlinkMessage::DelLink(link(3, "shx-1"))));
        assert!(!ours.concerns(&RouteNetlinkMessage::DelNeighbour(neighbor(3))));
    }
}

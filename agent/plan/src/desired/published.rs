//! Published ports that this node answers on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use shoal_types::assignment::AssignedService;
use shoal_types::{Protocol, PublishedPort, ServiceId};

use crate::doors::digest;
use crate::object::FirewallMark;

/// A published port, and the mark of its virtual service where one balances it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Published<'a> {
    pub(super) port: &'a PublishedPort,
    pub(super) mark: FirewallMark,
}

/// The ports that a node answers on, by service. A port on one address is answered where that address is; a port in
/// host mode where a task of the service is.
pub(super) fn published<'a>(
    services: impl Iterator<Item = &'a AssignedService>,
    addrs: &BTreeSet<IpAddr>,
    has_task: impl Fn(&ServiceId) -> bool,
) -> BTreeMap<&'a ServiceId, Vec<Published<'a>>> {
    let answered = |service: &ServiceId, port: &PublishedPort| {
        port.binding.addr.is_none_or(|addr| addrs.contains(&addr)) && (!port.is_host() || has_task(service))
    };
    let here: Vec<(&ServiceId, &PublishedPort)> = services
        .flat_map(|service| service.ports.iter().map(move |port| (&service.id, port)))
        .filter(|(service, port)| answered(service, port))
        .collect();
    let marks = marks(here.iter().map(|(_, port)| *port));
    let mut published: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (service, port) in here {
        let mark = match port.binding.addr {
            None => FirewallMark::of_port(port.protocol, port.published),
            Some(addr) => {
                let number = marks.get(&(port.protocol, port.published, addr)).copied().unwrap_or(1);
                FirewallMark::of_scoped_port(port.protocol, port.published, number)
            }
        };
        published.entry(service).or_default().push(Published { port, mark });
    }
    published
}

/// Numbers that tell the addresses of each port apart. They follow from the address, so that one that comes or goes
/// leaves the others' virtual services as they are; two addresses that come out alike are numbered one after the
/// other.
fn marks<'a>(ports: impl Iterator<Item = &'a PublishedPort>) -> BTreeMap<(Protocol, u16, IpAddr), u32> {
    let scoped: BTreeSet<_> =
        ports.filter_map(|port| Some((port.protocol, port.published, port.binding.addr?))).collect();
    let mut taken = BTreeSet::new();
    let mut numbers = BTreeMap::new();
    for (protocol, port, addr) in scoped {
        let mut number = number(addr);
        // More addresses than numbers: none is left, and two share one. A node has not got so many.
        for _ in 0..FirewallMark::SCOPES {
            if taken.insert((protocol, port, number)) {
                break;
            }
            number = number % FirewallMark::SCOPES + 1;
        }
        numbers.insert((protocol, port, addr), number);
    }
    numbers
}

/// The digest of an address, from 1 to [`FirewallMark::SCOPES`].
fn number(addr: IpAddr) -> u32 {
    digest(addr) % FirewallMark::SCOPES + 1
}

#[cfg(test)]
mod tests {
    use shoal_types::{Binding, PublishMode};

    use super::*;

    fn on(addr: IpAddr) -> PublishedPort {
        let binding = Binding { mode: PublishMode::Ingress, addr: Some(addr) };
        PublishedPort { binding, ..PublishedPort::everywhere(Protocol::Tcp, 8080, 80) }
    }

    #[test]
    fn addresses_of_a_port_have_numbers_of_their_own() {
        // More than half of all numbers: many come out alike.
        let ports: Vec<_> =
            (0..1_200_u32).map(|n| on(IpAddr::from((0xc000_0200 + n).to_be_bytes()))).collect();
        let all = marks(ports.iter());
        assert_eq!(all.values().collect::<BTreeSet<_>>().len(), ports.len());
        let one = marks(ports[7..8].iter());
        assert_eq!(one.values().next().copied(), Some(number(IpAddr::from((0xc000_0207_u32).to_be_bytes()))));
    }
}

//! Published ports: one owner per place over the whole cluster, from the moment a service asks until its last task is
//! gone. A port in host mode has an owner for each service that publishes it: which of them gets it on a node, the
//! scheduler decides ([`crate::host_ports`]).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shoal_types::id::{Name, ServiceId};
use shoal_types::net::Protocol;
use shoal_types::object::{Service, Timestamp};
use shoal_types::port::{PortPlace, PublishMode, PublishedPort, unfit_address};
use shoal_types::spec::PortSpec;

use crate::rejection::Rejection;

/// Ports that are chosen when none was asked for.
pub(crate) const AUTO_FIRST: u16 = 30_000;
/// See [`AUTO_FIRST`].
pub(crate) const AUTO_LAST: u16 = 32_767;

/// Ports that one service may publish. The range for media that some programs want open, 10000 to 20000, fits.
pub(crate) const MAX_OF_SERVICE: usize = 16_384;
/// Ports that all services may publish together: the programs' table on a node has as many entries.
const MAX_OF_CLUSTER: usize = 65_536;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortTable {
    owners: BTreeMap<Key, Owner>,
    /// Automatic port given out last; the search goes on behind it.
    last_auto: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "stored::Key", into = "stored::Key")]
struct Key {
    place: PortPlace,
    /// In host mode, the service: others may have the same place.
    host: Option<ServiceId>,
}

impl Key {
    fn of(port: &PublishedPort, service: &ServiceId) -> Self {
        Self { place: port.place(), host: port.is_host().then(|| service.clone()) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    service: ServiceId,
    target: u16,
    since: Timestamp,
}

/// Who asks for ports.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) id: &'a ServiceId,
    pub(crate) name: &'a Name,
    /// Ports it has now: an automatic one stays what it is.
    pub(crate) has: &'a [PublishedPort],
    /// Ports the swarm itself lives by, which nobody is given.
    pub(crate) own: &'a OwnPorts,
}

/// Ports that managers and tunnels listen on: published, the mesh would take them from those.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnPorts(BTreeSet<(Protocol, u16)>);

impl OwnPorts {
    /// Those of managers, by TCP, and that of tunnels, by UDP.
    pub(crate) fn new(control: impl Iterator<Item = u16>, data: Option<u16>) -> Self {
        let tunnels = data.map(|port| (Protocol::Udp, port));
        Self(control.map(|port| (Protocol::Tcp, port)).chain(tunnels).collect())
    }

    fn has(&self, protocol: Protocol, port: u16) -> bool {
        self.0.contains(&(protocol, port))
    }
}

/// Places in their order, to be asked for overlaps without going through all of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places(BTreeSet<PortPlace>);

impl Places {
    pub(crate) fn insert(&mut self, place: PortPlace) {
        self.0.insert(place);
    }

    /// The first place that shares packets with this one.
    pub(crate) fn overlapping(&self, place: PortPlace) -> Option<PortPlace> {
        let same_port = self.0.range(place.first_of_port()..).take_while(|other| other.same_port(place));
        same_port.copied().find(|other| other.overlaps(place))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = PortPlace> + '_ {
        self.0.iter().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<PortPlace> for Places {
    fn from_iter<T: IntoIterator<Item = PortPlace>>(places: T) -> Self {
        Self(places.into_iter().collect())
    }
}

impl PortTable {
    /// The ports a service would get, or why not. Changes nothing.
    pub(crate) fn resolve(
        &self,
        asker: Asker<'_>,
        wanted: &[PortSpec],
        services: &BTreeMap<ServiceId, Service>,
    ) -> Result<Vec<PublishedPort>, Rejection> {
        self.check_count(asker, wanted)?;
        let mut mine = Places::default();
        for port in wanted {
            check_numbers(*port)?;
            check_own(asker, *port)?;
            check_translation(asker, *port)?;
            check_proxy(*port)?;
            check_direct(*port)?;
            let Some(place) = port.place() else { continue };
            if let Some(other) = mine.overlapping(place) {
                return Err(twice(*port, place, other));
            }
            mine.insert(place);
            if let Some((key, owner)) = self.foreign_owner(asker, place, port.binding.mode) {
                return Err(taken(asker, *port, place, key, owner, services));
            }
        }
        wanted
            .iter()
            .map(|port| {
                let published = match port.published {
                    Some(published) => published,
                    None => self.automatic(asker, *port, &mine)?,
                };
                let PortSpec { protocol, target, binding, proxy, dsr, .. } = *port;
                let resolved = PublishedPort { protocol, published, target, binding, proxy, dsr };
                mine.insert(resolved.place());
                Ok(resolved)
            })
            .collect()
    }

    fn check_count(&self, asker: Asker<'_>, wanted: &[PortSpec]) -> Result<(), Rejection> {
        let count = wanted.len();
        if count > MAX_OF_SERVICE {
            let help = format!("publish at most {MAX_OF_SERVICE}, or share them out over several services");
            return Err(Rejection::invalid(
                "publish",
                count,
                "ports are more than a service can publish",
                help,
            ));
        }
        let of_others = self.owners.len().saturating_sub(asker.has.len());
        if count > asker.has.len() && of_others + count > MAX_OF_CLUSTER {
            let problem = format!("ports are too many beside the {of_others} that other services publish");
            let help = format!("unpublish ports nobody uses; a swarm has at most {MAX_OF_CLUSTER}");
            return Err(Rejection::invalid("publish", count, problem, help));
        }
        Ok(())
    }

    /// Makes the resolved ports the service's, and every other port of it free.
    pub(crate) fn assign(&mut self, service: &ServiceId, ports: &[PublishedPort], now: Timestamp) {
        let keep: BTreeSet<_> = ports.iter().map(|p| Key::of(p, service)).collect();
        self.owners.retain(|key, owner| owner.service != *service || keep.contains(key));
        for port in ports {
            let owner = self.owners.entry(Key::of(port, service)).or_insert_with(|| Owner {
                service: service.clone(),
                target: port.target,
                since: now,
            });
            owner.target = port.target;
            if (AUTO_FIRST..=AUTO_LAST).contains(&port.published) {
                self.last_auto = port.published;
            }
        }
    }

    /// Who owns a published port of a service.
    #[cfg(test)]
    pub(crate) fn owner(&self, port: &PublishedPort, service: &ServiceId) -> Option<&ServiceId> {
        self.owners.get(&Key::of(port, service)).map(|o| &o.service)
    }

    /// How many ports have owners.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.owners.len()
    }

    /// The owner of a place that shares packets with this one, if it is in the way of the asker. Two services in host
    /// mode are not: no node gets both.
    fn foreign_owner(&self, asker: Asker<'_>, place: PortPlace, mode: PublishMode) -> Option<(&Key, &Owner)> {
        let first = Key { place: place.first_of_port(), host: None };
        self.owners.range(first..).take_while(|(key, _)| key.place.same_port(place)).find(|(key, owner)| {
            owner.service != *asker.id
                && key.place.overlaps(place)
                && (mode == PublishMode::Ingress || key.host.is_none())
        })
    }

    fn automatic(&self, asker: Asker<'_>, port: PortSpec, mine: &Places) -> Result<u16, Rejection> {
        let had = asker.has.iter().filter(|p| p.protocol == port.protocol && p.target == port.target);
        let after = self.last_auto.saturating_add(1).clamp(AUTO_FIRST, AUTO_LAST);
        let is_free = |published: &u16, mode| {
            let place = PortPlace { protocol: port.protocol, port: *published, addr: port.binding.addr };
            mine.overlapping(place).is_none() && self.foreign_owner(asker, place, mode).is_none()
        };
        had.map(|p| p.published)
            .filter(|p| (AUTO_FIRST..=AUTO_LAST).contains(p))
            .find(|p| is_free(p, port.binding.mode))
            // A new one is nobody else's in host mode either: there is no need to share it.
            .or_else(|| {
                let mut all = (after..=AUTO_LAST).chain(AUTO_FIRST..after);
                all.find(|p| !asker.own.has(port.protocol, *p) && is_free(p, PublishMode::Ingress))
            })
            .ok_or_else(|| Rejection::PortsExhausted {
                protocol: port.protocol,
                asked_by: asker.name.clone(),
                first: AUTO_FIRST,
                last: AUTO_LAST,
            })
    }
}

/// A port as it was asked for.
pub(crate) fn shown(port: PortSpec) -> String {
    let place = PortPlace {
        protocol: port.protocol,
        port: port.published.unwrap_or_default(),
        addr: port.binding.addr,
    };
    let mut text = place.to_string();
    if port.published.is_none() {
        text = text.replacen("0/", "/", 1);
    }
    // The target belongs between the port and the transport.
    match text.rsplit_once('/') {
        Some((left, protocol)) => format!("{left}:{}/{protocol}", port.target),
        None => text,
    }
}

fn check_numbers(port: PortSpec) -> Result<(), Rejection> {
    let help = "ports are 1 to 65535; leave the published one out to have a free one chosen";
    if port.target == 0 || port.published == Some(0) {
        return Err(Rejection::invalid("publish", shown(port), "has port 0", help));
    }
    if let Some(addr) = port.binding.addr
        && let Some(problem) = unfit_address(addr)
    {
        let help = "give an address that a node has and clients send to, or leave it out";
        return Err(Rejection::invalid("publish.ip", addr, problem, help));
    }
    Ok(())
}

/// Managers and tunnels must stay reachable. A port that a service had before it became one of theirs is no reason to refuse
/// other changes of that service.
fn check_own(asker: Asker<'_>, port: PortSpec) -> Result<(), Rejection> {
    let Some(published) = port.published else { return Ok(()) };
    let had = asker.has.iter().any(|has| has.protocol == port.protocol && has.published == published);
    if had || !asker.own.has(port.protocol, published) {
        return Ok(());
    }
    let help = "publish another port; managers and tunnels could not be reached any more";
    Err(Rejection::invalid("publish", shown(port), "is a port of the swarm itself", help))
}

/// SCTP's checksum covers its ports, and is one over the whole packet that no program can adjust (RFC 9260 section 6.8): a
/// port is published as itself, so none can be chosen either.
fn check_translation(asker: Asker<'_>, port: PortSpec) -> Result<(), Rejection> {
    if port.protocol != Protocol::Sctp || port.published == Some(port.target) {
        return Ok(());
    }
    Err(Rejection::PortsUnequal {
        port: shown(port),
        protocol: port.protocol,
        asked_by: asker.name.clone(),
        target: port.target,
    })
}

/// A header in front of what a client sends needs a beginning, and one way that everything takes in its order.
fn check_proxy(port: PortSpec) -> Result<(), Rejection> {
    let Some(proxy) = port.proxy.filter(|_| port.protocol != Protocol::Tcp) else { return Ok(()) };
    let problem = format!("is a port of {}, and proxy-protocol={proxy} is for tcp alone", port.protocol);
    let help =
        "leave proxy-protocol out: the task sees the client's address anyway; or publish it as protocol=tcp";
    Err(Rejection::invalid("publish.proxy-protocol", shown(port), problem, help))
}

/// Answers go past the node that was asked where another node has the task, and nothing is to be put right in them.
fn check_direct(port: PortSpec) -> Result<(), Rejection> {
    let (problem, help) = match port.proxy {
        _ if !port.dsr => return Ok(()),
        Some(proxy) => (
            format!(
                "has proxy-protocol={proxy}, and the node that puts the header in must see both directions"
            ),
            "leave dsr out; or leave proxy-protocol out: the task sees the client's address anyway",
        ),
        None if port.binding.mode == PublishMode::Host => (
            "has mode=host: its nodes answer with their own tasks, and there is no other to answer past"
                .to_owned(),
            "leave dsr out, answers go straight to the client anyway; or publish the port with mode=ingress",
        ),
        None => return Ok(()),
    };
    Err(Rejection::invalid("publish.dsr", shown(port), problem, help))
}

fn twice(port: PortSpec, place: PortPlace, other: PortPlace) -> Rejection {
    let problem = if place == other {
        "is published twice".to_owned()
    } else {
        format!("overlaps {other} of the same service")
    };
    Rejection::invalid("publish", shown(port), problem, "leave one of them out")
}

fn taken(
    asker: Asker<'_>,
    port: PortSpec,
    place: PortPlace,
    key: &Key,
    owner: &Owner,
    services: &BTreeMap<ServiceId, Service>,
) -> Rejection {
    let found = services.get(&owner.service);
    // An owner is always a service of the state; the asker's name is only what the types need.
    let holder = found.map_or_else(|| asker.name.clone(), |s| s.spec.name.clone());
    let removing = found.is_some_and(|s| s.removing);
    let asked_by = asker.name.clone();
    if place.addr.is_none()
        && key.place.addr.is_none()
        && key.host.is_none()
        && port.binding.mode == PublishMode::Ingress
    {
        return Rejection::PortTaken {
            port: place.port,
            protocol: place.protocol,
            asked_by,
            holder,
            holder_target: owner.target,
            since: owner.since,
            removing,
        };
    }
    let held_mode = if key.host.is_some() { PublishMode::Host } else { PublishMode::Ingress };
    Rejection::PortOverlap {
        place,
        mode: port.binding.mode,
        asked_by,
        held: key.place,
        held_mode,
        holder,
        since: owner.since,
        removing,
    }
}

/// How the table stands in snapshots: the key was a transport and a port, and still is when there is no more to say.
mod stored {
    use std::net::IpAddr;

    use serde::{Deserialize, Serialize};
    use shoal_types::id::ServiceId;

    use super::{PortPlace, Protocol};

    #[derive(Serialize, Deserialize)]
    pub(super) struct Key(Transport, u16);

    /// The first two are those of [`Protocol`], in its order.
    #[derive(Serialize, Deserialize)]
    enum Transport {
        Tcp,
        Udp,
        Bound { protocol: Protocol, addr: Option<IpAddr>, host: Option<ServiceId> },
    }

    impl From<super::Key> for Key {
        fn from(key: super::Key) -> Self {
            let PortPlace { protocol, port, addr } = key.place;
            let transport = match (protocol, addr, key.host) {
                (Protocol::Tcp, None, None) => Transport::Tcp,
                (Protocol::Udp, None, None) => Transport::Udp,
                (protocol, addr, host) => Transport::Bound { protocol, addr, host },
            };
            Self(transport, port)
        }
    }

    impl From<Key> for super::Key {
        fn from(Key(transport, port): Key) -> Self {
            let (protocol, addr, host) = match transport {
                Transport::Tcp => (Protocol::Tcp, None, None),
                Transport::Udp => (Protocol::Udp, None, None),
                Transport::Bound { protocol, addr, host } => (protocol, addr, host),
            };
            Self { place: PortPlace { protocol, port, addr }, host }
        }
    }
}

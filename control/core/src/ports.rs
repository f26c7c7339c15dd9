//! Published ports: one owner per protocol and port over the whole cluster, from the moment a service asks until
//! its last task is gone.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shoal_types::id::{Name, ServiceId};
use shoal_types::net::{Protocol, PublishedPort};
use shoal_types::object::{Service, Timestamp};
use shoal_types::spec::PortSpec;

use crate::rejection::Rejection;

/// Ports that are chosen when none was asked for.
pub(crate) const AUTO_FIRST: u16 = 30_000;
/// See [`AUTO_FIRST`].
pub(crate) const AUTO_LAST: u16 = 32_767;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortTable {
    owners: BTreeMap<(Protocol, u16), Owner>,
    /// Automatic port given out last; the search goes on behind it.
    last_auto: u16,
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
}

impl PortTable {
    /// The ports a service would get, or why not. Changes nothing.
    pub(crate) fn resolve(
        &self,
        asker: Asker<'_>,
        wanted: &[PortSpec],
        services: &BTreeMap<ServiceId, Service>,
    ) -> Result<Vec<PublishedPort>, Rejection> {
        let mut mine: BTreeSet<(Protocol, u16)> = BTreeSet::new();
        for port in wanted {
            check_numbers(*port)?;
            let Some(published) = port.published else { continue };
            if !mine.insert((port.protocol, published)) {
                let value = format!("{published}:{}/{}", port.target, port.protocol);
                return Err(Rejection::invalid(
                    "publish",
                    value,
                    "is published twice",
                    "leave one of them out",
                ));
            }
            if let Some(owner) = self.foreign_owner(asker, port.protocol, published) {
                return Err(taken(asker, *port, published, owner, services));
            }
        }
        wanted
            .iter()
            .map(|port| {
                let published = match port.published {
                    Some(published) => published,
                    None => self.automatic(asker, *port, &mine)?,
                };
                mine.insert((port.protocol, published));
                Ok(PublishedPort { protocol: port.protocol, published, target: port.target })
            })
            .collect()
    }

    /// Makes the resolved ports the service's, and every other port of it free.
    pub(crate) fn assign(&mut self, service: &ServiceId, ports: &[PublishedPort], now: Timestamp) {
        let keep: BTreeSet<_> = ports.iter().map(|p| (p.protocol, p.published)).collect();
        self.owners.retain(|key, owner| owner.service != *service || keep.contains(key));
        for port in ports {
            let owner = self.owners.entry((port.protocol, port.published)).or_insert_with(|| Owner {
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

    /// Who owns a port.
    #[cfg(test)]
    pub(crate) fn owner(&self, protocol: Protocol, port: u16) -> Option<&ServiceId> {
        self.owners.get(&(protocol, port)).map(|o| &o.service)
    }

    fn foreign_owner(&self, asker: Asker<'_>, protocol: Protocol, port: u16) -> Option<&Owner> {
        self.owners.get(&(protocol, port)).filter(|o| o.service != *asker.id)
    }

    fn automatic(
        &self,
        asker: Asker<'_>,
        port: PortSpec,
        mine: &BTreeSet<(Protocol, u16)>,
    ) -> Result<u16, Rejection> {
        let had = asker.has.iter().filter(|p| p.protocol == port.protocol && p.target == port.target);
        let after = self.last_auto.saturating_add(1).clamp(AUTO_FIRST, AUTO_LAST);
        had.map(|p| p.published)
            .filter(|p| (AUTO_FIRST..=AUTO_LAST).contains(p))
            .chain(after..=AUTO_LAST)
            .chain(AUTO_FIRST..after)
            .find(|p| {
                !mine.contains(&(port.protocol, *p)) && self.foreign_owner(asker, port.protocol, *p).is_none()
            })
            .ok_or_else(|| Rejection::PortsExhausted {
                protocol: port.protocol,
                asked_by: asker.name.clone(),
                first: AUTO_FIRST,
                last: AUTO_LAST,
            })
    }
}

fn check_numbers(port: PortSpec) -> Result<(), Rejection> {
    let help = "ports are 1 to 65535; leave the published one out to have a free one chosen";
    if port.target == 0 || port.published == Some(0) {
        let value = format!("{}:{}/{}", port.published.unwrap_or_default(), port.target, port.protocol);
        return Err(Rejection::invalid("publish", value, "has port 0", help));
    }
    Ok(())
}

fn taken(
    asker: Asker<'_>,
    port: PortSpec,
    published: u16,
    owner: &Owner,
    services: &BTreeMap<ServiceId, Service>,
) -> Rejection {
    let holder = services.get(&owner.service);
    Rejection::PortTaken {
        port: published,
        protocol: port.protocol,
        asked_by: asker.name.clone(),
        // An owner is always a service of the state; the asker's name is only what the types need.
        holder: holder.map_or_else(|| asker.name.clone(), |s| s.spec.name.clone()),
        holder_target: owner.target,
        since: owner.since,
        removing: holder.is_some_and(|s| s.removing),
    }
}

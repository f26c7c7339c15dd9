//! The part of what a node should hold that follows from a few endpoints and services, at the cost of these few.
//!
//! A change of endpoints and services changes nothing outside that part. So the difference between the parts of two
//! assignments is the difference between all of both, as long as the rest of the assignments is the same.

use std::collections::{BTreeMap, BTreeSet};

use shoal_types::assignment::{Assignment, ClusterView, Endpoint, Object as Assigned, ObjectKey};
use shoal_types::shared::Change;
use shoal_types::{DirectRouting, EndpointId, NetworkId, ServiceId};

use super::balancing::{self, Members};
use super::published::published;
use super::{Engine, Facts, View, beside_ports, direct, endpoint_elsewhere, names, vip_neighbors};
use crate::object::Objects;
use crate::slice::Gathered;

/// The endpoints of each service, and which services have their clients answered by the nodes of their tasks, kept from one
/// assignment to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Services {
    endpoints: BTreeMap<ServiceId, BTreeSet<EndpointId>>,
    direct: BTreeSet<ServiceId>,
}

impl Services {
    /// Those of an assignment.
    pub fn of(assignment: &Assignment) -> Self {
        let mut services = Self::default();
        for endpoint in assignment.endpoints() {
            services.endpoints.entry(endpoint.service.clone()).or_default().insert(endpoint.id);
        }
        let direct = assignment.services().filter(|service| direct::is_wanted(service));
        services.direct = direct.map(|service| service.id.clone()).collect();
        services
    }

    /// Takes changes over, so that it holds what is there before and after.
    pub fn add(&mut self, changes: &[Change<'_, ObjectKey, Assigned>]) {
        for change in changes {
            match change.after {
                Some(Assigned::Endpoint(endpoint)) => {
                    self.endpoints.entry(endpoint.service.clone()).or_default().insert(endpoint.id);
                }
                Some(Assigned::Service(service)) if direct::is_wanted(service) => {
                    self.direct.insert(service.id.clone());
                }
                _ => {}
            }
        }
    }

    /// Drops what was only there before the changes.
    pub fn drop_former(&mut self, changes: &[Change<'_, ObjectKey, Assigned>]) {
        for change in changes {
            match (change.before, change.after) {
                (Some(Assigned::Endpoint(former)), after) => self.drop_endpoint(former, after),
                (_, Some(Assigned::Service(now))) if direct::is_wanted(now) => {}
                (Some(Assigned::Service(former)), _) => {
                    self.direct.remove(&former.id);
                }
                _ => {}
            }
        }
    }

    fn drop_endpoint(&mut self, former: &Endpoint, after: Option<&Assigned>) {
        let stays = matches!(after, Some(Assigned::Endpoint(now)) if now.service == former.service);
        if !stays && let Some(endpoints) = self.endpoints.get_mut(&former.service) {
            endpoints.remove(&former.id);
            if endpoints.is_empty() {
                self.endpoints.remove(&former.service);
            }
        }
    }

    fn endpoints(&self, service: &ServiceId) -> impl Iterator<Item = EndpointId> + '_ {
        self.endpoints.get(service).into_iter().flatten().copied()
    }

    /// Whether an assignment whose services it knows has any with clients that are answered by the nodes of its tasks. With
    /// the first and without the last one, every endpoint and door is another: that is no part.
    pub fn want_direct(&self, assignment: &Assignment) -> bool {
        self.direct.iter().any(|id| assignment.service(id).is_some_and(direct::is_wanted))
    }
}

/// What changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    endpoints: BTreeSet<EndpointId>,
    services: BTreeSet<ServiceId>,
    /// Networks in which names changed.
    networks: BTreeSet<NetworkId>,
    /// Whether other ports may be published than before.
    with_ports: bool,
}

impl Part {
    /// Whether a change may be about a part: balanced by the tables of the programs only. Virtual services are told apart by
    /// looking at all of them, and virtual IPs of services may stand on tasks.
    pub fn may_be(facts: &Facts, cluster: &ClusterView) -> bool {
        facts.engine == Engine::Ebpf && cluster.direct == DirectRouting::Off
    }

    /// The part that these changes are about, if there is one. They must be about endpoints and services only.
    pub fn of(
        changes: &[Change<'_, ObjectKey, Assigned>],
        facts: &Facts,
        cluster: &ClusterView,
    ) -> Option<Self> {
        if !Self::may_be(facts, cluster) {
            return None;
        }
        let mut part = Self::default();
        for change in changes {
            for object in [change.before, change.after].into_iter().flatten() {
                match object {
                    Assigned::Endpoint(endpoint) => {
                        part.endpoints.insert(endpoint.id);
                        // Where a service has a task, its ports in host mode are published.
                        part.with_ports |= endpoint.node == cluster.node;
                        part.services.insert(endpoint.service.clone());
                        part.networks.insert(endpoint.network.clone());
                    }
                    Assigned::Service(service) => {
                        part.with_ports = true;
                        part.services.insert(service.id.clone());
                        part.networks.extend(service.vips.iter().map(|vip| vip.at.network.clone()));
                        part.networks.extend(service.dnsrr.iter().map(|at| at.network.clone()));
                    }
                    _ => return None,
                }
            }
        }
        Some(part)
    }
}

/// What a node should hold of a part; `services` has to know its endpoints. `None` as for [`super::derive`].
/// [`Services::want_direct`] must be the same before and after the change.
pub fn derive_part(
    assignment: &Assignment,
    facts: &Facts,
    part: &Part,
    services: &Services,
) -> Option<Objects> {
    let mut view = View::without_services(assignment, facts)?;
    if services.want_direct(assignment) {
        view.answering = direct::answering(&view);
    }
    let mut objects = Gathered::all();
    let vteps = view.vteps();
    for id in &part.endpoints {
        let found = assignment.endpoint(*id).and_then(|endpoint| view.reachable(endpoint));
        let Some((endpoint, network, here)) = found else { continue };
        if !here {
            endpoint_elsewhere(&view, &vteps, endpoint, network, &mut objects);
        }
        objects.push(balancing::lb_endpoint(&view, endpoint, network, here));
    }
    let touched = part.services.iter().filter_map(|id| assignment.service(id));
    let members = |id: &ServiceId| {
        let endpoints = services.endpoints(id).filter_map(|id| assignment.endpoint(id));
        let of_service = endpoints.filter(|endpoint| endpoint.service == *id);
        of_service.filter_map(|endpoint| view.reachable(endpoint)).collect::<Vec<_>>()
    };
    let has_task =
        |id: &ServiceId| members(id).iter().any(|(endpoint, _, _)| view.local.contains(&endpoint.id));
    // The ports of all count for those that are reserved, else those of the part.
    let ports = if part.with_ports {
        published(assignment.services(), &view.addrs(), has_task)
    } else {
        published(touched.clone(), &view.addrs(), has_task)
    };
    let of_part = Members::of(part.services.iter().flat_map(members).collect::<Vec<_>>().into_iter());
    view.published = ports;
    if part.with_ports {
        beside_ports(&view, &mut objects);
    }
    for service in touched {
        vip_neighbors(&view, service, &mut objects);
        balancing::one_service(&view, service, &of_part, &mut objects);
    }
    if view.networks.values().any(|network| !network.ingress && part.networks.contains(&network.id)) {
        names::derive(&view, &mut objects);
    }
    Some(objects.objects())
}

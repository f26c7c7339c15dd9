//! What each task's resolver answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use shoal_types::assignment::{AssignedNetwork, AssignedService, Endpoint};
use shoal_types::object::Slot;
use shoal_types::{NetworkId, ServiceId, Weight};

use super::sandbox::is_internal;
use super::{View, running_tasks};
use crate::object::{NetworkNames, Object, ReservedNames, Resolver, ServiceNames, TaskNames};
use crate::slice::Gathered;

pub(super) fn derive(view: &View<'_>, out: &mut Gathered) {
    let names: BTreeMap<&NetworkId, Arc<NetworkNames>> = view
        .networks
        .values()
        .filter(|network| !network.ingress)
        .map(|network| (&network.id, Arc::new(network_names(view, network))))
        .collect();
    let reserved = Arc::new(reserved(view));
    for task in running_tasks(view.assignment) {
        let networks =
            task.attachments.iter().filter_map(|at| names.get(&at.network)).map(Arc::clone).collect();
        out.push(Object::from(Resolver {
            task: task.id.clone(),
            networks,
            reserved: Arc::clone(&reserved),
            forward: !is_internal(view, task),
            servers: task.dns.servers.clone(),
        }));
    }
}

/// What the managers name, and what this node knows itself: managers of the first version name nothing.
fn reserved(view: &View<'_>) -> ReservedNames {
    let told = &view.cluster.reserved;
    let known = view.networks.values();
    let own = known.clone().flat_map(|n| [IpNet::V4(n.subnets.v4), IpNet::V6(n.subnets.v6)]);
    let named = known.filter(|network| !network.ingress).map(|network| &network.name);
    ReservedNames {
        networks: told.networks.iter().chain(named).map(ToString::to_string).collect(),
        slots: view.assignment.members().map(|m| Slot::Node(m.node.clone()).to_string()).collect(),
        subnets: told.subnets.iter().copied().chain(own).collect(),
    }
}

fn network_names(view: &View<'_>, network: &AssignedNetwork) -> NetworkNames {
    let in_network = || view.assignment.endpoints().filter(|endpoint| endpoint.network == network.id);
    let present: BTreeSet<&ServiceId> = in_network().map(|endpoint| &endpoint.service).collect();
    let service_names: BTreeMap<&ServiceId, &str> =
        view.assignment.services().map(|service| (&service.id, service.name.as_str())).collect();
    let services = view
        .assignment
        .services()
        .filter_map(|service| names_in(service, network, present.contains(&service.id)))
        .collect();
    let tasks = in_network()
        .filter_map(|endpoint| {
            service_names.get(&endpoint.service).map(|service| task_names(service, endpoint))
        })
        .collect();
    NetworkNames {
        name: network.name.to_string(),
        subnets: (network.subnets.v4, network.subnets.v6),
        services,
        tasks,
    }
}

/// What a service is called in a network: one that it is on, or that tasks of it are still on.
fn names_in(service: &AssignedService, network: &AssignedNetwork, present: bool) -> Option<ServiceNames> {
    let vips: Vec<_> = service.vips.iter().filter(|vip| vip.at.network == network.id).collect();
    let places: Vec<_> = service.dnsrr.iter().filter(|place| place.network == network.id).collect();
    let aliases = vips.iter().flat_map(|vip| &vip.aliases).chain(places.iter().flat_map(|at| &at.aliases));
    (present || !vips.is_empty() || !places.is_empty()).then(|| ServiceNames {
        name: service.name.to_string(),
        aliases: aliases.map(ToString::to_string).collect(),
        vips: vips.iter().flat_map(|vip| vip.at.addr.iter()).collect(),
        targets: service.ports.iter().map(|port| (port.protocol, port.target)).collect(),
    })
}

fn task_names(service: &str, endpoint: &Endpoint) -> TaskNames {
    TaskNames {
        service: service.to_owned(),
        slot: endpoint.slot.to_string(),
        serving: endpoint.serving,
        idle: endpoint.weight == Weight::ZERO,
        addresses: endpoint.addr.iter().collect(),
    }
}

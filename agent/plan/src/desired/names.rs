//! What each task's resolver answers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use shoal_types::assignment::{AssignedNetwork, Endpoint};
use shoal_types::object::Slot;
use shoal_types::{NetworkId, ServiceId};

use super::sandbox::is_internal;
use super::{View, running_tasks};
use crate::object::{NetworkNames, Object, ReservedNames, Resolver, ServiceNames, TaskNames};

pub(super) fn derive(view: &View<'_>, out: &mut Vec<Object>) {
    let names: BTreeMap<&NetworkId, Arc<NetworkNames>> = view
        .networks
        .values()
        .filter(|network| !network.ingress)
        .map(|network| (&network.id, Arc::new(network_names(view, network))))
        .collect();
    let reserved = Arc::new(ReservedNames {
        networks: names.values().map(|network| network.name.clone()).collect(),
        subnets: view.networks.values().map(|network| (network.subnets.v4, network.subnets.v6)).collect(),
    });
    for task in running_tasks(view.assignment) {
        let networks =
            task.attachments.iter().filter_map(|at| names.get(&at.network)).map(Arc::clone).collect();
        out.push(Object::Resolver(Resolver {
            task: task.id.clone(),
            networks,
            reserved: Arc::clone(&reserved),
            forward: !is_internal(view, task),
        }));
    }
}

fn network_names(view: &View<'_>, network: &AssignedNetwork) -> NetworkNames {
    let in_network = || view.assignment.endpoints().filter(|endpoint| endpoint.network == network.id);
    let mut serving: BTreeMap<&ServiceId, Vec<IpAddr>> = BTreeMap::new();
    for endpoint in in_network().filter(|endpoint| endpoint.serving) {
        serving.entry(&endpoint.service).or_default().extend(endpoint.addr.iter());
    }
    let service_names: BTreeMap<&ServiceId, &str> =
        view.assignment.services().map(|service| (&service.id, service.name.as_str())).collect();
    let services = view
        .assignment
        .services()
        .filter_map(|service| {
            let vips: Vec<_> = service.vips.iter().filter(|vip| vip.at.network == network.id).collect();
            let endpoints = serving.remove(&service.id).unwrap_or_default();
            if vips.is_empty() && endpoints.is_empty() {
                return None;
            }
            Some(ServiceNames {
                name: service.name.to_string(),
                aliases: vips.iter().flat_map(|vip| vip.aliases.iter()).map(ToString::to_string).collect(),
                vips: vips.iter().flat_map(|vip| vip.at.addr.iter()).collect(),
                endpoints,
            })
        })
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

fn task_names(service: &str, endpoint: &Endpoint) -> TaskNames {
    TaskNames {
        service: service.to_owned(),
        slot: match &endpoint.slot {
            Slot::Number(number) => Some(*number),
            Slot::Node(_) => None,
        },
        addresses: endpoint.addr.iter().collect(),
    }
}

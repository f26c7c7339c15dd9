//! What one node is told, computed from the state. The cost follows what the node gets: members, published
//! services, and the endpoints of the networks it takes part in.

use std::collections::BTreeSet;

use ipnet::IpNet;
use shoal_types::PublishedPort;
use shoal_types::assignment::{
    AssignedNetwork, AssignedService, AssignedTask, Assignment, ClusterView, Endpoint, Member, Object,
    Reserved, Vip,
};
use shoal_types::id::{NetworkId, NodeId, ServiceId};
use shoal_types::object::{Cluster, DesiredState, Generation, Network, Node, NodeState, Service, Task};

use crate::state::State;

/// Everything the node needs and nothing else, as of that log index. `None` when the node is no member.
pub fn for_node(state: &State, node: &NodeId, index: u64) -> Option<Assignment> {
    let me = state.nodes.get(node)?;
    let cluster = state.cluster.as_ref()?;
    let networks = networks_of(state, node);
    let endpoints: Vec<Endpoint> = networks.iter().flat_map(|n| endpoints_in(state, n)).collect();
    let owners: BTreeSet<&ServiceId> = endpoints.iter().map(|e| &e.service).collect();

    let mut objects = vec![Object::Cluster(cluster_view(state, cluster, me))];
    objects.extend(state.nodes.values().map(|n| Object::Member(member(n))));
    objects
        .extend(networks.iter().filter_map(|n| state.networks.get(n)).map(|n| Object::Network(assigned(n))));
    objects.extend(
        state
            .services
            .values()
            .filter(|s| {
                !s.ports.is_empty()
                    || owners.contains(&s.id)
                    || s.spec.networks.iter().any(|n| networks.contains(&n.network))
            })
            .map(|s| Object::Service(service(s, &networks))),
    );
    objects
        .extend(state.tasks_of_node(node).filter_map(|t| task(state, t)).map(|t| Object::Task(Box::new(t))));
    objects.extend(endpoints.iter().cloned().map(Object::Endpoint));
    Some(Assignment::new(Generation(index), objects))
}

/// Every node is in ingress; beyond that only where its own tasks are.
fn networks_of(state: &State, node: &NodeId) -> BTreeSet<NetworkId> {
    let of_tasks = state.tasks_of_node(node).flat_map(|t| &t.attachments).map(|at| &at.network);
    state.ingress.iter().chain(of_tasks).cloned().collect()
}

fn endpoints_in<'a>(state: &'a State, network: &'a NetworkId) -> impl Iterator<Item = Endpoint> + 'a {
    state.tasks_in_network(network).flat_map(move |task| {
        let node = task.node.as_ref().and_then(|n| state.nodes.get(n));
        let serving = task.is_serving() && node.is_some_and(|n| n.state == NodeState::Ready);
        let here = task.attachments.iter().filter(move |at| at.network == *network);
        here.filter_map(move |at| {
            Some(Endpoint {
                id: at.endpoint,
                network: at.network.clone(),
                addr: at.addr,
                node: node?.id.clone(),
                task: task.id.clone(),
                service: task.service.clone(),
                slot: task.slot.clone(),
                serving,
                weight: node?.weight,
            })
        })
    })
}

fn cluster_view(state: &State, cluster: &Cluster, me: &Node) -> ClusterView {
    ClusterView {
        id: cluster.id.clone(),
        name: cluster.name.clone(),
        data_port: cluster.data_port,
        node: me.id.clone(),
        node_name: me.name.clone(),
        router: me.router.clone(),
        lb_engine: cluster.balancing.engine,
        direct: cluster.balancing.direct,
        reserved: reserved(state),
    }
}

/// A node must know the names of networks it has no task on, too: else it would ask outside about them.
fn reserved(state: &State) -> Reserved {
    let named = state.networks.values().filter(|n| !n.ingress);
    let pools = state
        .pools
        .iter()
        .flat_map(|p| p.v4.iter().map(|net| IpNet::V4(*net)).chain(std::iter::once(IpNet::V6(p.v6))));
    let mut subnets: Vec<IpNet> = pools.collect();
    for network in state.networks.values() {
        for net in [IpNet::V4(network.subnets.v4), IpNet::V6(network.subnets.v6)] {
            if !subnets.iter().any(|known| known.contains(&net)) {
                subnets.push(net);
            }
        }
    }
    Reserved { networks: named.map(|n| n.spec.name.clone()).collect(), subnets }
}

fn member(node: &Node) -> Member {
    Member {
        node: node.id.clone(),
        name: node.name.clone(),
        data_addr: node.data_addr,
        router: node.router.clone(),
    }
}

fn assigned(network: &Network) -> AssignedNetwork {
    AssignedNetwork {
        id: network.id.clone(),
        name: network.spec.name.clone(),
        vni: network.vni,
        subnets: network.subnets,
        internal: network.spec.internal,
        ingress: network.ingress,
    }
}

fn service(service: &Service, networks: &BTreeSet<NetworkId>) -> AssignedService {
    let aliases = |network: &NetworkId| {
        let spec = service.spec.networks.iter().find(|n| n.network == *network);
        spec.map(|n| n.aliases.clone()).unwrap_or_default()
    };
    let vips = service.vips.iter().filter(|v| networks.contains(&v.network));
    let mut ports = service.ports.clone();
    // As the wire has them.
    ports.sort_by_key(PublishedPort::form);
    let without_vip =
        service.spec.networks.iter().filter(|n| {
            networks.contains(&n.network) && !service.vips.iter().any(|v| v.network == n.network)
        });
    AssignedService {
        id: service.id.clone(),
        index: service.index,
        name: service.spec.name.clone(),
        vips: vips.map(|v| Vip { at: v.clone(), aliases: aliases(&v.network) }).collect(),
        ports,
        lb: service.spec.lb,
        dnsrr: without_vip.cloned().collect(),
    }
}

fn task(state: &State, task: &Task) -> Option<AssignedTask> {
    // An ended task stays until it is forgotten, for its logs; it must not be started anew whatever was wanted of it.
    let desired =
        if task.status.state.is_terminal() { task.desired.max(DesiredState::Shutdown) } else { task.desired };
    let service = &state.services.get(&task.service)?.spec;
    Some(AssignedTask {
        id: task.id.clone(),
        service: task.service.clone(),
        service_name: service.name.clone(),
        slot: task.slot.clone(),
        spec: task.spec.clone(),
        desired,
        withdrawn: desired == DesiredState::Draining && state.track(&task.id).barrier_at.is_some(),
        attachments: task.attachments.clone(),
        dns: service.dns.clone(),
    })
}

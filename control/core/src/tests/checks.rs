//! Invariants of every state that the log can lead to.

use std::collections::{BTreeMap, BTreeSet};

use shoal_types::id::ServiceId;
use shoal_types::lb::DirectRouting;
use shoal_types::object::{Attachment, DesiredState, NodeState, TaskState};
use shoal_types::port::PublishedPort;
use shoal_types::spec::EndpointMode;

use crate::index::Index;
use crate::leader::LeaderView;
use crate::{Command, State};

/// Panics when the state is not one that may ever be.
pub(crate) fn check(state: &State) {
    assert_eq!(state.index, Index::of(state), "the lookups are those of the objects");
    check_addresses(state);
    check_vips(state);
    check_networks(state);
    check_ports(state);
    check_tasks(state);
}

fn attachments(state: &State) -> impl Iterator<Item = &Attachment> {
    let tasks = state.tasks.values().flat_map(|t| &t.attachments);
    let vips = state.services.values().flat_map(|s| &s.vips);
    let routers = state.nodes.values().map(|n| &n.router);
    let stranded = state.stranded.values().flat_map(|s| &s.attachments);
    tasks.chain(vips).chain(routers).chain(stranded)
}

/// Invariant 5: nothing is owned twice; and nothing leaks.
fn check_addresses(state: &State) {
    let mut endpoints = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    let mut used: BTreeMap<_, u64> = BTreeMap::new();
    for at in attachments(state) {
        assert!(endpoints.insert(at.endpoint), "endpoint {:?} twice", at.endpoint);
        assert!(at.endpoint.0 <= state.counters.endpoint, "{:?} was given out", at.endpoint);
        let network = state.networks.get(&at.network).expect("an attachment is in a network");
        for addr in at.addr.iter() {
            assert!(addresses.insert(addr), "address {addr} twice");
            assert!(network.subnets.contains(addr), "{addr} lies in its network");
        }
        let (v4, host) = (network.subnets.v4, at.addr.v4);
        assert!(
            host != v4.network() && host != v4.broadcast() && host.to_bits() != v4.network().to_bits() + 1
        );
        *used.entry(at.network.clone()).or_default() += 1;
    }
    for network in state.networks.keys() {
        let (total, taken) = state.ipam.capacity(network).expect("every network has a pool");
        assert_eq!(taken, used.get(network).copied().unwrap_or(0), "no address leaks");
        assert!(taken <= total);
    }
}

/// A service has a virtual IP in each of its networks, or in none.
fn check_vips(state: &State) {
    for service in state.services.values() {
        let wanted: BTreeSet<_> = match service.spec.endpoint {
            EndpointMode::Vip => service.spec.networks.iter().map(|n| &n.network).collect(),
            EndpointMode::Dnsrr => BTreeSet::new(),
        };
        assert_eq!(service.vips.iter().map(|v| &v.network).collect::<BTreeSet<_>>(), wanted);
        assert_eq!(service.vips.len(), wanted.len());
    }
}

fn check_networks(state: &State) {
    let networks: Vec<_> = state.networks.values().collect();
    for (n, a) in networks.iter().enumerate() {
        for b in &networks[n + 1..] {
            assert_ne!(a.vni, b.vni);
            assert_ne!(a.spec.name, b.spec.name);
            assert!(!a.subnets.overlaps(&b.subnets), "{:?} and {:?}", a.subnets, b.subnets);
        }
        for node in state.nodes.values() {
            assert!(!a.subnets.contains(node.data_addr), "a host's address in an overlay");
        }
    }
}

fn check_ports(state: &State) {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut taken: BTreeMap<_, Vec<(&ServiceId, &PublishedPort)>> = BTreeMap::new();
    for service in state.services.values() {
        assert!(names.insert(&service.spec.name));
        assert!(numbers.insert(service.index));
        assert_eq!(service.ports.len(), service.spec.ports.len());
        for (port, asked) in service.ports.iter().zip(&service.spec.ports) {
            assert_eq!(
                (port.protocol, port.target, port.binding, port.proxy, port.dsr),
                (asked.protocol, asked.target, asked.binding, asked.proxy, asked.dsr)
            );
            assert!(asked.published.is_none_or(|published| published == port.published));
            assert_eq!(state.ports.owner(port, &service.id), Some(&service.id));
            let same_port = taken.entry((port.protocol, port.published)).or_default();
            for (other, held) in same_port.iter() {
                let apart = *other != &service.id && port.is_host() && held.is_host();
                assert!(apart || !port.place().overlaps(held.place()), "{port} and {held}");
            }
            same_port.push((&service.id, port));
        }
    }
    assert_eq!(state.ports.len(), taken.values().map(Vec::len).sum::<usize>(), "no port leaks");
    check_host_ports(state);
}

/// A port in host mode leads to one service on each node.
fn check_host_ports(state: &State) {
    let mut there = BTreeSet::new();
    for task in state.tasks.values().filter(|t| !t.status.state.is_terminal()) {
        there.extend(task.node.as_ref().map(|node| (node, &task.service)));
    }
    let host = |id: &ServiceId| state.services[id].ports.iter().filter(|port| port.is_host());
    for (node, service) in &there {
        for (_, other) in there.iter().filter(|(at, other)| at == node && other != service) {
            for (port, held) in host(service).flat_map(|p| host(other).map(move |h| (p, h))) {
                assert!(!port.place().overlaps(held.place()), "{port} and {held} on {node}");
            }
        }
    }
}

fn check_tasks(state: &State) {
    for task in state.tasks.values() {
        assert!(state.services.contains_key(&task.service), "a task has a service");
        match task.status.state {
            TaskState::Pending => assert!(task.node.is_none() && task.attachments.is_empty()),
            s if s.is_terminal() => assert!(task.attachments.is_empty(), "an ended task holds nothing"),
            _ => assert!(task.node.as_ref().is_some_and(|n| state.nodes.contains_key(n)), "it is somewhere"),
        }
    }
    assert!(
        state.tracks.keys().eq(state.tasks.keys()),
        "something is remembered of every task and of no other"
    );
}

/// Invariant 6: a task with flows is stopped only after every ready node has programmed that it takes no more.
pub(crate) fn barrier_holds(state: &State, view: &LeaderView, command: &Command) {
    let (Command::SetDesired { id, desired }, Some(floor)) = (command, Some(view.floor(state))) else {
        return;
    };
    let Some(task) = state.tasks.get(id) else { return };
    let reachable =
        task.node.as_ref().and_then(|n| state.nodes.get(n)).is_some_and(|n| n.state != NodeState::Down);
    let has_flows = task.status.state == TaskState::Running && !task.attachments.is_empty() && reachable;
    if *desired >= DesiredState::Shutdown && has_flows && task.desired < DesiredState::Shutdown {
        assert_eq!(task.desired, DesiredState::Draining, "straight to the stop: {task:?}");
        assert!(floor >= task.desired_index, "a ready node may still send flows to {task:?}");
    }
}

/// No node may forward directly before the virtual IPs stand on every task that can be sent flows, and they stay as
/// long as one does.
pub(crate) fn direct_routing_is_everywhere(state: &State, view: &LeaderView, command: &Command) {
    let Command::SetDirectRouting { direct } = command else { return };
    let balancing = state.cluster.as_ref().expect("founded").balancing;
    let uses_ipvs = state.nodes.values().any(|n| n.description.lb.uses_ipvs());
    match direct {
        DirectRouting::Ready => {
            assert!(view.floor(state) >= balancing.direct_since, "a ready node has not programmed it");
            assert!(
                state.nodes.values().all(|n| n.state != NodeState::Suspect),
                "one may come back without it"
            );
        }
        DirectRouting::Off => assert!(!uses_ipvs, "somebody still forwards directly"),
        DirectRouting::Preparing => {}
    }
}

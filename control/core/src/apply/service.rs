//! Services: creation with VIPs and ports, changes, removal in two steps.

use std::collections::BTreeSet;

use shoal_types::id::{Name, NetworkId, ServiceId};
use shoal_types::net::ServiceIndex;
use shoal_types::object::{Attachment, Service};
use shoal_types::port::PublishedPort;
use shoal_types::spec::{ServiceMode, ServiceSpec};

use super::{At, balancing, service_spec};
use crate::command::Outcome;
use crate::ports::{Asker, OwnPorts};
use crate::rejection::{Kind, Rejection};
use crate::state::State;
use crate::{addresses, host_ports};

/// The ports the cluster itself lives by.
fn own_ports(state: &State) -> OwnPorts {
    let control = state.nodes.values().filter_map(|node| node.control_addr);
    OwnPorts::new(control.map(|addr| addr.port()), state.cluster.as_ref().map(|cluster| cluster.data_port))
}

/// Refuses new ports in host mode where another service has them on a node with tasks of both. From then on the
/// scheduler keeps the two apart.
fn check_host_ports(state: &State, old: &Service, ports: &[PublishedPort]) -> Result<(), Rejection> {
    let Some((place, holder, node)) = host_ports::in_the_way_of_tasks(state, &old.id, ports) else {
        return Ok(());
    };
    let node = state.nodes.get(node).ok_or_else(|| Rejection::not_found(Kind::Node, node))?;
    Err(Rejection::HostPortInUse {
        place,
        asked_by: old.spec.name.clone(),
        holder: holder.spec.name.clone(),
        node: node.name.clone(),
    })
}

fn find<'a>(state: &'a State, id: &ServiceId) -> Result<&'a Service, Rejection> {
    state.services.get(id).ok_or_else(|| Rejection::not_found(Kind::Service, id))
}

fn find_staying<'a>(state: &'a State, id: &ServiceId) -> Result<&'a Service, Rejection> {
    let service = find(state, id)?;
    if service.removing {
        return Err(Rejection::Removing { service: service.spec.name.clone() });
    }
    Ok(service)
}

fn outcome(service: &Service) -> Outcome {
    Outcome::Service { id: service.id.clone(), name: service.spec.name.clone(), version: service.version }
}

fn put(state: &mut State, at: At, service: Service) -> Outcome {
    let outcome = outcome(&service);
    state.service_changes.insert(service.id.clone(), at.index);
    state.index.service_names.insert(service.spec.name.clone(), service.id.clone());
    state.services.insert(service.id.clone(), service);
    outcome
}

pub(super) fn create(
    state: &mut State,
    at: At,
    id: &ServiceId,
    spec: &ServiceSpec,
) -> Result<Outcome, Rejection> {
    if state.services.contains_key(id) {
        return Err(Rejection::IdTaken { kind: Kind::Service, id: id.to_string() });
    }
    if let Some(holder) = state.service_named(&spec.name) {
        return Err(Rejection::NameTaken {
            kind: Kind::Service,
            name: spec.name.clone(),
            holder: holder.id.to_string(),
            since: holder.created_at,
            removing: holder.removing,
        });
    }
    service_spec::check(state, spec)?;
    balancing::check_policy(state, spec)?;
    balancing::check_tables(spec)?;
    let asker = Asker { id, name: &spec.name, has: &[], own: &own_ports(state) };
    let ports = state.ports.resolve(asker, &spec.ports, &state.services)?;
    let vip_networks = addresses::missing_vips(spec, None);
    addresses::require_for_spec(state, id, spec, &vip_networks)?;
    let Some(number) = state.counters.service.checked_add(1) else {
        return Err(Rejection::NumbersExhausted { what: "service number".to_owned() });
    };
    let vips = allocate_vips(state, &spec.name, &vip_networks)?;

    state.counters.service = number;
    state.ports.assign(id, &ports, at.now);
    let service = Service {
        id: id.clone(),
        index: ServiceIndex(number),
        spec: spec.clone(),
        task_version: 1,
        version: 1,
        vips,
        ports,
        created_at: at.now,
        updated_at: at.now,
        removing: false,
    };
    Ok(put(state, at, service))
}

fn allocate_vips(
    state: &mut State,
    name: &Name,
    networks: &[NetworkId],
) -> Result<Vec<Attachment>, Rejection> {
    addresses::allocate(state, networks, &format!("the virtual IP of service '{name}'"))
}

pub(super) fn update(
    state: &mut State,
    at: At,
    id: &ServiceId,
    spec: &ServiceSpec,
    expect_version: Option<u64>,
) -> Result<Outcome, Rejection> {
    let old = find_staying(state, id)?.clone();
    if let Some(expected) = expect_version
        && expected != old.version
    {
        return Err(Rejection::VersionConflict {
            service: old.spec.name,
            expected,
            actual: old.version,
            changed_at: old.updated_at,
        });
    }
    if old.spec == *spec {
        return Ok(outcome(&old));
    }
    service_spec::check_kept(&old, spec)?;
    service_spec::check(state, spec)?;
    // One that it already has must not stand in the way of other changes, whatever became of the nodes meanwhile.
    if spec.lb != old.spec.lb {
        balancing::check_policy(state, spec)?;
    }
    balancing::check_tables(spec)?;
    let asker = Asker { id, name: &spec.name, has: &old.ports, own: &own_ports(state) };
    let ports = state.ports.resolve(asker, &spec.ports, &state.services)?;
    check_host_ports(state, &old, &ports)?;
    let new_vips = addresses::missing_vips(spec, Some(&old));
    if !new_vips.is_empty() || asks_for_more(state, &old.spec, spec) {
        addresses::require_for_spec(state, id, spec, &new_vips)?;
    }
    let added = allocate_vips(state, &spec.name, &new_vips)?;

    let (kept, dropped): (Vec<_>, Vec<_>) =
        old.vips.iter().cloned().partition(|v| addresses::vip_networks(spec).any(|n| *n == v.network));
    addresses::release(state, &dropped);
    state.ports.assign(id, &ports, at.now);
    let outdates = outdates_tasks(&old, spec, &ports);
    let service = Service {
        spec: spec.clone(),
        task_version: old.task_version + u64::from(outdates),
        version: old.version + 1,
        vips: kept.into_iter().chain(added).collect(),
        ports,
        updated_at: at.now,
        ..old
    };
    Ok(put(state, at, service))
}

/// Whether running tasks have to be replaced to follow the new spec. A task without an ingress endpoint can't be
/// published; one with it that isn't needed any more does no harm. A port in host mode is for one task on a node: the
/// scheduler has to look again, unless it is only told of its clients in another way.
fn outdates_tasks(service: &Service, new: &ServiceSpec, ports: &[PublishedPort]) -> bool {
    let old = &service.spec;
    let ids = |spec: &ServiceSpec| spec.networks.iter().map(|n| n.network.clone()).collect::<BTreeSet<_>>();
    old.task != new.task
        || old.dns != new.dns
        || ids(old) != ids(new)
        || (old.ports.is_empty() && !new.ports.is_empty())
        || ports
            .iter()
            .any(|port| port.is_host() && !service.ports.iter().any(|old| same_but_proxy(old, port)))
}

fn same_but_proxy(one: &PublishedPort, other: &PublishedPort) -> bool {
    *one == PublishedPort { proxy: one.proxy, ..*other }
}

/// Whether the new spec needs addresses that the old one did not.
fn asks_for_more(state: &State, old: &ServiceSpec, new: &ServiceSpec) -> bool {
    let before = addresses::networks_of(state, old);
    addresses::wanted_tasks(state, new.mode) > addresses::wanted_tasks(state, old.mode)
        || addresses::networks_of(state, new).iter().any(|n| !before.contains(n))
}

pub(super) fn scale(state: &mut State, at: At, id: &ServiceId, replicas: u32) -> Result<Outcome, Rejection> {
    let old = find_staying(state, id)?.clone();
    let ServiceMode::Replicated { replicas: before } = old.spec.mode else {
        let help = format!("add or drain nodes to change the number of tasks of '{}'", old.spec.name);
        return Err(Rejection::invalid("replicas", replicas, "can't be set on a global service", help));
    };
    if before == replicas {
        return Ok(outcome(&old));
    }
    service_spec::check_replicas(replicas)?;
    let spec = ServiceSpec { mode: ServiceMode::Replicated { replicas }, ..old.spec.clone() };
    if replicas > before {
        addresses::require_for_spec(state, id, &spec, &[])?;
    }
    Ok(put(state, at, Service { spec, version: old.version + 1, updated_at: at.now, ..old }))
}

pub(super) fn remove(state: &mut State, at: At, id: &ServiceId) -> Result<Outcome, Rejection> {
    let old = find(state, id)?.clone();
    if old.removing {
        return Ok(outcome(&old));
    }
    Ok(put(state, at, Service { removing: true, version: old.version + 1, updated_at: at.now, ..old }))
}

pub(super) fn finish_removal(state: &mut State, id: &ServiceId) -> Result<Outcome, Rejection> {
    let service = find(state, id)?;
    if !service.removing || state.tasks_of_service(id).next().is_some() {
        return Err(Rejection::Outdated {
            what: "finish-service-removal".to_owned(),
            why: "the service still has tasks, or is not being removed".to_owned(),
        });
    }
    let service = service.clone();
    addresses::release(state, &service.vips);
    state.ports.assign(id, &[], service.updated_at);
    state.restarts.retain(|(owner, _), _| owner != id);
    state.index.service_names.remove(&service.spec.name);
    state.services.remove(id);
    state.service_changes.remove(id);
    Ok(outcome(&service))
}

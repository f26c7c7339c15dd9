//! Giving addresses to endpoints, and telling beforehand whether there are enough.

use shoal_types::id::{NetworkId, ServiceId};
use shoal_types::net::EndpointId;
use shoal_types::object::{Attachment, NodeState, Service};
use shoal_types::spec::{EndpointMode, ServiceMode, ServiceSpec};

use crate::rejection::Rejection;
use crate::state::State;

/// An address in each of the networks, or in none when one has none left.
pub(crate) fn allocate(
    state: &mut State,
    networks: &[NetworkId],
    asked_by: &str,
) -> Result<Vec<Attachment>, Rejection> {
    for network in networks {
        let wanted = networks.iter().filter(|n| *n == network).count();
        require(state, network, u64::try_from(wanted).unwrap_or(u64::MAX), asked_by)?;
    }
    let needed = u32::try_from(networks.len()).unwrap_or(u32::MAX);
    if state.counters.endpoint.checked_add(needed).is_none() {
        return Err(Rejection::NumbersExhausted { what: "endpoint number".to_owned() });
    }
    let mut given = Vec::with_capacity(networks.len());
    for network in networks {
        let endpoint = EndpointId(state.counters.endpoint + 1);
        if let Some(addr) = state.ipam.take(network, endpoint) {
            state.counters.endpoint = endpoint.0;
            given.push(Attachment { endpoint, network: network.clone(), addr });
        }
    }
    Ok(given)
}

/// Gives addresses back.
pub(crate) fn release(state: &mut State, attachments: &[Attachment]) {
    for at in attachments {
        state.ipam.give_back(at);
    }
}

/// Refuses when a network has fewer free addresses than wanted.
pub(crate) fn require(
    state: &State,
    network: &NetworkId,
    wanted: u64,
    asked_by: &str,
) -> Result<(), Rejection> {
    require_within(state, network, state.ipam.free(network), wanted, asked_by)
}

fn require_within(
    state: &State,
    network: &NetworkId,
    free: u64,
    wanted: u64,
    asked_by: &str,
) -> Result<(), Rejection> {
    if wanted <= free {
        return Ok(());
    }
    let Some(found) = state.networks.get(network) else {
        return Err(Rejection::not_found(crate::rejection::Kind::Network, network));
    };
    Err(Rejection::SubnetExhausted {
        network: found.spec.name.clone(),
        subnet: found.subnets.v4.to_string(),
        total: state.ipam.capacity(network).map_or(0, |(total, _)| total),
        free,
        wanted,
        asked_by: asked_by.to_owned(),
    })
}

/// Networks that a task of the service is attached to: the service's own, and ingress when it publishes ports.
pub(crate) fn networks_of(state: &State, spec: &ServiceSpec) -> Vec<NetworkId> {
    let ingress = state.ingress.iter().filter(|_| !spec.ports.is_empty());
    spec.networks.iter().map(|n| &n.network).chain(ingress).cloned().collect()
}

/// Refuses a spec whose tasks would not all find an address, beside what the other services were promised.
pub(crate) fn require_for_spec(
    state: &State,
    id: &ServiceId,
    spec: &ServiceSpec,
    vips: &[NetworkId],
) -> Result<(), Rejection> {
    let asked_by = format!("service '{}' ({} tasks)", spec.name, wanted_tasks(state, spec.mode));
    for network in networks_of(state, spec) {
        let promised: u64 = state
            .services
            .values()
            .filter(|s| s.id != *id && !s.removing)
            .map(|s| still_needed(state, &s.id, &s.spec, &network))
            .sum();
        let vip = u64::from(vips.contains(&network));
        let wanted = still_needed(state, id, spec, &network) + vip;
        let free = state.ipam.free(&network).saturating_sub(promised);
        // A service that shrinks or stays is never refused for what it already has.
        if wanted > 0 {
            require_within(state, &network, free, wanted, &asked_by)?;
        }
    }
    Ok(())
}

/// Tasks the mode asks for.
pub(crate) fn wanted_tasks(state: &State, mode: ServiceMode) -> u64 {
    match mode {
        ServiceMode::Replicated { replicas } => u64::from(replicas),
        ServiceMode::Global => {
            let nodes = state.nodes.values().filter(|n| n.state != NodeState::Down).count();
            u64::try_from(nodes).unwrap_or(u64::MAX)
        }
    }
}

/// Addresses in the network that the service's missing tasks will take.
fn still_needed(state: &State, id: &ServiceId, spec: &ServiceSpec, network: &NetworkId) -> u64 {
    if !networks_of(state, spec).contains(network) {
        return 0;
    }
    let has =
        state.tasks_of_service(id).filter(|t| t.attachments.iter().any(|at| at.network == *network)).count();
    wanted_tasks(state, spec.mode).saturating_sub(u64::try_from(has).unwrap_or(u64::MAX))
}

/// Networks in which a service of that spec has a virtual IP.
pub(crate) fn vip_networks(spec: &ServiceSpec) -> impl Iterator<Item = &NetworkId> {
    let has_vips = spec.endpoint == EndpointMode::Vip;
    spec.networks.iter().filter(move |_| has_vips).map(|n| &n.network)
}

/// Networks in which the service needs a VIP it doesn't have.
pub(crate) fn missing_vips(spec: &ServiceSpec, has: Option<&Service>) -> Vec<NetworkId> {
    vip_networks(spec)
        .filter(|n| !has.is_some_and(|s| s.vips.iter().any(|v| v.network == **n)))
        .cloned()
        .collect()
}

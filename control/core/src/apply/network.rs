//! Networks.

use shoal_types::id::NetworkId;
use shoal_types::object::Network;
use shoal_types::spec::NetworkSpec;

use super::At;
use crate::command::Outcome;
use crate::rejection::{Kind, Rejection};
use crate::state::State;
use crate::subnets::{self, Occupied};
use crate::view;

pub(super) fn create(
    state: &mut State,
    at: At,
    id: &NetworkId,
    spec: &NetworkSpec,
) -> Result<Outcome, Rejection> {
    if state.networks.contains_key(id) {
        return Err(Rejection::IdTaken { kind: Kind::Network, id: id.to_string() });
    }
    if let Some(holder) = state.networks.values().find(|n| n.spec.name == spec.name) {
        return Err(Rejection::NameTaken {
            kind: Kind::Network,
            name: spec.name.clone(),
            holder: holder.id.to_string(),
            since: holder.created_at,
            removing: false,
        });
    }
    let Some(pools) = &state.pools else { return Err(Rejection::NotInitialized) };
    let occupied = Occupied { networks: &state.networks, nodes: &state.nodes, newcomer: None };
    let subnets = subnets::resolve(spec, pools, occupied)?;
    let vni = state.ipam.free_vni().ok_or_else(|| Rejection::NumbersExhausted { what: "VNI".to_owned() })?;

    state.ipam.open(id, subnets, vni);
    let network =
        Network { id: id.clone(), spec: spec.clone(), vni, subnets, ingress: false, created_at: at.now };
    state.networks.insert(id.clone(), network);
    Ok(Outcome::Network { id: id.clone(), name: spec.name.clone() })
}

pub(super) fn remove(state: &mut State, id: &NetworkId) -> Result<Outcome, Rejection> {
    let network = state.networks.get(id).ok_or_else(|| Rejection::not_found(Kind::Network, id))?;
    let (name, vni) = (network.spec.name.clone(), network.vni);
    if network.ingress {
        return Err(Rejection::IngressStays { network: name });
    }
    let by = users(state, id);
    if !by.is_empty() {
        return Err(Rejection::InUse { kind: Kind::Network, name, by });
    }
    state.networks.remove(id);
    state.ipam.close(id, vni);
    Ok(Outcome::Network { id: id.clone(), name })
}

/// Who has, or will have, an address in the network.
fn users(state: &State, id: &NetworkId) -> Vec<String> {
    let services = view::services_on(state, id)
        .map(|s| format!("service '{}'{}", s.spec.name, if s.removing { " (being removed)" } else { "" }));
    let tasks = state
        .tasks_in_network(id)
        .filter(|t| {
            state.services.get(&t.service).is_none_or(|s| s.spec.networks.iter().all(|n| n.network != *id))
        })
        .map(|t| format!("task '{}' (made before its service left the network)", view::task_name(state, t)));
    let stranded = state
        .stranded
        .iter()
        .filter(|(_, s)| s.attachments.iter().any(|at| at.network == *id))
        .filter_map(|(node, _)| state.nodes.get(node))
        .map(|n| {
            format!(
                "node '{}' (its forgotten tasks keep their addresses until it is back, or removed)",
                n.name
            )
        });
    services.chain(tasks).chain(stranded).collect()
}

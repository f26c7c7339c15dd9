//! Founding the cluster.

use std::collections::BTreeMap;

use shoal_types::Weight;
use shoal_types::id::Name;
use shoal_types::object::{Availability, Balancing, Cluster, Network, Node, NodeRole, NodeState};
use shoal_types::spec::NetworkSpec;

use super::At;
use crate::addresses;
use crate::command::{InitCluster, Outcome};
use crate::rejection::Rejection;
use crate::state::State;
use crate::subnets::{self, Occupied};

/// The network that published ports travel on.
const INGRESS: &str = "ingress";

pub(super) fn init(state: &mut State, at: At, init: &InitCluster) -> Result<Outcome, Rejection> {
    if let Some(cluster) = &state.cluster {
        return Err(Rejection::AlreadyInitialized { cluster: cluster.name.clone() });
    }
    if init.data_port == 0 {
        return Err(Rejection::invalid("data_port", 0, "is not a port", "write 7378"));
    }
    subnets::check_pools(&init.pools)?;
    // Before it is founded a state holds next to nothing: found a copy, and keep it when everything went well.
    let mut founded = state.clone();
    found(&mut founded, at, init)?;
    *state = founded;
    Ok(Outcome::Cluster { id: init.id.clone(), node: init.manager.id.clone() })
}

fn found(state: &mut State, at: At, init: &InitCluster) -> Result<(), Rejection> {
    state.cluster = Some(Cluster {
        id: init.id.clone(),
        name: init.name.clone(),
        created_at: at.now,
        data_port: init.data_port,
        cert_lifetime_ms: init.cert_lifetime_ms,
        ca_cert_der: init.ca_cert_der.clone(),
        ca_key_sealed: init.ca_key_sealed.clone(),
        balancing: Balancing::default(),
    });
    state.pools = Some(init.pools.clone());
    make_ingress(state, at, init)?;

    let manager = &init.manager;
    subnets::check_host(manager.data_addr, &manager.name_hint, state.networks.values())?;
    let name = super::node::unique_name(state, &manager.name_hint)?;
    let router = super::node::allocate_router(state, &name)?;
    let node = Node {
        id: manager.id.clone(),
        name,
        role: NodeRole::Manager,
        availability: Availability::Active,
        weight: Weight::default(),
        state: NodeState::Unknown,
        state_since: at.now,
        joined_at: at.now,
        control_addr: Some(manager.control_addr),
        data_addr: manager.data_addr,
        router,
        description: manager.description.clone(),
        labels: BTreeMap::new(),
    };
    state.nodes.insert(node.id.clone(), node);
    Ok(())
}

fn make_ingress(state: &mut State, at: At, init: &InitCluster) -> Result<(), Rejection> {
    let name: Name = INGRESS
        .parse()
        .map_err(|_| Rejection::invalid("network", INGRESS, "is not a name", "report this as a bug"))?;
    let occupied =
        Occupied { networks: &state.networks, nodes: &state.nodes, newcomer: Some(init.manager.data_addr) };
    let subnets = subnets::ingress(&init.pools, &name, occupied)?;
    let vni = state.ipam.free_vni().ok_or_else(|| Rejection::NumbersExhausted { what: "VNI".to_owned() })?;
    let spec = NetworkSpec { name, subnet4: None, subnet6: None, internal: false, labels: BTreeMap::new() };
    state.ipam.open(&init.ingress, subnets, vni);
    state.ingress = Some(init.ingress.clone());
    let network = Network { id: init.ingress.clone(), spec, vni, subnets, ingress: true, created_at: at.now };
    state.networks.insert(network.id.clone(), network);
    addresses::require(state, &init.ingress, 1, "the first manager's router")
}

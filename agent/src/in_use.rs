//! What the data plane holds and carries, as of the last sweep.

mod bytes;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use shoal_plan::object::ServiceKey;
use shoal_types::EndpointId;
use shoal_types::assignment::Assignment;

pub use bytes::{Bytes, Grown};

/// How full a map of the programs is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFill {
    /// Its name, as `bpftool map` shows it.
    pub map: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Entries it has room for.
    pub limit: u64,
}

impl MapFill {
    /// 0 is empty, 1 is full.
    #[expect(clippy::cast_precision_loss, reason = "maps have a few million entries at most")]
    pub fn pressure(&self) -> f64 {
        self.entries as f64 / self.limit.max(1) as f64
    }
}

/// Flows of a table of endpoints that entered by this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flows {
    /// Those ever made.
    pub new: u64,
    /// Those that are under way.
    pub live: u64,
    /// What they carried.
    pub bytes: Bytes,
}

/// Flows to an endpoint that entered by this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointUse {
    /// Those that are under way, if the node's own table of endpoints led them.
    pub live: u64,
    /// What they carried.
    pub bytes: Bytes,
}

impl Flows {
    pub(crate) fn add(&mut self, other: Self) {
        self.new += other.new;
        self.live += other.live;
        self.bytes.add(other.bytes);
    }
}

impl EndpointUse {
    pub(crate) fn add(&mut self, other: Self) {
        self.live += other.live;
        self.bytes.add(other.bytes);
    }
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct InUse {
    /// Maps that can fill.
    pub maps: Vec<MapFill>,
    /// Flows by table; none if they can't be read.
    pub flows: Option<BTreeMap<ServiceKey, Flows>>,
    /// Flows by endpoint.
    pub endpoints: BTreeMap<EndpointId, EndpointUse>,
}

/// So many endpoints are told one by one, which bounds what a scrape costs: those with the most flows.
const TOLD: usize = 1000;
/// What stands for the slots of the others.
pub const OTHERS: &str = "other";

/// A service in a network: what `shoal_lb_*` tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceUse {
    /// Its endpoints that take new flows.
    pub serving: u64,
    /// Those that don't (any more, or yet).
    pub withdrawn: u64,
    /// Its flows that entered by this node.
    pub flows: Flows,
    /// The same by the slot of their endpoint.
    pub slots: BTreeMap<String, EndpointUse>,
}

/// What each service carries, by its name and the network's. What the node is no longer told of is left out.
pub fn by_name(
    assignment: &Assignment,
    flows: &BTreeMap<ServiceKey, Flows>,
    endpoints: &BTreeMap<EndpointId, EndpointUse>,
) -> BTreeMap<(String, String), ServiceUse> {
    let services: BTreeMap<_, _> =
        assignment.services().map(|service| (service.index.0, service.name.to_string())).collect();
    let networks: BTreeMap<_, _> =
        assignment.networks().map(|network| (network.vni, network.name.to_string())).collect();
    let by_id: BTreeMap<_, _> = assignment.networks().map(|network| (&network.id, &network.name)).collect();
    let mut found: BTreeMap<(String, String), ServiceUse> = BTreeMap::new();
    let used = |id: EndpointId| endpoints.get(&id).copied().unwrap_or_default();
    let told = told(assignment.endpoints().map(|endpoint| (used(endpoint.id).live, endpoint.id)));
    for endpoint in assignment.endpoints() {
        let (Some(service), Some(network)) =
            (assignment.service(&endpoint.service), by_id.get(&endpoint.network))
        else {
            continue;
        };
        let of = found.entry((service.name.to_string(), network.to_string())).or_default();
        if endpoint.serving {
            of.serving += 1;
        } else {
            of.withdrawn += 1;
        }
        let used = used(endpoint.id);
        if told.contains(&endpoint.id) {
            of.slots.entry(endpoint.slot.to_string()).or_default().add(used);
        } else if used.live > 0 {
            of.slots.entry(OTHERS.to_owned()).or_default().live += used.live;
        }
    }
    for (key, flows) in flows {
        let (Some(service), Some(network)) = (services.get(&key.index), networks.get(&key.network)) else {
            continue;
        };
        // Ports in host mode have a table of their own.
        let of = found.entry((service.clone(), network.clone())).or_default();
        of.flows.add(*flows);
    }
    found
}

/// The endpoints that are told one by one, of all with their flows.
fn told(all: impl Iterator<Item = (u64, EndpointId)>) -> BTreeSet<EndpointId> {
    let mut all: Vec<_> = all.map(|(live, id)| (Reverse(live), id)).collect();
    if all.len() > TOLD {
        all.select_nth_unstable(TOLD);
        all.truncate(TOLD);
    }
    all.into_iter().map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use shoal_types::assignment::{AssignedNetwork, AssignedService, Endpoint, Object};
    use shoal_types::object::Slot;
    use shoal_types::{
        DualAddr, DualNet, Generation, LbPolicy, NetworkId, NodeId, ServiceId, ServiceIndex, TaskId, Vni,
    };

    use super::*;

    #[test]
    fn tables_of_one_service_and_network_add_up_and_what_is_unknown_is_left_out() {
        let (network, service) = (NetworkId::from_entropy(1), ServiceId::from_entropy(2));
        let vni = Vni::new(5).expect("in range");
        let endpoint = |id: u32, serving| {
            let addr = DualAddr { v4: [10, 0, 0, 1].into(), v6: [0xfd00, 0, 0, 0, 0, 0, 0, 1].into() };
            let (network, service) = (network.clone(), service.clone());
            let (node, task) = (NodeId::from_entropy(3), TaskId::from_entropy(id.into()));
            Object::Endpoint(Endpoint {
                id: EndpointId(id),
                network,
                addr,
                node,
                task,
                service,
                slot: Slot::Number(id),
                serving,
                weight: shoal_types::Weight::default(),
            })
        };
        let subnets = DualNet {
            v4: "10.0.0.0/16".parse().expect("literal"),
            v6: "fd00::/64".parse().expect("literal"),
        };
        let assignment = Assignment::new(
            Generation(1),
            [
                Object::Network(AssignedNetwork {
                    id: network.clone(),
                    name: "ingress".parse().expect("a name"),
                    vni,
                    subnets,
                    internal: false,
                    ingress: true,
                }),
                Object::Service(AssignedService {
                    id: service.clone(),
                    index: ServiceIndex(7),
                    name: "web".parse().expect("a name"),
                    vips: vec![],
                    ports: vec![],
                    lb: LbPolicy::Auto,
                    dnsrr: vec![],
                }),
                endpoint(1, true),
                endpoint(2, true),
                endpoint(3, false),
            ],
        );
        let key = |index, own| ServiceKey { network: vni, index, own };
        let bytes = |requests, answers| Bytes { requests, answers, one_way: false };
        let flows = |new, live| Flows { new, live, bytes: bytes(new * 100, live * 10) };
        let used = |live| EndpointUse { live, bytes: bytes(live * 100, 1) };
        let counted =
            [(key(7, false), flows(5, 2)), (key(7, true), flows(1, 1)), (key(8, false), flows(9, 9))];
        let slots = [("1", used(2)), ("2", EndpointUse::default()), ("3", used(1))]
            .map(|(slot, used)| (slot.to_owned(), used))
            .into();
        let wanted = ServiceUse { serving: 2, withdrawn: 1, flows: flows(6, 3), slots };
        let endpoints = [(EndpointId(1), used(2)), (EndpointId(3), used(1)), (EndpointId(9), used(5))].into();
        let found = by_name(&assignment, &counted.into(), &endpoints);
        assert_eq!(found, [(("web".to_owned(), "ingress".to_owned()), wanted)].into());
    }

    #[test]
    fn of_very_many_endpoints_those_with_the_most_flows_are_told() {
        let all = |count: u32| (0..count).map(|id| (u64::from(id % 7 == 0), EndpointId(id)));
        assert_eq!(told(all(1000)).len(), 1000);
        let told = told(all(5000));
        assert_eq!(told.len(), 1000);
        assert!(all(5000).filter(|(live, _)| *live > 0).all(|(_, id)| told.contains(&id)));
    }
}

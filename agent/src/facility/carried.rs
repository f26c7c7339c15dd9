//! What the kernel's virtual services carried, by the services and endpoints of the plan.

use std::collections::BTreeMap;
use std::net::IpAddr;

use shoal_plan::object::{FirewallMark, Object, Place, ServiceKey, VirtualForward};
use shoal_plan::{IfName, Key, Objects};
use shoal_types::EndpointId;

use crate::drivers::ipvs::{Counts, Stats};
use crate::in_use::{Bytes, EndpointUse, Flows};

/// Which service each mark of a balancer means. It is known for as long as the mark has a virtual service, though by then
/// nothing may lead there but connections that were there before.
#[derive(Default)]
pub(super) struct Marks(BTreeMap<(Place, FirewallMark), ServiceKey>);

impl Marks {
    /// Takes over what is wanted now.
    pub(super) fn learn(&mut self, desired: &Objects) {
        let of_leg: BTreeMap<&IfName, &Place> = desired
            .values()
            .filter_map(|object| match object {
                Object::Balancer(balancer) => Some((&balancer.leg.host, &balancer.place)),
                _ => None,
            })
            .collect();
        for object in desired.values() {
            match object {
                Object::Port(port) => {
                    let known = port.mark.map(|mark| ((Place::Ingress, mark), port.service));
                    self.0.extend(known);
                }
                Object::Vip(vip) => {
                    let place = vip.balancer.as_ref().and_then(|leg| of_leg.get(leg));
                    let known =
                        vip.mark.zip(place).map(|(mark, place)| ((Place::clone(place), mark), vip.service));
                    self.0.extend(known);
                }
                _ => {}
            }
        }
    }

    /// Forgets marks without a virtual service.
    pub(super) fn retain(&mut self, is_there: impl Fn(&Place, FirewallMark) -> bool) {
        self.0.retain(|(place, mark), _| is_there(place, *mark));
    }
}

/// Bytes that were carried.
#[derive(Default)]
pub(super) struct Carried {
    services: BTreeMap<ServiceKey, Bytes>,
    endpoints: BTreeMap<EndpointId, Bytes>,
}

impl Carried {
    /// Adds what a virtual service has counted, in one family. With direct routing it sees requests only.
    pub(super) fn add(
        &mut self,
        (place, mark): (&Place, FirewallMark),
        counts: &Counts,
        desired: &Objects,
        marks: &Marks,
    ) {
        let Some(Object::Virtual(wanted)) = desired.get(&Key::Virtual(place.clone(), mark)) else { return };
        let one_way = wanted.forward == VirtualForward::Direct;
        let bytes = |stats: &Stats| Bytes {
            requests: stats.in_bytes,
            answers: if one_way { 0 } else { stats.out_bytes },
            one_way,
        };
        if let Some(service) = marks.0.get(&(place.clone(), mark)) {
            self.services.entry(*service).or_default().add(bytes(&counts.service));
        }
        let by_ip: BTreeMap<IpAddr, Bytes> =
            counts.destinations.iter().map(|(address, stats)| (address.ip(), bytes(stats))).collect();
        for (id, destination) in &wanted.destinations {
            for ip in [IpAddr::from(destination.addr.v4), destination.addr.v6.into()] {
                if let Some(bytes) = by_ip.get(&ip) {
                    self.endpoints.entry(*id).or_default().add(*bytes);
                }
            }
        }
    }

    /// Adds it to what the programs led.
    pub(super) fn add_to(
        &self,
        flows: &mut BTreeMap<ServiceKey, Flows>,
        endpoints: &mut BTreeMap<EndpointId, EndpointUse>,
    ) {
        for (service, bytes) in &self.services {
            flows.entry(*service).or_default().bytes.add(*bytes);
        }
        for (id, bytes) in &self.endpoints {
            endpoints.entry(*id).or_default().bytes.add(*bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_plan::object::{Port, Virtual, VirtualDestination, VirtualScheduler};
    use shoal_types::{DualAddr, PortPlace, Protocol, Vni};

    use super::*;

    const WEB: EndpointId = EndpointId(7);

    fn service() -> ServiceKey {
        ServiceKey { network: Vni::new(5).expect("24 bits"), index: 3, own: false }
    }

    fn mark() -> FirewallMark {
        FirewallMark::of_port(Protocol::Tcp, 8080)
    }

    fn desired(forward: VirtualForward) -> Objects {
        let addr = DualAddr { v4: [10, 0, 0, 9].into(), v6: [0xfd00, 0, 0, 0, 0, 0, 0, 9].into() };
        let port = Port {
            place: PortPlace { protocol: Protocol::Tcp, port: 8080, addr: None },
            service: service(),
            target: 80,
            mark: Some(mark()),
            proxy: false,
            dsr: false,
        };
        let web = Virtual {
            place: Place::Ingress,
            mark: mark(),
            scheduler: VirtualScheduler::Maglev,
            forward,
            destinations: [(WEB, VirtualDestination { addr, weight: 1 })].into(),
        };
        [Object::Port(port), Object::from(web)].map(|object| (object.key(), object)).into()
    }

    fn counts(address: &str) -> Counts {
        let stats = |in_bytes, out_bytes| Stats { in_bytes, out_bytes, ..Stats::default() };
        let address = address.parse().expect("literal");
        Counts { service: stats(100, 1000), destinations: [(address, stats(60, 600))].into() }
    }

    fn carried(desired: &Objects, marks: &Marks) -> (Option<Bytes>, Option<Bytes>) {
        let mut carried = Carried::default();
        for address in ["10.0.0.9:80", "[fd00::9]:80"] {
            carried.add((&Place::Ingress, mark()), &counts(address), desired, marks);
        }
        let (mut flows, mut endpoints) = (BTreeMap::new(), BTreeMap::new());
        carried.add_to(&mut flows, &mut endpoints);
        (flows.get(&service()).map(|flows| flows.bytes), endpoints.get(&WEB).map(|used| used.bytes))
    }

    #[test]
    fn both_families_of_a_virtual_service_add_up() {
        let desired = desired(VirtualForward::Translated(80));
        let mut marks = Marks::default();
        marks.learn(&desired);
        let bytes = |requests, answers| Some(Bytes { requests, answers, one_way: false });
        assert_eq!(carried(&desired, &marks), (bytes(200, 2000), bytes(120, 1200)));
        marks.retain(|_, _| false);
        assert_eq!(carried(&desired, &marks), (None, bytes(120, 1200)), "nobody knows whose it is");
    }

    #[test]
    fn with_direct_routing_answers_are_unknown() {
        let desired = desired(VirtualForward::Direct);
        let mut marks = Marks::default();
        marks.learn(&desired);
        let bytes = |requests| Some(Bytes { requests, answers: 0, one_way: true });
        assert_eq!(carried(&desired, &marks), (bytes(200), bytes(120)));
    }
}

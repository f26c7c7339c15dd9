//! What becomes of a connection of a task to a virtual IP: which endpoint, and when none.

#[path = "support/all.rs"]
mod support;

use std::collections::BTreeMap;

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::connect::{self, Ask};
use shoal_ebpf_common::keys::{ClientKey, VipKey};
use shoal_ebpf_common::maglev::Policy;
use shoal_ebpf_common::tables::Tables;
use shoal_ebpf_common::values::{ClientVal, ENDPOINT_DRAINING, EndpointVal, VipVal};

use support::host::Host;
use support::world::{
    LOCAL, NETWORK, OTHER_TASK, REMOTE, SERVICE, TASK, V4, V6, VIP, World, addr, local_endpoint, node,
    remote_endpoint,
};

/// The namespace of a client that is in [`NETWORK`], too, after a network without virtual IPs.
const NETNS: u64 = 0x1_0000_0007;

fn client() -> ClientVal {
    ClientVal {
        ip4: addr("10.255.1.3"),
        ip6: addr("fd0a::1:3"),
        mac: [2, 1, 0, 0, 0, 3],
        pad: 0,
        network: NETWORK,
    }
}

fn world() -> Host {
    let mut host = Host::default();
    node(&mut host);
    host.maps.clients.set(ClientKey::new(NETNS, 0), ClientVal { network: NETWORK + 1, ..client() });
    host.maps.clients.set(ClientKey::new(NETNS, 1), client());
    host
}

fn ask(host: &Host, netns: u64, dst: Addr, salt: u16) -> Option<u64> {
    connect::decide(&host.maps, &Ask { netns, dst, port: 80, salt }).map(|choice| choice.id)
}

/// How often each endpoint was chosen.
fn spread(host: &Host, dst: &str) -> BTreeMap<u64, u32> {
    let mut chosen = BTreeMap::new();
    for salt in 0..1000 {
        *chosen.entry(ask(host, NETNS, addr(dst), salt).expect("an endpoint")).or_default() += 1;
    }
    chosen
}

#[test]
fn connections_of_one_client_spread() {
    let host = world();
    for family in [V4, V6] {
        let chosen = spread(&host, family.vip);
        assert_eq!(chosen.keys().copied().collect::<Vec<_>>(), [LOCAL, REMOTE]);
        assert!(chosen.values().all(|count| (400..600).contains(count)), "{chosen:?}");
    }
    assert_eq!(host.maps.connections(SERVICE), 2000, "each is counted");
    assert_eq!(host.maps.flows.len(), 0, "and none is remembered");
}

#[test]
fn only_a_task_on_the_network_is_led() {
    let host = world();
    assert_eq!(ask(&host, NETNS + 1, addr(V4.vip), 1), None, "another namespace");
    assert_eq!(ask(&host, NETNS, addr(V4.other), 1), None, "no virtual IP");
    let mut elsewhere = world();
    elsewhere.maps.clients.remove(&ClientKey::new(NETNS, 1));
    assert_eq!(ask(&elsewhere, NETNS, addr(V4.vip), 1), None, "a network that has no such virtual IP");
    // The same address may be a virtual IP of another network.
    elsewhere.set_vip(
        VipKey { addr: addr(V4.vip), network: NETWORK + 1 },
        VipVal { service: SERVICE, mac: VIP, ..VipVal::default() },
    );
    assert!(ask(&elsewhere, NETNS, addr(V4.vip), 1).is_some());
}

#[test]
fn an_endpoint_that_is_withdrawn_gets_no_connection() {
    let mut host = world();
    host.set_endpoint(LOCAL, EndpointVal { flags: ENDPOINT_DRAINING, ..local_endpoint() });
    assert_eq!(spread(&host, V4.vip).into_keys().collect::<Vec<_>>(), [REMOTE]);
    host.remove_endpoint(REMOTE);
    assert_eq!(ask(&host, NETNS, addr(V4.vip), 1), None, "packets tell that there is none");
    host.set_endpoint(REMOTE, EndpointVal { ip6: Addr::ANY, ..remote_endpoint() });
    assert_eq!(ask(&host, NETNS, addr(V4.vip), 1), Some(REMOTE));
    assert_eq!(ask(&host, NETNS, addr(V6.vip), 1), None, "not of the family");
}

#[test]
fn the_services_policy_is_followed() {
    let mut host = world();
    host.set_policy(SERVICE, &[LOCAL, REMOTE], Policy::Source);
    assert_eq!(spread(&host, V4.vip).len(), 1, "one client, one endpoint");
    host.set_policy(SERVICE, &[LOCAL, REMOTE], Policy::Turn);
    let turns: Vec<_> = (0..4).map(|_| ask(&host, NETNS, addr(V6.vip), 9)).collect();
    assert_eq!((turns[0], turns[1]), (turns[2], turns[3]));
    assert_ne!(turns[0], turns[1]);
}

#[test]
fn a_virtual_service_keeps_what_it_balances() {
    let mut host = world();
    for (balancer, mark, led) in [(9, 7, false), (9, 0, true), (0, 7, true)] {
        let value = VipVal { service: SERVICE, mac: VIP, balancer, mark, ..VipVal::default() };
        host.set_vip(VipKey { addr: addr(V4.vip), network: NETWORK }, value);
        assert_eq!(ask(&host, NETNS, addr(V4.vip), 1).is_some(), led, "balancer {balancer}, mark {mark}");
    }
}

#[test]
fn a_task_prefers_another_to_itself() {
    let mut host = world();
    host.maps.clients.set(ClientKey::new(NETNS, 1), ClientVal { mac: TASK, ..client() });
    assert_eq!(spread(&host, V4.vip).into_keys().collect::<Vec<_>>(), [REMOTE]);
    host.set_service(SERVICE, &[LOCAL]);
    assert_eq!(ask(&host, NETNS, addr(V4.vip), 1), Some(LOCAL), "its own server, for want of another");
    host.maps.clients.set(ClientKey::new(NETNS, 1), ClientVal { mac: OTHER_TASK, ..client() });
    assert_eq!(ask(&host, NETNS, addr(V4.vip), 1), Some(LOCAL));
}

//! What the programs know of tunnels: the same as the devices, or nothing.

use std::net::IpAddr;

use shoal_types::object::DesiredState;

use super::{Run, assignment, facts};
use crate::desired::derive;
use crate::{Facts, Key, Object, Objects};

/// Two tasks elsewhere and one here, on two networks.
fn objects(change: impl FnOnce(&mut Facts)) -> Objects {
    let run =
        |node| Run { node, service: 1, networks: vec![1, 2], desired: DesiredState::Running, serving: true };
    let assignment = assignment(&[run(0), run(1), run(2)]);
    let mut facts = facts(&assignment);
    change(&mut facts);
    derive(&assignment, &facts).expect("says who the node is")
}

fn of_the_lane(objects: &Objects) -> usize {
    objects.values().filter(|object| matches!(object, Object::Peer(_) | Object::Tunnel(_))).count()
}

#[test]
fn the_programs_know_every_forwarding_entry_and_every_network() {
    let objects = objects(|_| {});
    let mut entries = 0;
    for object in objects.values() {
        match object {
            Object::Fdb(entry) => {
                let Some(Object::Peer(peer)) = objects.get(&Key::Peer(entry.link.clone(), entry.mac)) else {
                    panic!("no peer for {entry:?}");
                };
                let Some(Object::Vxlan(vxlan)) = objects.get(&Key::Vxlan(entry.link.clone())) else {
                    panic!("no device of {entry:?}");
                };
                assert_eq!(IpAddr::from(peer.vtep), entry.vtep);
                assert_eq!(IpAddr::from(peer.source), vxlan.local);
                assert_eq!((peer.vni, peer.mtu), (vxlan.vni, vxlan.mtu));
                entries += 1;
            }
            Object::Vxlan(vxlan) => {
                let Some(Object::Tunnel(tunnel)) = objects.get(&Key::Tunnel(vxlan.vni)) else {
                    panic!("no tunnel for {vxlan:?}");
                };
                assert_eq!(tunnel.vxlan, vxlan.name);
                entries += 1;
            }
            _ => {}
        }
    }
    assert!(entries > 6, "two tasks on three networks, and routers: {entries}");
    assert_eq!(of_the_lane(&objects), entries, "and nothing else");
}

#[test]
fn without_the_lane_or_over_ipv6_they_know_nothing() {
    assert_eq!(of_the_lane(&objects(|facts| facts.fast_lane = false)), 0);
    let over_ipv6 = objects(|facts| facts.data_addr = "2001:db8::1".parse().expect("literal"));
    assert_eq!(of_the_lane(&over_ipv6), 0);
}

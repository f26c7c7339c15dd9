//! Cases of flows that differ in nothing but the way they came: one port of a client, one task.

use shoal_ebpf_common::hash;
use shoal_ebpf_common::keys::{Mac, RouterKey};
use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::values::{BalancerIf, NodeConfig, REPLY_LOCAL};
use shoal_ebpf_common::verdict::Out;

use super::packet::{ACK, FIN, RST, SYN, Segment, TCP};
use super::world::{
    Family, IFINDEX, LOCAL, MATRIX, OTHER_ROUTER, REMOTE_DEVICE, ROUTER, SERVICE, TASK, V4, V6, World, addr,
    dropped, forwarded, ip, key, node,
};

const MESH: Program = Program::MeshIngress;
const OVERLAY: Program = Program::OverlayRx;
const THIRD_ROUTER: Mac = [2, 0, 0, 0, 0, 3];

/// What the client sends through another node, as it arrives at the task's.
fn by_router(family: &Family, proto: u8, router: Mac) -> Segment {
    Segment::new(proto, (family.client, 40_000), (family.task, 80)).macs(router, TASK)
}

/// The task's answer to a request as it saw it.
fn answer(request: &Segment) -> Segment {
    Segment {
        src: request.dst,
        dst: request.src,
        sport: request.dport,
        dport: request.sport,
        src_mac: TASK,
        dst_mac: ROUTER,
        ..request.clone()
    }
    .flags(ACK)
}

#[track_caller]
fn goes_to_router(w: &mut dyn World, seen: &Segment, router: Mac) {
    let answer = answer(seen);
    let got = forwarded(w, Program::TaskTx, &answer, Out::Device(REMOTE_DEVICE));
    assert_eq!(got, Segment { dst_mac: router, dport: 40_000, ..answer });
}

#[track_caller]
fn goes_to_client(w: &mut dyn World, seen: &Segment, node: &str) {
    let answer = answer(seen);
    let got = forwarded(w, Program::TaskTx, &answer, Out::Neighbor(IFINDEX));
    assert_eq!((got.src, got.sport, got.dport), (ip(node), 8080, 40_000));
}

pub(crate) fn two_other_nodes_and_this_do_not_alias(w: &mut dyn World) {
    node(w);
    w.set_router(RouterKey::new(THIRD_ROUTER));
    w.set_service(SERVICE, &[LOCAL]);
    for (family, proto) in MATRIX {
        let first = forwarded(w, OVERLAY, &by_router(&family, proto, OTHER_ROUTER), Out::Peer(IFINDEX));
        assert_eq!(first.sport, 40_000, "the first keeps its port");
        let sent = by_router(&family, proto, THIRD_ROUTER);
        let second = forwarded(w, OVERLAY, &sent, Out::Peer(IFINDEX));
        assert_eq!(Segment { sport: 40_000, ..second.clone() }, sent, "nothing but the port is translated");
        let sent = Segment::new(proto, (family.client, 40_000), (family.node, 8080));
        let third = forwarded(w, MESH, &sent, Out::Peer(IFINDEX));
        assert_eq!(third.src, ip(family.client), "the client's address is kept");
        let mut ports = [first.sport, second.sport, third.sport];
        ports.sort_unstable();
        assert!(ports[0] < ports[1] && ports[1] < ports[2], "{ports:?}");
        // And so it stays, both ways.
        for _ in 0..2 {
            goes_to_router(w, &first, OTHER_ROUTER);
            goes_to_router(w, &second, THIRD_ROUTER);
            goes_to_client(w, &third, family.node);
            for (router, port) in [(OTHER_ROUTER, first.sport), (THIRD_ROUTER, second.sport)] {
                let more = by_router(&family, proto, router).flags(ACK);
                assert_eq!(forwarded(w, OVERLAY, &more, Out::Peer(IFINDEX)).sport, port);
            }
            let more = forwarded(w, MESH, &sent.clone().flags(ACK), Out::Peer(IFINDEX));
            assert_eq!(more.sport, third.sport);
        }
    }
}

pub(crate) fn a_flow_of_this_node_and_one_of_another_do_not_alias(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for (family, proto) in MATRIX {
        let sent = Segment::new(proto, (family.client, 40_000), (family.node, 8080));
        let first = forwarded(w, MESH, &sent, Out::Peer(IFINDEX));
        assert_eq!(first.sport, 40_000);
        let second = forwarded(w, OVERLAY, &by_router(&family, proto, OTHER_ROUTER), Out::Peer(IFINDEX));
        assert_ne!(second.sport, 40_000);
        for _ in 0..2 {
            let again = forwarded(w, MESH, &sent.clone().flags(ACK), Out::Peer(IFINDEX));
            assert_eq!(again.sport, 40_000);
            goes_to_client(w, &first, family.node);
            goes_to_router(w, &second, OTHER_ROUTER);
        }
    }
}

pub(crate) fn a_client_whose_own_port_was_given_away_gets_another(w: &mut dyn World) {
    node(w);
    w.set_router(RouterKey::new(THIRD_ROUTER));
    for (family, proto) in MATRIX {
        forwarded(w, OVERLAY, &by_router(&family, proto, OTHER_ROUTER), Out::Peer(IFINDEX));
        let given = forwarded(w, OVERLAY, &by_router(&family, proto, THIRD_ROUTER), Out::Peer(IFINDEX));
        // By the very router whose flow has it: its address alone tells nothing.
        let own = Segment { sport: given.sport, ..by_router(&family, proto, THIRD_ROUTER) };
        let seen = forwarded(w, OVERLAY, &own, Out::Peer(IFINDEX));
        assert!(seen.sport != given.sport && seen.sport != 40_000);
        goes_to_router(w, &given, THIRD_ROUTER);
        let back = forwarded(w, Program::TaskTx, &answer(&seen), Out::Device(REMOTE_DEVICE));
        assert_eq!((back.dport, back.dst_mac), (given.sport, THIRD_ROUTER));
    }
}

pub(crate) fn a_connection_whose_address_moved_is_taken_over(w: &mut dyn World) {
    node(w);
    w.set_router(RouterKey::new(THIRD_ROUTER));
    w.set_service(SERVICE, &[LOCAL]);
    for family in [V4, V6] {
        forwarded(w, OVERLAY, &by_router(&family, TCP, OTHER_ROUTER), Out::Peer(IFINDEX));
        let more = by_router(&family, TCP, THIRD_ROUTER).flags(ACK);
        assert_eq!(forwarded(w, OVERLAY, &more, Out::Peer(IFINDEX)), more, "the task's connection goes on");
        goes_to_router(w, &more, THIRD_ROUTER);
        // To this node.
        let here = Segment::new(TCP, (family.client, 40_000), (family.node, 8080)).flags(ACK);
        assert_eq!(forwarded(w, MESH, &here, Out::Peer(IFINDEX)).sport, 40_000);
        goes_to_client(w, &more, family.node);
    }
}

pub(crate) fn a_client_of_the_node_and_a_router_do_not_alias(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for (family, proto) in MATRIX {
        let sent = Segment::new(proto, (family.node, 40_000), (family.node2, 8080));
        let first = forwarded(w, Program::HostTx, &sent, Out::Peer(IFINDEX));
        assert_eq!(first.sport, 40_000);
        let other = Segment { src: ip(family.node), ..by_router(&family, proto, OTHER_ROUTER) };
        let second = forwarded(w, OVERLAY, &other, Out::Peer(IFINDEX));
        assert_ne!(second.sport, 40_000);
        let kept = w.reply(&key(proto, 0, (family.task, 80), (family.node, 40_000))).expect("answers");
        assert_eq!((kept.kind, kept.addr), (REPLY_LOCAL, addr(family.node2)));
        goes_to_router(w, &second, OTHER_ROUTER);
    }
}

pub(crate) fn a_balancers_flow_and_one_of_another_node_do_not_alias(w: &mut dyn World) {
    const BALANCER: u32 = 33;
    node(w);
    w.set_config(NodeConfig {
        router_ip4: addr(V4.router),
        router_ip6: addr(V6.router),
        router_mac: ROUTER,
        balancer: BALANCER,
        ..NodeConfig::default()
    });
    w.set_balancer_if(IFINDEX, BalancerIf { vxlan: IFINDEX, steer: 1 });
    for (family, proto) in MATRIX {
        forwarded(w, OVERLAY, &by_router(&family, proto, OTHER_ROUTER), Out::Peer(IFINDEX));
        let sent = by_router(&family, proto, ROUTER);
        let second = forwarded(w, Program::BalancerTx, &sent, Out::Peer(IFINDEX));
        assert_ne!(second.sport, 40_000);
        let again = forwarded(w, Program::BalancerTx, &sent.clone().flags(ACK), Out::Peer(IFINDEX));
        assert_eq!(again.sport, second.sport);
        let answer = answer(&second);
        let got = forwarded(w, Program::TaskTx, &answer, Out::Peer(BALANCER));
        assert_eq!((got.dport, got.dst_mac), (40_000, ROUTER));
    }
}

pub(crate) fn without_a_port_left_a_flow_is_dropped(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for (family, proto) in MATRIX {
        let flow = key(proto, 0, (family.client, 40_000), (family.node, 8080));
        let tried = (1..=8).map(|salt| {
            let [low, high, ..] = hash::flow(&flow, salt).to_le_bytes();
            u16::from_le_bytes([low, high]) | 0xc000
        });
        for port in std::iter::once(40_000).chain(tried) {
            let taken = Segment { sport: port, ..by_router(&family, proto, OTHER_ROUTER) };
            forwarded(w, OVERLAY, &taken, Out::Peer(IFINDEX));
        }
        let sent = Segment::new(proto, (family.client, 40_000), (family.node, 8080));
        dropped(w, MESH, &sent.bytes(), Reason::NoSourcePort);
    }
}

pub(crate) fn a_flow_that_is_over_is_in_nobodys_way(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for family in [V4, V6] {
        let first = by_router(&family, TCP, OTHER_ROUTER);
        for flags in [SYN, ACK, FIN | ACK] {
            forwarded(w, OVERLAY, &first.clone().flags(flags), Out::Peer(IFINDEX));
        }
        let here = Segment::new(TCP, (family.client, 40_000), (family.node, 8080));
        assert_ne!(forwarded(w, MESH, &here, Out::Peer(IFINDEX)).sport, 40_000, "the task may still send");
        forwarded(w, Program::TaskTx, &answer(&first).flags(FIN | ACK), Out::Device(REMOTE_DEVICE));
        let there = Segment::new(TCP, (family.client, 40_000), (family.node2, 8080));
        assert_eq!(forwarded(w, MESH, &there, Out::Peer(IFINDEX)).sport, 40_000);
        forwarded(w, MESH, &there.clone().flags(RST), Out::Peer(IFINDEX));
        assert_eq!(forwarded(w, OVERLAY, &first, Out::Peer(IFINDEX)).sport, 40_000, "and back");
    }
}

/// The first of two flows is forgotten; the other was given a port for its sake.
pub(crate) fn a_translated_port_is_kept_when_the_other_flow_is_gone(w: &mut dyn World) {
    node(w);
    w.set_router(RouterKey::new(THIRD_ROUTER));
    for (family, proto) in MATRIX {
        forwarded(w, OVERLAY, &by_router(&family, proto, OTHER_ROUTER), Out::Peer(IFINDEX));
        let sent = by_router(&family, proto, THIRD_ROUTER);
        let second = forwarded(w, OVERLAY, &sent, Out::Peer(IFINDEX));
        assert_ne!(second.sport, 40_000);
        w.forget(&key(proto, 0, (family.task, 80), (family.client, 40_000)));
        let more = forwarded(w, OVERLAY, &sent.clone().flags(ACK), Out::Peer(IFINDEX));
        assert_eq!(more.sport, second.sport);
        goes_to_router(w, &second, THIRD_ROUTER);
    }
}

/// A client's port goes to another address of the node when its connection has ended, and then comes a last packet.
pub(crate) fn a_late_packet_does_not_take_anothers_answers(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for family in [V4, V6] {
        let first = Segment::new(TCP, (family.client, 40_000), (family.node, 8080));
        for flags in [SYN, ACK, FIN | ACK] {
            forwarded(w, MESH, &first.clone().flags(flags), Out::Peer(IFINDEX));
        }
        let ends = Segment::new(TCP, (family.task, 80), (family.client, 40_000)).flags(FIN | ACK);
        forwarded(w, Program::TaskTx, &ends.macs(TASK, ROUTER), Out::Neighbor(IFINDEX));
        let second = Segment::new(TCP, (family.client, 40_000), (family.node2, 8080));
        let seen = forwarded(w, MESH, &second, Out::Peer(IFINDEX));
        assert_eq!(seen.sport, 40_000);
        // At once, and when it would be noted again.
        for _ in 0..2 {
            let late = forwarded(w, MESH, &first.clone().flags(ACK), Out::Peer(IFINDEX));
            assert_ne!(late.sport, 40_000, "the task does not take it for one of the other connection");
            goes_to_client(w, &seen, family.node2);
            w.next_tick();
        }
    }
}

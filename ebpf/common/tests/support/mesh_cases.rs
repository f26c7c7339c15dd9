//! Cases of `mesh_ingress`.

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::PortKey;
use shoal_ebpf_common::maglev::Policy;
use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::values::{ENDPOINT_DRAINING, ENDPOINT_IDLE, EndpointVal, PortVal, REPLY_RESTORE};
use shoal_ebpf_common::verdict::Out;

use super::packet::{ACK, SYN, Segment, TCP, UDP};
use super::world::{
    Action, Family, IFINDEX, LOCAL, MATRIX, OTHER_TASK, REMOTE, REMOTE_DEVICE, ROUTER, SERVICE, TASK,
    TUNNEL_PORT, V4, V6, World, addr, dropped, forwarded, ip, key, local_endpoint, node, passed,
    remote_endpoint,
};

const MESH: Program = Program::MeshIngress;

fn request(family: &Family, proto: u8, port: u16) -> Segment {
    Segment::new(proto, (family.client, port), (family.node, 8080))
}

pub(crate) fn published_port_reaches_local_task(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for (family, proto) in MATRIX {
        let sent = request(&family, proto, 40_000);
        let got = forwarded(w, MESH, &sent, Out::Peer(IFINDEX));
        let want = Segment { dst: ip(family.task), dport: 80, src_mac: ROUTER, dst_mac: TASK, ..sent };
        assert_eq!(got, want, "only the destination changed");
        let flow = w.flow(&key(proto, 0, (family.client, 40_000), (family.node, 8080))).expect("a flow");
        assert_eq!((flow.endpoint, flow.service, flow.target_port), (LOCAL, SERVICE, 80));
        let reply = w.reply(&key(proto, 0, (family.task, 80), (family.client, 40_000))).expect("its answers");
        assert_eq!((reply.kind, reply.ifindex), (REPLY_RESTORE, IFINDEX));
        assert_eq!((reply.addr, reply.port), (addr(family.node), 8080));
    }
}

pub(crate) fn published_port_reaches_remote_task(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[REMOTE]);
    for (family, proto) in MATRIX {
        let sent = request(&family, proto, 40_000);
        let got = forwarded(w, MESH, &sent, Out::Device(REMOTE_DEVICE));
        let want = Segment { dst: ip(family.other), dport: 80, src_mac: ROUTER, dst_mac: OTHER_TASK, ..sent };
        assert_eq!(got, want);
    }
}

pub(crate) fn endpoints_take_turns(w: &mut dyn World) {
    node(w);
    w.set_policy(SERVICE, &[LOCAL, REMOTE], Policy::Turn);
    for (family, proto) in MATRIX {
        let mut last = None;
        for port in 40_000..40_010 {
            let run = w.run(MESH, &request(&family, proto, port).flags(SYN).bytes());
            let dst = Segment::parse(&run.bytes).dst;
            assert_ne!(last, Some(dst), "one after the other");
            last = Some(dst);
        }
        // A SYN that is repeated belongs to the same connection.
        let again = w.run(MESH, &request(&family, proto, 40_009).flags(SYN).bytes());
        assert_eq!(last, Some(Segment::parse(&again.bytes).dst));
    }
}

pub(crate) fn endpoints_are_drawn(w: &mut dyn World) {
    node(w);
    w.set_policy(SERVICE, &[LOCAL, REMOTE], Policy::Random);
    let mut drawn = Vec::new();
    for port in 40_000..40_200 {
        let sent = request(&V4, TCP, port);
        let choice = Segment::parse(&w.run(MESH, &sent.clone().flags(SYN).bytes()).bytes).dst;
        for flags in [SYN, ACK] {
            let more = w.run(MESH, &sent.clone().flags(flags).bytes());
            assert_eq!(Segment::parse(&more.bytes).dst, choice, "a flow stays where it began");
        }
        drawn.push(choice);
    }
    // 100 expected, deviation 7.
    let here = drawn.iter().filter(|dst| **dst == ip(V4.task)).count();
    assert!((50..150).contains(&here), "{here} of 200");
    // Neither in turn nor by the flow: another draw of the same flows comes out otherwise.
    assert!(drawn.windows(2).any(|pair| pair[0] == pair[1]), "in turn");
    let other: Vec<_> = (40_000..40_200)
        .map(|port| {
            let sent = Segment::new(TCP, (V4.client, port), (V4.node2, 8080)).flags(SYN);
            Segment::parse(&w.run(MESH, &sent.bytes()).bytes).dst
        })
        .collect();
    assert_ne!(drawn, other);
}

/// A table of turns has as many slots as the service has endpoints: a search must not leave it.
pub(crate) fn a_short_table_does_not_run_into_the_next(w: &mut dyn World) {
    node(w);
    w.set_policy(SERVICE, &[LOCAL], Policy::Turn);
    w.set_policy(2, &[REMOTE, REMOTE], Policy::Turn);
    w.set_endpoint(
        LOCAL,
        EndpointVal { flags: local_endpoint().flags | ENDPOINT_DRAINING, ..local_endpoint() },
    );
    for (family, proto) in MATRIX {
        let before = w.drops(Reason::NoEndpoint);
        passed(w, MESH, &request(&family, proto, 40_000).bytes());
        assert_eq!(w.drops(Reason::NoEndpoint), before + 1, "not by an endpoint of another service");
    }
    w.set_endpoint(LOCAL, local_endpoint());
    w.set_service(SERVICE, &[LOCAL, REMOTE]);
}

pub(crate) fn a_client_stays_with_its_endpoint(w: &mut dyn World) {
    node(w);
    w.set_policy(SERVICE, &[LOCAL, REMOTE], Policy::Source);
    let mut endpoints = std::collections::BTreeSet::new();
    for last in 1..40 {
        let client = format!("192.0.2.{last}");
        let mut chosen = std::collections::BTreeSet::new();
        for port in 40_000..40_010 {
            for (proto, node) in [(TCP, V4.node), (UDP, V4.node2)] {
                let sent = Segment::new(proto, (client.as_str(), port), (node, 8080));
                chosen.insert(Segment::parse(&w.run(MESH, &sent.bytes()).bytes).dst);
            }
        }
        assert_eq!(chosen.len(), 1, "whatever its port, protocol and way in");
        endpoints.extend(chosen);
    }
    assert_eq!(endpoints.len(), 2, "and clients are spread");
}

pub(crate) fn connections_spread_and_flows_stay(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        let mut first = Vec::new();
        for port in 40_000..40_064 {
            let run = w.run(MESH, &request(&family, proto, port).bytes());
            first.push(Segment::parse(&run.bytes).dst);
        }
        let here = first.iter().filter(|&&dst| dst == ip(family.task)).count();
        assert!((16..=48).contains(&here), "{here} of 64 connections went to one of two tasks");
        // With the service scaled to the other task alone, established flows stay where they are.
        w.set_service(SERVICE, &[REMOTE]);
        for (port, dst) in (40_000..40_064).zip(first) {
            let run = w.run(MESH, &request(&family, proto, port).flags(ACK).bytes());
            assert_eq!(Segment::parse(&run.bytes).dst, dst);
        }
        w.set_service(SERVICE, &[LOCAL, REMOTE]);
    }
}

pub(crate) fn moved_address_finds_the_same_task(w: &mut dyn World) {
    node(w);
    for family in [V4, V6] {
        // No flow, and no SYN: the connection began at another node.
        let by_ack = w.run(MESH, &request(&family, TCP, 41_000).flags(ACK).bytes());
        let by_syn = w.run(MESH, &request(&family, TCP, 41_000).bytes());
        assert_eq!(Segment::parse(&by_ack.bytes).dst, Segment::parse(&by_syn.bytes).dst);
    }
}

pub(crate) fn unpublished_traffic_is_left_alone(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        passed(w, MESH, &Segment::new(proto, (family.client, 40_000), (family.node, 22)).bytes());
        passed(w, MESH, &Segment::new(proto, (family.client, 40_000), (family.client, 8080)).bytes());
    }
    // The answer to a connection the node itself opened from that port.
    passed(w, MESH, &request(&V4, TCP, 443).flags(SYN | ACK).bytes());
    passed(w, MESH, &super::packet::arp([2; 6], 1, [2; 6], "192.0.2.9", "198.51.100.1"));
    passed(w, MESH, &[0xff; 14]);
}

pub(crate) fn port_in_the_scope_of_one_address(w: &mut dyn World) {
    node(w);
    w.set_service(2, &[LOCAL]);
    w.set_service(3, &[LOCAL]);
    for (family, proto) in MATRIX {
        let to = |dst, port| Segment::new(proto, (family.client, 40_000), (dst, port));
        w.set_port(PortKey::new(addr(family.node), 9090, proto), PortVal::new(2, 81));
        w.set_port(PortKey::new(addr(family.node2), 9090, proto), PortVal::new(3, 82));
        w.set_port(PortKey::new(addr(family.node2), 9091, proto), PortVal::new(3, 82));
        // Each address has its own service, and the flows know it.
        for (dst, service, port) in [(family.node, 2, 81), (family.node2, 3, 82)] {
            assert_eq!(forwarded(w, MESH, &to(dst, 9090), Out::Peer(IFINDEX)).dport, port);
            let flow = w.flow(&key(proto, 0, (family.client, 40_000), (dst, 9090))).expect("a flow");
            assert_eq!((flow.service, flow.target_port), (service, port));
        }
        // What is published on one address is not on another.
        passed(w, MESH, &to(family.node, 9091).bytes());
        assert_eq!(w.flow(&key(proto, 0, (family.client, 40_000), (family.node, 9091))), None);
        // Nor on one that is not the node's.
        w.set_port(PortKey::new(addr(family.client), 9092, proto), PortVal::new(2, 81));
        passed(w, MESH, &to(family.client, 9092).bytes());
        // A connection goes on when its port is published no more; another is not let in.
        w.remove_port(PortKey::new(addr(family.node), 9090, proto));
        let known = to(family.node, 9090).flags(ACK);
        assert_eq!(forwarded(w, MESH, &known, Out::Peer(IFINDEX)).dport, 81);
        passed(
            w,
            MESH,
            &Segment::new(proto, (family.client, 40_001), (family.node, 9090)).flags(SYN).bytes(),
        );
    }
}

/// An agent that exchanges a port on all addresses for one on a single address has both for a moment.
pub(crate) fn port_on_every_address_comes_before_one_on_this(w: &mut dyn World) {
    node(w);
    w.set_service(2, &[LOCAL]);
    w.set_port(PortKey::new(addr(V4.node2), 8080, TCP), PortVal::new(2, 81));
    let to = |port| Segment::new(TCP, (V4.client, port), (V4.node2, 8080)).flags(SYN);
    assert_ne!(Segment::parse(&w.run(MESH, &to(40_000).bytes()).bytes).dport, 81);
    w.remove_port(PortKey::new(Addr::ANY, 8080, TCP));
    assert_eq!(forwarded(w, MESH, &to(40_001), Out::Peer(IFINDEX)).dport, 81);
}

pub(crate) fn service_without_endpoint_is_refused(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[]);
    for (family, proto) in MATRIX {
        let before = w.drops(Reason::NoEndpoint);
        passed(w, MESH, &request(&family, proto, 40_000).bytes());
        assert_eq!(w.drops(Reason::NoEndpoint), before + 1);
    }
}

pub(crate) fn endpoint_without_the_family_is_not_chosen(w: &mut dyn World) {
    node(w);
    w.set_endpoint(LOCAL, EndpointVal { ip6: Addr::ANY, ..local_endpoint() });
    for port in 40_000..40_016 {
        let got = forwarded(w, MESH, &request(&V6, TCP, port), Out::Device(REMOTE_DEVICE));
        assert_eq!(got.dst, ip(V6.other));
    }
}

pub(crate) fn removed_endpoint_ends_tcp_and_moves_udp(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for (family, proto) in MATRIX {
        forwarded(w, MESH, &request(&family, proto, 40_000), Out::Peer(IFINDEX));
    }
    w.set_service(SERVICE, &[REMOTE]);
    w.remove_endpoint(LOCAL);
    for family in [V4, V6] {
        let before = w.drops(Reason::NoEndpoint);
        passed(w, MESH, &request(&family, TCP, 40_000).flags(ACK).bytes());
        assert_eq!(w.drops(Reason::NoEndpoint), before + 1, "the stack resets the connection");
        for proto in [TCP, UDP] {
            let got = forwarded(w, MESH, &request(&family, proto, 40_000), Out::Device(REMOTE_DEVICE));
            assert_eq!(got.dst, ip(family.other), "a new connection from the old port");
        }
    }
}

pub(crate) fn draining_endpoint_keeps_its_flows_only(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for family in [V4, V6] {
        forwarded(w, MESH, &request(&family, TCP, 40_000), Out::Peer(IFINDEX));
        forwarded(w, MESH, &request(&family, TCP, 40_001), Out::Peer(IFINDEX));
    }
    w.set_endpoint(
        LOCAL,
        EndpointVal { flags: local_endpoint().flags | ENDPOINT_DRAINING, ..local_endpoint() },
    );
    w.set_service(SERVICE, &[REMOTE]);
    for family in [V4, V6] {
        forwarded(w, MESH, &request(&family, TCP, 40_000).flags(ACK), Out::Peer(IFINDEX));
        forwarded(w, MESH, &request(&family, TCP, 40_001), Out::Device(REMOTE_DEVICE));
    }
}

/// A client's port that is used again leads away from a node of weight 0, but not from one whose own port it is, nor while
/// the connection is being made.
pub(crate) fn idle_endpoint_begins_only_what_a_table_says(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for family in [V4, V6] {
        forwarded(w, MESH, &request(&family, TCP, 40_000), Out::Peer(IFINDEX));
    }
    w.set_endpoint(LOCAL, EndpointVal { flags: local_endpoint().flags | ENDPOINT_IDLE, ..local_endpoint() });
    for family in [V4, V6] {
        forwarded(w, MESH, &request(&family, TCP, 40_000), Out::Peer(IFINDEX));
        forwarded(w, MESH, &request(&family, TCP, 40_001), Out::Peer(IFINDEX));
    }
    w.set_service(SERVICE, &[REMOTE]);
    w.next_tick();
    for family in [V4, V6] {
        forwarded(w, MESH, &request(&family, TCP, 40_001), Out::Peer(IFINDEX));
        forwarded(w, MESH, &request(&family, TCP, 40_000).flags(ACK), Out::Peer(IFINDEX));
        forwarded(w, MESH, &request(&family, TCP, 40_000), Out::Device(REMOTE_DEVICE));
        forwarded(w, MESH, &request(&family, TCP, 40_002), Out::Device(REMOTE_DEVICE));
    }
}

pub(crate) fn withdrawn_port_keeps_its_connections(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    forwarded(w, MESH, &request(&V4, TCP, 40_000), Out::Peer(IFINDEX));
    w.remove_port(PortKey::new(Addr::ANY, 8080, TCP));
    forwarded(w, MESH, &request(&V4, TCP, 40_000).flags(ACK), Out::Peer(IFINDEX));
    passed(w, MESH, &request(&V4, TCP, 40_000).bytes());
    passed(w, MESH, &request(&V4, TCP, 40_001).bytes());
}

pub(crate) fn two_addresses_one_client_port_do_not_alias(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for (family, proto) in MATRIX {
        let first = forwarded(w, MESH, &request(&family, proto, 40_000), Out::Peer(IFINDEX));
        let to_second = Segment::new(proto, (family.client, 40_000), (family.node2, 8080));
        let second = forwarded(w, MESH, &to_second, Out::Peer(IFINDEX));
        assert_eq!((first.src, first.sport), (ip(family.client), 40_000));
        assert_eq!(second.src, ip(family.client));
        assert_ne!(second.sport, 40_000, "the later flow's port is translated");
        let again = forwarded(w, MESH, &to_second.flags(ACK), Out::Peer(IFINDEX));
        assert_eq!(again.sport, second.sport);
        for (answered, node) in [(first.sport, family.node), (second.sport, family.node2)] {
            let answer = Segment::new(proto, (family.task, 80), (family.client, answered)).macs(TASK, ROUTER);
            let got = forwarded(w, Program::TaskTx, &answer, Out::Neighbor(IFINDEX));
            assert_eq!((got.src, got.sport, got.dport), (ip(node), 8080, 40_000));
        }
    }
}

pub(crate) fn checksums_and_options_survive(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    let unchecked = Segment { unchecked: true, ..request(&V4, UDP, 40_000) };
    assert!(forwarded(w, MESH, &unchecked, Out::Peer(IFINDEX)).unchecked, "no checksum stays none");
    let with_options = Segment { options: vec![1, 1, 1, 0], ..request(&V4, TCP, 40_001) };
    assert_eq!(forwarded(w, MESH, &with_options, Out::Peer(IFINDEX)).options, [1, 1, 1, 0]);
    for len in [0, 1, 2, 3, 999, 1000] {
        for (family, proto) in MATRIX {
            let sent = Segment { payload: vec![0xa5; len], ..request(&family, proto, 40_002) };
            assert_eq!(forwarded(w, MESH, &sent, Out::Peer(IFINDEX)).payload, sent.payload);
        }
    }
    // Checksums that come out as zero are sent as all ones: search for some.
    for word in 0..=u16::MAX {
        let payload = word.to_be_bytes().to_vec();
        if word % 97 == 0 {
            let sent = Segment { payload, ..request(&V6, UDP, 40_003) };
            assert!(!forwarded(w, MESH, &sent, Out::Peer(IFINDEX)).unchecked);
        }
    }
}

pub(crate) fn only_members_may_send_tunnel_packets(w: &mut dyn World) {
    node(w);
    for family in [V4, V6] {
        let tunnel = Segment::new(UDP, (family.client, 55_000), (family.node, TUNNEL_PORT)).bytes();
        dropped(w, MESH, &tunnel, Reason::NotMember);
        w.set_member(addr(family.client));
        passed(w, MESH, &tunnel);
        let other = Segment::new(UDP, (family.node2, 55_000), (family.node, TUNNEL_PORT)).bytes();
        dropped(w, MESH, &other, Reason::NotMember);
    }
    // The first fragment decides; without it the rest is never put together.
    let mut fragment = Segment::new(UDP, (V4.node2, 55_000), (V4.node, TUNNEL_PORT)).bytes();
    fragment[20] = 0x20;
    dropped(w, MESH, &fragment, Reason::NotMember);
    fragment[20..22].copy_from_slice(&[0, 100]);
    passed(w, MESH, &fragment);
}

pub(crate) fn endpoint_that_vanished_from_under_its_slots_is_skipped(w: &mut dyn World) {
    node(w);
    w.remove_endpoint(LOCAL);
    for port in 40_000..40_032 {
        let run = w.run(MESH, &request(&V4, TCP, port).bytes());
        assert_eq!(run.action, Action::Redirect);
        assert_eq!(Segment::parse(&run.bytes).dst, ip(V4.other));
    }
    w.set_endpoint(LOCAL, local_endpoint());
    w.set_endpoint(REMOTE, remote_endpoint());
}

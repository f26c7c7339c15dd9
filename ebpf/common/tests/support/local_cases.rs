//! Cases of `host_tx`: clients on the node itself.

use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::verdict::Out;

use super::packet::{ACK, SYN, Segment, TCP, UDP};
use super::world::{
    Family, IFINDEX, LOCAL, MATRIX, OTHER_TASK, REMOTE, REMOTE_DEVICE, ROUTER, SERVICE, TASK, V4, V6, World,
    forwarded, ip, node, passed,
};

const HOST: Program = Program::HostTx;
const NOBODY: [u8; 6] = [0; 6];

fn loopback(family: &Family) -> &'static str {
    if family.node == V4.node { "127.0.0.1" } else { "::1" }
}

/// Where the node may ask itself, and as whom: the address it has as client, the one it asks, and what the task sees.
fn ways(family: &Family) -> [(&'static str, &'static str, &'static str); 3] {
    let lo = loopback(family);
    [
        (lo, lo, family.router),
        (family.node, family.node, family.node),
        (family.node, family.node2, family.node),
    ]
}

pub(crate) fn the_node_reaches_a_task_elsewhere(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[REMOTE]);
    for (family, proto) in MATRIX {
        for (from, to, seen) in ways(&family) {
            let request = Segment::new(proto, (from, 40_000), (to, 8080)).macs(NOBODY, NOBODY);
            let got = forwarded(w, HOST, &request, Out::Device(REMOTE_DEVICE));
            let sport = got.sport;
            let expected =
                Segment { src: ip(seen), dst: ip(family.other), sport, dport: 80, ..request.clone() };
            assert_eq!(got, expected.macs(ROUTER, OTHER_TASK));
            // It is known from now on.
            let next = request.clone().flags(ACK);
            assert_eq!(forwarded(w, HOST, &next, Out::Device(REMOTE_DEVICE)).sport, sport);
            let answer =
                Segment::new(proto, (family.other, 80), (seen, sport)).flags(ACK).macs(OTHER_TASK, ROUTER);
            let back = forwarded(w, Program::OverlayRx, &answer, Out::Host(IFINDEX));
            let expected = Segment { src: ip(to), dst: ip(from), sport: 8080, dport: 40_000, ..answer };
            assert_eq!(back, expected.macs(NOBODY, NOBODY));
        }
    }
}

pub(crate) fn the_node_reaches_a_task_here(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for (family, proto) in MATRIX {
        for (from, to, seen) in ways(&family) {
            let request = Segment::new(proto, (from, 40_000), (to, 8080)).macs(NOBODY, NOBODY);
            let got = forwarded(w, HOST, &request, Out::Peer(IFINDEX));
            assert_eq!((got.src, got.dst, got.dport), (ip(seen), ip(family.task), 80));
            let answer =
                Segment::new(proto, (family.task, 80), (seen, got.sport)).flags(ACK).macs(TASK, ROUTER);
            let back = forwarded(w, Program::TaskTx, &answer, Out::Host(IFINDEX));
            assert_eq!((back.src, back.sport, back.dst, back.dport), (ip(to), 8080, ip(from), 40_000));
        }
    }
}

pub(crate) fn what_is_not_published_is_left_alone_here(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        let lo = loopback(&family);
        passed(w, HOST, &Segment::new(proto, (lo, 40_000), (lo, 8081)).bytes());
        passed(w, HOST, &Segment::new(proto, (family.node, 40_000), (family.client, 8080)).bytes());
    }
    // Answers on the loopback device to somebody who has a published port for his own.
    let answer = Segment::new(TCP, (V4.node, 22), (V4.node, 8080)).flags(SYN | ACK);
    passed(w, HOST, &answer.bytes());
    // A group is not the node.
    passed(w, HOST, &Segment::new(UDP, (V4.node, 40_000), ("224.0.0.251", 8080)).bytes());
    passed(w, HOST, &Segment::new(UDP, (V6.node, 40_000), ("ff02::fb", 8080)).bytes());
    // A loopback address to which no answer would be led back.
    passed(w, HOST, &Segment::new(TCP, ("127.0.0.2", 40_000), ("127.0.0.1", 8080)).bytes());
    // A loopback address of somebody else's, as a resolver's of the host.
    passed(w, HOST, &Segment::new(UDP, ("127.0.0.1", 40_000), ("127.0.0.53", 8080)).bytes());
    w.set_service(SERVICE, &[]);
    let before = w.drops(Reason::NoEndpoint);
    passed(w, HOST, &Segment::new(TCP, ("127.0.0.1", 40_000), ("127.0.0.1", 8080)).bytes());
    assert_eq!(w.drops(Reason::NoEndpoint), before + 1, "refused by the stack, and counted");
}

pub(crate) fn a_client_of_the_node_and_one_elsewhere_do_not_alias(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[REMOTE]);
    for (family, proto) in MATRIX {
        let mut ports = std::collections::BTreeSet::new();
        for to in [family.node, family.node2] {
            let request = Segment::new(proto, (family.node, 41_000), (to, 8080)).macs(NOBODY, NOBODY);
            ports.insert(forwarded(w, HOST, &request, Out::Device(REMOTE_DEVICE)).sport);
        }
        assert_eq!(ports.len(), 2, "one port of the client's, two flows to one task: {ports:?}");
    }
}

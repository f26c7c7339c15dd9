//! Cases of fragments: all of a datagram go where the first one goes.

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::{Mac, PortKey};
use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::values::PortVal;
use shoal_ebpf_common::verdict::Out;

use super::packet::{ACK, Segment, TCP, UDP, join, split};
use super::world::{
    Action, Family, GATE, IFINDEX, LEG, LOCAL, MARK, MATRIX, NETWORK, OTHER_ROUTER, OTHER_TASK, REMOTE,
    REMOTE_DEVICE, ROUTER, SERVICE, TASK, TUNNEL_PORT, V4, V6, VIP, World, addr, dropped, egress_leg,
    ingress_leg, ip, node, node_with_gate, passed,
};

const MESH: Program = Program::MeshIngress;
const OVERLAY: Program = Program::OverlayRx;
const TASK_TX: Program = Program::TaskTx;
const GATEWAY: Mac = [2, 0xee, 0, 0, 0, 1];
const NOBODY: Mac = [0; 6];
const ID: u16 = 0x4711;

/// With a payload that takes several fragments.
fn large(segment: Segment) -> Segment {
    Segment { payload: (0..200).collect(), ..segment }
}

/// Runs a program on the fragments of a packet, which all leave the same way; the packet that they make then. What
/// fragments other datagrams have passes in between.
#[track_caller]
fn followed(w: &mut dyn World, program: Program, segment: &Segment, out: Out) -> Segment {
    let fragments: Vec<_> = split(&large(segment.clone()).bytes(), ID, 48)
        .into_iter()
        .map(|fragment| {
            let run = w.run(program, &fragment);
            assert_eq!(run.action, Action::Redirect, "{fragment:02x?}");
            assert!(run.out.is_none_or(|at| at == out), "left by {:?}, not {out:?}", run.out);
            run.bytes
        })
        .collect();
    assert!(fragments.len() > 3);
    join(&fragments)
}

fn answer(request: &Segment, macs: (Mac, Mac)) -> Segment {
    let Segment { src, dst, sport, dport, .. } = request.clone();
    let answer = Segment { src: dst, dst: src, sport: dport, dport: sport, ..request.clone() };
    answer.flags(ACK).macs(macs.0, macs.1)
}

fn request(family: &Family, proto: u8) -> Segment {
    large(Segment::new(proto, (family.client, 40_000), (family.node, 8080)))
}

pub(crate) fn fragments_follow_their_first_to_a_task(w: &mut dyn World) {
    node(w);
    let here = (LOCAL, TASK, Out::Peer(IFINDEX), 40_000, V4.task, V6.task);
    let there = (REMOTE, OTHER_TASK, Out::Device(REMOTE_DEVICE), 40_001, V4.other, V6.other);
    for (id, mac, out, sport, task4, task6) in [here, there] {
        w.set_service(SERVICE, &[id]);
        for (family, proto) in MATRIX {
            let sent = Segment { sport, ..request(&family, proto) };
            let got = followed(w, MESH, &sent, out);
            let dst = ip(if sent.src.is_ipv4() { task4 } else { task6 });
            assert_eq!(got, Segment { dst, dport: 80, src_mac: ROUTER, dst_mac: mac, ..sent });
        }
    }
}

pub(crate) fn fragments_of_an_answer_follow_their_first(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        w.set_service(SERVICE, &[REMOTE]);
        let sent = request(&family, proto);
        let seen = followed(w, MESH, &sent, Out::Device(REMOTE_DEVICE));
        let got = followed(w, OVERLAY, &answer(&seen, (OTHER_TASK, ROUTER)), Out::Neighbor(IFINDEX));
        assert_eq!(got, answer(&sent, (OTHER_TASK, ROUTER)));
        w.set_service(SERVICE, &[LOCAL]);
        let sent = Segment { sport: 40_001, ..sent };
        let seen = followed(w, MESH, &sent, Out::Peer(IFINDEX));
        // By any of its legs, and with the address of that.
        for (leg, source) in
            [(ingress_leg(), family.task), (egress_leg(), family.task), (egress_leg(), family.leg)]
        {
            w.set_task_if(IFINDEX, leg);
            let sends = Segment { src: ip(source), ..answer(&seen, (leg.mac, GATEWAY)) };
            let got = followed(w, TASK_TX, &sends, Out::Neighbor(IFINDEX));
            assert_eq!(got, answer(&sent, (leg.mac, GATEWAY)));
        }
    }
}

pub(crate) fn fragments_go_by_the_router_that_brought_the_flow(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        let sent = Segment::new(proto, (family.client, 40_000), (family.task, 80)).macs(OTHER_ROUTER, TASK);
        let sent = large(sent);
        assert_eq!(followed(w, OVERLAY, &sent, Out::Peer(IFINDEX)), sent);
        for (leg, source) in [(ingress_leg(), family.task), (egress_leg(), family.leg)] {
            w.set_task_if(IFINDEX, leg);
            let sends = Segment { src: ip(source), ..answer(&sent, (leg.mac, GATEWAY)) };
            let got = followed(w, TASK_TX, &sends, Out::Device(REMOTE_DEVICE));
            assert_eq!(got, answer(&sent, (TASK, OTHER_ROUTER)));
        }
    }
}

pub(crate) fn fragments_to_a_virtual_ip_follow_their_first(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        let sent = large(Segment::new(proto, (family.task, 40_000), (family.vip, 80)).macs(TASK, VIP));
        w.set_service(SERVICE, &[REMOTE]);
        let seen = followed(w, TASK_TX, &sent, Out::Device(REMOTE_DEVICE));
        assert_eq!(seen, Segment { dst: ip(family.other), dst_mac: OTHER_TASK, ..sent.clone() });
        let macs = (OTHER_TASK, TASK);
        assert_eq!(followed(w, OVERLAY, &answer(&seen, macs), Out::Peer(IFINDEX)), answer(&sent, macs));
        // Its own server.
        w.set_service(SERVICE, &[LOCAL]);
        let sent = Segment { sport: 40_001, ..sent };
        let seen = followed(w, TASK_TX, &sent, Out::Peer(IFINDEX));
        assert_eq!((seen.src, seen.dst), (ip(family.vip), ip(family.task)));
        let got = followed(w, TASK_TX, &answer(&seen, (TASK, VIP)), Out::Peer(IFINDEX));
        assert_eq!(got, answer(&sent, (VIP, TASK)));
    }
}

pub(crate) fn fragments_of_the_nodes_own_flows_follow_their_first(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[REMOTE]);
    for (family, proto) in MATRIX {
        let loopback = if family.node == V4.node { "127.0.0.1" } else { "::1" };
        let sent = large(Segment::new(proto, (loopback, 40_000), (loopback, 8080)).macs(NOBODY, NOBODY));
        let seen = followed(w, Program::HostTx, &sent, Out::Device(REMOTE_DEVICE));
        assert_eq!((seen.src, seen.dst), (ip(family.router), ip(family.other)));
        let got = followed(w, OVERLAY, &answer(&seen, (OTHER_TASK, ROUTER)), Out::Host(IFINDEX));
        assert_eq!(got, answer(&sent, (NOBODY, NOBODY)));
    }
}

pub(crate) fn fragments_of_a_balancers_flow_follow_their_first(w: &mut dyn World) {
    node_with_gate(w);
    for (family, proto) in MATRIX {
        w.set_port(PortKey::new(Addr::ANY, 8080, proto), PortVal::balanced(SERVICE, 80, MARK));
        let sent = request(&family, proto);
        assert_eq!(followed(w, MESH, &sent, Out::Peer(GATE)), sent);
        let run = w.run(MESH, &split(&sent.bytes(), ID, 48)[2]);
        assert!(run.mark.is_none_or(|mark| mark == MARK), "marked {:?}", run.mark);
        let back = Segment::new(proto, (family.other, 80), (family.client, 40_000)).macs(OTHER_TASK, ROUTER);
        let back = large(back);
        assert_eq!(followed(w, OVERLAY, &back, Out::Peer(LEG)), back);
    }
}

pub(crate) fn a_fragment_without_its_first_is_the_hosts_at_an_uplink(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        let fragments = split(&request(&family, proto).bytes(), ID, 48);
        for program in [MESH, Program::HostTx] {
            passed(w, program, &fragments[1]);
        }
        w.run(MESH, &fragments[0]);
        // Of another datagram, from another client, or met elsewhere.
        passed(w, MESH, &split(&request(&family, proto).bytes(), ID + 1, 48)[1]);
        let other = Segment { src: ip(family.node2), ..request(&family, proto) };
        passed(w, MESH, &split(&other.bytes(), ID, 48)[1]);
        passed(w, Program::HostTx, &fragments[1]);
        assert_eq!(w.run(MESH, &fragments[1]).action, Action::Redirect);
        // What is not published is nobody's first.
        let other = Segment { dport: 22, ..request(&family, proto) };
        for fragment in split(&other.bytes(), ID + 2, 48) {
            passed(w, MESH, &fragment);
        }
    }
}

pub(crate) fn a_fragment_without_its_first_goes_no_further(w: &mut dyn World) {
    node(w);
    let follower = |segment: &Segment| split(&large(segment.clone()).bytes(), ID, 48)[1].clone();
    for (family, proto) in MATRIX {
        let answer =
            Segment::new(proto, (family.other, 80), (family.client, 40_000)).macs(OTHER_TASK, ROUTER);
        dropped(w, OVERLAY, &follower(&answer), Reason::NoFirstFragment);
        // To the router itself, and to a task here: the bridge leads there.
        passed(w, OVERLAY, &follower(&Segment { dst: ip(family.router), ..answer.clone() }));
        passed(w, OVERLAY, &follower(&answer.clone().macs(OTHER_ROUTER, TASK)));
        // Of a task: from the leg's own address it goes its way, from the one in the mesh by another leg it has none.
        let sends = Segment::new(proto, (family.task, 80), (family.client, 40_000)).macs(TASK, GATEWAY);
        passed(w, TASK_TX, &follower(&sends));
        let to_vip = Segment { dst: ip(family.vip), ..sends.clone() }.macs(TASK, VIP);
        dropped(w, TASK_TX, &follower(&to_vip), Reason::NoFirstFragment);
        let spoofed = Segment { src: ip(family.other), ..sends.clone() };
        let reason = if sends.src.is_ipv4() { Reason::SpoofedIpv4 } else { Reason::SpoofedIpv6 };
        dropped(w, TASK_TX, &follower(&spoofed), reason);
        w.set_task_if(IFINDEX, egress_leg());
        let sends = sends.macs(egress_leg().mac, GATEWAY);
        passed(w, TASK_TX, &follower(&Segment { src: ip(family.leg), ..sends.clone() }));
        dropped(w, TASK_TX, &follower(&sends), Reason::NoFirstFragment);
        w.set_task_if(IFINDEX, ingress_leg());
    }
}

pub(crate) fn a_first_fragment_in_a_tunnel_goes_the_long_way(w: &mut dyn World) {
    node(w);
    w.set_member(addr(V4.node2));
    w.set_tunnel(NETWORK, IFINDEX);
    let [_, a, b, c] = NETWORK.to_be_bytes();
    for (family, proto) in [(V4, UDP), (V6, TCP)] {
        let sent = Segment::new(proto, (family.client, 40_000), (family.task, 80)).macs(OTHER_ROUTER, TASK);
        for fragment in split(&large(sent).bytes(), ID, 48) {
            let mut tunnel = Segment::new(UDP, (V4.node2, 50_000), (V4.node, TUNNEL_PORT));
            tunnel.payload = [vec![8, 0, 0, 0, a, b, c, 0], fragment].concat();
            passed(w, MESH, &tunnel.bytes());
        }
    }
}

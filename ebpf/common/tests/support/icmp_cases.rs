//! Cases of ICMP errors: each quotes a packet as the one end knows it, and must reach the other as that end does.

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::{Mac, PortKey, RouterKey};
use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::values::{BalancerIf, EndpointVal, PortVal, TaskIf};
use shoal_ebpf_common::verdict::Out;

use super::packet::{ACK, Complaint, Segment, TCP, UDP};
use super::world::{
    Action, Family, GATE, IFINDEX, LEG, LOCAL, MARK, MATRIX, NETWORK, OTHER_ROUTER, OTHER_TASK, REMOTE,
    REMOTE_DEVICE, ROUTER, SERVICE, TASK, TUNNEL_PORT, V4, V6, VIP, World, addr, dropped, egress_leg,
    forwarded, ingress_leg, ip, local_endpoint, node, node_with_gate, passed, remote_endpoint,
};

const MESH: Program = Program::MeshIngress;
const OVERLAY: Program = Program::OverlayRx;
const TASK_TX: Program = Program::TaskTx;
const HOST: Program = Program::HostTx;
const THIRD_ROUTER: Mac = [2, 0, 0, 0, 0, 3];
const GATEWAY: Mac = [2, 0xee, 0, 0, 0, 1];
const NOBODY: Mac = [0; 6];

/// A router between the client and the node.
fn hop(family: &Family) -> &'static str {
    if family.node == V4.node { "203.0.113.200" } else { "2001:db8:ffff::1" }
}

/// Every error, about a packet as one end knows it and quoted to various lengths: what becomes of it, byte by byte.
#[track_caller]
fn led(
    w: &mut dyn World,
    program: Program,
    (sender, about): (&str, &Segment),
    (macs, out): ((Mac, Mac), Out),
    (seen_sender, seen): (&str, &Segment),
    seen_macs: (Mac, Mac),
) {
    for kind in Complaint::kinds(about.src.is_ipv4()) {
        for cut in [usize::MAX, 8, 9, 16, 18, 21] {
            let error = Complaint { macs, sender: ip(sender), kind, about: about.clone(), cut };
            let run = w.run(program, &error.bytes());
            assert_eq!(run.action, Action::Redirect, "{error:?}");
            assert!(run.out.is_none_or(|at| at == out), "left by {:?}, not {out:?}", run.out);
            let want = Complaint { macs: seen_macs, sender: ip(seen_sender), kind, about: seen.clone(), cut };
            assert_eq!(run.bytes, want.bytes(), "{error:?} should become {want:?}");
        }
    }
}

fn request(family: &Family, proto: u8) -> Segment {
    Segment::new(proto, (family.client, 40_000), (family.node, 8080))
}

/// The answer to a request.
fn answer(request: &Segment) -> Segment {
    let Segment { src, dst, sport, dport, .. } = request.clone();
    Segment { src: dst, dst: src, sport: dport, dport: sport, ..request.clone() }.flags(ACK)
}

pub(crate) fn an_error_about_an_answer_reaches_the_task(w: &mut dyn World) {
    node(w);
    let here = (LOCAL, TASK, Out::Peer(IFINDEX), 40_000);
    for (id, task, out, sport) in [here, (REMOTE, OTHER_TASK, Out::Device(REMOTE_DEVICE), 40_001)] {
        w.set_service(SERVICE, &[id]);
        for (family, proto) in MATRIX {
            let sent = Segment { sport, ..request(&family, proto) };
            let there = forwarded(w, MESH, &sent, out);
            let (about, seen) = (answer(&sent), answer(&there));
            let macs = (GATEWAY, [2; 6]);
            // By a router on the way, or by the client itself.
            for sender in [hop(&family), family.client] {
                led(w, MESH, (sender, &about), (macs, out), (sender, &seen), (ROUTER, task));
            }
        }
    }
}

pub(crate) fn an_error_about_a_request_reaches_the_client(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        let sent = request(&family, proto);
        // From a task elsewhere.
        w.set_service(SERVICE, &[REMOTE]);
        let there = forwarded(w, MESH, &sent, Out::Device(REMOTE_DEVICE));
        let (macs, out) = ((OTHER_TASK, ROUTER), Out::Neighbor(IFINDEX));
        for sender in [family.other, hop(&family)] {
            led(w, OVERLAY, (sender, &there), (macs, out), (family.node, &sent), macs);
        }
        // From one here, by any of its legs.
        w.set_service(SERVICE, &[LOCAL]);
        let sent = Segment { sport: 40_001, ..sent };
        let there = forwarded(w, MESH, &sent, Out::Peer(IFINDEX));
        for (leg, source) in
            [(ingress_leg(), family.task), (egress_leg(), family.task), (egress_leg(), family.leg)]
        {
            w.set_task_if(IFINDEX, leg);
            let macs = (leg.mac, GATEWAY);
            led(w, TASK_TX, (source, &there), (macs, out), (family.node, &sent), macs);
        }
    }
}

pub(crate) fn errors_go_by_the_router_that_brought_the_flow(w: &mut dyn World) {
    node(w);
    w.set_router(RouterKey::new(THIRD_ROUTER));
    for (family, proto) in MATRIX {
        // The second flow differs in nothing but its way, and its port is translated.
        for router in [OTHER_ROUTER, THIRD_ROUTER] {
            let macs = (router, TASK);
            let sent = Segment::new(proto, (family.client, 40_000), (family.task, 80)).macs(macs.0, macs.1);
            let seen = forwarded(w, OVERLAY, &sent, Out::Peer(IFINDEX));
            assert_eq!(seen.sport == sent.sport, router == OTHER_ROUTER);
            for (leg, source) in [(ingress_leg(), family.task), (egress_leg(), family.leg)] {
                w.set_task_if(IFINDEX, leg);
                let way = ((leg.mac, GATEWAY), Out::Device(REMOTE_DEVICE));
                led(w, TASK_TX, (source, &seen), way, (family.task, &sent), (TASK, router));
            }
            let (about, seen) = (answer(&sent), answer(&seen));
            let sender = hop(&family);
            led(w, OVERLAY, (sender, &about), (macs, Out::Peer(IFINDEX)), (sender, &seen), macs);
        }
    }
}

pub(crate) fn an_error_names_the_leg_that_was_answered_by(w: &mut dyn World) {
    node(w);
    w.set_router(RouterKey::new(THIRD_ROUTER));
    w.set_task_if(IFINDEX, egress_leg());
    for (family, proto) in MATRIX {
        for router in [OTHER_ROUTER, THIRD_ROUTER] {
            let macs = (router, TASK);
            let sent = Segment::new(proto, (family.client, 40_000), (family.task, 80)).macs(macs.0, macs.1);
            let seen = forwarded(w, OVERLAY, &sent, Out::Peer(IFINDEX));
            // From the leg's address, as a server that listens on all does.
            let own = Segment { src: ip(family.leg), ..answer(&seen) }.macs(egress_leg().mac, GATEWAY);
            for _ in 0..2 {
                let got = forwarded(w, TASK_TX, &own, Out::Device(REMOTE_DEVICE));
                assert_eq!(got, answer(&sent).macs(TASK, router));
                for kind in Complaint::kinds(sent.src.is_ipv4()) {
                    let sender = ip(family.client);
                    let about = answer(&sent);
                    let error = Complaint { macs, sender, kind, about, cut: usize::MAX };
                    let run = w.run(OVERLAY, &error.bytes());
                    assert_eq!(run.action, Action::Redirect);
                    assert_eq!(run.bytes, Complaint { about: own.clone(), ..error }.to(family.task));
                }
                // The flow goes on as before.
                assert_eq!(
                    forwarded(w, OVERLAY, &sent.clone().flags(ACK), Out::Peer(IFINDEX)).sport,
                    seen.sport
                );
            }
        }
    }
}

pub(crate) fn an_error_shows_the_virtual_ip(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        let sent = Segment::new(proto, (family.task, 40_000), (family.vip, 80)).macs(TASK, VIP);
        // An endpoint elsewhere: about the request, and about the answer.
        w.set_service(SERVICE, &[REMOTE]);
        let there = forwarded(w, TASK_TX, &sent, Out::Device(REMOTE_DEVICE));
        let macs = (OTHER_TASK, TASK);
        led(w, OVERLAY, (family.other, &there), (macs, Out::Peer(IFINDEX)), (family.vip, &sent), macs);
        let (about, seen) = (answer(&sent), answer(&there));
        let way = ((TASK, VIP), Out::Device(REMOTE_DEVICE));
        led(w, TASK_TX, (family.task, &about), way, (family.task, &seen), (TASK, OTHER_TASK));
        // Itself: both look as if the virtual IP had sent them.
        w.set_service(SERVICE, &[LOCAL]);
        let sent = Segment { sport: 40_001, ..sent };
        let there = forwarded(w, TASK_TX, &sent, Out::Peer(IFINDEX));
        assert_eq!(there.src, ip(family.vip));
        let way = ((TASK, VIP), Out::Peer(IFINDEX));
        led(w, TASK_TX, (family.task, &there), way, (family.vip, &sent), (VIP, TASK));
        led(w, TASK_TX, (family.task, &answer(&sent)), way, (family.vip, &answer(&there)), (VIP, TASK));
    }
}

pub(crate) fn an_error_between_tasks_of_one_node_shows_the_virtual_ip(w: &mut dyn World) {
    node(w);
    // The other task is here, too: the client's leg and the endpoint's are one device in turn.
    let EndpointVal { flags, ifindex, .. } = local_endpoint();
    w.set_endpoint(REMOTE, EndpointVal { flags, ifindex, ..remote_endpoint() });
    w.set_service(SERVICE, &[REMOTE]);
    for (family, proto) in MATRIX {
        let sent = Segment::new(proto, (family.task, 40_000), (family.vip, 80)).macs(TASK, VIP);
        w.set_task_if(IFINDEX, ingress_leg());
        let there = forwarded(w, TASK_TX, &sent, Out::Peer(IFINDEX));
        w.set_task_if(IFINDEX, other_leg());
        let macs = (OTHER_TASK, TASK);
        led(w, TASK_TX, (family.other, &there), (macs, Out::Peer(IFINDEX)), (family.vip, &sent), macs);
    }
}

/// The other task's leg in an overlay; it publishes nothing.
fn other_leg() -> TaskIf {
    TaskIf {
        ip4: addr(V4.other),
        ip6: addr(V6.other),
        ingress_ip4: Addr::ANY,
        ingress_ip6: Addr::ANY,
        mac: OTHER_TASK,
        ..ingress_leg()
    }
}

pub(crate) fn errors_of_the_nodes_own_flows_are_led_both_ways(w: &mut dyn World) {
    node(w);
    let here = (LOCAL, Out::Peer(IFINDEX), 41_000);
    for (id, out, first) in [(REMOTE, Out::Device(REMOTE_DEVICE), 40_000), here] {
        w.set_service(SERVICE, &[id]);
        for (family, proto) in MATRIX {
            let loopback = if family.node == V4.node { "127.0.0.1" } else { "::1" };
            let ways = [
                (loopback, loopback, family.router, first),
                (family.node, family.node, family.node, first + 1),
                (family.node, family.node2, family.node, first + 2),
            ];
            for (from, to, seen, port) in ways {
                let sent = Segment::new(proto, (from, port), (to, 8080)).macs(NOBODY, NOBODY);
                let there = forwarded(w, HOST, &sent, out);
                let (task, mac) = if id == LOCAL { (family.task, TASK) } else { (family.other, OTHER_TASK) };
                let program = if id == LOCAL { TASK_TX } else { OVERLAY };
                let way = ((mac, ROUTER), Out::Host(IFINDEX));
                led(w, program, (task, &there), way, (to, &sent), (NOBODY, NOBODY));
                let (about, known) = (answer(&sent), answer(&there));
                let way = ((NOBODY, NOBODY), out);
                led(w, HOST, (from, &about), way, (seen, &known), (ROUTER, mac));
            }
        }
    }
}

pub(crate) fn a_quote_may_have_options_and_no_checksum(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    let mut sent = request(&V4, UDP);
    sent.options = vec![1; 8];
    sent.unchecked = true;
    let there = forwarded(w, MESH, &sent, Out::Peer(IFINDEX));
    let macs = (TASK, GATEWAY);
    led(w, TASK_TX, (V4.task, &there), (macs, Out::Neighbor(IFINDEX)), (V4.node, &sent), macs);
    // Of a first fragment, behind a header that says so.
    let sent = request(&V6, UDP);
    let there = forwarded(w, MESH, &sent, Out::Peer(IFINDEX));
    let error = |sender, about: &Segment| {
        let mut quote = about.bytes()[14..].to_vec();
        quote[6] = 44;
        quote.splice(40..40, [UDP, 0, 0, 1, 0, 0, 0, 7]);
        Complaint { macs, sender: ip(sender), kind: (2, 0), about: about.clone(), cut: 99 }.quoting(&quote)
    };
    let run = w.run(TASK_TX, &error(V6.task, &there));
    assert_eq!(run.action, Action::Redirect);
    assert_eq!(run.bytes, error(V6.node, &sent));
}

pub(crate) fn errors_of_no_flow_are_left_alone(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for (family, proto) in MATRIX {
        let sent = request(&family, proto);
        let there = forwarded(w, MESH, &sent, Out::Peer(IFINDEX));
        let v4 = sent.src.is_ipv4();
        let kind = if v4 { (3, 3) } else { (1, 4) };
        let complaint = |macs, sender, about: &Segment| Complaint {
            macs,
            sender: ip(sender),
            kind,
            about: about.clone(),
            cut: usize::MAX,
        };
        let uplink = (GATEWAY, [2; 6]);
        let other = Segment { dport: 40_009, ..answer(&sent) };
        passed(w, MESH, &complaint(uplink, hop(&family), &other).bytes());
        passed(w, HOST, &complaint(uplink, hop(&family), &other).bytes());
        passed(w, OVERLAY, &complaint((OTHER_TASK, ROUTER), family.other, &other).bytes());
        passed(w, OVERLAY, &complaint((OTHER_ROUTER, TASK), family.client, &other).bytes());
        // Too short for the ports; about a packet that somebody else sent; about another error; no error at all.
        let error = complaint(uplink, hop(&family), &answer(&sent));
        passed(w, MESH, &Complaint { cut: 7, ..error.clone() }.bytes());
        passed(w, MESH, &error.to(family.node2));
        passed(w, MESH, &error.quoting(&error.bytes()[14..]));
        for kind in if v4 { [(8, 0), (0, 0), (5, 1)] } else { [(128, 0), (129, 0), (137, 0)] } {
            passed(w, MESH, &Complaint { kind, ..error.clone() }.bytes());
        }
        // A task speaks of what came to itself, as itself.
        let forged = Segment { dst: ip(family.other), ..there.clone() };
        passed(w, TASK_TX, &complaint((TASK, GATEWAY), family.task, &forged).bytes());
        let reason = if v4 { Reason::SpoofedIpv4 } else { Reason::SpoofedIpv6 };
        dropped(w, TASK_TX, &complaint((TASK, GATEWAY), family.other, &there).bytes(), reason);
        let to_vip = Segment { src: ip(family.vip), dst: ip(family.other), ..there };
        passed(w, TASK_TX, &complaint((TASK, VIP), family.task, &to_vip).bytes());
    }
}

pub(crate) fn errors_of_a_balancers_flows_are_the_balancers(w: &mut dyn World) {
    node_with_gate(w);
    w.set_balancer_if(IFINDEX, BalancerIf { vxlan: IFINDEX, steer: 1 });
    for (family, proto) in MATRIX {
        w.set_port(PortKey::new(Addr::ANY, 8080, proto), PortVal::balanced(SERVICE, 80, MARK));
        let sent = request(&family, proto);
        forwarded(w, MESH, &sent, Out::Peer(GATE));
        let (about, sender, macs) = (answer(&sent), hop(&family), (GATEWAY, [2; 6]));
        led(w, MESH, (sender, &about), (macs, Out::Peer(GATE)), (sender, &about), macs);
        // About what it sent to a task elsewhere, and to one here that another router reaches from the same port.
        let there = Segment { dst: ip(family.other), dport: 80, ..sent.clone() };
        let macs = (OTHER_TASK, ROUTER);
        led(w, OVERLAY, (family.other, &there), (macs, Out::Peer(LEG)), (family.other, &there), macs);
        let first = Segment::new(proto, (family.client, 40_000), (family.task, 80));
        forwarded(w, OVERLAY, &first.clone().macs(OTHER_ROUTER, TASK), Out::Peer(IFINDEX));
        let seen = forwarded(w, Program::BalancerTx, &first.clone().macs(ROUTER, TASK), Out::Peer(IFINDEX));
        assert_ne!(seen.sport, first.sport);
        let (macs, about) = ((ROUTER, TASK), answer(&first));
        let way = (macs, Out::Peer(IFINDEX));
        led(w, Program::BalancerTx, (sender, &about), way, (sender, &answer(&seen)), macs);
        let unknown = Segment { dport: 41_000, ..about };
        led(w, Program::BalancerTx, (sender, &unknown), way, (sender, &unknown), macs);
    }
}

pub(crate) fn an_error_in_a_tunnel_goes_the_long_way(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[REMOTE]);
    w.set_member(addr(V4.node2));
    w.set_tunnel(NETWORK, IFINDEX);
    let there = forwarded(w, MESH, &request(&V4, TCP), Out::Device(REMOTE_DEVICE));
    let macs = (OTHER_TASK, ROUTER);
    let error = Complaint { macs, sender: ip(V4.other), kind: (3, 3), about: there, cut: 8 };
    let mut tunnel = Segment::new(UDP, (V4.node2, 50_000), (V4.node, TUNNEL_PORT));
    let [_, a, b, c] = NETWORK.to_be_bytes();
    tunnel.payload = [vec![8, 0, 0, 0, a, b, c, 0], error.bytes()].concat();
    passed(w, MESH, &tunnel.bytes());
}

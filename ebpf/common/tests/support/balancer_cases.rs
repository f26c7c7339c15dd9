//! Cases of packets that a balancer's namespace chooses for: on the way in, and on the way out of it.

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::{PortKey, VipKey};
use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::values::{BALANCED, BalancerIf, NodeConfig, PortVal, REPLY_STEER, TaskIf, VipVal};
use shoal_ebpf_common::verdict::Out;

use super::packet::{ACK, SYN, Segment, TCP, UDP, arp};
use super::world::{
    Action, GATE, IFINDEX, LEG, MARK, MATRIX, NETWORK, OTHER_ROUTER, OTHER_TASK, REMOTE, REMOTE_DEVICE,
    ROUTER, SERVICE, TASK, TUNNEL_PORT, V4, V6, VIP, World, addr, dropped, forwarded, ingress_leg, ip, key,
    node, node_with_gate, passed,
};

/// The node of the other cases, with a balancer for its port and its virtual IP.
fn balanced(w: &mut dyn World) {
    node_with_gate(w);
    engine(w, MARK);
    w.set_balancer_if(IFINDEX, BalancerIf { vxlan: IFINDEX, steer: 1 });
}

/// New flows are chosen for by virtual services with a mark, or by the service's table (0).
fn engine(w: &mut dyn World, mark: u32) {
    for proto in [TCP, UDP] {
        w.set_port(PortKey::new(Addr::ANY, 8080, proto), PortVal::balanced(SERVICE, 80, mark));
    }
    for family in [V4, V6] {
        let key = VipKey { addr: addr(family.vip), network: NETWORK };
        w.set_vip(key, VipVal { service: SERVICE, mac: VIP, balancer: LEG, mark, ..VipVal::default() });
    }
}

/// Runs a program and expects the packet unchanged on its way into a namespace, with a mark.
#[track_caller]
fn handed_over(w: &mut dyn World, program: Program, segment: &Segment, ifindex: u32, mark: u32) {
    let run = w.run(program, &segment.bytes());
    assert_eq!(run.action, Action::Redirect, "{segment:?}");
    assert_eq!(Segment::parse(&run.bytes), *segment, "a balancer gets what was sent");
    assert!(run.out.is_none_or(|out| out == Out::Peer(ifindex)), "left by {:?}", run.out);
    assert!(run.mark.is_none_or(|found| found == mark), "marked {:?}", run.mark);
}

pub(crate) fn flows_of_a_balancer_that_only_begin_leave_room_for_others(w: &mut dyn World) {
    balanced(w);
    let sent = |port| Segment::new(TCP, (V4.client, port), (V4.node, 8080));
    let flow = |port| key(TCP, 0, (V4.client, port), (V4.node, 8080));
    handed_over(w, Program::MeshIngress, &sent(50_000), GATE, MARK);
    handed_over(w, Program::MeshIngress, &sent(50_000).flags(ACK), GATE, MARK);
    for port in 1..=6000 {
        handed_over(w, Program::MeshIngress, &sent(port), GATE, MARK);
    }
    assert!(w.flow(&flow(6000)).is_some(), "what came last is there");
    assert_eq!(w.flow(&flow(1)), None, "what came first made room");
    assert!(w.flow(&flow(50_000)).is_some(), "what is open stays");
}

pub(crate) fn published_port_goes_through_the_gate(w: &mut dyn World) {
    balanced(w);
    for (family, proto) in MATRIX {
        let sent = Segment::new(proto, (family.client, 40_000), (family.node, 8080));
        for segment in [sent.clone(), sent.flags(ACK)] {
            handed_over(w, Program::MeshIngress, &segment, GATE, MARK);
        }
        let flow = w.flow(&key(proto, 0, (family.client, 40_000), (family.node, 8080))).expect("a flow");
        assert_eq!((flow.endpoint, flow.service, flow.mark), (BALANCED, SERVICE, MARK));
        let answers = key(proto, 0, (family.task, 80), (family.client, 40_000));
        assert!(w.reply(&answers).is_none(), "the balancer knows how to answer");
    }
}

pub(crate) fn a_flow_stays_with_the_engine_it_began_on(w: &mut dyn World) {
    balanced(w);
    w.set_service(SERVICE, &[REMOTE]);
    for (family, proto) in MATRIX {
        engine(w, MARK);
        let sent = |port| Segment::new(proto, (family.client, port), (family.node, 8080)).flags(ACK);
        handed_over(w, Program::MeshIngress, &sent(40_000).flags(SYN), GATE, MARK);
        // Switched over: what goes on goes on, what is new is chosen for by the table.
        engine(w, 0);
        handed_over(w, Program::MeshIngress, &sent(40_000), GATE, MARK);
        let new = forwarded(w, Program::MeshIngress, &sent(40_001).flags(SYN), Out::Device(REMOTE_DEVICE));
        assert_eq!(new.dst, ip(family.other));
        // And back again.
        engine(w, MARK);
        let old = forwarded(w, Program::MeshIngress, &sent(40_001), Out::Device(REMOTE_DEVICE));
        assert_eq!(old.dst, ip(family.other));
        handed_over(w, Program::MeshIngress, &sent(40_002).flags(SYN), GATE, MARK);
    }
}

pub(crate) fn without_a_gate_the_table_chooses(w: &mut dyn World) {
    balanced(w);
    w.set_service(SERVICE, &[REMOTE]);
    for (family, proto) in MATRIX {
        let sent = Segment::new(proto, (family.client, 40_000), (family.node, 8080));
        handed_over(w, Program::MeshIngress, &sent, GATE, MARK);
    }
    // The balancer is gone, and with it what it knew.
    w.set_config(NodeConfig {
        router_ip4: addr(V4.router),
        router_ip6: addr(V6.router),
        router_mac: ROUTER,
        vxlan_port: TUNNEL_PORT,
        ..NodeConfig::default()
    });
    for (family, proto) in MATRIX {
        let sent = Segment::new(proto, (family.client, 40_000), (family.node, 8080)).flags(ACK);
        forwarded(w, Program::MeshIngress, &sent, Out::Device(REMOTE_DEVICE));
        let answer = Segment::new(proto, (family.other, 9), (family.client, 40_000)).macs(OTHER_TASK, ROUTER);
        dropped(w, Program::OverlayRx, &answer.bytes(), Reason::UnknownReply);
    }
}

pub(crate) fn answers_of_no_table_are_the_balancers(w: &mut dyn World) {
    balanced(w);
    for (family, proto) in MATRIX {
        let answer =
            Segment::new(proto, (family.other, 80), (family.client, 40_000)).macs(OTHER_TASK, ROUTER);
        assert_eq!(forwarded(w, Program::OverlayRx, &answer, Out::Peer(LEG)), answer);
    }
}

pub(crate) fn a_balancer_reaches_tasks_here_and_elsewhere(w: &mut dyn World) {
    balanced(w);
    for (family, proto) in MATRIX {
        let here = Segment::new(proto, (family.client, 40_000), (family.task, 80)).macs(ROUTER, TASK);
        assert_eq!(forwarded(w, Program::BalancerTx, &here, Out::Peer(IFINDEX)), here);
        let there = Segment::new(proto, (family.client, 40_000), (family.other, 80)).macs(ROUTER, OTHER_TASK);
        assert_eq!(forwarded(w, Program::BalancerTx, &there, Out::Device(IFINDEX)), there);
        assert!(w.reply(&key(proto, 0, (family.other, 80), (family.client, 40_000))).is_none());
        // The answer of the task that is here comes back, whichever leg and address it leaves by.
        let answers = key(proto, 0, (family.task, 80), (family.client, 40_000));
        let steering = w.reply(&answers).expect("steering");
        assert_eq!((steering.kind, steering.mac), (REPLY_STEER, ROUTER));
        let answer = Segment::new(proto, (family.task, 80), (family.client, 40_000)).macs(TASK, ROUTER);
        assert_eq!(forwarded(w, Program::TaskTx, &answer, Out::Peer(LEG)), answer);
    }
    passed(w, Program::BalancerTx, &arp(ROUTER, 1, ROUTER, V4.router, V4.task));
}

pub(crate) fn a_balancer_that_forwards_unchanged_steers_nothing(w: &mut dyn World) {
    balanced(w);
    w.set_balancer_if(IFINDEX, BalancerIf { vxlan: IFINDEX, steer: 0 });
    for (family, proto) in MATRIX {
        let here = Segment::new(proto, (family.other, 40_000), (family.vip, 80)).macs(ROUTER, TASK);
        assert_eq!(forwarded(w, Program::BalancerTx, &here, Out::Peer(IFINDEX)), here);
        assert!(w.reply(&key(proto, 0, (family.vip, 80), (family.other, 40_000))).is_none());
    }
}

pub(crate) fn only_what_was_translated_leaves_by_the_gate(w: &mut dyn World) {
    balanced(w);
    for (family, proto) in MATRIX {
        let stray = Segment::new(proto, (family.other, 80), (family.client, 40_000));
        dropped(w, Program::GateTx, &stray.bytes(), Reason::UnknownReply);
    }
}

pub(crate) fn virtual_ip_goes_to_the_networks_balancer(w: &mut dyn World) {
    balanced(w);
    w.set_service(SERVICE, &[REMOTE]);
    for (family, proto) in MATRIX {
        engine(w, MARK);
        let sent = |port| Segment::new(proto, (family.task, port), (family.vip, 80)).macs(TASK, VIP);
        handed_over(w, Program::TaskTx, &sent(40_000), LEG, MARK);
        engine(w, 0);
        handed_over(w, Program::TaskTx, &sent(40_000).flags(ACK), LEG, MARK);
        let new = forwarded(w, Program::TaskTx, &sent(40_001), Out::Device(REMOTE_DEVICE));
        assert_eq!(new.dst, ip(family.other));
    }
}

pub(crate) fn a_task_answers_from_its_virtual_ip_only_where_it_may(w: &mut dyn World) {
    balanced(w);
    for (family, proto) in MATRIX {
        let reason = if family.vip.contains(':') { Reason::SpoofedIpv6 } else { Reason::SpoofedIpv4 };
        let answer = Segment::new(proto, (family.vip, 80), (family.other, 40_000)).macs(TASK, OTHER_TASK);
        w.set_task_if(IFINDEX, ingress_leg());
        dropped(w, Program::TaskTx, &answer.bytes(), reason);
        let vips = TaskIf { vip_ip4: addr(V4.vip), vip_ip6: addr(V6.vip), ..ingress_leg() };
        w.set_task_if(IFINDEX, vips);
        passed(w, Program::TaskTx, &answer.bytes());
    }
    // It does not speak for it to its neighbors.
    dropped(w, Program::TaskTx, &arp(TASK, 2, TASK, V4.vip, V4.other), Reason::SpoofedArp);
}

pub(crate) fn datagrams_to_a_virtual_ip_are_answered_from_it(w: &mut dyn World) {
    balanced(w);
    w.set_balancer_if(IFINDEX, BalancerIf { vxlan: IFINDEX, steer: 0 });
    for (family, proto) in MATRIX {
        // From the balancer of another node, which has its router's address, and from this node's.
        let ways = [(Program::OverlayRx, 40_000, OTHER_ROUTER), (Program::BalancerTx, 40_001, ROUTER)];
        for (program, port, from) in ways {
            let asked = Segment::new(proto, (family.other, port), (family.vip, 80)).macs(from, TASK);
            assert_eq!(forwarded(w, program, &asked, Out::Peer(IFINDEX)), asked, "by direct routing");
            // By the address of its route, as a server does that listens on all.
            let answer = Segment::new(proto, (family.task, 80), (family.other, port)).macs(TASK, OTHER_TASK);
            if proto == UDP {
                let got = forwarded(w, Program::TaskTx, &answer, Out::Device(REMOTE_DEVICE));
                assert_eq!(got, Segment { src: ip(family.vip), ..answer });
            } else {
                passed(w, Program::TaskTx, &answer.bytes());
            }
        }
    }
}

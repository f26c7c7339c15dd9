//! Cases of `task_tx`.

use shoal_ebpf_common::guard::link_local;
use shoal_ebpf_common::keys::Mac;
use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::verdict::Out;

use super::packet::{self, ACK, FIN, SYN, Segment, TCP, UDP, arp, icmpv6, neighbor};
use super::world::{
    Action, IFINDEX, LOCAL, MATRIX, OTHER_ROUTER, OTHER_TASK, REMOTE, REMOTE_DEVICE, SERVICE, TASK, V4, V6,
    VIP, World, dropped, egress_leg, forwarded, ingress_leg, ip, node, passed,
};

const TASK_TX: Program = Program::TaskTx;
const GATEWAY: Mac = [2, 0xee, 0, 0, 0, 1];

/// A flow that entered by another node, as its first packet leaves it here.
fn entered_elsewhere(w: &mut dyn World) {
    for (family, proto) in MATRIX {
        let packet = Segment::new(proto, (family.client, 40_000), (family.task, 80)).macs(OTHER_ROUTER, TASK);
        forwarded(w, Program::OverlayRx, &packet, Out::Peer(IFINDEX));
    }
}

pub(crate) fn answer_goes_to_the_router_it_came_by(w: &mut dyn World) {
    node(w);
    entered_elsewhere(w);
    for (family, proto) in MATRIX {
        let answer =
            Segment::new(proto, (family.task, 80), (family.client, 40_000)).flags(ACK).macs(TASK, GATEWAY);
        let got = forwarded(w, TASK_TX, &answer, Out::Device(REMOTE_DEVICE));
        assert_eq!(got, Segment { dst_mac: OTHER_ROUTER, ..answer });
    }
}

pub(crate) fn answer_by_another_leg_is_put_right(w: &mut dyn World) {
    node(w);
    entered_elsewhere(w);
    w.set_task_if(IFINDEX, egress_leg());
    for (family, proto) in MATRIX {
        // The source of that leg, or the right one on the wrong leg.
        for source in [family.leg, family.task] {
            let answer =
                Segment::new(proto, (source, 80), (family.client, 40_000)).macs(egress_leg().mac, GATEWAY);
            let got = forwarded(w, TASK_TX, &answer, Out::Device(REMOTE_DEVICE));
            assert_eq!(got, Segment { src: ip(family.task), src_mac: TASK, dst_mac: OTHER_ROUTER, ..answer });
        }
        // Without a flow the leg's own source goes its way, and the other is not the leg's.
        let own =
            Segment::new(proto, (family.leg, 80), (family.client, 40_001)).macs(egress_leg().mac, GATEWAY);
        passed(w, TASK_TX, &own.bytes());
        let reason = if ip(family.leg).is_ipv4() { Reason::SpoofedIpv4 } else { Reason::SpoofedIpv6 };
        dropped(w, TASK_TX, &Segment { src: ip(family.task), ..own }.bytes(), reason);
    }
}

pub(crate) fn answer_of_a_flow_that_entered_here_is_restored(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for (family, proto) in MATRIX {
        let request = Segment::new(proto, (family.client, 40_000), (family.node, 8080));
        forwarded(w, Program::MeshIngress, &request, Out::Peer(IFINDEX));
        for (leg, source) in [(ingress_leg(), family.task), (egress_leg(), family.leg)] {
            w.set_task_if(IFINDEX, leg);
            let answer = Segment::new(proto, (source, 80), (family.client, 40_000)).macs(leg.mac, GATEWAY);
            let got = forwarded(w, TASK_TX, &answer, Out::Neighbor(IFINDEX));
            assert_eq!((got.src, got.sport), (ip(family.node), 8080));
            assert_eq!((got.dst, got.dport), (ip(family.client), 40_000));
        }
    }
}

pub(crate) fn a_task_sends_only_as_itself(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        let own = Segment::new(proto, (family.task, 5000), (family.client, 53)).macs(TASK, GATEWAY);
        passed(w, TASK_TX, &own.bytes());
        dropped(w, TASK_TX, &own.clone().macs(OTHER_TASK, GATEWAY).bytes(), Reason::SpoofedMac);
        let reason = if own.src.is_ipv4() { Reason::SpoofedIpv4 } else { Reason::SpoofedIpv6 };
        dropped(w, TASK_TX, &Segment { src: ip(family.other), ..own.clone() }.bytes(), reason);
        let nobody = if own.src.is_ipv4() { "0.0.0.0" } else { "::" };
        dropped(w, TASK_TX, &Segment { src: ip(nobody), ..own }.bytes(), reason);
    }
    let dhcp =
        |family: &super::world::Family, port| Segment::new(UDP, (family.task, port), (family.client, 68));
    dropped(w, TASK_TX, &dhcp(&V4, 67).macs(TASK, GATEWAY).bytes(), Reason::RogueControl);
    dropped(w, TASK_TX, &dhcp(&V6, 547).macs(TASK, GATEWAY).bytes(), Reason::RogueControl);
    let mut other = Segment::new(TCP, (V4.task, 1), (V4.client, 1)).macs(TASK, GATEWAY).bytes();
    other[12..14].copy_from_slice(&[0x81, 0x00]);
    dropped(w, TASK_TX, &other, Reason::UnknownEthertype);
    let mut short = Segment::new(TCP, (V4.task, 1), (V4.client, 1)).macs(TASK, GATEWAY).bytes();
    short[14] = 0x42;
    dropped(w, TASK_TX, &short, Reason::Malformed);
}

pub(crate) fn a_task_without_an_entry_sends_nothing(w: &mut dyn World) {
    let packet = Segment::new(TCP, (V4.task, 1), (V4.client, 1)).macs(TASK, GATEWAY);
    dropped(w, TASK_TX, &packet.bytes(), Reason::UnknownInterface);
}

pub(crate) fn arp_speaks_for_the_task_only(w: &mut dyn World) {
    node(w);
    passed(w, TASK_TX, &arp(TASK, 1, TASK, V4.task, V4.other));
    passed(w, TASK_TX, &arp(TASK, 2, TASK, V4.task, V4.other));
    passed(w, TASK_TX, &arp(TASK, 1, TASK, "0.0.0.0", V4.task));
    dropped(w, TASK_TX, &arp(TASK, 2, TASK, V4.other, V4.other), Reason::SpoofedArp);
    dropped(w, TASK_TX, &arp(TASK, 1, OTHER_TASK, V4.task, V4.other), Reason::SpoofedArp);
    dropped(w, TASK_TX, &arp(OTHER_TASK, 1, OTHER_TASK, V4.other, V4.other), Reason::SpoofedMac);
    // On the egress leg it asks for the gateway as its ingress address: it asks as its address there.
    w.set_task_if(IFINDEX, egress_leg());
    let mac = egress_leg().mac;
    let run = w.run(TASK_TX, &arp(mac, 1, mac, V4.task, "172.19.0.1"));
    assert_eq!((run.action, run.bytes), (Action::Pass, arp(mac, 1, mac, V4.leg, "172.19.0.1")));
    dropped(w, TASK_TX, &arp(mac, 2, mac, V4.task, "172.19.0.1"), Reason::SpoofedArp);
    dropped(w, TASK_TX, &arp(mac, 1, mac, V4.task, V4.task), Reason::SpoofedArp);
}

pub(crate) fn neighbor_discovery_speaks_for_the_task_only(w: &mut dyn World) {
    node(w);
    let own_link_local = std::net::IpAddr::from(link_local(&TASK)).to_string();
    let all = "ff02::1";
    for source in [V6.task, &own_link_local] {
        passed(w, TASK_TX, &neighbor(TASK, 135, source, all, V6.other, Some((1, TASK))));
        passed(w, TASK_TX, &neighbor(TASK, 136, source, all, source, Some((2, TASK))));
        passed(w, TASK_TX, &neighbor(TASK, 136, source, all, source, None));
    }
    passed(w, TASK_TX, &neighbor(TASK, 135, "::", all, V6.task, None));
    passed(w, TASK_TX, &neighbor(TASK, 135, "::", all, V6.task, Some((14, [9; 6]))));
    for bad in [
        neighbor(TASK, 136, V6.task, all, V6.other, Some((2, TASK))),
        neighbor(TASK, 136, V6.task, all, V6.task, Some((2, OTHER_TASK))),
        neighbor(TASK, 135, V6.task, all, V6.other, Some((1, OTHER_TASK))),
    ] {
        dropped(w, TASK_TX, &bad, Reason::SpoofedNd);
    }
    // A second option could hide an address behind a harmless first.
    let mut upper = vec![136, 0, 0, 0, 0, 0, 0, 0];
    upper.extend(V6.task.parse::<std::net::Ipv6Addr>().unwrap().octets());
    upper.extend([14, 1, 0, 0, 0, 0, 0, 0, 2, 1, 6, 6, 6, 6, 6, 6]);
    let hidden = icmpv6(TASK, V6.task.parse().unwrap(), all.parse().unwrap(), upper);
    dropped(w, TASK_TX, &hidden, Reason::SpoofedNd);
    dropped(w, TASK_TX, &neighbor(TASK, 136, "::", all, V6.task, None), Reason::SpoofedIpv6);
    dropped(w, TASK_TX, &neighbor(TASK, 134, &own_link_local, all, V6.task, None), Reason::RogueControl);
    dropped(w, TASK_TX, &neighbor(TASK, 137, &own_link_local, all, V6.task, None), Reason::RogueControl);
}

pub(crate) fn virtual_ip_leads_to_a_remote_task(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[REMOTE]);
    for (family, proto) in MATRIX {
        let request = Segment::new(proto, (family.task, 40_000), (family.vip, 5432)).macs(TASK, VIP);
        let got = forwarded(w, TASK_TX, &request, Out::Device(REMOTE_DEVICE));
        assert_eq!(got, Segment { dst: ip(family.other), dst_mac: OTHER_TASK, ..request });
    }
}

pub(crate) fn virtual_ip_prefers_another_task(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        for port in 40_000..40_032 {
            let request = Segment::new(proto, (family.task, port), (family.vip, 80)).macs(TASK, VIP);
            forwarded(w, TASK_TX, &request, Out::Device(REMOTE_DEVICE));
        }
    }
}

pub(crate) fn a_task_may_be_its_own_server(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for (family, proto) in MATRIX {
        let request = Segment::new(proto, (family.task, 40_000), (family.vip, 80)).macs(TASK, VIP);
        let got = forwarded(w, TASK_TX, &request, Out::Peer(IFINDEX));
        let want =
            Segment { src: ip(family.vip), dst: ip(family.task), src_mac: VIP, dst_mac: TASK, ..request };
        assert_eq!(got, want, "it seems to come from the virtual IP");
        let answer = Segment::new(proto, (family.task, 80), (family.vip, 40_000)).flags(ACK).macs(TASK, VIP);
        let got = forwarded(w, TASK_TX, &answer, Out::Peer(IFINDEX));
        let want =
            Segment { src: ip(family.vip), dst: ip(family.task), src_mac: VIP, dst_mac: TASK, ..answer };
        assert_eq!(got, want);
    }
}

pub(crate) fn virtual_ip_without_endpoint_drops(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[]);
    for (family, proto) in MATRIX {
        let request = Segment::new(proto, (family.task, 40_000), (family.vip, 80)).macs(TASK, VIP);
        dropped(w, TASK_TX, &request.bytes(), Reason::NoEndpoint);
    }
}

pub(crate) fn connections_to_an_endpoint_and_through_its_virtual_ip_do_not_mix(w: &mut dyn World) {
    const OVERLAY: Program = Program::OverlayRx;
    node(w);
    w.set_service(SERVICE, &[REMOTE]);
    for family in [V4, V6] {
        let through = Segment::new(TCP, (family.task, 40_000), (family.vip, 80)).macs(TASK, VIP);
        let direct = Segment::new(TCP, (family.task, 40_000), (family.other, 80)).macs(TASK, OTHER_TASK);
        let answer = Segment::new(TCP, (family.other, 80), (family.task, 40_000)).macs(OTHER_TASK, TASK);
        let go_on = |w: &mut dyn World, flags: u8| {
            forwarded(w, TASK_TX, &through.clone().flags(flags), Out::Device(REMOTE_DEVICE));
            let got = forwarded(w, OVERLAY, &answer.clone().flags(flags), Out::Peer(IFINDEX));
            assert_eq!(got.src, ip(family.vip));
        };
        go_on(w, SYN);
        go_on(w, ACK);
        // One that goes on keeps its port.
        dropped(w, TASK_TX, &direct.bytes(), Reason::NoSourcePort);
        go_on(w, FIN | ACK);
        // One that has ended leaves it.
        passed(w, TASK_TX, &direct.bytes());
        passed(w, OVERLAY, &answer.clone().flags(SYN | ACK).bytes());
        passed(w, TASK_TX, &direct.clone().flags(ACK).bytes());
        // And so does one whose endpoint is gone.
        go_on(w, SYN);
        go_on(w, ACK);
        w.remove_endpoint(REMOTE);
        passed(w, TASK_TX, &direct.bytes());
        passed(w, OVERLAY, &answer.clone().flags(SYN | ACK).bytes());
        w.set_endpoint(REMOTE, super::world::remote_endpoint());
    }
}

pub(crate) fn answer_between_tasks_of_one_node_is_restored(w: &mut dyn World) {
    node(w);
    // The server is here too, behind the same interface as far as the test is concerned.
    w.set_endpoint(
        REMOTE,
        shoal_ebpf_common::values::EndpointVal {
            flags: shoal_ebpf_common::values::ENDPOINT_LOCAL,
            ..super::world::remote_endpoint()
        },
    );
    w.set_service(SERVICE, &[REMOTE]);
    for (family, proto) in MATRIX {
        w.set_task_if(IFINDEX, ingress_leg());
        let request = Segment::new(proto, (family.task, 40_000), (family.vip, 80)).macs(TASK, VIP);
        let got = forwarded(w, TASK_TX, &request, Out::Peer(REMOTE_DEVICE));
        assert_eq!((got.dst, got.dst_mac), (ip(family.other), OTHER_TASK));
        let mut server = ingress_leg();
        (server.ip4, server.ip6, server.mac) =
            (super::world::addr(V4.other), super::world::addr(V6.other), OTHER_TASK);
        w.set_task_if(IFINDEX, server);
        let answer =
            Segment::new(proto, (family.other, 80), (family.task, 40_000)).flags(ACK).macs(OTHER_TASK, TASK);
        let got = forwarded(w, TASK_TX, &answer, Out::Peer(IFINDEX));
        assert_eq!(got, Segment { src: ip(family.vip), ..answer });
    }
}

pub(crate) fn the_virtual_ip_answers_for_its_ethernet_address(w: &mut dyn World) {
    node(w);
    let run = w.run(TASK_TX, &arp(TASK, 1, TASK, V4.task, V4.vip));
    assert_eq!(run.action, Action::Redirect);
    assert!(run.out.is_none_or(|out| out == Out::Device(IFINDEX)));
    assert_eq!(run.bytes[..12], [TASK, VIP].concat());
    assert_eq!(run.bytes[20..22], [0, 2], "a reply");
    assert_eq!(run.bytes[22..28], VIP);
    assert_eq!(run.bytes[28..32], [10, 255, 200, 1]);
    assert_eq!(run.bytes[32..38], TASK);
    assert_eq!(run.bytes[38..42], [10, 255, 1, 1]);

    let run = w.run(TASK_TX, &neighbor(TASK, 135, V6.task, "ff02::1:ff00:ffff", V6.vip, Some((1, TASK))));
    assert_eq!(run.action, Action::Redirect);
    let want = neighbor(VIP, 136, V6.vip, V6.task, V6.vip, Some((2, VIP)));
    assert_eq!(run.bytes[..12], [TASK, VIP].concat());
    assert_eq!(run.bytes[12..54], want[12..54], "from the virtual IP to the task");
    assert_eq!((run.bytes[54], run.bytes[58]), (136, 0x60), "solicited and overriding");
    assert_eq!(run.bytes[62..], want[62..]);
    assert!(packet::icmpv6_is_valid(&run.bytes));
}

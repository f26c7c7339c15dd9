//! Cases of `overlay_rx`.

use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::values::REPLY_STEER;
use shoal_ebpf_common::verdict::Out;

use super::packet::{ACK, SYN, Segment, TCP, arp};
use super::world::{
    IFINDEX, MATRIX, NETWORK, OTHER_ROUTER, OTHER_TASK, REMOTE, REMOTE_DEVICE, ROUTER, SERVICE, TASK, V4,
    World, dropped, forwarded, ip, key, node, passed,
};

const OVERLAY: Program = Program::OverlayRx;

pub(crate) fn answer_at_the_entry_node_gets_its_source_back(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[REMOTE]);
    for (family, proto) in MATRIX {
        let request = Segment::new(proto, (family.client, 40_000), (family.node, 8080));
        forwarded(w, Program::MeshIngress, &request, Out::Device(REMOTE_DEVICE));
        let answer = Segment::new(proto, (family.other, 80), (family.client, 40_000))
            .flags(ACK)
            .macs(OTHER_TASK, ROUTER);
        let got = forwarded(w, OVERLAY, &answer, Out::Neighbor(IFINDEX));
        assert_eq!(got, Segment { src: ip(family.node), sport: 8080, ..answer });
    }
}

pub(crate) fn answer_of_no_flow_is_dropped(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        let answer =
            Segment::new(proto, (family.other, 80), (family.client, 40_000)).macs(OTHER_TASK, ROUTER);
        dropped(w, OVERLAY, &answer.bytes(), Reason::UnknownReply);
    }
}

pub(crate) fn packets_for_the_router_itself_pass(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        let packet =
            Segment::new(proto, (family.other, 80), (family.router, 40_000)).macs(OTHER_TASK, ROUTER);
        passed(w, OVERLAY, &packet.bytes());
    }
    passed(w, OVERLAY, &arp(OTHER_TASK, 1, OTHER_TASK, V4.other, V4.router));
}

pub(crate) fn flow_of_another_node_is_delivered_and_remembered(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        for flags in [SYN, ACK] {
            let packet = Segment::new(proto, (family.client, 40_000), (family.task, 80))
                .flags(flags)
                .macs(OTHER_ROUTER, TASK);
            assert_eq!(forwarded(w, OVERLAY, &packet, Out::Peer(IFINDEX)), packet, "unchanged");
            let reply =
                w.reply(&key(proto, 0, (family.task, 80), (family.client, 40_000))).expect("steering");
            assert_eq!((reply.kind, reply.mac), (REPLY_STEER, OTHER_ROUTER), "by the router it came through");
        }
    }
}

pub(crate) fn frames_of_others_go_to_the_bridge(w: &mut dyn World) {
    node(w);
    for (family, proto) in MATRIX {
        // From a task to a task.
        let packet = Segment::new(proto, (family.other, 4000), (family.task, 80)).macs(OTHER_TASK, TASK);
        passed(w, OVERLAY, &packet.bytes());
        // From a router to an address that is not the task's.
        let packet = Segment::new(proto, (family.client, 4000), (family.leg, 80)).macs(OTHER_ROUTER, TASK);
        passed(w, OVERLAY, &packet.bytes());
        // To a task that is not here.
        let packet =
            Segment::new(proto, (family.client, 4000), (family.other, 80)).macs(OTHER_ROUTER, OTHER_TASK);
        passed(w, OVERLAY, &packet.bytes());
    }
}

pub(crate) fn answer_to_a_virtual_ip_gets_its_source_back(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[REMOTE]);
    for (family, proto) in MATRIX {
        let request = Segment::new(proto, (family.task, 40_000), (family.vip, 80)).macs(TASK, [2; 6]);
        forwarded(w, Program::TaskTx, &request, Out::Device(REMOTE_DEVICE));
        let answer =
            Segment::new(proto, (family.other, 80), (family.task, 40_000)).flags(ACK).macs(OTHER_TASK, TASK);
        let got = forwarded(w, OVERLAY, &answer, Out::Peer(IFINDEX));
        assert_eq!(got, Segment { src: ip(family.vip), ..answer });
        // In another network, or from another port, it is not the answer.
        assert!(w.reply(&key(proto, NETWORK + 1, (family.other, 80), (family.task, 40_000))).is_none());
        let stranger = Segment::new(TCP, (family.other, 81), (family.task, 40_000)).macs(OTHER_TASK, TASK);
        passed(w, OVERLAY, &stranger.bytes());
    }
}

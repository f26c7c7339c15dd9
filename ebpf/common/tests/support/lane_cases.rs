//! Cases of the fast lane: tunnel packets that `mesh_ingress` opens.

use std::net::Ipv4Addr;

use shoal_ebpf_common::lane::{self, Parcel};
use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::values::{PeerVal, REPLY_STEER};
use shoal_ebpf_common::verdict::Out;

use super::packet::{ACK, Segment};
use super::world::{
    Action, IFINDEX, MATRIX, NETWORK, OTHER_ROUTER, OTHER_TASK, REMOTE, REMOTE_DEVICE, ROUTER, SERVICE, TASK,
    TUNNEL_PORT, World, addr, dropped, forwarded, ip, key, node, passed,
};

const UPLINK: Program = Program::MeshIngress;
pub(crate) const MEMBER: [u8; 4] = [192, 0, 2, 201];
pub(crate) const SELF: [u8; 4] = [192, 0, 2, 202];

/// A frame in a tunnel packet from a member.
pub(crate) fn tunneled(frame: &[u8], vni: u32) -> Vec<u8> {
    let peer = PeerVal { vtep: u32::from_ne_bytes(SELF), source: u32::from_ne_bytes(MEMBER), vni, mtu: 1450 };
    let parcel = Parcel {
        head: *frame.first_chunk().unwrap(),
        length: u16::try_from(frame.len()).unwrap(),
        port: 50_000,
        id: 7,
    };
    let mut bytes = vec![2, 0xee, 0, 0, 0, 2, 2, 0xee, 0, 0, 0, 1];
    bytes.extend(lane::wrap(&parcel, &peer, TUNNEL_PORT).iter().flat_map(|word| word.to_ne_bytes()));
    bytes.extend(&frame[14..]);
    bytes
}

pub(crate) fn ready(w: &mut dyn World) {
    node(w);
    w.set_member(addr(&Ipv4Addr::from(MEMBER).to_string()));
    w.set_tunnel(NETWORK, IFINDEX);
}

#[track_caller]
fn opened(w: &mut dyn World, segment: &Segment, out: Out) -> Segment {
    let run = w.run(UPLINK, &tunneled(&segment.bytes(), NETWORK));
    assert_eq!(run.action, Action::Redirect, "{segment:?}");
    assert!(run.out.is_none_or(|at| at == out), "left by {:?}, not {out:?}", run.out);
    Segment::parse(&run.bytes)
}

pub(crate) fn a_tunnel_packet_is_opened_and_delivered(w: &mut dyn World) {
    ready(w);
    for (family, proto) in MATRIX {
        let packet = Segment::new(proto, (family.client, 40_000), (family.task, 80)).macs(OTHER_ROUTER, TASK);
        for _ in 0..2 {
            assert_eq!(opened(w, &packet, Out::Peer(IFINDEX)), packet, "unchanged");
        }
        let reply = w.reply(&key(proto, 0, (family.task, 80), (family.client, 40_000))).expect("steering");
        assert_eq!((reply.kind, reply.mac), (REPLY_STEER, OTHER_ROUTER));
    }
}

pub(crate) fn an_answer_in_a_tunnel_goes_to_its_client(w: &mut dyn World) {
    ready(w);
    w.set_service(SERVICE, &[REMOTE]);
    for (family, proto) in MATRIX {
        let request = Segment::new(proto, (family.client, 40_000), (family.node, 8080));
        forwarded(w, UPLINK, &request, Out::Device(REMOTE_DEVICE));
        let answer = Segment::new(proto, (family.other, 80), (family.client, 40_000))
            .flags(ACK)
            .macs(OTHER_TASK, ROUTER);
        let got = opened(w, &answer, Out::Neighbor(IFINDEX));
        assert_eq!(got, Segment { src: ip(family.node), sport: 8080, ..answer });
    }
}

pub(crate) fn what_is_inside_may_be_dropped(w: &mut dyn World) {
    ready(w);
    for (family, proto) in MATRIX {
        let answer =
            Segment::new(proto, (family.other, 80), (family.client, 40_000)).macs(OTHER_TASK, ROUTER);
        dropped(w, UPLINK, &tunneled(&answer.bytes(), NETWORK), Reason::UnknownReply);
    }
}

pub(crate) fn tunnel_packets_of_another_kind_go_the_long_way(w: &mut dyn World) {
    ready(w);
    let (family, proto) = MATRIX[0];
    let packet = Segment::new(proto, (family.client, 40_000), (family.task, 80)).macs(OTHER_ROUTER, TASK);
    let sound = tunneled(&packet.bytes(), NETWORK);
    // Byte and what it becomes: congestion met, a fragment, a checksum, other flags, a reserved field.
    for (at, value) in [(15, 0x03), (20, 0x20), (41, 1), (42, 0x0c), (42, 0), (43, 1), (49, 1)] {
        let mut other = sound.clone();
        other[at] = value;
        passed(w, UPLINK, &other);
    }
    passed(w, UPLINK, &tunneled(&packet.bytes(), NETWORK + 1));
    let mut stranger = sound.clone();
    stranger[29] = 9;
    dropped(w, UPLINK, &stranger, Reason::NotMember);
    assert_eq!(w.run(UPLINK, &sound).action, Action::Redirect, "and as it was it is opened");
}

pub(crate) fn a_frame_of_no_flow_goes_the_long_way(w: &mut dyn World) {
    ready(w);
    for (family, proto) in MATRIX {
        // From a task to a task: the bridge's.
        let packet = Segment::new(proto, (family.other, 4000), (family.task, 80)).macs(OTHER_TASK, TASK);
        passed(w, UPLINK, &tunneled(&packet.bytes(), NETWORK));
        let packet =
            Segment::new(proto, (family.client, 4000), (family.other, 80)).macs(OTHER_ROUTER, OTHER_TASK);
        passed(w, UPLINK, &tunneled(&packet.bytes(), NETWORK));
    }
    let asked = super::packet::arp(OTHER_TASK, 1, OTHER_TASK, super::world::V4.other, super::world::V4.task);
    passed(w, UPLINK, &tunneled(&asked, NETWORK));
}

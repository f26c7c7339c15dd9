//! Cases of direct server return: what a frame says of the door that its client asked at, and who answers then.

use shoal_ebpf_common::direct::marked;
use shoal_ebpf_common::keys::{DoorKey, Mac, PortKey, RouterKey};
use shoal_ebpf_common::life::{FLOW_CLIENT_FIN, FLOW_DSR, FLOW_OPEN};
use shoal_ebpf_common::reason::Program;
use shoal_ebpf_common::values::{ENDPOINT_DSR, EndpointVal, PORT_DSR, PortVal};
use shoal_ebpf_common::verdict::Out;

use super::packet::{ACK, Complaint, FIN, SCTP, SYN, Segment, TCP, UDP, join, split};
use super::world::{
    Action, Family, IFINDEX, LOCAL, MATRIX, OTHER_ROUTER, OTHER_TASK, REMOTE, REMOTE_DEVICE, ROUTER, SERVICE,
    TASK, V4, V6, World, addr, egress_leg, forwarded, ingress_leg, ip, key, node, passed, remote_endpoint,
};

const MESH: Program = Program::MeshIngress;
const OVERLAY: Program = Program::OverlayRx;
const TASK_TX: Program = Program::TaskTx;
const THIRD_ROUTER: Mac = [2, 0, 0, 0, 0, 3];
const GATEWAY: Mac = [2, 0xee, 0, 0, 0, 1];
/// Numbers of the node's first address.
const OWN: u32 = 5;
/// Number of the address that the other node was asked at: the highest there is.
const DOOR: u16 = 63;
/// The port that it was asked at.
const PORT: u16 = 0xabcd;
/// The address that it was asked at.
const ASKED: [&str; 2] = ["203.0.113.44", "2001:db8:7::44"];
const REMOTE_OUT: Out = Out::Device(REMOTE_DEVICE);
const HERE: Out = Out::Peer(IFINDEX);
const DIRECTLY: Out = Out::Neighbor(IFINDEX);

fn asked(family: &Family) -> &'static str {
    ASKED[usize::from(family.client == V6.client)]
}

/// A node that publishes 8080 so, whose task is elsewhere, on a node that knows the first of its addresses.
fn entry(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[REMOTE]);
    w.set_endpoint(REMOTE, EndpointVal { flags: ENDPOINT_DSR, ..remote_endpoint() });
    for family in [V4, V6] {
        w.set_own_door(addr(family.node), IFINDEX, OWN);
    }
    for (proto, target) in [(TCP, 80), (UDP, 80), (SCTP, 8080)] {
        publish(w, proto, PortVal { flags: PORT_DSR, ..PortVal::new(SERVICE, target) });
    }
}

fn publish(w: &mut dyn World, proto: u8, value: PortVal) {
    w.set_port(PortKey::new(shoal_ebpf_common::addr::Addr::ANY, 8080, proto), value);
}

/// A node with a task, that knows an address of another node.
pub(crate) fn task_node(w: &mut dyn World) {
    node(w);
    w.lead_outward(true);
    for (family, v4) in [(V4, true), (V6, false)] {
        w.set_door(DoorKey::new(2, DOOR, v4), addr(asked(&family)));
    }
}

fn other_marked() -> Mac {
    marked(&OTHER_ROUTER, DOOR.into(), PORT)
}

/// What the client sends through another node, as it arrives at the task's.
fn request(family: &Family, proto: u8, source: Mac) -> Segment {
    Segment::new(proto, (family.client, 40_000), (family.task, 80)).macs(source, TASK)
}

fn answer(seen: &Segment) -> Segment {
    let Segment { src, dst, sport, dport, .. } = seen.clone();
    Segment { src: dst, dst: src, sport: dport, dport: sport, ..seen.clone() }.flags(ACK).macs(TASK, GATEWAY)
}

/// The task's answer to a connection that begins, by another node.
pub(crate) fn opened(w: &mut dyn World, family: &Family) -> Segment {
    let sent = request(family, TCP, other_marked());
    forwarded(w, OVERLAY, &sent, HERE);
    answer(&sent).flags(SYN | ACK)
}

/// The answer leaves for the client; or for the router, where no route leads outward.
#[track_caller]
fn goes_to_client(w: &mut dyn World, family: &Family, answer: &Segment) {
    if !w.leads_outward() {
        return goes_to_router(w, family, answer, OTHER_ROUTER);
    }
    let sport = if answer.proto == SCTP { answer.sport } else { PORT };
    let want = Segment { src: ip(asked(family)), sport, dport: 40_000, ..answer.clone() };
    let got = forwarded(w, TASK_TX, answer, DIRECTLY);
    assert_eq!(got.macs(want.src_mac, want.dst_mac), want);
}

#[track_caller]
fn goes_to_router(w: &mut dyn World, family: &Family, answer: &Segment, router: Mac) {
    let got = forwarded(w, TASK_TX, answer, REMOTE_OUT);
    let want = Segment { src: ip(family.task), dport: 40_000, ..answer.clone() };
    assert_eq!(got, want.macs(TASK, router));
}

pub(crate) fn a_frame_names_the_door_that_was_asked(w: &mut dyn World) {
    entry(w);
    for (family, proto) in MATRIX.into_iter().chain([(V4, SCTP), (V6, SCTP)]) {
        let sent = Segment::new(proto, (family.client, 40_000), (family.node, 8080));
        let target = if proto == SCTP { 8080 } else { 80 };
        for more in [sent.clone().flags(SYN), sent.clone().flags(ACK), sent.clone().flags(ACK)] {
            let got = forwarded(w, MESH, &more, REMOTE_OUT);
            let want = Segment { dst: ip(family.other), dport: target, ..more };
            assert_eq!(got, want.macs([2 | 5 << 2, 0x1f, 0x90, 0, 0, 1], OTHER_TASK));
        }
        // Nobody knows the other address.
        let sent = Segment { dst: ip(family.node2), sport: 40_001, ..sent };
        for more in [sent.clone().flags(SYN), sent.flags(ACK)] {
            assert_eq!(forwarded(w, MESH, &more, REMOTE_OUT).src_mac, ROUTER);
        }
    }
}

pub(crate) fn who_is_not_to_answer_is_not_told(w: &mut dyn World) {
    entry(w);
    for (family, proto) in MATRIX {
        let mut port = 41_000;
        let mut source = |w: &mut dyn World, program: Program, client: &str| {
            port += 1;
            let sent = Segment::new(proto, (client, port), (family.node, 8080));
            let out = |run: super::world::Run| Segment::parse(&run.bytes).src_mac;
            [
                out(w.run(program, &sent.clone().flags(SYN).bytes())),
                out(w.run(program, &sent.flags(ACK).bytes())),
            ]
        };
        assert_ne!(source(w, MESH, family.client), [ROUTER; 2]);
        // A client on the node itself, which only this node reaches.
        assert_eq!(source(w, Program::HostTx, family.node), [ROUTER; 2]);
        // A node that can't.
        w.set_endpoint(REMOTE, remote_endpoint());
        assert_eq!(source(w, MESH, family.client), [ROUTER; 2]);
        w.set_endpoint(REMOTE, EndpointVal { flags: ENDPOINT_DSR, ..remote_endpoint() });
        // A port that is not published so.
        publish(w, proto, PortVal::new(SERVICE, 80));
        assert_eq!(source(w, MESH, family.client), [ROUTER; 2]);
        publish(w, proto, PortVal { flags: PORT_DSR, ..PortVal::new(SERVICE, 80) });
        // A client that comes in elsewhere than the address is.
        w.set_own_door(addr(family.node), IFINDEX + 1, OWN);
        assert_eq!(source(w, MESH, family.client), [ROUTER; 2]);
        w.set_own_door(addr(family.node), IFINDEX, OWN);
        // A neighbor of the link's, whose address is another's on another link.
        let neighbor = if family.client == V4.client { "169.254.7.7" } else { "fe80::7" };
        assert_eq!(source(w, MESH, neighbor), [ROUTER; 2]);
        // A task of this node.
        w.set_service(SERVICE, &[LOCAL]);
        assert_eq!(source(w, MESH, family.client), [ROUTER; 2]);
        w.set_service(SERVICE, &[REMOTE]);
    }
}

pub(crate) fn a_flow_whose_node_can_no_longer_answer_is_answered_by_the_router(w: &mut dyn World) {
    entry(w);
    for (family, proto) in MATRIX {
        let sent = Segment::new(proto, (family.client, 44_000), (family.node, 8080));
        forwarded(w, MESH, &sent.clone().flags(SYN), REMOTE_OUT);
        for (flags, source) in [(0, ROUTER), (ENDPOINT_DSR, marked(&ROUTER, OWN, 8080))] {
            w.set_endpoint(REMOTE, EndpointVal { flags, ..remote_endpoint() });
            assert_eq!(forwarded(w, MESH, &sent.clone().flags(ACK), REMOTE_OUT).src_mac, source);
        }
    }
}

/// What was seen of a flow stays when its router has it answered in another way.
pub(crate) fn a_router_that_changes_its_mind_changes_nothing_else(w: &mut dyn World) {
    task_node(w);
    for family in [V4, V6] {
        let sent = |source, flags| request(&family, TCP, source).flags(flags);
        for (source, flags) in [(other_marked(), SYN), (other_marked(), ACK | FIN), (OTHER_ROUTER, ACK)] {
            forwarded(w, OVERLAY, &sent(source, flags), HERE);
        }
        let reply = w.reply(&key(TCP, 0, (family.task, 80), (family.client, 40_000))).unwrap();
        assert_eq!((reply.mac, reply.state), (OTHER_ROUTER, FLOW_OPEN | FLOW_CLIENT_FIN));
    }
}

pub(crate) fn a_flow_whose_port_is_translated_is_answered_by_the_router(w: &mut dyn World) {
    entry(w);
    for family in [V4, V6] {
        w.set_own_door(addr(family.node2), IFINDEX, OWN + 1);
    }
    for (family, proto) in MATRIX {
        let first = Segment::new(proto, (family.client, 40_000), (family.node, 8080));
        let second = Segment { dst: ip(family.node2), ..first.clone() };
        for flags in [SYN, ACK] {
            let got = forwarded(w, MESH, &first.clone().flags(flags), REMOTE_OUT);
            assert_eq!((got.sport, got.src_mac), (40_000, marked(&ROUTER, OWN, 8080)));
            let got = forwarded(w, MESH, &second.clone().flags(flags), REMOTE_OUT);
            assert_ne!(got.sport, 40_000);
            assert_eq!(got.src_mac, ROUTER);
        }
    }
}

pub(crate) fn a_task_answers_as_the_door_that_was_asked(w: &mut dyn World) {
    task_node(w);
    for (family, proto) in MATRIX.into_iter().chain([(V4, SCTP), (V6, SCTP)]) {
        // A port of SCTP is published as itself.
        let port = if proto == SCTP { 80 } else { PORT };
        let sent = request(&family, proto, marked(&OTHER_ROUTER, DOOR.into(), port));
        for flags in [SYN, ACK, ACK] {
            let sent = sent.clone().flags(flags);
            assert_eq!(forwarded(w, OVERLAY, &sent, HERE), sent, "a request is delivered as it comes");
            for (leg, source) in [(ingress_leg(), family.task), (egress_leg(), family.leg)] {
                w.set_task_if(IFINDEX, leg);
                let sends = Segment { src: ip(source), ..answer(&sent).macs(leg.mac, GATEWAY) };
                goes_to_client(w, &family, &sends);
            }
            w.set_task_if(IFINDEX, ingress_leg());
        }
    }
}

pub(crate) fn an_answer_whose_door_is_not_known_goes_to_the_router(w: &mut dyn World) {
    task_node(w);
    for (family, proto) in MATRIX {
        let sent = request(&family, proto, other_marked());
        forwarded(w, OVERLAY, &sent, HERE);
        let door = DoorKey::new(2, DOOR, family.client == V4.client);
        w.remove_door(door);
        goes_to_router(w, &family, &answer(&sent), OTHER_ROUTER);
        // A request goes on as if nothing were.
        assert_eq!(forwarded(w, OVERLAY, &sent.clone().flags(ACK), HERE).sport, 40_000);
        goes_to_router(w, &family, &answer(&sent), OTHER_ROUTER);
        w.set_door(door, addr(asked(&family)));
        goes_to_client(w, &family, &answer(&sent));
    }
}

pub(crate) fn a_router_may_change_its_mind(w: &mut dyn World) {
    task_node(w);
    for (family, proto) in MATRIX {
        for source in [other_marked(), OTHER_ROUTER, other_marked()] {
            let sent = request(&family, proto, source).flags(ACK);
            assert_eq!(forwarded(w, OVERLAY, &sent, HERE), sent, "the port is the flow's own");
            match source {
                OTHER_ROUTER => goes_to_router(w, &family, &answer(&sent), OTHER_ROUTER),
                _ => goes_to_client(w, &family, &answer(&sent)),
            }
        }
    }
}

pub(crate) fn flows_by_several_doors_do_not_alias(w: &mut dyn World) {
    task_node(w);
    w.set_router(RouterKey::new(THIRD_ROUTER));
    for (family, proto) in MATRIX {
        // By a router first, so that the flow that is answered directly is the one whose port is translated.
        let first = forwarded(w, OVERLAY, &request(&family, proto, THIRD_ROUTER), HERE);
        let second = forwarded(w, OVERLAY, &request(&family, proto, other_marked()), HERE);
        assert_eq!(first.sport, 40_000);
        assert_ne!(second.sport, 40_000);
        for _ in 0..2 {
            goes_to_router(w, &family, &answer(&first), THIRD_ROUTER);
            goes_to_client(w, &family, &answer(&second));
            let more = request(&family, proto, other_marked()).flags(ACK);
            assert_eq!(forwarded(w, OVERLAY, &more, HERE).sport, second.sport);
        }
        // Its router wants it answered in another way, and then as before.
        let more = request(&family, proto, OTHER_ROUTER).flags(ACK);
        assert_eq!(forwarded(w, OVERLAY, &more, HERE).sport, second.sport);
        goes_to_router(w, &family, &answer(&second), OTHER_ROUTER);
        let more = request(&family, proto, other_marked()).flags(ACK);
        assert_eq!(forwarded(w, OVERLAY, &more, HERE).sport, second.sport);
        goes_to_client(w, &family, &answer(&second));
    }
}

pub(crate) fn only_a_router_names_doors(w: &mut dyn World) {
    task_node(w);
    for (family, proto) in MATRIX {
        // Of no router, and of a task.
        for source in [marked(&THIRD_ROUTER, DOOR.into(), PORT), marked(&OTHER_TASK, DOOR.into(), PORT)] {
            let source = [source[0], source[1], source[2], source[3], 7, source[5]];
            passed(w, OVERLAY, &request(&family, proto, source).bytes());
        }
        assert_eq!(w.reply(&key(proto, 0, (family.task, 80), (family.client, 40_000))), None);
    }
}

pub(crate) fn an_answer_that_nothing_leads_out_goes_to_the_router(w: &mut dyn World) {
    task_node(w);
    for (family, proto) in MATRIX {
        let sent = request(&family, proto, other_marked());
        forwarded(w, OVERLAY, &sent, HERE);
        for leads in [false, true] {
            w.lead_outward(leads);
            goes_to_client(w, &family, &answer(&sent));
        }
    }
}

pub(crate) fn errors_go_by_the_router_whoever_answers(w: &mut dyn World) {
    task_node(w);
    for (family, proto) in MATRIX {
        let sent = request(&family, proto, other_marked());
        forwarded(w, OVERLAY, &sent, HERE);
        for kind in Complaint::kinds(sent.src.is_ipv4()) {
            // The task's about a request.
            let sender = ip(family.task);
            let error = Complaint { macs: (TASK, GATEWAY), sender, kind, about: sent.clone(), cut: 64 };
            let run = w.run(TASK_TX, &error.bytes());
            assert_eq!(run.action, Action::Redirect);
            assert!(run.out.is_none_or(|at| at == REMOTE_OUT));
            assert_eq!(run.bytes, Complaint { macs: (TASK, OTHER_ROUTER), ..error }.bytes());
            // About an answer: what the client asked is the router's, and so is the error.
            let sender = ip(family.client);
            let about = answer(&sent);
            let error = Complaint { macs: (OTHER_ROUTER, TASK), sender, kind, about, cut: 64 };
            let run = w.run(OVERLAY, &error.bytes());
            assert_eq!((run.action, run.bytes), (Action::Redirect, error.bytes()));
            assert!(run.out.is_none_or(|at| at == HERE));
        }
    }
}

pub(crate) fn fragments_of_such_a_flow_follow_their_first(w: &mut dyn World) {
    entry(w);
    for (family, proto) in MATRIX {
        let sent = Segment::new(proto, (family.client, 42_000), (family.node, 8080));
        let sent = Segment { payload: (0..200).collect(), ..sent };
        for fragment in split(&sent.bytes(), 7, 48) {
            let run = w.run(MESH, &fragment);
            assert_eq!(run.action, Action::Redirect);
            assert_eq!(run.bytes[6..12], marked(&ROUTER, OWN, 8080));
        }
    }
    task_node(w);
    for (family, proto) in MATRIX {
        let sent = Segment { payload: (0..200).collect(), ..request(&family, proto, other_marked()) };
        forwarded(w, OVERLAY, &sent, HERE);
        let answer = answer(&sent);
        let fragments: Vec<_> =
            split(&answer.bytes(), 8, 48).iter().map(|fragment| w.run(TASK_TX, fragment)).collect();
        assert!(fragments.len() > 3 && fragments.iter().all(|run| run.action == Action::Redirect));
        let out = if w.leads_outward() { DIRECTLY } else { REMOTE_OUT };
        assert!(fragments.iter().all(|run| run.out.is_none_or(|at| at == out)));
        let got = join(&fragments.into_iter().map(|run| run.bytes).collect::<Vec<_>>());
        let source = if w.leads_outward() { (ip(asked(&family)), PORT) } else { (answer.src, answer.sport) };
        assert_eq!(((got.src, got.sport), got.dport), (source, 40_000));
        assert_eq!(got.payload, answer.payload);
    }
}

pub(crate) fn the_router_follows_one_half(w: &mut dyn World) {
    entry(w);
    for family in [V4, V6] {
        let sent = Segment::new(TCP, (family.client, 43_000), (family.node, 8080));
        let state = |w: &dyn World| {
            let flow = w.flow(&key(TCP, 0, (family.client, 43_000), (family.node, 8080)));
            let reply = w.reply(&key(TCP, 0, (family.other, 80), (family.client, 43_000)));
            let states = (flow.map(|flow| flow.state), reply.map(|reply| reply.state));
            assert_eq!(states.0, states.1, "both records say so");
            states.0
        };
        forwarded(w, MESH, &sent.clone().flags(SYN), REMOTE_OUT);
        assert_eq!(state(w), Some(FLOW_DSR));
        forwarded(w, MESH, &sent.clone().flags(ACK), REMOTE_OUT);
        assert_eq!(state(w), Some(FLOW_DSR | FLOW_OPEN));
        forwarded(w, MESH, &sent.clone().flags(ACK | FIN), REMOTE_OUT);
        assert_eq!(state(w), Some(FLOW_DSR | FLOW_OPEN | FLOW_CLIENT_FIN));
        // What it still acknowledges goes on.
        let got = forwarded(w, MESH, &sent.flags(ACK), REMOTE_OUT);
        assert_eq!(got.src_mac, marked(&ROUTER, OWN, 8080));
    }
}

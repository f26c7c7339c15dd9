//! Cases of what is seen of a flow, and of flows of which one record is gone.

use shoal_ebpf_common::life::{FLOW_CLIENT_FIN, FLOW_OPEN, FLOW_RESET, FLOW_SERVER_FIN};
use shoal_ebpf_common::reason::Program;
use shoal_ebpf_common::verdict::Out;

use super::packet::{ACK, FIN, RST, SYN, Segment, TCP};
use super::world::{
    Family, IFINDEX, LOCAL, MATRIX, NETWORK, OTHER_ROUTER, OTHER_TASK, REMOTE, REMOTE_DEVICE, ROUTER,
    SERVICE, TASK, V4, V6, World, forwarded, ip, key, node,
};

const MESH: Program = Program::MeshIngress;
const OVERLAY: Program = Program::OverlayRx;

fn request(family: &Family, proto: u8) -> Segment {
    Segment::new(proto, (family.client, 40_000), (family.node, 8080))
}

fn answer(family: &Family, proto: u8) -> Segment {
    Segment::new(proto, (family.task, 80), (family.client, 40_000)).flags(ACK).macs(TASK, ROUTER)
}

pub(crate) fn a_connection_is_followed_to_its_end(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for family in [V4, V6] {
        let flow = key(TCP, 0, (family.client, 40_000), (family.node, 8080));
        let answers = key(TCP, 0, (family.task, 80), (family.client, 40_000));
        let after = |w: &mut dyn World, from_client: bool, flags: u8, state: u32| {
            if from_client {
                forwarded(w, MESH, &request(&family, TCP).flags(flags), Out::Peer(IFINDEX));
            } else {
                let answer = answer(&family, TCP).flags(flags);
                forwarded(w, Program::TaskTx, &answer, Out::Neighbor(IFINDEX));
            }
            assert_eq!(w.flow(&flow).map(|flow| flow.state), Some(state));
            assert_eq!(w.reply(&answers).map(|reply| reply.state), Some(state), "both records say so");
        };
        after(w, true, SYN, 0);
        after(w, false, SYN | ACK, 0);
        after(w, true, ACK, FLOW_OPEN);
        after(w, true, FIN | ACK, FLOW_OPEN | FLOW_CLIENT_FIN);
        after(w, false, ACK, FLOW_OPEN | FLOW_CLIENT_FIN);
        after(w, false, FIN | ACK, FLOW_OPEN | FLOW_CLIENT_FIN | FLOW_SERVER_FIN);
        after(w, true, ACK, FLOW_OPEN | FLOW_CLIENT_FIN | FLOW_SERVER_FIN);
        // The port is used again.
        after(w, true, SYN, 0);
        after(w, true, ACK, FLOW_OPEN);
        after(w, false, RST, FLOW_OPEN | FLOW_RESET);
        // The reset was somebody else's: it goes on.
        after(w, true, ACK, FLOW_OPEN);
    }
}

pub(crate) fn a_flow_of_another_node_is_followed_to_its_end(w: &mut dyn World) {
    node(w);
    for family in [V4, V6] {
        let answers = key(TCP, 0, (family.task, 80), (family.client, 40_000));
        let request = Segment::new(TCP, (family.client, 40_000), (family.task, 80)).macs(OTHER_ROUTER, TASK);
        for (flags, state) in [(SYN, 0), (ACK, FLOW_OPEN), (FIN | ACK, FLOW_OPEN | FLOW_CLIENT_FIN)] {
            forwarded(w, OVERLAY, &request.clone().flags(flags), Out::Peer(IFINDEX));
            assert_eq!(w.reply(&answers).map(|reply| reply.state), Some(state));
        }
        forwarded(w, Program::TaskTx, &answer(&family, TCP).flags(FIN), Out::Device(REMOTE_DEVICE));
        let closed = FLOW_OPEN | FLOW_CLIENT_FIN | FLOW_SERVER_FIN;
        assert_eq!(w.reply(&answers).map(|reply| reply.state), Some(closed));
        forwarded(w, OVERLAY, &request.clone().flags(SYN), Out::Peer(IFINDEX));
        assert_eq!(w.reply(&answers).map(|reply| reply.state), Some(0), "the port is used again");
    }
}

pub(crate) fn answers_that_were_forgotten_come_back_with_the_flow(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for (family, proto) in MATRIX {
        forwarded(w, MESH, &request(&family, proto), Out::Peer(IFINDEX));
        let answers = key(proto, 0, (family.task, 80), (family.client, 40_000));
        let before = w.reply(&answers).expect("answers");
        w.forget(&answers);
        forwarded(w, MESH, &request(&family, proto).flags(ACK), Out::Peer(IFINDEX));
        let now = w.reply(&answers).expect("they are back");
        assert!(now.is_same(&before), "{now:?} {before:?}");
    }
}

pub(crate) fn a_flow_that_was_forgotten_comes_back_with_its_answers(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for (family, proto) in MATRIX {
        forwarded(w, MESH, &request(&family, proto), Out::Peer(IFINDEX));
        let flow = key(proto, 0, (family.client, 40_000), (family.node, 8080));
        let before = w.flow(&flow).expect("a flow");
        w.forget(&flow);
        // The service is elsewhere by now: nothing but its answers tells where the flow was.
        w.set_service(SERVICE, &[REMOTE]);
        let flags = if proto == TCP { FIN | ACK } else { 0 };
        forwarded(w, Program::TaskTx, &answer(&family, proto).flags(flags), Out::Neighbor(IFINDEX));
        let now = w.flow(&flow).expect("it is back");
        assert!(now.is_same(&before), "{now:?} {before:?}");
        forwarded(w, MESH, &request(&family, proto).flags(ACK), Out::Peer(IFINDEX));
        w.set_service(SERVICE, &[LOCAL]);
    }
}

pub(crate) fn a_flow_to_a_virtual_ip_is_made_whole(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[REMOTE]);
    for (family, proto) in MATRIX {
        let request = Segment::new(proto, (family.task, 40_000), (family.vip, 80)).macs(TASK, [2; 6]);
        forwarded(w, Program::TaskTx, &request, Out::Device(REMOTE_DEVICE));
        let flow = key(proto, NETWORK, (family.task, 40_000), (family.vip, 80));
        let answers = key(proto, NETWORK, (family.other, 80), (family.task, 40_000));
        let before = (w.flow(&flow).expect("a flow"), w.reply(&answers).expect("answers"));
        w.forget(&answers);
        forwarded(w, Program::TaskTx, &request.clone().flags(ACK), Out::Device(REMOTE_DEVICE));
        assert!(w.reply(&answers).expect("they are back").is_same(&before.1));
        w.forget(&flow);
        let flags = if proto == TCP { FIN | ACK } else { 0 };
        let answer = Segment::new(proto, (family.other, 80), (family.task, 40_000))
            .flags(flags)
            .macs(OTHER_TASK, TASK);
        // Nothing new is said by a datagram: a flow that is gone is found by the next tick.
        w.next_tick();
        assert_eq!(forwarded(w, OVERLAY, &answer, Out::Peer(IFINDEX)).src, ip(family.vip));
        assert!(w.flow(&flow).expect("it is back").is_same(&before.0));
    }
}

pub(crate) fn flows_that_only_begin_leave_room_for_others(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    let open = request(&V4, TCP);
    forwarded(w, MESH, &open, Out::Peer(IFINDEX));
    forwarded(w, MESH, &open.clone().flags(ACK), Out::Peer(IFINDEX));
    let flow = |port| key(TCP, 0, (V4.node2, port), (V4.node, 8080));
    for port in 1..=6000 {
        let syn = Segment::new(TCP, (V4.node2, port), (V4.node, 8080));
        forwarded(w, MESH, &syn, Out::Peer(IFINDEX));
    }
    assert!(w.flow(&flow(6000)).is_some() && w.flow(&flow(5900)).is_some(), "what came last is there");
    assert_eq!(w.flow(&flow(1)), None, "what came first made room");
    assert_eq!(w.reply(&key(TCP, 0, (V4.task, 80), (V4.node2, 1))), None, "with its answers");
    assert!(w.flow(&key(TCP, 0, (V4.client, 40_000), (V4.node, 8080))).is_some(), "what is open stays");
    assert!(w.reply(&key(TCP, 0, (V4.task, 80), (V4.client, 40_000))).is_some());
}

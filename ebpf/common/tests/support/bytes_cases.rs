//! Cases of the bytes that flows count: at the node they entered by, for each direction once, and for good.

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::{FlowKey, PortKey};
use shoal_ebpf_common::reason::Program;
use shoal_ebpf_common::values::{BalancerIf, ENDPOINT_DRAINING, EndpointVal, PortVal, TotalVal};
use shoal_ebpf_common::verdict::Out;

use super::lane_cases::{ready, tunneled};
use super::packet::{ACK, FIN, SCTP, SYN, Segment, TCP, UDP};
use super::world::{
    Action, Family, GATE, IFINDEX, LOCAL, MARK, NETWORK, OTHER_ROUTER, OTHER_TASK, REMOTE, ROUTER, SERVICE,
    TASK, V4, V6, VIP, World, key, local_endpoint, node, node_with_gate,
};

const MESH: Program = Program::MeshIngress;
const OVERLAY: Program = Program::OverlayRx;
const TASK_TX: Program = Program::TaskTx;
/// Ports of SCTP are published as themselves.
const PORT: u16 = 8080;
const ALL: [(Family, u8); 6] = [(V4, TCP), (V4, UDP), (V4, SCTP), (V6, TCP), (V6, UDP), (V6, SCTP)];

fn published(w: &mut dyn World, endpoint: u64) {
    for proto in [TCP, UDP, SCTP] {
        w.set_port(PortKey::new(Addr::ANY, PORT, proto), PortVal::new(SERVICE, PORT));
    }
    w.set_service(SERVICE, &[endpoint]);
}

/// Sends a packet that a program is to lead on; the bytes of it that count.
#[track_caller]
fn sends(w: &mut dyn World, program: Program, segment: &Segment, payload: usize) -> u64 {
    let bytes = Segment { payload: vec![7; payload], ..segment.clone() }.bytes();
    assert_eq!(w.run(program, &bytes).action, Action::Redirect, "{segment:?}");
    bytes.len() as u64 - 14
}

fn counted(w: &dyn World, request: &FlowKey, answers: &FlowKey) -> (Option<u64>, Option<u64>) {
    (w.flow(request).map(|flow| flow.bytes), w.reply(answers).map(|reply| reply.bytes))
}

fn request(family: &Family, proto: u8, port: u16) -> Segment {
    Segment::new(proto, (family.client, port), (family.node, PORT))
}

/// Requests by one program and answers by another, each of several lengths.
#[track_caller]
fn exchange(
    w: &mut dyn World,
    (there, request): (Program, &Segment),
    (back, answer): (Program, &Segment),
    keys: (FlowKey, FlowKey),
) {
    let (mut requests, mut answers) = (0, 0);
    for (flags, payload) in [(SYN, 0), (ACK, 1), (ACK, 1000), (FIN | ACK, 7), (SYN, 0), (ACK, 300)] {
        requests += sends(w, there, &request.clone().flags(flags), payload);
        let flags = if flags == SYN { SYN | ACK } else { flags };
        answers += sends(w, back, &answer.clone().flags(flags), payload + 100);
        assert_eq!(counted(w, &keys.0, &keys.1), (Some(requests), Some(answers)), "{request:?}");
    }
}

pub(crate) fn a_flow_of_this_node_counts_both_ways(w: &mut dyn World) {
    node(w);
    for (family, proto) in ALL {
        let keys = |task| {
            let request = key(proto, 0, (family.client, 40_000), (family.node, PORT));
            (request, key(proto, 0, (task, PORT), (family.client, 40_000)))
        };
        let answer = |task| Segment::new(proto, (task, PORT), (family.client, 40_000));
        published(w, LOCAL);
        let by_task = answer(family.task).macs(TASK, ROUTER);
        exchange(w, (MESH, &request(&family, proto, 40_000)), (TASK_TX, &by_task), keys(family.task));
    }
    node(w);
    for (family, proto) in ALL {
        published(w, REMOTE);
        let keys = (
            key(proto, 0, (family.client, 40_001), (family.node, PORT)),
            key(proto, 0, (family.other, PORT), (family.client, 40_001)),
        );
        let answer =
            Segment::new(proto, (family.other, PORT), (family.client, 40_001)).macs(OTHER_TASK, ROUTER);
        exchange(w, (MESH, &request(&family, proto, 40_001)), (OVERLAY, &answer), keys);
    }
}

pub(crate) fn a_flow_of_a_virtual_ip_counts_both_ways(w: &mut dyn World) {
    node(w);
    for (family, proto) in ALL {
        let request = Segment::new(proto, (family.task, 40_000), (family.vip, 80)).macs(TASK, VIP);
        let flow = key(proto, NETWORK, (family.task, 40_000), (family.vip, 80));
        w.set_service(SERVICE, &[REMOTE]);
        let answer = Segment::new(proto, (family.other, 80), (family.task, 40_000)).macs(OTHER_TASK, TASK);
        let answers = key(proto, NETWORK, (family.other, 80), (family.task, 40_000));
        exchange(w, (TASK_TX, &request), (OVERLAY, &answer), (flow, answers));
        // The task may be its own server.
        w.set_service(SERVICE, &[LOCAL]);
        let request = Segment { sport: 40_001, ..request };
        let flow = FlowKey { sport: 40_001, ..flow };
        let answer = Segment::new(proto, (family.task, 80), (family.vip, 40_001)).macs(TASK, VIP);
        let answers = key(proto, NETWORK, (family.task, 80), (family.vip, 40_001));
        exchange(w, (TASK_TX, &request), (TASK_TX, &answer), (flow, answers));
    }
}

pub(crate) fn a_flow_of_the_node_itself_counts_both_ways(w: &mut dyn World) {
    node(w);
    published(w, REMOTE);
    for (family, proto) in ALL {
        let request = Segment::new(proto, (family.node, 40_000), (family.node, PORT)).macs([0; 6], [0; 6]);
        let answer =
            Segment::new(proto, (family.other, PORT), (family.node, 40_000)).macs(OTHER_TASK, ROUTER);
        let keys = (
            key(proto, 0, (family.node, 40_000), (family.node, PORT)),
            key(proto, 0, (family.other, PORT), (family.node, 40_000)),
        );
        exchange(w, (Program::HostTx, &request), (OVERLAY, &answer), keys);
    }
}

pub(crate) fn what_another_node_counts_is_not_counted_again(w: &mut dyn World) {
    node(w);
    for (family, proto) in ALL {
        let request =
            Segment::new(proto, (family.client, 40_000), (family.task, 80)).macs(OTHER_ROUTER, TASK);
        let answer = Segment::new(proto, (family.task, 80), (family.client, 40_000)).macs(TASK, ROUTER);
        for flags in [SYN, ACK] {
            sends(w, OVERLAY, &request.clone().flags(flags), 100);
            sends(w, TASK_TX, &answer.clone().flags(flags | ACK), 100);
        }
        let answers = key(proto, 0, (family.task, 80), (family.client, 40_000));
        assert_eq!(w.reply(&answers).map(|reply| reply.bytes), Some(0));
    }
    assert_eq!(w.bytes(LOCAL, SERVICE), TotalVal::default());
}

pub(crate) fn what_a_balancer_counts_is_not_counted_again(w: &mut dyn World) {
    node_with_gate(w);
    w.set_balancer_if(IFINDEX, BalancerIf { vxlan: IFINDEX, steer: 1 });
    for (family, proto) in ALL {
        w.set_port(PortKey::new(Addr::ANY, PORT, proto), PortVal::balanced(SERVICE, PORT, MARK));
        let request = request(&family, proto, 40_000);
        for flags in [SYN, SYN, ACK] {
            let bytes = request.clone().flags(flags).bytes();
            let run = w.run(MESH, &bytes);
            assert!(run.action == Action::Redirect && run.out.is_none_or(|out| out == Out::Peer(GATE)));
        }
        let flow = w.flow(&key(proto, 0, (family.client, 40_000), (family.node, PORT))).expect("a flow");
        assert_eq!(flow.bytes, 0);
    }
}

pub(crate) fn only_what_is_of_the_ip_packet_counts(w: &mut dyn World) {
    node(w);
    w.set_service(SERVICE, &[LOCAL]);
    for (at, family) in [(16, V4), (18, V6)] {
        let flow = key(UDP, 0, (family.client, 40_000), (family.node, PORT));
        let sent = Segment { payload: vec![], ..request(&family, UDP, 40_000) };
        let length = sends(w, MESH, &sent, 0);
        // A short frame is filled up.
        let mut filled = sent.bytes();
        filled.resize(100, 0);
        assert_eq!(w.run(MESH, &filled).action, Action::Redirect);
        assert_eq!(w.flow(&flow).map(|flow| flow.bytes), Some(2 * length));
        // What a packet claims beyond its end was never sent.
        let mut claims = sent.bytes();
        claims[at] = 0xff;
        assert_eq!(w.run(MESH, &claims).action, Action::Redirect);
        assert_eq!(w.flow(&flow).map(|flow| flow.bytes), Some(3 * length));
    }
    // More than 64 KiB at once claim nothing.
    let flow = key(TCP, 0, (V6.client, 40_000), (V6.node, PORT));
    let mut large = Segment { payload: vec![1; 500], ..request(&V6, TCP, 40_000) }.bytes();
    large[18..20].copy_from_slice(&[0, 0]);
    assert_eq!(w.run(MESH, &large).action, Action::Redirect);
    assert_eq!(w.flow(&flow).map(|flow| flow.bytes), Some(large.len() as u64 - 14));
}

pub(crate) fn an_answer_in_a_tunnel_counts_without_it(w: &mut dyn World) {
    ready(w);
    published(w, REMOTE);
    for (family, proto) in ALL {
        sends(w, MESH, &request(&family, proto, 40_000), 0);
        let mut answer = Segment::new(proto, (family.other, PORT), (family.client, 40_000))
            .flags(ACK)
            .macs(OTHER_TASK, ROUTER)
            .bytes();
        let answers = key(proto, 0, (family.other, PORT), (family.client, 40_000));
        let length = answer.len() as u64 - 14;
        assert_eq!(w.run(MESH, &tunneled(&answer, NETWORK)).action, Action::Redirect);
        assert_eq!(w.reply(&answers).map(|reply| reply.bytes), Some(length));
        // What it claims beyond its end is not in the tunnel either.
        answer[if family.node == V4.node { 16 } else { 18 }] = 0xff;
        assert_eq!(w.run(MESH, &tunneled(&answer, NETWORK)).action, Action::Redirect);
        assert_eq!(w.reply(&answers).map(|reply| reply.bytes), Some(2 * length));
    }
}

pub(crate) fn bytes_outlast_the_record_of_their_flow(w: &mut dyn World) {
    node(w);
    for (family, proto) in ALL {
        published(w, LOCAL);
        let before = w.total(LOCAL, SERVICE);
        let requests = sends(w, MESH, &request(&family, proto, 40_000), 10);
        let answer = Segment::new(proto, (family.task, PORT), (family.client, 40_000)).macs(TASK, ROUTER);
        let answers = sends(w, TASK_TX, &answer.flags(SYN | ACK), 20);
        assert_eq!(w.total(LOCAL, SERVICE), before, "they are in the records");
        // The same ports lead to another endpoint, when the service has changed.
        w.set_endpoint(
            LOCAL,
            EndpointVal { flags: local_endpoint().flags | ENDPOINT_DRAINING, ..local_endpoint() },
        );
        w.set_service(SERVICE, &[REMOTE]);
        let remote = w.bytes(REMOTE, SERVICE).requests;
        let mut next = request(&family, proto, 40_000);
        if proto == UDP {
            w.remove_endpoint(LOCAL);
        } else {
            next = next.flags(SYN);
        }
        let other = sends(w, MESH, &next, 30);
        let total = w.total(LOCAL, SERVICE);
        assert_eq!(total.requests, before.requests + requests, "what the record had");
        let all = w.bytes(LOCAL, SERVICE);
        assert!(all.answers >= total.answers + answers, "{all:?}");
        assert_eq!(w.bytes(REMOTE, SERVICE).requests, remote + other, "a new record begins with nothing");
        w.set_endpoint(LOCAL, local_endpoint());
    }
}

pub(crate) fn flows_that_make_room_take_no_bytes_with_them(w: &mut dyn World) {
    node(w);
    published(w, LOCAL);
    let (mut requests, mut answers) = (0, 0);
    for port in 1..=6000 {
        let sent = Segment::new(TCP, (V4.node2, port), (V4.node, PORT));
        requests += sends(w, MESH, &sent, 3);
        if port % 8 == 0 {
            let answer = Segment::new(TCP, (V4.task, PORT), (V4.node2, port)).macs(TASK, ROUTER);
            answers += sends(w, TASK_TX, &answer.flags(SYN | ACK), 5);
        }
    }
    let total = w.total(LOCAL, SERVICE);
    assert!(total.requests > requests / 2 && total.answers > answers / 2, "most have made room: {total:?}");
    assert_eq!(w.bytes(LOCAL, SERVICE), TotalVal { requests, answers });
}

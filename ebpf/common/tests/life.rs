//! What goes of flows, and what stays because it was used.

#[path = "support/all.rs"]
mod support;

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::{FlowKey, PortKey};
use shoal_ebpf_common::life::{
    self, FLOW_CLIENT_FIN, FLOW_DSR, FLOW_OPEN, FLOW_RESET, FLOW_SERVER_FIN, TICK_SHIFT, is_beginning,
    is_expired,
};
use shoal_ebpf_common::reason::Program;
use shoal_ebpf_common::values::{
    ENDPOINT_DSR, EndpointVal, PORT_DSR, PROPOSE_FLOW, PROPOSE_REPLY, PortVal, Proposal,
};

use support::host::Host;
use support::packet::{ACK, FIN, SCTP, SYN, Segment, TCP, UDP, split};
use support::world::{Action, IFINDEX, LOCAL, REMOTE, SERVICE, V4, World, addr, key, node, remote_endpoint};

/// The first tick at which so many seconds are over.
fn ticks(seconds: u64) -> u32 {
    u32::try_from((seconds * 1_000_000_000).div_ceil(1 << TICK_SHIFT)).expect("ticks of a test fit")
}

#[test]
fn a_syn_sent_again_within_four_seconds_is_the_same() {
    let ticks = |ms: u64| u32::try_from((ms * 1_000_000) >> TICK_SHIFT).unwrap();
    for ms in [0, 1_000, 2_000, 4_000] {
        assert!(is_beginning(0, ticks(ms)), "{ms} ms");
        assert!(is_beginning(FLOW_DSR, ticks(ms)), "{ms} ms");
    }
    assert!(!is_beginning(0, ticks(7_000)));
    for more in [FLOW_OPEN, FLOW_CLIENT_FIN, FLOW_SERVER_FIN, FLOW_RESET] {
        assert!(!is_beginning(more, 0), "{more}");
    }
}

#[test]
fn a_flow_has_the_time_that_its_state_gives_it() {
    const ENDED: u32 = FLOW_OPEN | FLOW_CLIENT_FIN | FLOW_SERVER_FIN;
    for (proto, state, seconds) in [
        (TCP, 0, 60),
        (UDP, 0, 60),
        (UDP, FLOW_OPEN, 180),
        (TCP, FLOW_OPEN, 432_000),
        (TCP, FLOW_OPEN | FLOW_CLIENT_FIN, 432_000),
        (SCTP, 0, 60),
        (SCTP, FLOW_OPEN, 432_000),
        (SCTP, ENDED, 60),
        (TCP, ENDED, 60),
        (TCP, FLOW_OPEN | FLOW_RESET, 60),
    ] {
        let over = ticks(seconds);
        assert!(!is_expired(proto, state, over - 1), "{proto} {state} before {seconds} s");
        assert!(is_expired(proto, state, over), "{proto} {state} after {seconds} s");
    }
}

/// What ends a connection whose answers don't pass by is the client's FIN, and that it has nothing more to acknowledge.
#[test]
fn a_flow_of_which_one_half_is_heard_ends_with_its_client() {
    let open = FLOW_DSR | FLOW_OPEN;
    let said_all = open | FLOW_CLIENT_FIN;
    for (state, idle, ended) in [
        (open, ticks(400_000), false),
        (said_all, 0, false),
        (said_all, 1, false),
        (said_all, 2, true),
        (FLOW_OPEN | FLOW_CLIENT_FIN, ticks(400_000), false),
        (open | FLOW_RESET, 0, true),
    ] {
        assert_eq!(life::has_ended(state, idle), ended, "{state:#x} after {idle}");
        assert_eq!(life::is_live(TCP, state, idle), !ended, "{state:#x} after {idle}");
    }
    assert!(!is_expired(TCP, said_all, ticks(598)));
    assert!(is_expired(TCP, said_all, ticks(601)));
    assert!(!is_expired(TCP, FLOW_OPEN | FLOW_CLIENT_FIN, ticks(601)), "the other half is still open");
    for (state, after_minutes) in [(open, true), (FLOW_OPEN, false)] {
        assert_eq!(is_expired(SCTP, state, ticks(181)), after_minutes, "{state:#x}");
    }
}

/// In the ring it makes room for another; not while it goes on.
#[test]
fn a_flow_of_which_one_half_is_heard_makes_room_when_it_has_ended() {
    for (wait, stays) in [(1, true), (2, false)] {
        let mut host = Host::default();
        node(&mut host);
        host.maps.places.set(Some(1));
        host.set_service(SERVICE, &[REMOTE]);
        host.set_endpoint(REMOTE, EndpointVal { flags: ENDPOINT_DSR, ..remote_endpoint() });
        host.set_own_door(addr(V4.node), IFINDEX, 1);
        let value = PortVal { flags: PORT_DSR, ..PortVal::new(SERVICE, 80) };
        host.set_port(PortKey::new(Addr::ANY, 8080, TCP), value);
        let sent = |port, flags| Segment::new(TCP, (V4.client, port), (V4.node, 8080)).flags(flags).bytes();
        for flags in [SYN, ACK, ACK | FIN] {
            host.run(Program::MeshIngress, &sent(1, flags));
        }
        host.maps.clock.set(host.maps.clock.get() + wait);
        host.run(Program::MeshIngress, &sent(2, SYN));
        let flow = host.flow(&key(TCP, 0, (V4.client, 1), (V4.node, 8080)));
        assert_eq!(flow.is_some(), stays, "after {wait}");
    }
}

#[test]
fn a_datagram_in_fragments_is_followed_for_a_while() {
    let mut host = Host::default();
    node(&mut host);
    host.set_service(SERVICE, &[LOCAL]);
    let fragments = split(&Segment::new(UDP, (V4.client, 1), (V4.node, 8080)).bytes(), 7, 16);
    host.run(Program::MeshIngress, &fragments[0]);
    for (passed, action) in [(29, Action::Redirect), (1, Action::Pass)] {
        host.maps.clock.set(host.maps.clock.get() + passed);
        assert_eq!(host.run(Program::MeshIngress, &fragments[1]).action, action);
    }
}

#[test]
fn what_was_used_since_it_was_proposed_stays() {
    let mut host = Host::default();
    node(&mut host);
    host.set_service(SERVICE, &[LOCAL]);
    let sent = |port| Segment::new(TCP, (V4.client, port), (V4.node, 8080));
    let flow = |port| key(TCP, 0, (V4.client, port), (V4.node, 8080));
    let answers = |port| key(TCP, 0, (V4.task, 80), (V4.client, port));
    for port in [1, 2] {
        host.run(Program::MeshIngress, &sent(port).bytes());
    }
    let propose = |host: &Host, index, key: FlowKey, table| {
        let record = if table == PROPOSE_FLOW {
            host.flow(&key).map(|flow| (flow.seen, flow.state))
        } else {
            host.reply(&key).map(|reply| (reply.seen, reply.state))
        };
        let (seen, state) = record.expect("recorded");
        host.maps.proposals.set(index, Proposal { key, seen, state, table, pad: 0 });
    };
    for (index, port) in [(0, 1), (2, 2)] {
        propose(&host, index, flow(port), PROPOSE_FLOW);
        propose(&host, index + 1, answers(port), PROPOSE_REPLY);
    }
    // The second goes on before the collector runs.
    host.run(Program::MeshIngress, &sent(2).flags(ACK).bytes());
    assert_eq!(host.collect(), 2);
    assert_eq!((host.flow(&flow(1)), host.reply(&answers(1))), (None, None));
    assert!(host.flow(&flow(2)).is_some() && host.reply(&answers(2)).is_some());
}

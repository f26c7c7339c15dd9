//! Cases of SCTP: addresses change and ports do not, and the checksum, which [`Segment::parse`] sums up, stays right.

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::{Mac, PortKey, RouterKey, VipKey};
use shoal_ebpf_common::life::{FLOW_CLIENT_FIN, FLOW_OPEN, FLOW_RESET, FLOW_SERVER_FIN};
use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::values::{BALANCED, BalancerIf, PortVal, VipVal};
use shoal_ebpf_common::verdict::Out;

use super::packet::{ACK, Complaint, FIN, PROBE, RST, SCTP, SYN, Segment, join, split};
use super::world::{
    Action, Family, GATE, IFINDEX, LEG, LOCAL, MARK, NETWORK, OTHER_ROUTER, OTHER_TASK, REMOTE,
    REMOTE_DEVICE, ROUTER, SERVICE, TASK, V4, V6, VIP, World, addr, dropped, egress_leg, forwarded,
    ingress_leg, ip, key, node, node_with_gate, passed,
};

const MESH: Program = Program::MeshIngress;
const OVERLAY: Program = Program::OverlayRx;
const TASK_TX: Program = Program::TaskTx;
const PORT: u16 = 5060;
const BOTH: u32 = FLOW_OPEN | FLOW_CLIENT_FIN | FLOW_SERVER_FIN;
const THIRD_ROUTER: Mac = [2, 0, 0, 0, 0, 3];
const GATEWAY: Mac = [2, 0xee, 0, 0, 0, 1];

/// A node that publishes a port of SCTP, whose service has these endpoints.
fn published(w: &mut dyn World, endpoints: &[u64]) {
    node(w);
    w.set_port(PortKey::new(Addr::ANY, PORT, SCTP), PortVal::new(SERVICE, PORT));
    w.set_service(SERVICE, endpoints);
}

fn request(family: &Family, port: u16) -> Segment {
    Segment::new(SCTP, (family.client, port), (family.node, PORT))
}

/// An answer of the task that is here, as it sends it.
fn answer(family: &Family, port: u16) -> Segment {
    Segment::new(SCTP, (family.task, PORT), (family.client, port)).flags(ACK).macs(TASK, ROUTER)
}

pub(crate) fn an_association_reaches_a_task_and_its_client(w: &mut dyn World) {
    for family in [V4, V6] {
        published(w, &[LOCAL]);
        let sent = request(&family, 40_000);
        let got = forwarded(w, MESH, &sent, Out::Peer(IFINDEX));
        let want = Segment { dst: ip(family.task), src_mac: ROUTER, dst_mac: TASK, ..sent.clone() };
        assert_eq!(got, want, "only the destination changed");
        let back = answer(&family, 40_000).flags(SYN | ACK);
        let got = forwarded(w, TASK_TX, &back, Out::Neighbor(IFINDEX));
        assert_eq!(got, Segment { src: ip(family.node), ..back });
        // Its system may give it the address of another leg.
        w.set_task_if(IFINDEX, egress_leg());
        let other =
            Segment { src: ip(family.leg), ..answer(&family, 40_000) }.macs(egress_leg().mac, GATEWAY);
        assert_eq!(forwarded(w, TASK_TX, &other, Out::Neighbor(IFINDEX)).src, ip(family.node));
        w.set_task_if(IFINDEX, ingress_leg());

        published(w, &[REMOTE]);
        let sent = request(&family, 40_001);
        let got = forwarded(w, MESH, &sent, Out::Device(REMOTE_DEVICE));
        assert_eq!(got, Segment { dst: ip(family.other), src_mac: ROUTER, dst_mac: OTHER_TASK, ..sent });
        let back = Segment::new(SCTP, (family.other, PORT), (family.client, 40_001)).macs(OTHER_TASK, ROUTER);
        let got = forwarded(w, OVERLAY, &back.clone().flags(SYN | ACK), Out::Neighbor(IFINDEX));
        assert_eq!((got.src, got.sport, got.dport), (ip(family.node), PORT, 40_001));
    }
}

pub(crate) fn an_association_is_followed_to_its_end(w: &mut dyn World) {
    published(w, &[LOCAL]);
    for family in [V4, V6] {
        let after = |w: &mut dyn World, from_client: bool, flags: u8, state: u32| {
            if from_client {
                forwarded(w, MESH, &request(&family, 40_000).flags(flags), Out::Peer(IFINDEX));
            } else {
                forwarded(w, TASK_TX, &answer(&family, 40_000).flags(flags), Out::Neighbor(IFINDEX));
            }
            let flow = w.flow(&key(SCTP, 0, (family.client, 40_000), (family.node, PORT)));
            let reply = w.reply(&key(SCTP, 0, (family.task, PORT), (family.client, 40_000)));
            assert_eq!(flow.map(|flow| flow.state), Some(state));
            assert_eq!(reply.map(|reply| reply.state), Some(state), "both records say so");
        };
        after(w, true, SYN, 0);
        after(w, false, SYN | ACK, 0);
        after(w, true, 0, FLOW_OPEN);
        after(w, false, ACK, FLOW_OPEN);
        // SHUTDOWN, and data that is still under way; SHUTDOWN ACK and SHUTDOWN COMPLETE.
        after(w, true, FIN | ACK, FLOW_OPEN | FLOW_CLIENT_FIN);
        after(w, false, ACK, FLOW_OPEN | FLOW_CLIENT_FIN);
        after(w, false, FIN, BOTH);
        after(w, true, RST | ACK, BOTH | FLOW_RESET);
        // The port is used again, and the association is aborted.
        after(w, true, SYN, 0);
        after(w, true, 0, FLOW_OPEN);
        after(w, false, RST, FLOW_OPEN | FLOW_RESET);
        // With a verification tag that was not theirs: it goes on.
        after(w, true, ACK, FLOW_OPEN);
    }
}

pub(crate) fn ports_of_sctp_are_never_translated(w: &mut dyn World) {
    published(w, &[LOCAL]);
    w.set_router(RouterKey::new(THIRD_ROUTER));
    for family in [V4, V6] {
        forwarded(w, MESH, &request(&family, 40_000), Out::Peer(IFINDEX));
        forwarded(w, MESH, &request(&family, 40_000).flags(0), Out::Peer(IFINDEX));
        // The same client port by another address of the node, and by another node.
        let second = Segment::new(SCTP, (family.client, 40_000), (family.node2, PORT));
        dropped(w, MESH, &second.bytes(), Reason::NoSourcePort);
        let by_router =
            |mac| Segment::new(SCTP, (family.client, 40_000), (family.task, PORT)).macs(mac, TASK);
        dropped(w, OVERLAY, &by_router(OTHER_ROUTER).bytes(), Reason::NoSourcePort);
        // Nothing of that was left behind: the first goes on, ends, and makes room.
        forwarded(w, MESH, &request(&family, 40_000).flags(ACK), Out::Peer(IFINDEX));
        forwarded(w, TASK_TX, &answer(&family, 40_000).flags(RST), Out::Neighbor(IFINDEX));
        assert_eq!(forwarded(w, MESH, &second, Out::Peer(IFINDEX)).sport, 40_000);
        // One that comes by another node is led back there.
        let by_router =
            |mac| Segment::new(SCTP, (family.client, 41_000), (family.task, PORT)).macs(mac, TASK);
        assert_eq!(forwarded(w, OVERLAY, &by_router(OTHER_ROUTER), Out::Peer(IFINDEX)).sport, 41_000);
        let back = forwarded(w, TASK_TX, &answer(&family, 41_000), Out::Device(REMOTE_DEVICE));
        assert_eq!((back.dst_mac, back.dport), (OTHER_ROUTER, 41_000));
        dropped(w, OVERLAY, &by_router(THIRD_ROUTER).bytes(), Reason::NoSourcePort);
    }
}

/// A port that would have to be translated is refused by the managers; were it there, no packet would leave broken.
pub(crate) fn unequal_ports_of_sctp_carry_nothing(w: &mut dyn World) {
    published(w, &[LOCAL]);
    w.set_port(PortKey::new(Addr::ANY, 5061, SCTP), PortVal::new(SERVICE, PORT));
    for family in [V4, V6] {
        let sent = Segment::new(SCTP, (family.client, 40_000), (family.node, 5061));
        dropped(w, MESH, &sent.bytes(), Reason::RewriteFailed);
    }
}

pub(crate) fn a_question_by_another_path_reaches_no_task(w: &mut dyn World) {
    published(w, &[LOCAL]);
    for family in [V4, V6] {
        // By the path that the association began on.
        forwarded(w, MESH, &request(&family, 40_000), Out::Peer(IFINDEX));
        forwarded(w, MESH, &request(&family, 40_000).flags(PROBE), Out::Peer(IFINDEX));
        // From another address of the client's: any endpoint but the right one would end the association.
        let other = Segment::new(SCTP, (family.other, 40_000), (family.node, PORT)).flags(PROBE);
        dropped(w, MESH, &other.bytes(), Reason::UnknownReply);
        dropped(
            w,
            Program::HostTx,
            &Segment { src: ip(family.node2), ..other }.bytes(),
            Reason::UnknownReply,
        );
        let to_vip = Segment::new(SCTP, (family.task, 40_000), (family.vip, PORT)).macs(TASK, VIP);
        dropped(w, TASK_TX, &to_vip.flags(PROBE).bytes(), Reason::UnknownReply);
        // What the task asks by its way to other networks would not be asked by whom the client asked.
        w.set_task_if(IFINDEX, egress_leg());
        let leg = |port, flags| {
            let asked = Segment::new(SCTP, (family.leg, port), (family.other, 40_000)).flags(flags);
            asked.macs(egress_leg().mac, GATEWAY).bytes()
        };
        dropped(w, TASK_TX, &leg(PORT, PROBE), Reason::UnknownReply);
        passed(w, TASK_TX, &leg(PORT, SYN));
        passed(w, TASK_TX, &leg(41_000, PROBE));
        w.set_task_if(IFINDEX, ingress_leg());
        // What goes on from another node's address (it has moved) finds the same task by the table.
        forwarded(w, MESH, &request(&family, 40_001).flags(ACK), Out::Peer(IFINDEX));
        forwarded(w, MESH, &request(&family, 40_001).flags(PROBE), Out::Peer(IFINDEX));
        // Associations of the node's own are none of ours.
        for flags in [SYN, ACK, PROBE] {
            let own = Segment::new(SCTP, (family.client, 40_000), (family.node, 9)).flags(flags);
            passed(w, MESH, &own.bytes());
        }
        passed(w, MESH, &request(&family, 40_002).flags(SYN | ACK).bytes());
    }
}

pub(crate) fn an_association_without_endpoint_is_refused(w: &mut dyn World) {
    published(w, &[LOCAL]);
    for family in [V4, V6] {
        forwarded(w, MESH, &request(&family, 40_000), Out::Peer(IFINDEX));
    }
    w.set_service(SERVICE, &[]);
    w.remove_endpoint(LOCAL);
    for family in [V4, V6] {
        for (port, flags) in [(40_000, ACK), (40_001, SYN)] {
            let before = w.drops(Reason::NoEndpoint);
            passed(w, MESH, &request(&family, port).flags(flags).bytes());
            assert_eq!(w.drops(Reason::NoEndpoint), before + 1, "the stack refuses it");
        }
    }
}

pub(crate) fn an_association_with_a_virtual_ip(w: &mut dyn World) {
    published(w, &[REMOTE]);
    for family in [V4, V6] {
        w.set_service(SERVICE, &[REMOTE]);
        let sent = |port| Segment::new(SCTP, (family.task, port), (family.vip, 9)).macs(TASK, VIP);
        let got = forwarded(w, TASK_TX, &sent(40_000), Out::Device(REMOTE_DEVICE));
        assert_eq!(got, Segment { dst: ip(family.other), dst_mac: OTHER_TASK, ..sent(40_000) });
        let back = Segment::new(SCTP, (family.other, 9), (family.task, 40_000)).macs(OTHER_TASK, TASK);
        let got = forwarded(w, OVERLAY, &back.clone().flags(SYN | ACK), Out::Peer(IFINDEX));
        assert_eq!(got, Segment { src: ip(family.vip), ..back.flags(SYN | ACK) });
        // One to the endpoint's own address from the same port would have the same answers.
        forwarded(w, TASK_TX, &sent(40_000).flags(0), Out::Device(REMOTE_DEVICE));
        let direct = Segment::new(SCTP, (family.task, 40_000), (family.other, 9)).macs(TASK, OTHER_TASK);
        dropped(w, TASK_TX, &direct.bytes(), Reason::NoSourcePort);
        // The task is its own server.
        w.set_service(SERVICE, &[LOCAL]);
        let got = forwarded(w, TASK_TX, &sent(40_001), Out::Peer(IFINDEX));
        assert_eq!((got.src, got.dst), (ip(family.vip), ip(family.task)));
    }
}

pub(crate) fn an_association_of_the_node_itself(w: &mut dyn World) {
    published(w, &[LOCAL]);
    for (family, lo) in [(V4, "127.0.0.1"), (V6, "::1")] {
        for (from, seen, port) in [(lo, family.router, 40_000), (family.node, family.node, 40_001)] {
            let sent = Segment::new(SCTP, (from, port), (from, PORT)).macs([0; 6], [0; 6]);
            let got = forwarded(w, Program::HostTx, &sent, Out::Peer(IFINDEX));
            assert_eq!((got.src, got.dst, got.sport), (ip(seen), ip(family.task), port));
            let back =
                Segment::new(SCTP, (family.task, PORT), (seen, port)).flags(SYN | ACK).macs(TASK, ROUTER);
            let got = forwarded(w, TASK_TX, &back, Out::Host(IFINDEX));
            assert_eq!((got.src, got.dst, got.dport), (ip(from), ip(from), port));
        }
    }
}

pub(crate) fn errors_about_an_association_reach_both_ends(w: &mut dyn World) {
    for family in [V4, V6] {
        published(w, &[REMOTE]);
        let sent = request(&family, 40_000).flags(ACK);
        let there = forwarded(w, MESH, &sent, Out::Device(REMOTE_DEVICE));
        let turned = |s: &Segment| {
            let Segment { src, dst, sport, dport, .. } = s.clone();
            Segment { src: dst, dst: src, sport: dport, dport: sport, ..s.clone() }
        };
        let (to_task, to_client) = (turned(&sent), turned(&there));
        // Of the checksum, all or nothing is quoted: there is nothing to be changed in it.
        for (kind, cut) in Complaint::kinds(family.node == V4.node).into_iter().zip([8, 10, 12, usize::MAX]) {
            let check = |w: &mut dyn World, program, error: Complaint, want: Complaint| {
                let run = w.run(program, &error.bytes());
                assert_eq!((run.action, run.bytes), (Action::Redirect, want.bytes()), "{error:?}");
            };
            let client = ip(family.client);
            let error =
                Complaint { macs: (GATEWAY, ROUTER), sender: client, kind, about: to_task.clone(), cut };
            let want = Complaint { macs: (ROUTER, OTHER_TASK), about: to_client.clone(), ..error.clone() };
            check(w, MESH, error, want);
            let macs = (OTHER_TASK, ROUTER);
            let error = Complaint { macs, sender: ip(family.other), kind, about: there.clone(), cut };
            let want = Complaint { macs, sender: ip(family.node), kind, about: sent.clone(), cut };
            check(w, OVERLAY, error, want);
        }
    }
}

pub(crate) fn fragments_of_an_association_follow_their_first(w: &mut dyn World) {
    published(w, &[LOCAL]);
    for family in [V4, V6] {
        let through = |w: &mut dyn World, program, segment: &Segment| {
            let pieces = split(&segment.bytes(), 0x4711, 48).into_iter().map(|piece| {
                let run = w.run(program, &piece);
                assert_eq!(run.action, Action::Redirect);
                run.bytes
            });
            join(&pieces.collect::<Vec<_>>())
        };
        forwarded(w, MESH, &request(&family, 40_000), Out::Peer(IFINDEX));
        let sent = Segment { payload: vec![0xa5; 300], ..request(&family, 40_000).flags(ACK) };
        let got = through(w, MESH, &sent);
        assert_eq!(got, Segment { dst: ip(family.task), ..sent }.macs(ROUTER, TASK));
        let back = Segment { payload: vec![0x5a; 300], ..answer(&family, 40_000) };
        let got = through(w, TASK_TX, &back);
        assert_eq!(got, Segment { src: ip(family.node), ..back });
    }
}

pub(crate) fn an_association_goes_through_a_balancer(w: &mut dyn World) {
    node_with_gate(w);
    w.set_port(PortKey::new(Addr::ANY, PORT, SCTP), PortVal::balanced(SERVICE, PORT, MARK));
    w.set_balancer_if(IFINDEX, BalancerIf { vxlan: IFINDEX, steer: 0 });
    for family in [V4, V6] {
        w.set_vip(
            VipKey { addr: addr(family.vip), network: NETWORK },
            VipVal { service: SERVICE, mac: VIP, balancer: LEG, mark: MARK, ..VipVal::default() },
        );
        let other = Segment::new(SCTP, (family.other, 40_000), (family.node, PORT)).flags(PROBE);
        dropped(w, MESH, &other.bytes(), Reason::UnknownReply);
        for flags in [SYN, 0, PROBE, FIN | ACK] {
            let sent = request(&family, 40_000).flags(flags);
            assert_eq!(forwarded(w, MESH, &sent, Out::Peer(GATE)), sent, "as it came");
            let sent =
                Segment::new(SCTP, (family.task, 40_000), (family.vip, 9)).macs(TASK, VIP).flags(flags);
            assert_eq!(forwarded(w, TASK_TX, &sent, Out::Peer(LEG)), sent);
        }
        let flow = w.flow(&key(SCTP, 0, (family.client, 40_000), (family.node, PORT))).expect("a flow");
        assert_eq!((flow.endpoint, flow.mark), (BALANCED, MARK));
        // The task that was chosen has the virtual IP, and may answer from its own address.
        let asked = Segment::new(SCTP, (family.other, 40_000), (family.vip, 9)).macs(OTHER_ROUTER, TASK);
        assert_eq!(forwarded(w, OVERLAY, &asked, Out::Peer(IFINDEX)), asked);
        let back = Segment::new(SCTP, (family.task, 9), (family.other, 40_000)).macs(TASK, OTHER_TASK);
        let got = forwarded(w, TASK_TX, &back.clone().flags(SYN | ACK), Out::Device(REMOTE_DEVICE));
        assert_eq!(got, Segment { src: ip(family.vip), ..back.flags(SYN | ACK) });
    }
}

//! `host_tx`: what the node itself sends to its own addresses, which the kernel turns round on the loopback device.
//!
//! A published port answers here as at an uplink, by the table of its service on either engine. The task sees the address
//! that the client had, except for a loopback address, which would mean something else elsewhere: it becomes the
//! router's, and the answer's destination the loopback address again.

use crate::addr::Addr;
use crate::choose::{self, Entry, Known};
use crate::icmp;
use crate::mesh;
use crate::packet::{self, Packet};
use crate::proxy;
use crate::reason::Reason;
use crate::tables::Tables;
use crate::values::{EndpointVal, NodeConfig, REPLY_LOCAL, ReplyVal};
use crate::verdict::{Out, Verdict, Work};

const LOOPBACK4: Addr = Addr::v4([127, 0, 0, 1]);
const LOOPBACK6: Addr = Addr::v6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Decides on a packet on the loopback device `ifindex`.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &P, tables: &T, ifindex: u32, work: &mut Work) -> Verdict {
    work.begin();
    let Some(ethernet) = packet::ethernet(packet) else { return Verdict::Pass };
    if packet::header(packet, ethernet.kind, &mut work.header).is_err() {
        return Verdict::Pass;
    }
    if !work.header.has_flow() {
        return icmp::aside(packet, &work.header);
    }
    let Some(config) = tables.config() else { return Verdict::Pass };
    let Some(client) = seen(config, work.header.v4, &work.header.src) else { return Verdict::Pass };
    work.set_key(0);
    let entry = Entry { ifindex, kind: REPLY_LOCAL, client: Some(&client) };
    match choose::known(tables, work) {
        Known::Flow(flow, endpoint) if choose::goes_on(packet, tables, work, flow, endpoint, &entry) => {
            work.proxy = proxy::ahead(flow.state);
            tables.count_request(&work.key, flow, work.header.length.into());
            return forward(work, config, endpoint, &client, (flow.source_port, flow.target_port));
        }
        Known::Gone => return Verdict::Refuse(Reason::NoEndpoint),
        Known::Flow(..) | Known::Balanced(_) | Known::New => {}
    }
    let dst = &work.header.dst;
    let is_own = *dst == places(config, work.header.v4).0 || tables.is_local_addr(dst);
    if work.header.is_syn_ack() || !is_own {
        return Verdict::Pass;
    }
    let Some(port) = mesh::port(tables, &work.header) else { return Verdict::Pass };
    if work.header.is_probe() {
        return Verdict::Drop(Reason::UnknownReply);
    }
    let known = tables.flow(&work.key);
    let Some(choice) = choose::choose(tables, port.service, work, known, &[0; 6]) else {
        return Verdict::Refuse(Reason::NoEndpoint);
    };
    work.set_flow(choice.id, port.service, port.target_port);
    proxy::begin(packet, port, work);
    if !choose::record(packet, tables, work, known, choice.endpoint, &entry) {
        return Verdict::Drop(Reason::NoSourcePort);
    }
    let ports = (work.flow.source_port, work.flow.target_port);
    forward(work, config, choice.endpoint, &client, ports)
}

/// The address of a client on this node as tasks see it, if it can be one.
#[inline(always)]
pub(crate) fn seen(config: &NodeConfig, v4: bool, client: &Addr) -> Option<Addr> {
    let (loopback, router) = places(config, v4);
    if *client == loopback {
        return if router.is_any() { None } else { Some(router.copied()) };
    }
    // No answer would be led back to another loopback address.
    if v4 && client.v4_octets()[0] == 127 { None } else { Some(client.copied()) }
}

/// The loopback address of a packet's family, and the router's. Other addresses of 127.0.0.0/8 are not ours: what has
/// them, as a resolver of the host's at 127.0.0.53, means to be asked itself.
#[inline(always)]
fn places(config: &NodeConfig, v4: bool) -> (Addr, &Addr) {
    if v4 { (LOOPBACK4, &config.router_ip4) } else { (LOOPBACK6, &config.router_ip6) }
}

#[inline(always)]
fn forward(
    work: &mut Work,
    config: &NodeConfig,
    endpoint: &EndpointVal,
    client: &Addr,
    (source, target): (u16, u16),
) -> Verdict {
    let verdict = mesh::forward(work, config, endpoint, source, target);
    work.forward.src = client.copied();
    verdict
}

/// Leads an answer back to a client on this node.
#[inline(always)]
pub(crate) fn home(work: &mut Work, config: &NodeConfig, reply: &ReplyVal) {
    let client = client_of(config, work.header.v4, &work.header.dst);
    let forward = &mut work.forward;
    forward.src = reply.addr.copied();
    forward.dst = client;
    forward.sport = reply.port;
    forward.dport = reply.client_port;
    // The loopback device's, or the kernel takes the packet for somebody else's.
    forward.src_mac = [0; 6];
    forward.dst_mac = [0; 6];
    forward.out = Out::Host(reply.ifindex);
}

/// The address that a client on this node has itself, by the one that tasks see.
#[inline(always)]
pub(crate) fn client_of(config: &NodeConfig, v4: bool, seen: &Addr) -> Addr {
    let (loopback, router) = places(config, v4);
    if *seen == *router { loopback } else { seen.copied() }
}

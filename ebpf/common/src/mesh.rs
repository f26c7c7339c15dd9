//! `mesh_ingress`: what arrives at an uplink.

use crate::addr::Addr;
use crate::balancer::{self, Target};
use crate::choose::{self, Entry, Known};
use crate::direct;
use crate::icmp;
use crate::keys::{PortKey, copied};
use crate::packet::{self, Fragment, Header, Packet, UDP};
use crate::proxy;
use crate::reason::Reason;
use crate::tables::Tables;
use crate::values::{EndpointVal, NodeConfig, PortVal, REPLY_RESTORE};
use crate::verdict::{Out, Verdict, Work};

/// Decides on a packet that arrived at the uplink `ifindex`.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &P, tables: &T, ifindex: u32, work: &mut Work) -> Verdict {
    work.begin();
    let Some(ethernet) = packet::ethernet(packet) else { return Verdict::Pass };
    if packet::header(packet, ethernet.kind, &mut work.header).is_err() {
        return Verdict::Pass;
    }
    let Some(config) = tables.config() else { return Verdict::Pass };
    if is_tunnel(&work.header, config) {
        return admit(tables, &work.header);
    }
    if !work.header.has_flow() {
        return icmp::aside(packet, &work.header);
    }
    work.set_key(0);
    let entry = Entry { ifindex, kind: REPLY_RESTORE, client: None };
    match choose::known(tables, work) {
        Known::Flow(flow, endpoint) if choose::goes_on(packet, tables, work, flow, endpoint, &entry) => {
            work.proxy = proxy::ahead(flow.state);
            tables.count_request(&work.key, flow, work.header.length.into());
            let verdict = forward(work, config, endpoint, flow.source_port, flow.target_port);
            // Its node may be of an older version by now.
            direct::mark(work, config, if endpoint.may_answer() { flow.door } else { 0 });
            return verdict;
        }
        Known::Balanced(flow) if config.gate != 0 => {
            narrow(work, config.ingress_vxlan);
            return balancer::go_on(tables, work, flow, config.gate);
        }
        Known::Gone => return Verdict::Refuse(Reason::NoEndpoint),
        Known::Flow(..) | Known::Balanced(_) | Known::New => {}
    }
    if work.header.is_syn_ack() {
        return Verdict::Pass;
    }
    let Some(port) = published(tables, &work.header) else { return Verdict::Pass };
    if work.header.is_probe() {
        return Verdict::Drop(Reason::UnknownReply);
    }
    if port.mark != 0 && config.gate != 0 {
        narrow(work, config.ingress_vxlan);
        let target = Target { service: port.service, mark: port.mark, ifindex: config.gate };
        return balancer::hand_over(tables, work, target);
    }
    let known = tables.flow(&work.key);
    let Some(choice) = choose::choose(tables, port.service, work, known, &[0; 6]) else {
        return Verdict::Refuse(Reason::NoEndpoint);
    };
    work.set_flow(choice.id, port.service, port.target_port);
    proxy::begin(packet, port, work);
    direct::begin(tables, port, choice.endpoint, ifindex, work);
    if !choose::record(packet, tables, work, known, choice.endpoint, &entry) {
        return Verdict::Drop(Reason::NoSourcePort);
    }
    let (source, target) = (work.flow.source_port, work.flow.target_port);
    let verdict = forward(work, config, choice.endpoint, source, target);
    let door = work.flow.door;
    direct::mark(work, config, door);
    verdict
}

/// Whether the packet is one of the tunnels' (or the fragment of one that tells).
#[inline(always)]
fn is_tunnel(header: &Header, config: &NodeConfig) -> bool {
    header.proto == UDP
        && config.vxlan_port != 0
        && header.dport == config.vxlan_port
        && !matches!(header.fragment, Fragment::Later)
}

/// Tunnel admission: only members may send.
#[inline(always)]
fn admit<T: Tables>(tables: &T, header: &Header) -> Verdict {
    if tables.is_member(&header.src) { Verdict::Tunnel } else { Verdict::Drop(Reason::NotMember) }
}

/// What the destination publishes: on every address of the node, else on the very address. Nobody publishes a port on
/// both, so the more frequent comes first.
#[inline(always)]
fn published<'a, T: Tables>(tables: &'a T, header: &Header) -> Option<&'a PortVal> {
    // Most of what comes in is for no port: of that only the ports are asked.
    let port = port(tables, header)?;
    if tables.is_local_addr(&header.dst) { Some(port) } else { None }
}

/// As [`published`], for a destination that is known to be this node's.
#[inline(always)]
pub(crate) fn port<'a, T: Tables>(tables: &'a T, header: &Header) -> Option<&'a PortVal> {
    if let Some(port) = tables.port(&PortKey::new(Addr::ANY, header.dport, header.proto)) {
        return Some(port);
    }
    tables.port(&PortKey::new(header.dst, header.dport, header.proto))
}

#[inline(always)]
pub(crate) fn forward(
    work: &mut Work,
    config: &NodeConfig,
    endpoint: &EndpointVal,
    source: u16,
    target: u16,
) -> Verdict {
    let forward = &mut work.forward;
    forward.src = work.header.src.copied();
    forward.dst = endpoint.addr(work.header.v4).copied();
    forward.sport = source;
    forward.dport = target;
    forward.src_mac = copied(&config.router_mac);
    forward.dst_mac = copied(&endpoint.mac);
    forward.out = out(endpoint);
    if !endpoint.is_local() {
        narrow(work, endpoint.ifindex);
    }
    Verdict::Forward
}

/// Through the tunnel less fits than the client knows, and than the task's other legs let it believe.
#[inline(always)]
fn narrow(work: &mut Work, vxlan: u32) {
    if work.header.opens() {
        work.narrow = vxlan;
    }
}

/// Where an endpoint is.
#[inline(always)]
pub(crate) fn out(endpoint: &EndpointVal) -> Out {
    if endpoint.is_local() { Out::Peer(endpoint.ifindex) } else { Out::Device(endpoint.ifindex) }
}

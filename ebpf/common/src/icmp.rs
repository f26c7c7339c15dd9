//! ICMP errors about packets of translated flows: they come to the end that sent the packet, and quote it as that end
//! knows it (RFC 792 and RFC 4443, by the rules of RFC 5508 section 4).
//!
//! An error is found by what it quotes. A quote of an answer belongs to an entry of `FLOWS` and goes to the endpoint; a
//! quote of a request belongs to one of `REPLIES` and goes to the client, as from the address that the client asked. It
//! neither makes nor keeps a record. What quotes no flow, or not enough of it, is left to the stack or the bridge as it
//! is; nothing here ever makes an error.
//!
//! This is off the path of every other packet: the programs call it as a function of its own.

use crate::addr::Addr;
use crate::balancer;
use crate::direct;
use crate::guard;
use crate::keys::{LocalKey, Mac, RouterKey, copied, same_mac};
use crate::local;
use crate::mesh::out;
use crate::packet::{
    self, ETH_IPV4, ETH_IPV6, ETH_LEN, Fragment, Header, ICMP, ICMPV6, Packet, be16, has_ports,
};
use crate::reason::Program;
use crate::steer;
use crate::tables::Tables;
use crate::task;
use crate::values::{
    ALIASED, BALANCED, EndpointVal, FlowVal, NodeConfig, REPLY_HAIRPIN, REPLY_LOCAL, REPLY_RESTORE,
    REPLY_STEER, REPLY_VIP, ReplyVal, TaskIf, VipVal,
};
use crate::verdict::{Out, Verdict, Work};

/// Length of an error before its quote.
pub(crate) const ICMP_LEN: u32 = 8;
/// What a quote must hold of the upper layer: the ports, and of UDP the checksum.
const QUOTED: u32 = 8;

/// What to do with a packet that has no flow of its own.
#[inline(always)]
pub(crate) fn aside<P: Packet>(packet: &P, header: &Header) -> Verdict {
    if header.follows() {
        return Verdict::Follow;
    }
    if is_error(packet, header) { Verdict::Error } else { Verdict::Pass }
}

/// Whether a packet is an error about another: destination unreachable (which is "too big" in IPv4), too big, time
/// exceeded, parameter problem.
#[inline(always)]
pub fn is_error<P: Packet>(packet: &P, header: &Header) -> bool {
    let proto = if header.v4 { ICMP } else { ICMPV6 };
    if header.proto != proto || !matches!(header.fragment, Fragment::Whole) {
        return false;
    }
    match packet.load::<1>(header.l4) {
        Some([kind]) if header.v4 => matches!(kind, 3 | 11 | 12),
        Some([kind]) => matches!(kind, 1..=4),
        None => false,
    }
}

/// Reads what an error ([`Work::header`]) quotes into [`Work::quote`]. Returns whether it is of use.
#[inline(always)]
pub fn read<P: Packet>(packet: &P, work: &mut Work) -> bool {
    quote(packet, &work.header, &mut work.quote).is_some()
}

/// Decides on an error that a program met at a device; `known`: what [`read`] said. `Forward` is for
/// [`crate::rewrite::error`].
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    at: (Program, u32),
    work: &mut Work,
    known: bool,
) -> Verdict {
    let (program, ifindex) = at;
    let Some(ethernet) = packet::ethernet(packet) else { return Verdict::Pass };
    // Into memory: each byte in flight is a word of stack.
    work.ethernet = ethernet;
    if matches!(program, Program::TaskTx) {
        return from_task(tables, ifindex, work, known);
    }
    let Some(config) = tables.config() else { return Verdict::Pass };
    match program {
        _ if !known => otherwise(tables, program, ifindex, work),
        Program::MeshIngress | Program::HostTx => from_client(tables, program, config, work),
        Program::OverlayRx => from_tunnel(tables, config, ifindex, work),
        Program::BalancerTx => from_balancer(tables, config, ifindex, work),
        Program::TaskTx | Program::GateTx => Verdict::Pass,
    }
}

/// Where an error goes that quotes nothing of ours: a balancer's to where it would go without us.
#[inline(always)]
fn otherwise<T: Tables>(tables: &T, program: Program, ifindex: u32, work: &mut Work) -> Verdict {
    if matches!(program, Program::BalancerTx)
        && let Some(leg) = tables.balancer_if(ifindex)
        && let Some(local) = tables.local(&LocalKey::new(leg.vxlan, work.ethernet.dst))
    {
        return work.redirect(Out::Peer(local.veth));
    }
    Verdict::Pass
}

/// A packet without what stands before it.
struct Quoted<'a, P> {
    packet: &'a P,
    shift: u32,
}

impl<P: Packet> Packet for Quoted<'_, P> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.packet.load(offset + self.shift)
    }

    #[inline(always)]
    fn load_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.packet.load_words(offset + self.shift)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.packet.length().wrapping_sub(self.shift)
    }
}

/// Reads what an error quotes, if it is the beginning of a TCP, UDP or SCTP packet with its ports, and comes to who sent that.
/// [`Header::l4`] counts from the error's own Ethernet header.
#[inline(always)]
fn quote<P: Packet>(packet: &P, header: &Header, quote: &mut Header) -> Option<()> {
    let shift = header.l4 + ICMP_LEN - ETH_LEN;
    let kind = if header.v4 { ETH_IPV4 } else { ETH_IPV6 };
    packet::ip(&Quoted { packet, shift }, kind, quote).ok()?;
    quote.l4 += shift;
    if !has_ports(quote.proto) || matches!(quote.fragment, Fragment::Later) || quote.l4 + QUOTED > header.end
    {
        return None;
    }
    let ports = packet.load::<4>(quote.l4)?;
    quote.sport = be16(ports[0], ports[1]);
    quote.dport = be16(ports[2], ports[3]);
    (quote.src == header.dst).then_some(())
}

/// An error about an answer: from the client, or from a router on the way to it.
#[inline(always)]
fn from_client<T: Tables>(tables: &T, program: Program, config: &NodeConfig, work: &mut Work) -> Verdict {
    work.key = work.quote.reverse_key(0);
    let Some(flow) = tables.flow(&work.key) else { return Verdict::Pass };
    let here = matches!(program, Program::HostTx);
    if flow.endpoint == BALANCED {
        let gate = if here { 0 } else { config.gate };
        return if gate == 0 { Verdict::Pass } else { balancer::carry(work, flow.mark, gate) };
    }
    let Some(endpoint) = tables.endpoint(flow.endpoint) else { return Verdict::Pass };
    to_endpoint(work, endpoint, flow);
    work.forward.src_mac = copied(&config.router_mac);
    if here {
        let Some(sender) = local::seen(config, work.header.v4, &work.header.src) else {
            return Verdict::Pass;
        };
        work.forward.src = sender;
        let Some(client) = local::seen(config, work.header.v4, &work.quote.dst) else { return Verdict::Pass };
        work.quoted.dst = client;
    }
    Verdict::Forward
}

/// The error goes to the endpoint that sent the quoted packet.
#[inline(always)]
fn to_endpoint(work: &mut Work, endpoint: &EndpointVal, flow: &FlowVal) {
    let addr = endpoint.addr(work.header.v4);
    work.forward.src = work.header.src.copied();
    work.forward.dst = addr.copied();
    work.forward.dst_mac = copied(&endpoint.mac);
    work.forward.out = out(endpoint);
    work.quoted.src = addr.copied();
    work.quoted.dst = work.quote.dst.copied();
    work.quoted.sport = flow.target_port;
    work.quoted.dport = flow.source_port;
}

/// An error that came through a tunnel.
#[inline(always)]
fn from_tunnel<T: Tables>(tables: &T, config: &NodeConfig, ifindex: u32, work: &mut Work) -> Verdict {
    if same_mac(&work.ethernet.dst, &config.router_mac) {
        return to_router(tables, config, work);
    }
    let Some(local) = tables.local(&LocalKey::new(ifindex, work.ethernet.dst)) else { return Verdict::Pass };
    let own = if work.header.v4 { &local.ip4 } else { &local.ip6 };
    if work.header.dst == *own && tables.is_router(&RouterKey::new(work.ethernet.src)) {
        return from_router(tables, &copied(&work.ethernet.src), Out::Peer(local.veth), work);
    }
    work.key = work.quote.reverse_key(local.network);
    match tables.reply(&work.key) {
        Some(reply) if reply.kind == REPLY_VIP => {
            restore(work, reply, Out::Peer(local.veth));
            Verdict::Forward
        }
        _ => Verdict::Pass,
    }
}

/// An error about a request that entered by this node.
#[inline(always)]
fn to_router<T: Tables>(tables: &T, config: &NodeConfig, work: &mut Work) -> Verdict {
    let router = if work.header.v4 { &config.router_ip4 } else { &config.router_ip6 };
    work.key = work.quote.reverse_key(0);
    match tables.reply(&work.key) {
        Some(reply) if reply.kind == REPLY_RESTORE => {
            restore(work, reply, Out::Neighbor(reply.ifindex));
            Verdict::Forward
        }
        Some(reply) if reply.kind == REPLY_LOCAL => {
            home(work, config, reply);
            Verdict::Forward
        }
        _ if config.balancer != 0 && work.header.dst != *router => work.redirect(Out::Peer(config.balancer)),
        _ => Verdict::Pass,
    }
}

/// An error about a task's answer, which `router` brought: with the port that the task knows.
#[inline(always)]
fn from_router<T: Tables>(tables: &T, router: &Mac, out: Out, work: &mut Work) -> Verdict {
    work.answers = work.quote.key(0);
    if let Some(known) = tables.reply(&work.answers)
        && steer::came_by(known, router, work.quote.dport)
    {
        return answered_from(work, known, out);
    }
    work.key = work.quote.reverse_key(steer::scope_of(router));
    let Some(flow) = tables.flow(&work.key) else { return Verdict::Pass };
    if flow.endpoint != ALIASED || !steer::is_of(flow.service, router) {
        return Verdict::Pass;
    }
    work.answers.dport = flow.source_port;
    match tables.reply(&work.answers) {
        Some(known) if known.kind == REPLY_STEER => answered_from(work, known, out),
        _ => Verdict::Pass,
    }
}

/// The error goes to the task, about an answer ([`Work::answers`]) from the address that it gave by itself.
#[inline(always)]
fn answered_from(work: &mut Work, known: &ReplyVal, out: Out) -> Verdict {
    if known.addr == work.quote.src && work.answers.dport == work.quote.dport {
        return work.redirect(out);
    }
    unchanged(work, out);
    work.quoted.src = known.addr.copied();
    work.quoted.dport = work.answers.dport;
    Verdict::Forward
}

/// An error that the balancer of published ports leads to a task here.
#[inline(always)]
fn from_balancer<T: Tables>(tables: &T, config: &NodeConfig, ifindex: u32, work: &mut Work) -> Verdict {
    let Some(leg) = tables.balancer_if(ifindex) else { return Verdict::Pass };
    let Some(local) = tables.local(&LocalKey::new(leg.vxlan, work.ethernet.dst)) else {
        return Verdict::Pass;
    };
    let out = Out::Peer(local.veth);
    match from_router(tables, &config.router_mac, out, work) {
        Verdict::Pass => work.redirect(out),
        verdict => verdict,
    }
}

/// An error that a task sends.
#[inline(always)]
fn from_task<T: Tables>(tables: &T, ifindex: u32, work: &mut Work, known: bool) -> Verdict {
    let Some(task) = tables.task_if(ifindex) else { return Verdict::Pass };
    if known && about_mesh(tables, task, work) {
        return Verdict::Forward;
    }
    if let Err(reason) = guard::check_source(task, &work.header) {
        return Verdict::Drop(reason);
    }
    // A task speaks of what came to itself.
    if !known || task.network == 0 || work.quote.dst != work.header.src {
        return Verdict::Pass;
    }
    work.key = work.quote.reverse_key(task.network);
    if about_vip(tables, task, work) {
        return Verdict::Forward;
    }
    match task::vip(tables, task, work.header.dst) {
        Some(vip) => to_vip(tables, task, vip, work),
        None => Verdict::Pass,
    }
}

/// An error about a request of the mesh goes back the way that came, by whatever leg the task sends it.
#[inline(always)]
fn about_mesh<T: Tables>(tables: &T, task: &TaskIf, work: &mut Work) -> bool {
    let v4 = work.header.v4;
    let (ingress, own) = if v4 { (&task.ingress_ip4, &task.ip4) } else { (&task.ingress_ip6, &task.ip6) };
    let src = &work.header.src;
    if ingress.is_any() || work.quote.dst != *ingress || (src != ingress && src != own) {
        return false;
    }
    work.key = work.quote.reverse_key(0);
    let Some(reply) = tables.reply(&work.key) else { return false };
    match reply.kind {
        REPLY_RESTORE => restore(work, reply, Out::Neighbor(reply.ifindex)),
        REPLY_LOCAL => {
            let Some(config) = tables.config() else { return false };
            home(work, config, reply);
        }
        REPLY_STEER => {
            let Some(config) = tables.config() else { return false };
            // By the router, whoever answers: it knows what the client sent.
            let router = direct::router_of(&reply.mac, &config.router_mac);
            let Some(out) = task::to_router(task, config, &router) else { return false };
            unchanged(work, out);
            work.forward.src = ingress.copied();
            work.forward.src_mac = copied(&task.ingress_mac);
            work.forward.dst_mac = router;
            work.quoted.sport = reply.client_port;
        }
        _ => return false,
    }
    true
}

/// An error about a request ([`Work::key`]) that a task of this node made through a virtual IP.
#[inline(always)]
fn about_vip<T: Tables>(tables: &T, task: &TaskIf, work: &mut Work) -> bool {
    let Some(reply) = tables.reply(&work.key) else { return false };
    match reply.kind {
        REPLY_VIP => restore(work, reply, Out::Peer(reply.ifindex)),
        REPLY_HAIRPIN => {
            restore(work, reply, Out::Peer(reply.ifindex));
            work.forward.dst = work.header.src.copied();
            work.forward.src_mac = copied(&reply.mac);
            work.forward.dst_mac = copied(&task.mac);
            work.quoted.src = work.header.src.copied();
        }
        _ => return false,
    }
    true
}

/// An error about an answer ([`Work::key`] is its flow's) from a virtual IP.
#[inline(always)]
fn to_vip<T: Tables>(tables: &T, task: &TaskIf, vip: &VipVal, work: &mut Work) -> Verdict {
    let Some(flow) = tables.flow(&work.key) else { return Verdict::Pass };
    if flow.endpoint == BALANCED {
        return match vip.balancer {
            0 => Verdict::Pass,
            balancer => balancer::carry(work, flow.mark, balancer),
        };
    }
    let Some(endpoint) = tables.endpoint(flow.endpoint) else { return Verdict::Pass };
    to_endpoint(work, endpoint, flow);
    work.forward.src_mac = copied(&task.mac);
    if same_mac(&endpoint.mac, &task.mac) {
        // The task is its own server, which takes the virtual IP for its client.
        work.forward.src = work.header.dst.copied();
        work.forward.src_mac = copied(&vip.mac);
        work.quoted.dst = work.header.dst.copied();
    }
    Verdict::Forward
}

/// The error goes on as it is so far.
#[inline(always)]
fn unchanged(work: &mut Work, out: Out) {
    work.forward.src = work.header.src.copied();
    work.forward.dst = work.header.dst.copied();
    work.forward.src_mac = copied(&work.ethernet.src);
    work.forward.dst_mac = copied(&work.ethernet.dst);
    work.forward.out = out;
    work.quoted.src = work.quote.src.copied();
    work.quoted.dst = work.quote.dst.copied();
    work.quoted.sport = work.quote.sport;
    work.quoted.dport = work.quote.dport;
}

/// The error goes to the client, about what the client sent and from whom that was for.
#[inline(always)]
fn restore(work: &mut Work, reply: &ReplyVal, out: Out) {
    unchanged(work, out);
    work.forward.src = reply.addr.copied();
    work.quoted.dst = reply.addr.copied();
    work.quoted.dport = reply.port;
    work.quoted.sport = reply.client_port;
}

/// As [`restore`], to a client on this node.
#[inline(always)]
fn home(work: &mut Work, config: &NodeConfig, reply: &ReplyVal) {
    restore(work, reply, Out::Host(reply.ifindex));
    let client: Addr = local::client_of(config, work.header.v4, &work.quote.src);
    work.forward.dst = client.copied();
    work.quoted.src = client;
    // The loopback device's, or the kernel takes the packet for somebody else's.
    work.forward.src_mac = [0; 6];
    work.forward.dst_mac = [0; 6];
}

//! `task_tx`: what a task sends.

use crate::addr::Addr;
use crate::balancer::{self, Target};
use crate::choose::{self, Known};
use crate::direct;
use crate::guard::{self, Speech};
use crate::icmp;
use crate::keys::{LocalKey, Mac, PortKey, VipKey, copied, same_mac};
use crate::life;
use crate::local;
use crate::mesh::out;
use crate::packet::{self, ETH_ARP, ETH_IPV4, ETH_IPV6, Packet};
use crate::proxy;
use crate::reason::Reason;
use crate::steer;
use crate::tables::Tables;
use crate::values::{
    EndpointVal, NodeConfig, REPLY_DIRECT, REPLY_HAIRPIN, REPLY_LOCAL, REPLY_RESTORE, REPLY_STEER, REPLY_VIP,
    TaskIf, VipVal,
};
use crate::verdict::{Out, Question, Verdict, Work};

/// Decides on a frame the task behind the veth `ifindex` sends.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &P, tables: &T, ifindex: u32, work: &mut Work) -> Verdict {
    work.begin();
    let Some(task) = tables.task_if(ifindex) else { return Verdict::Drop(Reason::UnknownInterface) };
    let Some(ethernet) = packet::ethernet(packet) else { return Verdict::Drop(Reason::Malformed) };
    work.ethernet = ethernet;
    if !same_mac(&work.ethernet.src, &task.mac) {
        return Verdict::Drop(Reason::SpoofedMac);
    }
    match work.ethernet.kind {
        ETH_ARP => arp(packet, tables, task, work),
        ETH_IPV4 | ETH_IPV6 => {
            if packet::header(packet, work.ethernet.kind, &mut work.header).is_err() {
                return Verdict::Drop(Reason::Malformed);
            }
            ip(packet, tables, &Sender { task, ifindex }, work)
        }
        _ => Verdict::Drop(Reason::UnknownEthertype),
    }
}

/// Who sends.
struct Sender<'a> {
    task: &'a TaskIf,
    ifindex: u32,
}

#[inline(always)]
fn arp<P: Packet, T: Tables>(packet: &P, tables: &T, task: &TaskIf, work: &mut Work) -> Verdict {
    let Some(arp) = guard::arp(packet) else { return Verdict::Drop(Reason::Malformed) };
    match guard::check_arp(task, &arp) {
        Speech::Own => {}
        Speech::Elsewhere => {
            work.forward.src = task.ip4;
            return Verdict::Announce;
        }
        Speech::Spoofed => return Verdict::Drop(Reason::SpoofedArp),
    }
    if arp.operation != 1 || arp.sender != task.ip4 {
        return Verdict::Pass;
    }
    answer(tables, task, arp.target, Question::Arp, work)
}

/// The answer for the Ethernet address of a virtual IP, if it is one.
#[inline(always)]
fn answer<T: Tables>(
    tables: &T,
    task: &TaskIf,
    target: Addr,
    question: Question,
    work: &mut Work,
) -> Verdict {
    let Some(vip) = vip(tables, task, target) else { return Verdict::Pass };
    work.forward.src_mac = vip.mac;
    Verdict::Answer(question)
}

#[inline(always)]
fn ip<P: Packet, T: Tables>(packet: &P, tables: &T, sender: &Sender<'_>, work: &mut Work) -> Verdict {
    let task = sender.task;
    if mesh_reply(packet, tables, task, work) {
        return Verdict::Forward;
    }
    match icmp::aside(packet, &work.header) {
        Verdict::Pass => {}
        aside => return aside,
    }
    if let Err(reason) = guard::check_ip(packet, task, &work.header) {
        return Verdict::Drop(reason);
    }
    if task.network == 0 {
        return to_elsewhere(tables, work);
    }
    if !work.header.has_flow() {
        return match guard::solicited(packet, &work.header) {
            Some(target) => answer(tables, task, target, Question::Neighbor, work),
            None => Verdict::Pass,
        };
    }
    work.set_key(task.network);
    if vip_reply(tables, task, work) {
        return Verdict::Forward;
    }
    match vip(tables, task, work.header.dst) {
        Some(vip) => to_vip(tables, sender, vip, work),
        None if work.header.is_syn() => to_task(tables, task, work),
        None => Verdict::Pass,
    }
}

/// What leaves by the task's way to other networks.
///
/// An SCTP server asks whether the other addresses work that its client has told it of. From here it would ask as the node,
/// which the client has no association with, and whose answer would end the one it has. (A port of SCTP is published as
/// itself.)
#[inline(always)]
fn to_elsewhere<T: Tables>(tables: &T, work: &Work) -> Verdict {
    if work.header.is_probe()
        && tables.port(&PortKey::new(Addr::ANY, work.header.sport, work.header.proto)).is_some()
    {
        return Verdict::Drop(Reason::UnknownReply);
    }
    Verdict::Pass
}

/// A connection to a task's own address begins. One from the same port through the virtual IP of that task's service has
/// the same answers: what is left of one that is over must not change them, and one that goes on keeps its port.
#[inline(always)]
fn to_task<T: Tables>(tables: &T, task: &TaskIf, work: &mut Work) -> Verdict {
    work.key = work.header.reverse_key(task.network);
    match tables.reply(&work.key) {
        Some(known) if known.kind == REPLY_VIP => {
            if tables.endpoint(known.endpoint).is_some() && !life::is_over(tables, work.header.proto, known) {
                return Verdict::Drop(Reason::NoSourcePort);
            }
            life::forget(tables, work, known);
            Verdict::Pass
        }
        _ => Verdict::Pass,
    }
}

#[inline(always)]
pub(crate) fn vip<'a, T: Tables>(tables: &'a T, task: &TaskIf, addr: Addr) -> Option<&'a VipVal> {
    if task.network == 0 { None } else { tables.vip(&VipKey { addr, network: task.network }) }
}

/// The answer to a flow of the mesh goes back the way the flow came.
///
/// It may leave by any of the task's legs, and with the address of that leg: a server that listens on every address
/// and answers with `sendto` gets the source of its default route. The flow is found by the ingress address, and
/// the answer leaves with it.
#[inline(always)]
fn mesh_reply<P: Packet, T: Tables>(packet: &P, tables: &T, task: &TaskIf, work: &mut Work) -> bool {
    let (ingress, own) =
        if work.header.v4 { (&task.ingress_ip4, &task.ip4) } else { (&task.ingress_ip6, &task.ip6) };
    let src = &work.header.src;
    if ingress.is_any() || !work.header.has_flow() || (src != ingress && src != own) {
        return false;
    }
    work.set_key(0);
    work.key.src = ingress.copied();
    let Some(reply) = tables.reply(&work.key) else { return false };
    life::note_answer(tables, work, reply);
    work.proxy = proxy::back(reply);
    if reply.kind != REPLY_STEER {
        // What is steered, its router counts.
        tables.count_answer(&work.key, reply, work.header.length.into());
    }
    match reply.kind {
        REPLY_RESTORE => work.forward_restored(reply, Out::Neighbor(reply.ifindex)),
        REPLY_LOCAL => {
            let Some(config) = tables.config() else { return false };
            local::home(work, config, reply);
        }
        REPLY_STEER => {
            if let Some(door) = direct::door(tables, work, &reply.mac)
                && let Some(device) = packet.outward(&work.header)
            {
                work.forward_unchanged(Out::Neighbor(device));
                work.forward.src = door.copied();
                work.forward.sport = direct::port(&reply.mac);
                // What the client sends comes through a tunnel.
                work.narrow = if work.header.opens() { task.ingress_vxlan } else { 0 };
            } else {
                let Some(config) = tables.config() else { return false };
                work.forward_unchanged(Out::Device(task.ingress_vxlan));
                work.forward.src = ingress.copied();
                work.forward.src_mac = copied(&task.ingress_mac);
                work.forward.dst_mac = direct::router_of(&reply.mac, &config.router_mac);
                let Some(out) = to_router(task, config, &work.forward.dst_mac) else { return false };
                work.forward.out = out;
            }
            work.forward.dport = reply.client_port;
            if work.header.src != work.key.src && reply.addr == work.key.src {
                steer::answers_from(tables, work, reply);
            }
        }
        _ => return false,
    }
    true
}

/// The way to a router: this node's own is the balancer's, if there is one.
#[inline(always)]
pub(crate) fn to_router(task: &TaskIf, config: &NodeConfig, router: &Mac) -> Option<Out> {
    if !same_mac(router, &config.router_mac) {
        return Some(Out::Device(task.ingress_vxlan));
    }
    if config.balancer == 0 { None } else { Some(Out::Peer(config.balancer)) }
}

/// The answer to a task of this node that came through a virtual IP.
#[inline(always)]
fn vip_reply<T: Tables>(tables: &T, task: &TaskIf, work: &mut Work) -> bool {
    let Some(reply) = tables.reply(&work.key) else { return false };
    life::note_answer(tables, work, reply);
    if reply.kind != REPLY_DIRECT {
        tables.count_answer(&work.key, reply, work.header.length.into());
    }
    match reply.kind {
        REPLY_VIP => work.forward_restored(reply, Out::Peer(reply.ifindex)),
        REPLY_DIRECT => work.forward_restored(reply, bridged(tables, task, work.ethernet.dst)),
        REPLY_HAIRPIN => {
            // To a task that is its own client the frame looks as if the virtual IP had sent it.
            work.forward_restored(reply, Out::Peer(reply.ifindex));
            work.forward.dst = work.header.src;
            work.forward.src_mac = reply.mac;
            work.forward.dst_mac = task.mac;
        }
        _ => return false,
    }
    true
}

/// Where the bridge would send a frame.
#[inline(always)]
fn bridged<T: Tables>(tables: &T, task: &TaskIf, dst: Mac) -> Out {
    match tables.local(&LocalKey::new(task.vxlan, dst)) {
        Some(local) => Out::Peer(local.veth),
        None => Out::Device(task.vxlan),
    }
}

/// A packet to a virtual IP goes to an endpoint of its service.
#[inline(always)]
fn to_vip<T: Tables>(tables: &T, sender: &Sender<'_>, vip: &VipVal, work: &mut Work) -> Verdict {
    match choose::known(tables, work) {
        Known::Flow(flow, endpoint) => {
            tables.count_request(&work.key, flow, work.header.length.into());
            if !choose::is_noted(tables, work, flow) {
                work.flow = *flow;
                expect_answers(sender, vip, endpoint, work);
                let answers = tables.reply(&work.answers);
                choose::note(tables, work, flow, answers);
            }
            return forward(sender.task, vip, endpoint, work);
        }
        Known::Balanced(flow) if vip.balancer != 0 => {
            return balancer::go_on(tables, work, flow, vip.balancer);
        }
        Known::Gone => return Verdict::Drop(Reason::NoEndpoint),
        Known::Balanced(_) | Known::New if work.header.is_probe() => {
            return Verdict::Drop(Reason::UnknownReply);
        }
        Known::Balanced(_) | Known::New => {}
    }
    if vip.mark != 0 && vip.balancer != 0 {
        let target = Target { service: vip.service, mark: vip.mark, ifindex: vip.balancer };
        return balancer::hand_over(tables, work, target);
    }
    let known = tables.flow(&work.key);
    let mut choice = choose::choose(tables, vip.service, work, known, &sender.task.mac);
    if choice.is_none() {
        // Nobody else: the task is its own server.
        choice = choose::choose(tables, vip.service, work, known, &NOBODY);
    }
    let Some(choice) = choice else { return Verdict::Drop(Reason::NoEndpoint) };
    work.set_flow(choice.id, vip.service, work.header.dport);
    expect_answers(sender, vip, choice.endpoint, work);
    let answers = tables.reply(&work.answers);
    choose::write(tables, work, known, answers);
    forward(sender.task, vip, choice.endpoint, work)
}

const NOBODY: Mac = [0; 6];

/// Sets what happens to answers to a flow ([`Work::flow`]): [`Work::answers`] and [`Work::reply`].
#[inline(always)]
fn expect_answers(sender: &Sender<'_>, vip: &VipVal, endpoint: &EndpointVal, work: &mut Work) {
    let is_hairpin = same_mac(&endpoint.mac, &sender.task.mac);
    work.answers = packet::reply_key(&work.key, &work.flow, endpoint.addr(work.header.v4));
    if is_hairpin {
        work.answers.dst = work.header.dst;
    }
    work.reply.addr = work.header.dst;
    work.reply.port = work.header.dport;
    work.reply.client_port = work.header.sport;
    work.reply.ifindex = sender.ifindex;
    work.reply.mac = vip.mac;
    work.reply.kind = if is_hairpin { REPLY_HAIRPIN } else { REPLY_VIP };
    work.reply.endpoint = work.flow.endpoint;
    work.reply.service = work.flow.service;
    work.reply.bytes = 0;
    work.reply.isn = 0;
}

#[inline(always)]
fn forward(task: &TaskIf, vip: &VipVal, endpoint: &EndpointVal, work: &mut Work) -> Verdict {
    let header = &work.header;
    let is_hairpin = same_mac(&endpoint.mac, &task.mac);
    let forward = &mut work.forward;
    forward.src = if is_hairpin { &header.dst } else { &header.src }.copied();
    forward.dst = endpoint.addr(header.v4).copied();
    forward.sport = header.sport;
    forward.dport = header.dport;
    forward.src_mac = copied(if is_hairpin { &vip.mac } else { &task.mac });
    forward.dst_mac = copied(&endpoint.mac);
    forward.out = out(endpoint);
    Verdict::Forward
}

//! The eBPF programs: hooks, maps and verdicts. What to do with a packet is decided in `shoal-ebpf-common`.

#![no_std]
#![no_main]

mod helpers;
mod hooks;
mod hop;
mod maps;
mod memo;
mod skb;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use shoal_ebpf_common::keys::LocalKey;
use shoal_ebpf_common::packet::{Packet, SCTP};
use shoal_ebpf_common::reason::{Event, Program, Reason};
use shoal_ebpf_common::rewrite;
use shoal_ebpf_common::tables::Tables;
use shoal_ebpf_common::verdict::{Out, Verdict, Work};
use shoal_ebpf_common::{balancer, fragment, icmp, lane, life, local, mesh, overlay, proxy, task};

use crate::maps::Kernel;
use crate::skb::{Skb, Wrapped};

// What each macro makes of a program is a function that calls this one: inlined, or Linux 6.1 counts 32 bytes of stack for it.

/// Ingress of each uplink.
#[classifier]
#[inline(always)]
pub fn mesh_ingress(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    let Some(work) = maps::work(Program::MeshIngress) else { return TC_ACT_SHOT };
    let mut verdict =
        if skb.is_tagged() { Verdict::Pass } else { mesh::decide(&skb, &Kernel, skb.ifindex(), work) };
    if verdict == Verdict::Tunnel {
        verdict = lane::decide(&skb, &Kernel, skb.form(), work);
        let goes_on = matches!(verdict, Verdict::Forward | Verdict::Redirect);
        if goes_on && skb.unwrap(work.header.v4).is_none() {
            verdict = Verdict::Drop(Reason::RewriteFailed);
        }
    }
    carry_out(&mut skb, Program::MeshIngress, verdict, work)
}

/// Ingress of each VXLAN device.
#[classifier]
#[inline(always)]
pub fn overlay_rx(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    let Some(work) = maps::work(Program::OverlayRx) else { return TC_ACT_SHOT };
    let verdict = overlay::decide(&skb, &Kernel, skb.ifindex(), work);
    carry_out(&mut skb, Program::OverlayRx, verdict, work)
}

/// Ingress of the host side of each task veth: what the task sends. Of a netkit device, before it is received there.
#[classifier]
#[inline(always)]
pub fn task_tx(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    let Some(work) = maps::work(Program::TaskTx) else { return TC_ACT_SHOT };
    let verdict = task::decide(&skb, &Kernel, skb.ifindex(), work);
    carry_out(&mut skb, Program::TaskTx, verdict, work)
}

/// Ingress of the host side of each balancer's leg into its network.
#[classifier]
#[inline(always)]
pub fn balancer_tx(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    let Some(work) = maps::work(Program::BalancerTx) else { return TC_ACT_SHOT };
    let verdict = balancer::to_network(&skb, &Kernel, skb.ifindex(), work);
    carry_out(&mut skb, Program::BalancerTx, verdict, work)
}

/// Ingress of the host side of the gate: what the balancer of published ports sends to clients.
#[classifier]
#[inline(always)]
pub fn gate_tx(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    let Some(work) = maps::work(Program::GateTx) else { return TC_ACT_SHOT };
    let verdict = balancer::to_client(&skb, &Kernel, work);
    carry_out(&mut skb, Program::GateTx, verdict, work)
}

/// Ingress of the loopback device: what the node itself sends to its own addresses.
#[classifier]
#[inline(always)]
pub fn host_tx(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    let Some(work) = maps::work(Program::HostTx) else { return TC_ACT_SHOT };
    let verdict = local::decide(&skb, &Kernel, skb.ifindex(), work);
    carry_out(&mut skb, Program::HostTx, verdict, work)
}

/// Attached nowhere: user space runs it to remove what it has proposed. Returns how many entries went.
#[classifier]
#[inline(always)]
pub fn flow_gc(_ctx: TcContext) -> i32 {
    let mut removed = 0;
    for place in 0..life::PROPOSALS {
        let found = collect(place);
        if found == NO_MORE {
            break;
        }
        removed += found & 1;
    }
    removed as i32
}

const NO_MORE: u32 = 2;

/// Removes what is proposed at a place. Returns how many entries that was, or [`NO_MORE`]. A function of its own: what it
/// returns is any number to the verifier, which would else follow every count of them.
#[inline(never)]
fn collect(place: u32) -> u32 {
    life::collect(&Kernel, place).map_or(NO_MORE, u32::from)
}

#[inline(always)]
fn carry_out(skb: &mut Skb, program: Program, verdict: Verdict, work: &mut Work) -> i32 {
    maps::count(program, Event::Received);
    if work.header.leads() {
        match verdict {
            Verdict::Forward => fragment_remember(skb.copied(), program, work, 0),
            Verdict::Redirect => fragment_remember(skb.copied(), program, work, 1),
            _ => 0,
        };
    }
    let ready = match verdict {
        Verdict::Pass | Verdict::Tunnel => return pass(program),
        Verdict::Drop(reason) => Err(reason),
        Verdict::Refuse(reason) => {
            maps::count_drop(reason);
            return pass(program);
        }
        Verdict::Forward => match rewrite::apply(skb, work) {
            Some(()) => tell(skb, program, work),
            None => Err(Reason::RewriteFailed),
        },
        Verdict::Redirect => Ok(()),
        Verdict::Error => match aside(skb, program, work) {
            // One after the other: where the first answer waited in a register for the second to be joined with it,
            // they came out as 0 on Linux 6.1 whatever they were (its verifier follows no value through a call).
            Aside::FORWARD if icmp_rewrite(skb.copied(), work) == 0 => Err(Reason::RewriteFailed),
            Aside::FORWARD if icmp_requote(skb.copied(), work) == 0 => Err(Reason::RewriteFailed),
            Aside::FORWARD | Aside::REDIRECT => Ok(()),
            Aside::SPOOFED4 => Err(Reason::SpoofedIpv4),
            Aside::SPOOFED6 => Err(Reason::SpoofedIpv6),
            _ => return pass(program),
        },
        Verdict::Follow => match fragment_decide(skb.copied(), program, work) {
            Aside::FORWARD if fragment_rewrite(skb.copied(), work) == 0 => Err(Reason::RewriteFailed),
            Aside::FORWARD | Aside::REDIRECT => Ok(()),
            Aside::SPOOFED4 => Err(Reason::SpoofedIpv4),
            Aside::SPOOFED6 => Err(Reason::SpoofedIpv6),
            Aside::NO_FIRST => Err(Reason::NoFirstFragment),
            _ => return pass(program),
        },
        Verdict::Announce => match rewrite::announce(skb, &work.forward.src) {
            Some(()) => return pass(program),
            None => Err(Reason::RewriteFailed),
        },
        Verdict::Answer(question) => match rewrite::answer(skb, question, work.forward.src_mac) {
            Some(()) => {
                maps::count(program, Event::Forwarded);
                return helpers::redirect(skb.ifindex());
            }
            None => Err(Reason::RewriteFailed),
        },
    };
    let sent = match ready {
        Ok(()) => send(skb, program, work, matches!(verdict, Verdict::Forward)),
        Err(reason) => Err(reason),
    };
    match sent {
        Ok(action) => {
            maps::count(program, Event::Forwarded);
            action
        }
        Err(reason) => drop(program, reason),
    }
}

/// What a function beside the path says: a verdict as a number, which needs no memory of the caller's.
struct Aside;

impl Aside {
    const PASS: u32 = 0;
    /// It goes on as it is.
    const REDIRECT: u32 = 1;
    /// It goes on, changed as [`Work`] says.
    const FORWARD: u32 = 2;
    const SPOOFED4: u32 = 3;
    const SPOOFED6: u32 = 4;
    const NO_FIRST: u32 = 5;
    const EARLY: u32 = 6;
    /// As [`Self::FORWARD`], and its checksum is still to be made.
    const TOLD: u32 = 7;

    #[inline(always)]
    fn of(verdict: Verdict) -> u32 {
        match verdict {
            Verdict::Forward => Self::FORWARD,
            Verdict::Redirect => Self::REDIRECT,
            Verdict::Drop(Reason::SpoofedIpv4) => Self::SPOOFED4,
            Verdict::Drop(Reason::SpoofedIpv6) => Self::SPOOFED6,
            Verdict::Drop(_) => Self::NO_FIRST,
            _ => Self::PASS,
        }
    }
}

/// Changes a packet of a connection whose endpoint is told of its client. Only some programs see such packets; the others
/// needn't hold what is done with them.
#[inline(always)]
fn tell(skb: &Skb, program: Program, work: &mut Work) -> Result<(), Reason> {
    match work.proxy {
        proxy::AHEAD if leads_ahead(program) => match proxy_ahead(skb.copied(), work) {
            Aside::FORWARD => Ok(()),
            Aside::TOLD if proxy_sum(skb.copied(), work) == 1 => Ok(()),
            Aside::EARLY => Err(Reason::EarlyData),
            _ => Err(Reason::RewriteFailed),
        },
        proxy::BACK if leads_back(program) => match proxy_back(skb.copied(), work) {
            Aside::FORWARD if proxy_blocks(skb.copied(), work) == 1 => Ok(()),
            _ => Err(Reason::RewriteFailed),
        },
        _ => Ok(()),
    }
}

/// Whether a program leads clients to published ports.
#[inline(always)]
fn leads_ahead(program: Program) -> bool {
    matches!(program, Program::MeshIngress | Program::HostTx)
}

/// Whether a program leads answers back to such clients: `mesh_ingress` does, where the fast lane is on.
#[inline(always)]
fn leads_back(program: Program) -> bool {
    matches!(program, Program::MeshIngress | Program::OverlayRx | Program::TaskTx)
}

/// Changes a packet of a client whose endpoint is told of it.
#[inline(never)]
fn proxy_ahead(mut skb: Skb, work: &mut Work) -> u32 {
    match proxy::to_task(&mut skb, &Kernel, work) {
        Ok(false) => Aside::FORWARD,
        Ok(true) => Aside::TOLD,
        Err(Reason::EarlyData) => Aside::EARLY,
        Err(_) => Aside::PASS,
    }
}

/// Makes the checksum of a packet that tells. Returns 1, or 0 if the kernel refused. (Functions of their own, this and
/// [`proxy_blocks`], or the verifier follows what comes after each turn of their loops.)
#[inline(never)]
fn proxy_sum(mut skb: Skb, work: &Work) -> u32 {
    u32::from(proxy::sum_up(&mut skb, work).is_some())
}

/// Changes an answer to such a client.
#[inline(never)]
fn proxy_back(mut skb: Skb, work: &mut Work) -> u32 {
    match proxy::to_client(&mut skb, &Kernel, work) {
        Some(()) => Aside::FORWARD,
        None => Aside::PASS,
    }
}

/// Changes what such an answer says of segments beyond a gap. Returns 1, or 0 if the kernel refused.
#[inline(never)]
fn proxy_blocks(mut skb: Skb, work: &Work) -> u32 {
    u32::from(proxy::blocks(&mut skb, work).is_some())
}

/// Decides on an ICMP error.
#[inline(always)]
fn aside(skb: &Skb, program: Program, work: &mut Work) -> u32 {
    let known = icmp_read(skb.copied(), work);
    icmp_decide(skb.copied(), program, work, known)
}

/// Reads what an ICMP error quotes. Returns 1 if it is of use. A function of its own, as the next three: other
/// packets
/// don't pay for their stack.
#[inline(never)]
fn icmp_read(skb: Skb, work: &mut Work) -> u32 {
    u32::from(icmp::read(&skb, work))
}

/// Decides on an ICMP error.
#[inline(never)]
fn icmp_decide(skb: Skb, program: Program, work: &mut Work, known: u32) -> u32 {
    Aside::of(icmp::decide(&skb, &Kernel, (program, skb.ifindex()), work, known != 0))
}

/// Makes an ICMP error what was decided, but for its quote. Returns 1, or 0 if the kernel refused.
#[inline(never)]
fn icmp_rewrite(mut skb: Skb, work: &mut Work) -> u32 {
    u32::from(rewrite::error(&mut skb, work).is_some())
}

/// Makes the quote of an ICMP error what was decided. Returns 1, or 0 if the kernel refused.
#[inline(never)]
fn icmp_requote(mut skb: Skb, work: &Work) -> u32 {
    u32::from(rewrite::quote(&mut skb, work).is_some())
}

/// Remembers what was decided on a first fragment; `unchanged`: 1 if it goes on as it is.
#[inline(never)]
fn fragment_remember(skb: Skb, program: Program, work: &mut Work, unchanged: u32) -> u32 {
    fragment::remember(&Kernel, (program, skb.ifindex()), work, unchanged != 0);
    0
}

/// Decides on a fragment that is not the first.
#[inline(never)]
fn fragment_decide(skb: Skb, program: Program, work: &mut Work) -> u32 {
    Aside::of(fragment::decide(&skb, &Kernel, (program, skb.ifindex()), work))
}

/// Makes such a fragment what was decided. Returns 1, or 0 if the kernel refused.
#[inline(never)]
fn fragment_rewrite(mut skb: Skb, work: &mut Work) -> u32 {
    u32::from(rewrite::fragment(&mut skb, work).is_some())
}

/// Sends a packet on; the action that does it, or why it goes no further. `is_changed`: it is as [`Work::forward`] says.
#[inline(always)]
fn send(skb: &mut Skb, program: Program, work: &Work, is_changed: bool) -> Result<i32, Reason> {
    if work.narrow != 0
        && let Some(mtu) = skb.mtu(work.narrow)
        && rewrite::narrow(skb, &work.header, mtu).is_none()
    {
        return Err(Reason::RewriteFailed);
    }
    match work.forward.out {
        Out::Peer(ifindex) => {
            // The frame came to a device with another address, so the kernel took it for somebody else's.
            skb.claim_for_host();
            skb.set_mark(work.mark);
            // The short way in is for what was received (`skb_do_redirect` in net/core/filter.c).
            let is_sent = matches!(program, Program::TaskTx) && !skb.is_received();
            Ok(if is_sent { helpers::redirect(ifindex) } else { helpers::redirect_peer(ifindex) })
        }
        // A checksum of SCTP that is left to a device is made by the tunnel's; no uplink looks for it in what we wrap.
        Out::Device(ifindex) if work.header.proto == SCTP => Ok(helpers::redirect(ifindex)),
        Out::Device(ifindex) => by_tunnel(skb, ifindex),
        Out::Host(ifindex) => Ok(helpers::redirect_in(ifindex)),
        Out::Neighbor(ifindex) if is_changed => Ok(skb.send_by(work, ifindex)),
        Out::Neighbor(ifindex) => Ok(hop::redirect_neigh(ifindex)),
        Out::Route => match skb.route(&work.header) {
            Some(ifindex) => Ok(hop::redirect_neigh(ifindex)),
            None => Err(Reason::NoRoute),
        },
    }
}

/// Sends a frame into the tunnels of a VXLAN device, past the device if that can be.
#[inline(always)]
fn by_tunnel(skb: &mut Skb, device: u32) -> Result<i32, Reason> {
    // One after the other: of two at once the compiler keeps what is not there yet, which the verifier refuses.
    let Some(config) = Kernel.config() else { return Ok(helpers::redirect(device)) };
    let Some(head) = skb.head::<16>(0) else { return Ok(helpers::redirect(device)) };
    let to = [head[0], head[1], head[2], head[3], head[4], head[5]];
    let Some(peer) = Kernel.peer(&LocalKey::new(device, to)) else { return Ok(helpers::redirect(device)) };
    if !skb.fits(peer) {
        return Ok(helpers::redirect(device));
    }
    let Some(way) = skb.way(peer) else { return Ok(helpers::redirect(device)) };
    match skb.wrap(head, peer, config.vxlan_port) {
        Wrapped::Whole => Ok(way.send()),
        Wrapped::Half => Err(Reason::RewriteFailed),
        Wrapped::Not => Ok(helpers::redirect(device)),
    }
}

#[inline(always)]
fn pass(program: Program) -> i32 {
    maps::count(program, Event::Passed);
    // Also TCX_NEXT: whoever comes after us on the device has a say.
    TC_ACT_UNSPEC
}

#[inline(always)]
fn drop(program: Program, reason: Reason) -> i32 {
    maps::count(program, Event::Dropped);
    maps::count_drop(reason);
    TC_ACT_SHOT
}

/// Nothing panics: the verifier would refuse the endless loop this is.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel gives some helpers only to programs under its own license.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

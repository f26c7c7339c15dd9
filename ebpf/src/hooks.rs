//! The programs at the control group of the node's tasks: what a task's socket connects to, and what it is told of that.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::connect::{self, Ask};
use shoal_ebpf_common::packet::TCP;
use shoal_ebpf_common::values::PeerName;

use crate::maps::{self, Kernel};

/// The system call goes on, with the address as it is now. (Refusing is left to packets, as everywhere.)
const GO_ON: i32 = 1;

/// A socket of IPv4 connects.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    // A datagram socket keeps the virtual IP: its datagrams go elsewhere at once when the endpoint is withdrawn.
    if protocol(&ctx) == u32::from(TCP)
        && let Some(endpoint) = lead(&ctx, addr4(&ctx))
    {
        set_addr4(&ctx, endpoint);
    }
    GO_ON
}

/// A socket of IPv6 connects, perhaps to an IPv4-mapped address.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    if protocol(&ctx) == u32::from(TCP)
        && let Some(endpoint) = lead(&ctx, addr6(&ctx))
    {
        set_addr6(&ctx, endpoint);
    }
    GO_ON
}

/// A socket of IPv4 asks who is at the other end.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    if protocol(&ctx) == u32::from(TCP)
        && let Some(vip) = asked_for(&ctx, &addr4(&ctx))
    {
        set_addr4(&ctx, vip);
    }
    GO_ON
}

/// A socket of IPv6 asks who is at the other end.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    if protocol(&ctx) == u32::from(TCP)
        && let Some(vip) = asked_for(&ctx, &addr6(&ctx))
    {
        set_addr6(&ctx, vip);
    }
    GO_ON
}

/// The endpoint's address, if the destination is a virtual IP that a connection is to be led from.
#[inline(always)]
fn lead(ctx: &SockAddrContext, dst: Addr) -> Option<&'static Addr> {
    // SAFETY: the context is the program's own, the other helper takes nothing.
    let (netns, random) = unsafe { (bpf_get_netns_cookie(ctx.as_ptr()), bpf_get_prandom_u32()) };
    let ask = Ask { netns, dst, port: port(ctx), salt: random as u16 };
    let v4 = ask.dst.is_v4();
    let choice = connect::decide(&Kernel, &ask)?;
    let endpoint = choice.endpoint.addr(v4);
    let name = PeerName { vip: ask.dst.copied(), endpoint: endpoint.copied() };
    if !maps::set_peer_name(socket(ctx), &name) {
        // Who asks must be told the virtual IP: then packet by packet.
        return None;
    }
    maps::count_connect(v4);
    Some(endpoint)
}

/// The virtual IP that led to this peer, if one did.
#[inline(always)]
fn asked_for(ctx: &SockAddrContext, peer: &Addr) -> Option<&'static Addr> {
    let name = maps::peer_name(socket(ctx))?;
    // The socket may be connected to something else by now.
    if name.endpoint == *peer { Some(&name.vip) } else { None }
}

#[inline(always)]
fn socket(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is the program's own.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the context is the program's own. Volatile, here and below: the kernel takes these loads and stores word
    // by word only.
    unsafe { read_volatile(&raw const (*ctx.sock_addr).protocol) }
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: as above. The lower half holds the port in network order.
    u16::from_be(unsafe { read_volatile(&raw const (*ctx.sock_addr).user_port) } as u16)
}

#[inline(always)]
fn addr4(ctx: &SockAddrContext) -> Addr {
    // SAFETY: as above.
    Addr::v4(unsafe { read_volatile(&raw const (*ctx.sock_addr).user_ip4) }.to_ne_bytes())
}

#[inline(always)]
fn addr6(ctx: &SockAddrContext) -> Addr {
    // SAFETY: as above.
    unsafe {
        let words = &raw const (*ctx.sock_addr).user_ip6;
        Addr::from_words([
            read_volatile(&raw const (*words)[0]),
            read_volatile(&raw const (*words)[1]),
            read_volatile(&raw const (*words)[2]),
            read_volatile(&raw const (*words)[3]),
        ])
    }
}

#[inline(always)]
fn set_addr4(ctx: &SockAddrContext, to: &Addr) {
    // SAFETY: as above.
    unsafe { write_volatile(&raw mut (*ctx.sock_addr).user_ip4, to.words()[3]) };
}

#[inline(always)]
fn set_addr6(ctx: &SockAddrContext, to: &Addr) {
    let [a, b, c, d] = to.words();
    // SAFETY: as above.
    unsafe {
        let words = &raw mut (*ctx.sock_addr).user_ip6;
        write_volatile(&raw mut (*words)[0], a);
        write_volatile(&raw mut (*words)[1], b);
        write_volatile(&raw mut (*words)[2], c);
        write_volatile(&raw mut (*words)[3], d);
    }
}

//! Where packets leave and for which neighbor: what the kernel's routes say, remembered for a moment.
//!
//! A packet that leaves by [`bpf_redirect_neigh`] alone costs a lookup of its route, and one of a tunnel another: more than
//! all else that is done with it. What was answered is kept by source and destination and for some hundredths of a second, so that a
//! route that changes is followed at once to all appearance. The neighbor itself is the kernel's to find, for each packet.

use core::mem::{self, MaybeUninit};
use core::ptr;

use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as FibLookup, bpf_redir_neigh as NextHop,
};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_redirect_neigh};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::packet::{Header, UDP};
use shoal_ebpf_common::tables::Tables as _;
use shoal_ebpf_common::values::PeerVal;
use shoal_ebpf_common::verdict::Work;

use crate::helpers::{AF_INET, ROUTED, ask_routes, question};
use crate::maps;

/// Ways that each CPU remembers, in places by their ends.
const WAYS: u32 = 1 << 10;
/// Ticks of the kernel that an answer holds for, as a power of two: 0.03 s to 0.3 s, with 1000 to 100 a second.
const MOMENT: u32 = 5;
/// [`Asked::by`]: what is beside it is the device that packets come in by.
const CAME_IN: u32 = 1 << 31;

#[map]
static HOPS: PerCpuArray<Hop> = PerCpuArray::with_max_entries(WAYS, 0);

/// What is asked of the routes.
struct Asked<'a> {
    src: &'a Addr,
    dst: &'a Addr,
    /// A device: that which the packet came in by ([`CAME_IN`]), or is to leave by.
    by: u32,
    /// Protocol, type of service and source port, from the lowest byte on.
    kind: u32,
}

/// What was answered. All zeroes is a valid value.
#[repr(C)]
pub struct Hop {
    src: Addr,
    dst: Addr,
    by: u32,
    kind: u32,
    /// The moment of it.
    at: u32,
    /// The device to leave by; 0: there is no way.
    device: u32,
    /// The same if answers may have to leave by it (`OUTWARD`), else 0.
    outward: u32,
    next: NextHop,
    /// Memory for the question.
    query: MaybeUninit<FibLookup>,
}

impl Asked<'_> {
    #[inline(always)]
    fn place(&self) -> u32 {
        /// 2^32 by the golden ratio, so that neighboring addresses lie apart.
        const SPREAD: u32 = 0x9e37_79b9;
        let [.., high, src] = self.src.words();
        let [.., dst_high, dst] = self.dst.words();
        let mixed = src.rotate_left(7) ^ dst ^ high ^ dst_high.rotate_left(13) ^ self.by;
        mixed.wrapping_mul(SPREAD) >> (u32::BITS - WAYS.ilog2())
    }

    /// The answer, remembered or new; `None` if there is no memory for it, which there always is.
    #[inline(always)]
    fn hop(&self, skb: *mut __sk_buff) -> Option<&'static Hop> {
        // SAFETY: takes nothing.
        let at = unsafe { bpf_jiffies64() >> MOMENT } as u32;
        let hop = HOPS.get_ptr_mut(self.place())?;
        // SAFETY: the map begins as zeroes, and the element is this CPU's; a program is not interrupted by another here.
        let hop = unsafe { &mut *hop };
        let is_known = hop.at == at && hop.by == self.by && hop.kind == self.kind;
        if !is_known || hop.dst != *self.dst || hop.src != *self.src {
            hop.ask(skb, self, at);
        }
        Some(hop)
    }
}

impl Hop {
    #[inline(always)]
    fn ask(&mut self, skb: *mut __sk_buff, asked: &Asked<'_>, at: u32) {
        self.src = asked.src.copied();
        self.dst = asked.dst.copied();
        self.by = asked.by;
        self.kind = asked.kind;
        self.at = at;
        self.device = 0;
        self.outward = 0;
        let came_in = asked.by & CAME_IN != 0;
        let [proto, tos, low, high] = asked.kind.to_le_bytes();
        let ends = [(asked.src, u16::from_le_bytes([low, high])), (asked.dst, 0)];
        let query = question(&mut self.query, asked.by & !CAME_IN, proto, ends);
        if asked.dst.is_v4() {
            query.__bindgen_anon_2.tos = tos;
        }
        let flags = if came_in { 0 } else { BPF_FIB_LOOKUP_OUTPUT };
        if !ROUTED.contains(&ask_routes(skb, query, flags)) {
            return;
        }
        self.device = query.ifindex;
        if came_in && maps::is_outward(self.device) {
            self.outward = self.device;
        }
        // The answer names the gateway, if there is one, as the destination. It may be one of IPv6.
        self.next.nh_family = u32::from(query.family);
        // SAFETY: every bit pattern is an address; behind one of IPv4 there are zeroes.
        let next = unsafe { query.__bindgen_anon_4.ipv6_dst };
        self.next.__bindgen_anon_1.ipv6_nh = next;
        let gateway = Addr::v4(next[0].to_ne_bytes());
        if query.family == AF_INET && gateway != *asked.dst && maps::Kernel.is_local_addr(&gateway) {
            // A gateway that is this node itself stands for "on the link" (`rt_set_nexthop` in net/ipv4/route.c).
            self.device = 0;
        }
    }

    /// Whether tunnel packets can go this way: past an IPv4 neighbor.
    #[inline(always)]
    pub fn takes_tunnels(&self) -> bool {
        self.device != 0 && self.next.nh_family == u32::from(AF_INET)
    }

    /// Sends a packet this way. Returns the program's verdict.
    #[inline(always)]
    pub fn send(&self) -> i32 {
        let size = mem::size_of::<NextHop>() as i32;
        // SAFETY: the structure is of the size that is given, and copied by the helper.
        unsafe { bpf_redirect_neigh(self.device, (&raw const self.next).cast_mut(), size, 0) as i32 }
    }
}

/// Sends a packet, which is as [`Work::forward`] says, out of a device for its next hop. Returns the program's verdict.
///
/// Of IPv6 the helper asks no rule that names a source (`fib6_rule_match` in net/ipv6/fib6_rules.c, when it is told the device to
/// leave by), and of a mark it knows nothing: such a packet's route is the kernel's to look up.
#[inline(always)]
pub fn send(skb: *mut __sk_buff, work: &Work, device: u32) -> i32 {
    /// What routes can be chosen by, of the type of service.
    const SERVICE: u8 = 0xfc;
    let (header, forward) = (&work.header, &work.forward);
    // SAFETY: the kernel's context is valid for the whole run of the program.
    if !header.v4 || unsafe { (*skb).mark } != 0 {
        return redirect_neigh(device);
    }
    let kind = u32::from_le_bytes([header.proto, header.tos & SERVICE, 0, 0]);
    let asked = Asked { src: &forward.src, dst: &forward.dst, by: device, kind };
    match asked.hop(skb) {
        Some(hop) if hop.device == device => hop.send(),
        // The kernel knows what it does then.
        _ => redirect_neigh(device),
    }
}

/// The way from this node to a peer of its tunnels, for packets that came in by a device.
#[inline(always)]
pub fn to_peer(skb: *mut __sk_buff, ifindex: u32, peer: &PeerVal) -> Option<&'static Hop> {
    let (src, dst) = (Addr::v4(peer.source.to_ne_bytes()), Addr::v4(peer.vtep.to_ne_bytes()));
    let asked = Asked { src: &src, dst: &dst, by: ifindex | CAME_IN, kind: u32::from(UDP) };
    asked.hop(skb)
}

/// The device by which the kernel's routes lead back to a packet's source, for what came in by a device, if that is one of
/// `OUTWARD`; else 0.
#[inline(always)]
pub fn back(skb: *mut __sk_buff, ifindex: u32, header: &Header) -> u32 {
    let [low, high] = header.dport.to_le_bytes();
    let kind = u32::from_le_bytes([header.proto, 0, low, high]);
    let asked = Asked { src: &header.dst, dst: &header.src, by: ifindex | CAME_IN, kind };
    asked.hop(skb).map_or(0, |hop| hop.outward)
}

/// Sends a packet out of a device for its next hop, whose route the kernel looks up. Returns the program's verdict.
#[inline(always)]
pub fn redirect_neigh(ifindex: u32) -> i32 {
    // SAFETY: a null pointer of length 0 makes the kernel look the next hop up itself.
    unsafe { bpf_redirect_neigh(ifindex, ptr::null_mut(), 0, 0) as i32 }
}

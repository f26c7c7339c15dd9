//! Kernel helpers that aya has no wrappers for.

use core::mem::{self, MaybeUninit};

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, bpf_fib_lookup as FibLookup};
use aya_ebpf::helpers::generated::{bpf_check_mtu, bpf_fib_lookup, bpf_redirect, bpf_redirect_peer};
use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::packet::Header;

pub const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The answers of `bpf_fib_lookup` that name a device: found, without a neighbor yet, too large for its MTU
/// (`linux/bpf.h`; the device is named in all three since Linux 5.10).
pub const ROUTED: [i64; 3] = [0, 7, 8];
/// The same without the last.
pub const FITTING: [i64; 2] = [0, 7];

/// Sends the packet out of a device with the Ethernet header it has. Returns the program's verdict.
#[inline(always)]
pub fn redirect(ifindex: u32) -> i32 {
    // SAFETY: takes no pointers.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Receives the packet by a device. Returns the program's verdict.
#[inline(always)]
pub fn redirect_in(ifindex: u32) -> i32 {
    // SAFETY: takes no pointers.
    unsafe { bpf_redirect(ifindex, BPF_F_INGRESS.into()) as i32 }
}

/// Delivers a packet that was received in the namespace of the other side of a veth or netkit device. Returns the program's verdict.
#[inline(always)]
pub fn redirect_peer(ifindex: u32) -> i32 {
    // SAFETY: takes no pointers.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}

/// The device by which the kernel would forward a packet from one end to another that came in by `ifindex`, if it answers
/// one of `good`.
#[inline(always)]
pub fn route<const N: usize>(
    skb: *mut __sk_buff,
    ifindex: u32,
    header: &Header,
    ends: [(&Addr, u16); 2],
    good: &[i64; N],
) -> Option<u32> {
    let mut memory = MaybeUninit::uninit();
    let query = question(&mut memory, ifindex, header.proto, ends);
    if good.contains(&ask_routes(skb, query, 0)) { Some(query.ifindex) } else { None }
}

/// Lays the question down in memory by which way a packet of a protocol gets from one end to the other (ports in host order).
#[inline(always)]
pub fn question<'a>(
    memory: &'a mut MaybeUninit<FibLookup>,
    ifindex: u32,
    proto: u8,
    [from, to]: [(&Addr, u16); 2],
) -> &'a mut FibLookup {
    // SAFETY: it is one.
    let query: &mut FibLookup = unsafe { clear(memory) };
    query.ifindex = ifindex;
    query.l4_protocol = proto;
    query.sport = from.1.to_be();
    query.dport = to.1.to_be();
    if to.0.is_v4() {
        query.family = AF_INET;
        query.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(from.0.v4_octets());
        query.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(to.0.v4_octets());
    } else {
        query.family = AF_INET6;
        query.__bindgen_anon_3.ipv6_src = from.0.words();
        query.__bindgen_anon_4.ipv6_dst = to.0.words();
    }
    query
}

/// Asks the kernel's routes (`bpf_fib_lookup`): the question becomes the answer, the number says how it went.
#[inline(always)]
pub fn ask_routes(skb: *mut __sk_buff, query: &mut FibLookup, flags: u32) -> i64 {
    let size = mem::size_of::<FibLookup>() as i32;
    // SAFETY: the context is the program's own, and the helper reads and writes the structure of the size it is given.
    unsafe { bpf_fib_lookup(skb as *mut _, query, size, flags) }
}

/// Clears a structure of the kernel's where it is, word by word: the target would call a function to clear bytes.
///
/// # Safety
///
/// `T` must be one of C's structures of numbers, aligned to and made of words.
#[inline(always)]
unsafe fn clear<T>(value: &mut MaybeUninit<T>) -> &mut T {
    for word in 0..mem::size_of::<T>() / 4 {
        // SAFETY: within the structure, and aligned by the caller's word. Volatile, or the compiler sees the loop for
        // what it is.
        unsafe { value.as_mut_ptr().cast::<u32>().add(word).write_volatile(0) };
    }
    // SAFETY: all of it was written, and all zeroes is a valid value by the caller's word.
    unsafe { value.assume_init_mut() }
}

/// The MTU of a device: what an IP packet may have.
#[inline(always)]
pub fn mtu(skb: *mut __sk_buff, ifindex: u32) -> Option<u32> {
    let mut mtu = 0_u32;
    // SAFETY: the context is the program's own, and the helper writes the one word it is given. Negative: no such
    // device; else the MTU was written, whether the packet fits or not.
    let result = unsafe { bpf_check_mtu(skb as *mut _, ifindex, &mut mtu, 0, 0) };
    (result >= 0).then_some(mtu)
}

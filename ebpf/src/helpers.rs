//! Kernel helpers that aya has no wrappers for.

use core::ptr;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_check_mtu, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};

/// Sends the packet out of a device with the Ethernet header it has. Returns the program's verdict.
#[inline(always)]
pub fn redirect(ifindex: u32) -> i32 {
    // SAFETY: takes no pointers.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Delivers the packet in the namespace of a veth's other side. Returns the program's verdict.
#[inline(always)]
pub fn redirect_peer(ifindex: u32) -> i32 {
    // SAFETY: takes no pointers.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}

/// Sends the packet out of a device with the Ethernet header of its next hop. Returns the program's verdict.
#[inline(always)]
pub fn redirect_neigh(ifindex: u32) -> i32 {
    // SAFETY: a null pointer of length 0 makes the kernel look the next hop up itself.
    unsafe { bpf_redirect_neigh(ifindex, ptr::null_mut(), 0, 0) as i32 }
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

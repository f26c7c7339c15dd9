//! Kernel helpers that aya has no wrappers for.

use core::ptr;

use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};

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

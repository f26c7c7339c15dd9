//! Map layouts and packet logic of the data plane, shared by the eBPF programs and the host.
//!
//! The programs in `ebpf/` are thin: they give this crate a way to read the packet ([`packet::Packet`]) and the
//! maps ([`tables::Tables`]) and carry out the [`verdict::Verdict`] it returns. The host's tests drive the same
//! functions over ordinary memory, and the agent writes the maps with the same key and value types.
//!
//! Conventions: an address is always 16 bytes, IPv4 as an IPv4-mapped IPv6 address, so one path serves both
//! families; ports are in host order; no key or value has padding the compiler chose.

#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![allow(
    clippy::inline_always,
    reason = "one program is one function to the verifier; calls cost stack it does not have"
)]

#[cfg(feature = "host")]
extern crate alloc;

pub mod addr;
pub mod balancer;
pub mod choose;
pub mod connect;
pub mod csum;
pub mod direct;
pub mod fragment;
pub mod guard;
pub mod hash;
pub mod icmp;
pub mod keys;
pub mod lane;
pub mod life;
pub mod local;
pub mod maglev;
pub mod mesh;
pub mod overlay;
pub mod packet;
pub mod proxy;
pub mod reason;
pub mod rewrite;
pub mod steer;
pub mod tables;
pub mod task;
pub mod values;
pub mod verdict;

/// Version of the map layouts. It names the directory the maps are pinned in, so that a daemon never adopts maps
/// of another layout.
pub const ABI_VERSION: u32 = 8;

/// UDP port of the VXLAN tunnels where nothing else is configured.
pub const DEFAULT_VXLAN_PORT: u16 = 7378;

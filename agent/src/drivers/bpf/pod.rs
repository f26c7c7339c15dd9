//! The map keys and values of `shoal-ebpf-common` as aya wants them.

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::{ClientKey, DoorKey, FlowKey, LocalKey, PortKey, RouterKey, VipKey};
use shoal_ebpf_common::values::{
    BalancerIf, ClientVal, EndpointVal, FlowVal, LocalVal, NodeConfig, Parked, PeerVal, PortVal, Proposal,
    ReplyVal, ServiceVal, TaskIf, TotalKey, TotalVal, VipVal,
};

/// A type every bit pattern of which is a value, without padding: it may be copied to and from the kernel.
///
/// # Safety
///
/// The type must be `repr(C)` or a primitive, have no padding bytes and no invalid bit patterns.
pub unsafe trait Layout: Copy + 'static {}

/// Carries a layout type through aya, whose own marker trait neither crate may implement for the other's types.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Plain<T: Layout>(pub(crate) T);

// SAFETY: transparent over a type that has no padding and no invalid bit patterns.
unsafe impl<T: Layout> aya::Pod for Plain<T> {}

macro_rules! layouts {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: repr(C) of integers, byte arrays and other such types; the sizes and every offset are asserted
            // where the type is declared, which leaves no byte unnamed.
            unsafe impl Layout for $type {}
        )*
    };
}

layouts!(
    Addr,
    BalancerIf,
    ClientKey,
    ClientVal,
    DoorKey,
    EndpointVal,
    FlowKey,
    FlowVal,
    LocalKey,
    LocalVal,
    NodeConfig,
    Parked,
    PeerVal,
    PortKey,
    PortVal,
    Proposal,
    ReplyVal,
    RouterKey,
    ServiceVal,
    TaskIf,
    TotalKey,
    TotalVal,
    VipKey,
    VipVal,
);

// SAFETY: bytes.
unsafe impl<const N: usize> Layout for [u8; N] {}
// SAFETY: a primitive.
unsafe impl Layout for u32 {}
// SAFETY: a primitive.
unsafe impl Layout for u64 {}

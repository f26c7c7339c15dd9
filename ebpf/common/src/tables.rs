//! The maps, as the decisions see them.

use crate::addr::Addr;
use crate::fragment::{FragmentKey, FragmentVal};
use crate::keys::{ClientKey, DoorKey, FlowKey, LocalKey, PortKey, RouterKey, VipKey};
use crate::values::{
    BalancerIf, ClientVal, EndpointVal, FlowVal, LocalVal, NodeConfig, Parked, PeerVal, PortVal, Proposal,
    ReplyVal, ServiceVal, TaskIf, VipVal,
};

/// Access to the maps: the kernel's in the programs, ordinary memory in the host's tests.
///
/// Values are borrowed, not copied: a program's stack is small. They may change under the borrower, who must not
/// rely on reading the same twice. The setters take `&self` because kernel maps are shared anyway; they cannot fail in a way a packet could be
/// helped with.
pub trait Tables {
    /// `CONFIG`.
    fn config(&self) -> Option<&NodeConfig>;
    /// `PORTS`.
    fn port(&self, key: &PortKey) -> Option<&PortVal>;
    /// `SERVICES`.
    fn service(&self, id: u64) -> Option<&ServiceVal>;
    /// `SLOTS`.
    fn slot(&self, index: u32) -> Option<u64>;
    /// `ENDPOINTS`.
    fn endpoint(&self, id: u64) -> Option<&EndpointVal>;
    /// `ENDPOINTS`: that of a known flow. To be asked once for a packet: the answer may be written over by the next.
    #[inline(always)]
    fn endpoint_of(&self, flow: &FlowVal) -> Option<&EndpointVal> {
        self.endpoint(flow.endpoint)
    }
    /// `LOCAL`.
    fn local(&self, key: &LocalKey) -> Option<&LocalVal>;
    /// `ROUTERS`.
    fn is_router(&self, key: &RouterKey) -> bool;
    /// `MEMBERS`.
    fn is_member(&self, addr: &Addr) -> bool;
    /// `LOCAL_ADDRS`: whether it is there.
    fn is_local_addr(&self, addr: &Addr) -> bool;
    /// `LOCAL_ADDRS`: its number and device ([`crate::direct::door_value`]); 0: it has none.
    fn own_door(&self, addr: &Addr) -> u32;
    /// `DOORS`.
    fn door(&self, key: &DoorKey) -> Option<&Addr>;
    /// `TASK_IFS`.
    fn task_if(&self, ifindex: u32) -> Option<&TaskIf>;
    /// `VIPS`.
    fn vip(&self, key: &VipKey) -> Option<&VipVal>;
    /// `CLIENTS`.
    fn client(&self, key: &ClientKey) -> Option<&ClientVal>;
    /// `BALANCER_IFS`.
    fn balancer_if(&self, ifindex: u32) -> Option<&BalancerIf>;
    /// `TUNNELS`: the VXLAN device of a VNI.
    fn tunnel(&self, vni: u32) -> Option<u32>;
    /// `PEERS`.
    fn peer(&self, key: &LocalKey) -> Option<&PeerVal>;
    /// `BULK`: whether merged packets were noted there within the last second.
    fn is_bulk(&self, slot: u32) -> bool;
    /// Notes a merged packet in `BULK`.
    fn note_bulk(&self, slot: u32);
    /// `FLOWS`.
    fn flow(&self, key: &FlowKey) -> Option<&FlowVal>;
    /// `REPLIES`.
    fn reply(&self, key: &FlowKey) -> Option<&ReplyVal>;
    /// Records a flow.
    fn set_flow(&self, key: &FlowKey, value: &FlowVal);
    /// Records what happens to answers.
    fn set_reply(&self, key: &FlowKey, value: &ReplyVal);
    /// Sets when a flow was last used and its state. Returns whether it is there.
    fn touch_flow(&self, key: &FlowKey, seen: u32, state: u32) -> bool;
    /// As [`Tables::touch_flow`], of its answers.
    fn touch_reply(&self, key: &FlowKey, seen: u32, state: u32) -> bool;
    /// As [`Tables::touch_flow`], in the record that was found by the key.
    fn renew_flow(&self, key: &FlowKey, flow: &FlowVal, seen: u32, state: u32);
    /// As [`Tables::touch_reply`], in the record that was found by the key.
    fn renew_reply(&self, key: &FlowKey, reply: &ReplyVal, seen: u32, state: u32);
    /// Adds to what a flow's client has sent, in the record that was found by the key.
    fn count_request(&self, key: &FlowKey, flow: &FlowVal, bytes: u64);
    /// Adds to what a flow's endpoint has answered, in the record that was found by the key.
    fn count_answer(&self, key: &FlowKey, reply: &ReplyVal, bytes: u64);
    /// Sets to nothing what a flow's client has sent, in the record that was found by the key. Returns what it was.
    fn take_requests(&self, key: &FlowKey, flow: &FlowVal) -> u64;
    /// Sets to nothing what a flow's endpoint has answered, in the record that was found by the key. Returns what it was.
    fn take_answers(&self, key: &FlowKey, reply: &ReplyVal) -> u64;
    /// Adds to `TOTALS`: bytes that clients of a service's endpoint have sent, and bytes that it has answered. Nothing of an
    /// endpoint that is none ([`crate::life::is_counted`]).
    fn add_total(&self, endpoint: u64, service: u64, requests: u64, answers: u64);
    /// `FRAGMENTS`.
    fn fragment(&self, key: &FragmentKey) -> Option<&FragmentVal>;
    /// Records what becomes of the fragments of a datagram.
    fn set_fragment(&self, key: &FragmentKey, value: &FragmentVal);
    /// Forgets a flow.
    fn remove_flow(&self, key: &FlowKey);
    /// Forgets what happens to answers.
    fn remove_reply(&self, key: &FlowKey);
    /// A number that nobody can foretell.
    fn random(&self) -> u32;
    /// The clock of [`crate::life`].
    fn clock(&self) -> u32;
    /// The place of `PARKED` that was filled longest ago.
    fn next_place(&self) -> u32;
    /// `PARKED`.
    fn parked(&self, place: u32) -> Option<&Parked>;
    /// Sets a place of `PARKED`.
    fn park(&self, place: u32, request: &FlowKey, answers: &FlowKey);
    /// `PROPOSED`.
    fn proposal(&self, index: u32) -> Option<&Proposal>;
    /// Counts a new flow of a service.
    fn count_connection(&self, service: u64);
    /// How many flows of a service this CPU has counted.
    fn connections(&self, service: u64) -> u64;
}

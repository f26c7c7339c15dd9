//! Direct server return: the node of a task answers a client itself, past the node that the client asked.
//!
//! It has to know the address and port that were asked. The frame that carries a packet of such a flow to it says so: in
//! place of the router's address its source is
//!
//! ```text
//! 6 bits number of the address | 1 0 | 16 bits port | low half of the router's address
//! ```
//!
//! (`1 0`: locally administered, of one host.) The number stands for an address of the router's node, which tells the others
//! of its addresses; `DOORS` has them. Number 0 is the router's own address, and of no flow that is answered directly: those
//! begin `02`. So nothing is longer than it was, there is nothing to remember but where answers go, as for any
//! flow that a router brings, and an answer whose door is not known, or that no route leads out, goes back to the router, which knows
//! what to do.
//!
//! The router sees one half of such a flow. Its end is told by what the client says alone.

use crate::addr::Addr;
use crate::keys::{DoorKey, Mac};
use crate::life::FLOW_DSR;
use crate::steer;
use crate::tables::Tables;
use crate::values::{EndpointVal, NodeConfig, PORT_DSR, PortVal};
use crate::verdict::Work;

/// Bits of a number.
const BITS: u32 = 6;

/// What `LOCAL_ADDRS` has for an address that others know by a number, and the device that has it; all zeroes without a number.
pub const fn door_value(device: u32, number: u32) -> u32 {
    device << BITS | number
}

/// The number in such a value.
#[inline(always)]
pub const fn door_number(value: u32) -> u32 {
    value & ((1 << BITS) - 1)
}

/// The device in such a value.
#[inline(always)]
pub const fn door_device(value: u32) -> u32 {
    value >> BITS
}

/// The router's address in frames of a flow, for an answer from the address of this number and port.
#[inline(always)]
pub const fn marked(router: &Mac, number: u32, port: u16) -> Mac {
    let [high, low] = port.to_be_bytes();
    let [number, ..] = number.to_le_bytes();
    [router[0] | number << 2, high, low, router[3], router[4], router[5]]
}

/// The number that a frame's source has of an address; 0: it is a router's own, or a task's.
#[inline(always)]
pub const fn number(source: &Mac) -> u16 {
    (source[0] >> 2) as u16
}

/// The port that such a frame names.
#[inline(always)]
pub const fn port(source: &Mac) -> u16 {
    u16::from_be_bytes([source[1], source[2]])
}

/// The router's own address, of what a frame of its came from; `own` is the address of this node's, whose upper half all
/// have.
#[inline(always)]
pub const fn router_of(source: &Mac, own: &Mac) -> Mac {
    if number(source) == 0 {
        return *source;
    }
    [own[0], own[1], own[2], source[3], source[4], source[5]]
}

/// Decides whether a new flow ([`Work::flow`]) that came in by an uplink is answered by the endpoint's node: if the address
/// that was asked is one that the node knows, and the client came in where that is and is no neighbor of the link's. (Elsewhere
/// may be clients that have no other way: containers behind a bridge of this host.)
#[inline(always)]
pub(crate) fn begin<T: Tables>(
    tables: &T,
    port: &PortVal,
    endpoint: &EndpointVal,
    ifindex: u32,
    work: &mut Work,
) {
    if port.flags & PORT_DSR != 0 && endpoint.may_answer() && !work.header.src.is_link_local() {
        let door = tables.own_door(&work.header.dst);
        if door_device(door) == ifindex {
            work.flow.door = door_number(door);
        }
    }
}

/// What is said of a new flow.
#[inline(always)]
pub(crate) const fn at_first(work: &Work) -> u32 {
    if work.flow.door == 0 { 0 } else { FLOW_DSR }
}

/// Names the door ([`FlowVal::door`](crate::values::FlowVal::door)) in a packet that goes to its endpoint.
#[inline(always)]
pub(crate) fn mark(work: &mut Work, config: &NodeConfig, door: u32) {
    if door != 0 {
        work.forward.src_mac = marked(&config.router_mac, door, work.header.dport);
    }
}

/// The address that the client of an answer asked, if the answer goes to it by itself; `source` is what its requests' frames
/// come from.
#[inline(always)]
pub(crate) fn door<'a, T: Tables>(tables: &'a T, work: &mut Work, source: &Mac) -> Option<&'a Addr> {
    let number = number(source);
    if number == 0 {
        return None;
    }
    work.door = DoorKey::new(steer::scope_of(source), number, work.header.v4);
    tables.door(&work.door)
}

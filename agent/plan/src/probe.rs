//! Probes between the nodes, through the tunnels: whom to ask when, and what the answers come to. Nothing here sends,
//! waits or reads a clock; times are durations since any fixed moment.
//!
//! A *round* asks one peer with a frame of each size. What is not answered is sent again, so that a packet lost here or
//! there means nothing, and a peer that answered nothing is asked again at once. What holds for three rounds in a row
//! is told. Rounds are spread over the peers: one each 10 s for every peer, but no more than 20 a second altogether.

mod book;
pub mod frame;
mod judge;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use shoal_types::id::Name;
use shoal_types::{MacAddr, NodeId};

use frame::Ends;

pub use book::{Book, Out, Ticket};
pub use judge::{Counts, Offset, Report, State};

/// Time since a moment that is the same for a whole run.
pub type Time = Duration;

/// A node that is probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Identity.
    pub node: NodeId,
    /// Name.
    pub name: Name,
    /// Where its tunnel packets come from.
    pub address: IpAddr,
    /// Ethernet address of its router.
    pub mac: MacAddr,
    /// Address of its router.
    pub ip: Ipv4Addr,
}

/// Who asks, in the ingress network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// Ethernet address of the node's router.
    pub mac: MacAddr,
    /// Its address.
    pub ip: Ipv4Addr,
}

impl Own {
    const fn to(self, peer: &Peer) -> Ends {
        Ends { src_mac: self.mac, dst_mac: peer.mac, src: self.ip, dst: peer.ip }
    }
}

#[cfg(test)]
mod tests;

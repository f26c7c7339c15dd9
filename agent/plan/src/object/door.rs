//! Addresses that answers may go from, on the node that was asked and on those of the tasks: direct server return.

use std::net::IpAddr;

/// An address of this node that published ports answer on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalAddr {
    /// The address.
    pub addr: IpAddr,
    /// Its number, 1 to 63, that other nodes know it by; 0: none. See [`crate::doors`].
    pub door: u32,
    /// The device that has it: only what comes in there is answered by other nodes. 0 without a number.
    pub device: u32,
}

/// What names an address of another node in frames of its router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DoorPlace {
    /// The low half of the router's address: [`crate::doors::scope`].
    pub router: u32,
    /// The number of the address.
    pub number: u16,
    /// 4 or 6.
    pub family: u16,
}

/// An address of another node that this one may answer from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Door {
    /// What names it.
    pub place: DoorPlace,
    /// The address.
    pub addr: IpAddr,
}

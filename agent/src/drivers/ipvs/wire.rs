//! Messages of IPVS over generic netlink: pure encoding and decoding.
//!
//! Traps of the format: numbers are in the host's byte order except ports and IPv4 netmasks; an address always takes 16
//! bytes; flags are a pair of value and mask; the netmask of an IPv6 service is a prefix length.

mod attribute;
mod read;

use std::net::IpAddr;

use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};

use super::model::{Destination, Family, Forwarding, Scheduler, Service, ServiceKey, Timeouts, Transport};
use attribute::{Writer, command, control, destination, service};

pub use read::{destination_status, family_id, info, service_status, timeouts};

/// The name of the family.
pub const FAMILY: &str = "IPVS";
/// The family of generic netlink itself.
pub const CONTROL_FAMILY: u16 = 0x10;
const IPVS_VERSION: u8 = 1;
const CONTROL_VERSION: u8 = 2;

const PERSISTENT: u32 = 0x1;
const ONE_PACKET: u32 = 0x4;
/// `SCHED1` and `SCHED2`, which both hashing schedulers read the same way.
const FALLBACK: u32 = 0x8;
const WITH_PORT: u32 = 0x10;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// A message that says something else than it should.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The attributes don't add up.
    #[error("the attributes of {of} are malformed")]
    Attribute {
        /// What they describe.
        of: &'static str,
        /// In which way.
        #[source]
        source: DecodeError,
    },
    /// An attribute isn't there.
    #[error("attribute {kind} of {of} is missing")]
    Missing {
        /// What it describes.
        of: &'static str,
        /// Its number.
        kind: u16,
    },
    /// An attribute has a length that its type can't have.
    #[error("attribute {kind} of {of} has {length} bytes")]
    Length {
        /// What it describes.
        of: &'static str,
        /// Its number.
        kind: u16,
        /// Its length.
        length: usize,
    },
    /// An attribute has no sense.
    #[error("attribute {kind} of {of} has a value without meaning")]
    Value {
        /// What it describes.
        of: &'static str,
        /// Its number.
        kind: u16,
    },
}

/// A generic netlink message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generic {
    /// The family's number.
    pub family: u16,
    /// The command.
    pub command: u8,
    /// The family's version.
    pub version: u8,
    /// The attributes.
    pub attributes: Vec<u8>,
}

impl NetlinkSerializable for Generic {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        4 + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..4].copy_from_slice(&[self.command, self.version, 0, 0]);
        buffer[4..].copy_from_slice(&self.attributes);
    }
}

impl NetlinkDeserializable for Generic {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let [command, version, _, _, attributes @ ..] = payload else {
            return Err(DecodeError::from("a generic netlink message without a header"));
        };
        Ok(Self {
            family: header.message_type,
            command: *command,
            version: *version,
            attributes: attributes.to_vec(),
        })
    }
}

impl From<Generic> for netlink_packet_core::NetlinkPayload<Generic> {
    fn from(message: Generic) -> Self {
        Self::InnerMessage(message)
    }
}

/// What the kernel is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// The number of a family.
    Family(&'a str),
    /// A new service.
    NewService(&'a Service),
    /// Another form of a service.
    SetService(&'a Service),
    /// The end of a service and its destinations.
    DeleteService(&'a ServiceKey),
    /// One service.
    GetService(&'a ServiceKey),
    /// All services.
    DumpServices,
    /// A new destination.
    NewDestination(&'a ServiceKey, &'a Destination),
    /// Another form of a destination.
    SetDestination(&'a ServiceKey, &'a Destination),
    /// The end of a destination.
    DeleteDestination(&'a ServiceKey, &'a Destination),
    /// All destinations of a service.
    DumpDestinations(&'a ServiceKey),
    /// The time-outs.
    GetTimeouts,
    /// Other time-outs; those that are zero stay.
    SetTimeouts(&'a Timeouts),
    /// Version and table size.
    GetInfo,
}

impl Request<'_> {
    /// Whether the answer is a list.
    pub fn is_dump(&self) -> bool {
        matches!(self, Self::DumpServices | Self::DumpDestinations(_))
    }

    /// Whether the answer is only yes or no.
    pub fn is_write(&self) -> bool {
        match self {
            Self::NewService(_)
            | Self::SetService(_)
            | Self::DeleteService(_)
            | Self::NewDestination(..)
            | Self::SetDestination(..)
            | Self::DeleteDestination(..)
            | Self::SetTimeouts(_) => true,
            Self::Family(_)
            | Self::GetService(_)
            | Self::DumpServices
            | Self::DumpDestinations(_)
            | Self::GetTimeouts
            | Self::GetInfo => false,
        }
    }

    fn command(&self) -> u8 {
        match self {
            Self::NewService(_) => 1,
            Self::SetService(_) => 2,
            Self::DeleteService(_) | Self::Family(_) => 3,
            Self::GetService(_) | Self::DumpServices => 4,
            Self::NewDestination(..) => 5,
            Self::SetDestination(..) => 6,
            Self::DeleteDestination(..) => 7,
            Self::DumpDestinations(_) => 8,
            Self::SetTimeouts(_) => 12,
            Self::GetTimeouts => 13,
            Self::GetInfo => 15,
        }
    }

    /// The message; `family` is IPVS's number.
    pub fn encode(&self, family: u16) -> Generic {
        let mut attributes = Writer::default();
        match self {
            Self::Family(name) => attributes.text(control::FAMILY_NAME, name),
            Self::NewService(service) | Self::SetService(service) => {
                attributes.nest(command::SERVICE, &service_attributes(service));
            }
            Self::DeleteService(key) | Self::GetService(key) | Self::DumpDestinations(key) => {
                attributes.nest(command::SERVICE, &key_attributes(key));
            }
            Self::NewDestination(key, destination) | Self::SetDestination(key, destination) => {
                attributes.nest(command::SERVICE, &key_attributes(key));
                attributes.nest(command::DESTINATION, &destination_attributes(destination));
            }
            Self::DeleteDestination(key, destination) => {
                attributes.nest(command::SERVICE, &key_attributes(key));
                attributes.nest(command::DESTINATION, &destination_key_attributes(destination));
            }
            Self::SetTimeouts(timeouts) => {
                attributes.u32(command::TIMEOUT_TCP, seconds(timeouts.tcp));
                attributes.u32(command::TIMEOUT_TCP_FIN, seconds(timeouts.tcp_fin));
                attributes.u32(command::TIMEOUT_UDP, seconds(timeouts.udp));
            }
            Self::DumpServices | Self::GetTimeouts | Self::GetInfo => {}
        }
        let (family, version) = match self {
            Self::Family(_) => (CONTROL_FAMILY, CONTROL_VERSION),
            _ => (family, IPVS_VERSION),
        };
        Generic { family, command: self.command(), version, attributes: attributes.finish() }
    }
}

fn seconds(time: std::time::Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

fn family_number(family: Family) -> u16 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

fn protocol_number(transport: Transport) -> u16 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
        Transport::Sctp => 132,
    }
}

/// An address as the kernel's union of both families holds it.
fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn key_attributes(key: &ServiceKey) -> Writer {
    let mut writer = Writer::default();
    writer.u16(service::FAMILY, family_number(key.family()));
    match key {
        ServiceKey::Mark { mark, .. } => writer.u32(service::MARK, mark.get()),
        ServiceKey::Address { transport, address } => {
            writer.u16(service::PROTOCOL, protocol_number(*transport));
            writer.put(service::ADDRESS, &address_bytes(address.ip()));
            writer.port(service::PORT, address.port());
        }
    }
    writer
}

fn service_attributes(wanted: &Service) -> Writer {
    let mut writer = key_attributes(&wanted.key);
    writer.text(service::SCHEDULER, wanted.scheduler.name());
    let mask = u32::MAX.to_ne_bytes();
    writer.put(service::FLAGS, &[flags(wanted).to_ne_bytes(), mask].concat());
    let family = wanted.key.family();
    let (timeout, prefix) = match wanted.persistence {
        Some(persistence) => (seconds(persistence.timeout), persistence.prefix),
        None => (0, full_prefix(family)),
    };
    writer.u32(service::TIMEOUT, timeout);
    match family {
        Family::V4 => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            writer.put(service::NETMASK, &mask.to_be_bytes());
        }
        Family::V6 => writer.u32(service::NETMASK, prefix.into()),
    }
    writer
}

fn full_prefix(family: Family) -> u8 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}

fn flags(wanted: &Service) -> u32 {
    let options = wanted.scheduler.options();
    [
        (wanted.persistence.is_some(), PERSISTENT),
        (wanted.one_packet, ONE_PACKET),
        (options.fallback, FALLBACK),
        (options.port, WITH_PORT),
    ]
    .into_iter()
    .filter_map(|(set, flag)| set.then_some(flag))
    .sum()
}

fn destination_key_attributes(wanted: &Destination) -> Writer {
    let mut writer = Writer::default();
    writer.put(destination::ADDRESS, &address_bytes(wanted.address.ip()));
    writer.port(destination::PORT, wanted.address.port());
    writer.u16(destination::FAMILY, family_number(Family::of(wanted.address.ip())));
    writer
}

fn destination_attributes(wanted: &Destination) -> Writer {
    let mut writer = destination_key_attributes(wanted);
    let forwarding = match wanted.forwarding {
        Forwarding::Nat => 0,
        Forwarding::LocalNode => 1,
        Forwarding::Tunnel => 2,
        Forwarding::DirectRouting => 3,
        Forwarding::Bypass => 4,
    };
    writer.u32(destination::FORWARDING, forwarding);
    writer.u32(destination::WEIGHT, wanted.weight);
    writer.u32(destination::UPPER, wanted.upper);
    writer.u32(destination::LOWER, wanted.lower);
    writer
}

/// The scheduler that a name and flags mean.
fn scheduler(name: &str, flags: u32) -> Scheduler {
    let options = super::model::HashOptions { fallback: flags & FALLBACK != 0, port: flags & WITH_PORT != 0 };
    Scheduler::from_name(name, options)
}

#[cfg(test)]
mod tests;

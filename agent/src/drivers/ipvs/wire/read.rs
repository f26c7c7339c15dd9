//! Decoding what the kernel answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use super::super::model::{
    Destination, DestinationStatus, Family, Forwarding, Info, Persistence, Service, ServiceKey,
    ServiceStatus, Stats, Timeouts, Transport,
};
use super::attribute::{Reader, command, control, destination, info as info_attribute, service};
use super::{AF_INET, AF_INET6, Generic, ONE_PACKET, PERSISTENT, WireError};

/// The number of the family that was asked for.
pub fn family_id(message: &Generic) -> Result<u16, WireError> {
    Reader::new("a family", &message.attributes)?.u16(control::FAMILY_ID)
}

/// Version and table size.
pub fn info(message: &Generic) -> Result<Info, WireError> {
    let reader = Reader::new("the version", &message.attributes)?;
    let [_, major, minor, patch] = reader.u32(info_attribute::VERSION)?.to_be_bytes();
    Ok(Info { version: (major, minor, patch), table_size: reader.u32(info_attribute::TABLE_SIZE)? })
}

/// The time-outs.
pub fn timeouts(message: &Generic) -> Result<Timeouts, WireError> {
    let reader = Reader::new("the time-outs", &message.attributes)?;
    let time = |kind| reader.u32(kind).map(|seconds| Duration::from_secs(seconds.into()));
    Ok(Timeouts {
        tcp: time(command::TIMEOUT_TCP)?,
        tcp_fin: time(command::TIMEOUT_TCP_FIN)?,
        udp: time(command::TIMEOUT_UDP)?,
    })
}

/// A service.
pub fn service_status(message: &Generic) -> Result<ServiceStatus, WireError> {
    let reader = Reader::new("a service", &message.attributes)?.nest("a service", command::SERVICE)?;
    let key = key(&reader)?;
    // A pair of value and mask.
    let flags = reader.array::<8>(service::FLAGS)?;
    let flags = u32::from_ne_bytes([flags[0], flags[1], flags[2], flags[3]]);
    let persistence = if flags & PERSISTENT == 0 { None } else { Some(persistence(&reader, key.family())?) };
    Ok(ServiceStatus {
        service: Service {
            key,
            scheduler: super::scheduler(reader.text(service::SCHEDULER)?, flags),
            persistence,
            one_packet: flags & ONE_PACKET != 0,
        },
        stats: stats(&reader.nest("a service's counters", service::STATS64)?)?,
    })
}

fn key(reader: &Reader<'_>) -> Result<ServiceKey, WireError> {
    let family = family(reader, service::FAMILY)?;
    if reader.bytes(service::MARK).is_some() {
        let mark = NonZeroU32::new(reader.u32(service::MARK)?).ok_or(reader.wrong(service::MARK))?;
        return Ok(ServiceKey::Mark { family, mark });
    }
    let transport = match reader.u16(service::PROTOCOL)? {
        6 => Transport::Tcp,
        17 => Transport::Udp,
        132 => Transport::Sctp,
        _ => return Err(reader.wrong(service::PROTOCOL)),
    };
    let address = address(reader.array(service::ADDRESS)?, family);
    Ok(ServiceKey::Address { transport, address: SocketAddr::new(address, reader.port(service::PORT)?) })
}

fn family(reader: &Reader<'_>, kind: u16) -> Result<Family, WireError> {
    match reader.u16(kind)? {
        AF_INET => Ok(Family::V4),
        AF_INET6 => Ok(Family::V6),
        _ => Err(reader.wrong(kind)),
    }
}

fn address(bytes: [u8; 16], family: Family) -> IpAddr {
    match family {
        Family::V4 => {
            let [a, b, c, d, ..] = bytes;
            Ipv4Addr::new(a, b, c, d).into()
        }
        Family::V6 => Ipv6Addr::from(bytes).into(),
    }
}

fn persistence(reader: &Reader<'_>, family: Family) -> Result<Persistence, WireError> {
    let prefix = match family {
        Family::V4 => u32::from_be_bytes(reader.array(service::NETMASK)?).leading_ones(),
        Family::V6 => reader.u32(service::NETMASK)?,
    };
    Ok(Persistence {
        timeout: Duration::from_secs(reader.u32(service::TIMEOUT)?.into()),
        prefix: u8::try_from(prefix).map_err(|_| reader.wrong(service::NETMASK))?,
    })
}

/// A destination.
pub fn destination_status(message: &Generic) -> Result<DestinationStatus, WireError> {
    let of = "a destination";
    let reader = Reader::new(of, &message.attributes)?.nest(of, command::DESTINATION)?;
    let family = family(&reader, destination::FAMILY)?;
    let forwarding = match reader.u32(destination::FORWARDING)? {
        0 => Forwarding::Nat,
        1 => Forwarding::LocalNode,
        2 => Forwarding::Tunnel,
        3 => Forwarding::DirectRouting,
        4 => Forwarding::Bypass,
        _ => return Err(reader.wrong(destination::FORWARDING)),
    };
    let address = address(reader.array(destination::ADDRESS)?, family);
    Ok(DestinationStatus {
        destination: Destination {
            address: SocketAddr::new(address, reader.port(destination::PORT)?),
            forwarding,
            weight: reader.u32(destination::WEIGHT)?,
            upper: reader.u32(destination::UPPER)?,
            lower: reader.u32(destination::LOWER)?,
        },
        active: reader.u32(destination::ACTIVE)?,
        inactive: reader.u32(destination::INACTIVE)?,
        persistent: reader.u32(destination::PERSISTENT)?,
        stats: stats(&reader.nest("a destination's counters", destination::STATS64)?)?,
    })
}

/// `IPVS_STATS_ATTR_*` are numbered in this order.
fn stats(reader: &Reader<'_>) -> Result<Stats, WireError> {
    Ok(Stats {
        connections: reader.u64(1)?,
        in_packets: reader.u64(2)?,
        out_packets: reader.u64(3)?,
        in_bytes: reader.u64(4)?,
        out_bytes: reader.u64(5)?,
        connection_rate: reader.u64(6)?,
        in_packet_rate: reader.u64(7)?,
        out_packet_rate: reader.u64(8)?,
        in_byte_rate: reader.u64(9)?,
        out_byte_rate: reader.u64(10)?,
    })
}

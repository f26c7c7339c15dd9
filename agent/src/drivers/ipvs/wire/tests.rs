use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage};
use proptest::prelude::*;

use super::super::model::{HashOptions, Persistence, Stats, VirtualService};
use super::*;

const IPVS: u16 = 0x21;

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|half| char::from_digit(half.into(), 16))
        .collect()
}

fn http(scheduler: Scheduler) -> Service {
    let address = "10.255.0.9:80".parse().unwrap();
    Service::new(ServiceKey::Address { transport: Transport::Tcp, address }, scheduler)
}

/// What the kernel appends to an answer about a service or destination.
fn with_counters(mut writer: Writer, kind: u16, stats: &Stats) -> Writer {
    let mut counters = Writer::default();
    let values = [
        stats.connections,
        stats.in_packets,
        stats.out_packets,
        stats.in_bytes,
        stats.out_bytes,
        stats.connection_rate,
        stats.in_packet_rate,
        stats.out_packet_rate,
        stats.in_byte_rate,
        stats.out_byte_rate,
    ];
    for (kind, value) in (1..).zip(values) {
        counters.put(kind, &value.to_ne_bytes());
    }
    writer.nest(kind, &counters);
    writer
}

fn answer(kind: u16, writer: &Writer) -> Generic {
    let mut attributes = Writer::default();
    attributes.nest(kind, writer);
    Generic { family: IPVS, command: 1, version: 1, attributes: attributes.finish() }
}

#[test]
fn a_new_service_has_these_bytes() {
    let service = http(Scheduler::RoundRobin);
    let mut message = NetlinkMessage::from(Request::NewService(&service).encode(IPVS));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    assert_eq!(
        hex(&bytes),
        "6800000021000500000000000000000001010000540001800600010002000000060002000600000014000300\
         0aff0009000000000000000000000000060004000050000007000600727200000c00070000000000ffffffff\
         080008000000000008000900ffffffff"
    );
}

#[test]
fn a_mark_of_ipv6_with_persistence_has_these_attributes() {
    let key = ServiceKey::Mark { family: Family::V6, mark: NonZeroU32::new(258).unwrap() };
    let options = HashOptions { fallback: true, port: true };
    let mut service = Service::new(key, Scheduler::Maglev(options));
    service.persistence = Some(Persistence { timeout: Duration::from_mins(5), prefix: 64 });
    let message = Request::SetService(&service).encode(IPVS);
    assert_eq!(message.command, 2);
    // family 10, mark 0x102, "mh", flags 1 + 8 + 16, 300 seconds, a prefix of 64
    assert_eq!(
        hex(&message.attributes),
        "38000180060001000a0000000800050002010000070006006d6800000c00070019000000ffffffff\
         080008002c0100000800090040000000"
    );
}

#[test]
fn a_destination_has_these_attributes() {
    let service = http(Scheduler::RoundRobin);
    let mut destination = Destination::new("10.0.0.3:8080".parse().unwrap(), Forwarding::DirectRouting, 5);
    (destination.upper, destination.lower) = (100, 50);
    let message = Request::NewDestination(&service.key, &destination).encode(IPVS);
    assert_eq!(message.command, 5);
    assert_eq!(
        hex(&message.attributes),
        "300001800600010002000000060002000600000014000300 0aff0009000000000000000000000000 0600040000500000\
         48000280 14000100 0a000003000000000000000000000000 060002001f900000 06000b0002000000\
         0800030003000000 0800040005000000 0800050064000000 0800060032000000"
            .replace(' ', "")
    );
    // Removing one names it and nothing else.
    let message = Request::DeleteDestination(&service.key, &destination).encode(IPVS);
    assert!(hex(&message.attributes).ends_with("060002001f90000006000b0002000000"));
}

#[test]
fn the_netmask_of_ipv4_is_in_network_order() {
    let mut service = http(Scheduler::SourceHash(HashOptions::default()));
    for (prefix, mask) in [(0, "00000000"), (8, "ff000000"), (24, "ffffff00"), (32, "ffffffff")] {
        service.persistence = Some(Persistence { timeout: Duration::from_secs(1), prefix });
        let message = Request::NewService(&service).encode(IPVS);
        assert!(hex(&message.attributes).ends_with(&format!("08000900{mask}")), "/{prefix}");
    }
}

#[test]
fn asking_for_the_family_goes_to_generic_netlink_itself() {
    let message = Request::Family(FAMILY).encode(0);
    assert_eq!((message.family, message.command, message.version), (0x10, 3, 2));
    assert_eq!(hex(&message.attributes), "090002004950565300000000");
}

#[test]
fn answers_that_lack_or_twist_something_are_refused_by_name() {
    let service = http(Scheduler::RoundRobin);
    let without = answer(command::SERVICE, &service_attributes(&service));
    assert!(matches!(service_status(&without), Err(WireError::Missing { kind: service::STATS64, .. })));
    let mut writer = key_attributes(&service.key);
    writer.u32(service::FAMILY, 2);
    let long = answer(command::SERVICE, &writer);
    assert!(matches!(service_status(&long), Err(WireError::Length { kind: service::FAMILY, .. })));
    let mut writer = Writer::default();
    writer.u16(service::FAMILY, 3);
    let strange = answer(command::SERVICE, &writer);
    assert!(matches!(service_status(&strange), Err(WireError::Value { kind: service::FAMILY, .. })));
    let cut = Generic { attributes: vec![9, 0, 1], ..strange };
    assert!(matches!(service_status(&cut), Err(WireError::Attribute { .. })));
}

#[test]
fn version_and_time_outs_are_read() {
    let mut writer = Writer::default();
    writer.u32(attribute::info::VERSION, 0x01_02_01);
    writer.u32(attribute::info::TABLE_SIZE, 4096);
    let message = Generic { family: IPVS, command: 14, version: 1, attributes: writer.finish() };
    let read = info(&message).unwrap();
    assert_eq!((read.version, read.table_size), ((1, 2, 1), 4096));
    let wanted = Timeouts {
        tcp: Duration::from_mins(15),
        tcp_fin: Duration::from_mins(2),
        udp: Duration::from_mins(5),
    };
    assert_eq!(timeouts(&Request::SetTimeouts(&wanted).encode(IPVS)).unwrap(), wanted);
}

fn socket_address(family: Family) -> BoxedStrategy<SocketAddr> {
    let port = any::<u16>();
    match family {
        Family::V4 => (any::<[u8; 4]>(), port)
            .prop_map(|(ip, port)| SocketAddr::from((Ipv4Addr::from(ip), port)))
            .boxed(),
        Family::V6 => (any::<[u8; 16]>(), port)
            .prop_map(|(ip, port)| SocketAddr::from((Ipv6Addr::from(ip), port)))
            .boxed(),
    }
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn any_key(family: Family) -> BoxedStrategy<ServiceKey> {
    let transport = prop_oneof![Just(Transport::Tcp), Just(Transport::Udp), Just(Transport::Sctp)];
    prop_oneof![
        (1..=u32::MAX).prop_map(move |mark| {
            ServiceKey::Mark { family, mark: NonZeroU32::new(mark).expect("from 1") }
        }),
        (transport, socket_address(family))
            .prop_map(|(transport, address)| ServiceKey::Address { transport, address }),
    ]
    .boxed()
}

fn any_scheduler() -> impl Strategy<Value = Scheduler> {
    let options = (any::<bool>(), any::<bool>());
    (prop::sample::select(Scheduler::ALL.to_vec()), options).prop_map(|(scheduler, (fallback, port))| {
        Scheduler::from_name(scheduler.name(), HashOptions { fallback, port })
    })
}

fn any_service() -> impl Strategy<Value = Service> {
    family().prop_flat_map(|family| {
        let prefix = full_prefix(family);
        let persistence = proptest::option::of((any::<u32>(), 1..=prefix).prop_map(|(seconds, prefix)| {
            Persistence { timeout: Duration::from_secs(seconds.into()), prefix }
        }));
        (any_key(family), any_scheduler(), persistence, any::<bool>()).prop_map(
            |(key, scheduler, persistence, one_packet)| Service { key, scheduler, persistence, one_packet },
        )
    })
}

fn any_stats() -> impl Strategy<Value = Stats> {
    any::<[u64; 10]>().prop_map(|[a, b, c, d, e, f, g, h, i, j]| Stats {
        connections: a,
        in_packets: b,
        out_packets: c,
        in_bytes: d,
        out_bytes: e,
        connection_rate: f,
        in_packet_rate: g,
        out_packet_rate: h,
        in_byte_rate: i,
        out_byte_rate: j,
    })
}

fn any_destination() -> impl Strategy<Value = Destination> {
    let forwarding = prop_oneof![
        Just(Forwarding::Nat),
        Just(Forwarding::DirectRouting),
        Just(Forwarding::Tunnel),
        Just(Forwarding::LocalNode),
        Just(Forwarding::Bypass),
    ];
    (family().prop_flat_map(socket_address), forwarding, any::<[u32; 3]>()).prop_map(
        |(address, forwarding, [weight, upper, lower])| Destination {
            address,
            forwarding,
            weight,
            upper,
            lower,
        },
    )
}

proptest! {
    #[test]
    fn a_service_is_read_as_it_is_written(wanted in any_service(), stats in any_stats()) {
        let writer = with_counters(service_attributes(&wanted), service::STATS64, &stats);
        let read = service_status(&answer(command::SERVICE, &writer)).unwrap();
        prop_assert_eq!(read.service, wanted);
        prop_assert_eq!(read.stats, stats);
    }

    #[test]
    fn a_destination_is_read_as_it_is_written(wanted in any_destination(), counts in any::<[u32; 3]>(), stats in any_stats()) {
        let mut writer = destination_attributes(&wanted);
        writer.u32(destination::ACTIVE, counts[0]);
        writer.u32(destination::INACTIVE, counts[1]);
        writer.u32(destination::PERSISTENT, counts[2]);
        let writer = with_counters(writer, destination::STATS64, &stats);
        let read = destination_status(&answer(command::DESTINATION, &writer)).unwrap();
        prop_assert_eq!(read.destination, wanted);
        prop_assert_eq!([read.active, read.inactive, read.persistent], counts);
        prop_assert_eq!(read.stats, stats);
        prop_assert!(read.destination.satisfies(&wanted));
    }

    #[test]
    fn no_bytes_make_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let message = Generic { family: IPVS, command: 1, version: 1, attributes: bytes };
        drop(service_status(&message));
        drop(destination_status(&message));
        drop((info(&message), timeouts(&message), family_id(&message)));
    }

    #[test]
    fn damage_to_an_answer_never_panics(wanted in any_service(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let writer = with_counters(service_attributes(&wanted), service::STATS64, &Stats::default());
        let mut message = answer(command::SERVICE, &writer);
        let at = at.index(message.attributes.len());
        message.attributes[at] = byte;
        drop(service_status(&message));
    }
}

#[test]
fn a_local_destination_is_what_any_forwarding_becomes() {
    let wanted = Destination::new("10.0.0.1:1".parse().unwrap(), Forwarding::Nat, 1);
    let local = Destination { forwarding: Forwarding::LocalNode, ..wanted };
    assert!(local.satisfies(&wanted));
    assert!(!wanted.satisfies(&Destination { forwarding: Forwarding::DirectRouting, ..wanted }));
    assert!(!local.satisfies(&Destination { weight: 2, ..wanted }));
    let service = VirtualService::new(http(Scheduler::RoundRobin), [wanted, local]);
    assert_eq!(service.destinations.len(), 1);
}

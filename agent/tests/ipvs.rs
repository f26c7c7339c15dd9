//! The IPVS driver on the real kernel. Needs root, and for all tests but one a kernel with IPVS:
//! `cargo xtask vm uml -- <this test binary> --ignored`.

#![expect(clippy::unwrap_used, reason = "a fixture that can't be made fails its test")]

#[path = "ipvs/path.rs"]
mod path;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::process::Command;
use std::time::{Duration, Instant};

use shoal_agent::drivers::ipvs::{
    Change, Destination, Family, Forwarding, HashOptions, IpvsDriver, IpvsError, IpvsTable, KernelTable,
    Object, Outcome, Persistence, Scheduler, Service, ServiceKey, ServiceStatus, Timeouts, Transport,
    VirtualService, VirtualServices,
};
use shoal_agent::drivers::link::Writes;
use shoal_agent::netns::Netns;

use path::{CLIENT4, CLIENT6, MARKED, Path, SERVERS4, SERVERS6, VIP4, VIP6, talk};

/// A driver of a namespace that ends with the handle, and its count of writes.
fn driver() -> (IpvsDriver<KernelTable>, Writes) {
    let writes = Writes::default();
    let netns = Netns::anonymous().expect("a namespace (needs root)");
    let table = KernelTable::open(&netns, writes.clone()).expect("a kernel with IPVS");
    (IpvsDriver::new(table), writes)
}

fn at(transport: Transport, address: &str) -> ServiceKey {
    ServiceKey::Address { transport, address: address.parse().unwrap() }
}

fn mark(family: Family, mark: u32) -> ServiceKey {
    ServiceKey::Mark { family, mark: NonZeroU32::new(mark).unwrap() }
}

fn all(services: impl IntoIterator<Item = VirtualService>) -> VirtualServices {
    services.into_iter().map(|each| (each.service.key, each)).collect()
}

fn succeeded(outcomes: Vec<Outcome>) -> usize {
    let count = outcomes.len();
    for outcome in outcomes {
        outcome.result.unwrap_or_else(|error| panic!("{}: {error}: {error:?}", outcome.object));
    }
    count
}

/// Every kind of key, every scheduler with every option, persistence, both ways of forwarding.
fn everything() -> VirtualServices {
    let both = [false, true];
    let options = both.map(|port| both.map(|fallback| HashOptions { fallback, port }));
    let mut schedulers = Scheduler::ALL.to_vec();
    for options in options.into_iter().flatten() {
        schedulers.extend([Scheduler::SourceHash(options), Scheduler::Maglev(options)]);
    }
    let mut services = Vec::new();
    for (number, scheduler) in (1..).zip(schedulers) {
        let port = 1000 + u16::try_from(number).unwrap();
        let keys = [
            at(Transport::Tcp, &format!("10.1.0.1:{port}")),
            at(Transport::Udp, &format!("10.1.0.1:{port}")),
            at(Transport::Sctp, &format!("[fd01::1]:{port}")),
            mark(Family::V4, number),
            mark(Family::V6, number),
        ];
        for key in keys {
            let mut service = Service::new(key, scheduler.clone());
            let place: SocketAddr = match key.family() {
                Family::V4 => "10.2.0.1:80".parse().unwrap(),
                Family::V6 => "[fd02::1]:80".parse().unwrap(),
            };
            service.one_packet =
                number == 2 && matches!(key, ServiceKey::Address { transport: Transport::Udp, .. });
            if number == 3 {
                let prefix = if key.family() == Family::V4 { 24 } else { 64 };
                service.persistence = Some(Persistence { timeout: Duration::from_mins(1), prefix });
            }
            let nat = Destination { upper: 100, lower: 50, ..Destination::new(place, Forwarding::Nat, 3) };
            let mut next = place;
            next.set_port(81);
            let direct = Destination::new(next, Forwarding::DirectRouting, 0);
            services.push(VirtualService::new(service, [nat, direct]));
        }
    }
    all(services)
}

#[test]
fn a_kernel_without_ipvs_is_told_by_name() {
    let netns = Netns::anonymous().expect("a namespace (needs root)");
    let opened = KernelTable::open(&netns, Writes::default());
    if std::path::Path::new("/proc/net/ip_vs").exists() {
        assert!(opened.is_ok(), "{opened:?}");
    } else {
        assert!(matches!(opened, Err(IpvsError::ModuleMissing)), "{opened:?}");
    }
}

#[test]
#[ignore = "needs a kernel with IPVS: cargo xtask vm uml"]
fn everything_is_observed_as_it_was_made_and_adopted_without_a_write() {
    let (mut driver, writes) = driver();
    let desired = everything();
    let objects = desired.len() * 3;
    assert_eq!(succeeded(driver.reconcile(&desired).unwrap()), objects);
    // A Maglev table is computed once: its scheduler is set when all destinations are there.
    let is_maglev = |service: &&VirtualService| matches!(service.service.scheduler, Scheduler::Maglev(_));
    let once_more = desired.values().filter(is_maglev).filter(|each| each.destinations.len() > 1).count();
    assert!(once_more > 0);
    let wanted = u64::try_from(objects + once_more).unwrap();
    assert_eq!(writes.total(), wanted);
    assert_eq!(driver.observe().unwrap(), desired);
    assert_eq!(driver.reconcile(&desired).unwrap().len(), 0);
    assert_eq!(writes.total(), wanted, "adopting writes nothing");
    // Every scheduler can become every other one, and what is left out goes.
    let mut fewer: VirtualServices = desired.into_iter().step_by(3).collect();
    for (service, scheduler) in fewer.values_mut().zip(Scheduler::ALL.iter().rev().cycle()) {
        service.service.scheduler = scheduler.clone();
    }
    succeeded(driver.reconcile(&fewer).unwrap());
    assert_eq!(driver.observe().unwrap(), fewer);
    succeeded(driver.reconcile(&BTreeMap::new()).unwrap());
    assert!(driver.observe().unwrap().is_empty());
}

#[test]
#[ignore = "needs a kernel with IPVS: cargo xtask vm uml"]
fn the_kernel_s_refusals_have_names() {
    let (mut driver, writes) = driver();
    let table = driver.table();
    let service = Service::new(at(Transport::Tcp, "10.1.0.1:80"), Scheduler::RoundRobin);
    let (key, object) = (service.key, Object::Service(service.key));
    let place = Destination::new("10.2.0.1:80".parse().unwrap(), Forwarding::Nat, 1);
    let place_object = Object::Destination(key, place.address);
    let not_found = |result: Result<(), IpvsError>, object| {
        assert!(matches!(&result, Err(IpvsError::NotFound(found)) if *found == object), "{result:?}");
    };
    not_found(table.change_service(&service), object);
    not_found(table.delete_service(&key), object);
    not_found(table.create_destination(&key, &place), object);
    not_found(table.delete_destination(&key, &place), object);
    assert_eq!(table.service(&key).unwrap(), None);
    assert_eq!(table.destinations(&key).unwrap(), []);
    let unknown = Service { scheduler: Scheduler::Other("nosuch".into()), ..service.clone() };
    let refused = table.create_service(&unknown);
    assert!(
        matches!(&refused, Err(IpvsError::SchedulerMissing { scheduler, .. }) if scheduler == "nosuch"),
        "{refused:?}"
    );
    assert_eq!(writes.total(), 0);
    table.create_service(&service).unwrap();
    let again = table.create_service(&service);
    assert!(matches!(&again, Err(IpvsError::Exists(found)) if *found == object), "{again:?}");
    not_found(table.change_destination(&key, &place), place_object);
    not_found(table.delete_destination(&key, &place), place_object);
    table.create_destination(&key, &place).unwrap();
    let again = table.create_destination(&key, &place);
    assert!(matches!(&again, Err(IpvsError::Exists(found)) if *found == place_object), "{again:?}");
    let wrong = Destination { upper: 1, lower: 2, ..place };
    let refused = table.change_destination(&key, &wrong);
    assert!(
        matches!(&refused, Err(error @ IpvsError::Refused { .. }) if !error.is_retryable()),
        "{refused:?}"
    );
    // In a batch, each has its own result.
    let fine = Destination::new("10.2.0.2:80".parse().unwrap(), Forwarding::Nat, 1);
    let wrong = Destination { address: "10.2.0.3:80".parse().unwrap(), ..wrong };
    let last = Destination { address: "10.2.0.4:80".parse().unwrap(), ..fine };
    let results = table.create_destinations(&key, &[&fine, &place, &wrong, &last, &last]).unwrap();
    assert!(results[0].is_ok() && results[3].is_ok(), "{results:?}");
    assert!(matches!(&results[1], Err(IpvsError::Exists(found)) if *found == place_object), "{results:?}");
    assert!(matches!(&results[2], Err(IpvsError::Refused { .. })), "{results:?}");
    assert!(matches!(&results[4], Err(IpvsError::Exists(_))), "{results:?}");
    table.delete_destination(&key, &fine).unwrap();
    table.delete_destination(&key, &last).unwrap();
    // What is there already is compared: the service is right, the destination gets another weight.
    let desired = VirtualService::new(service, [Destination { weight: 7, ..place }]);
    let outcomes = driver.ensure(&desired, None);
    let changes: Vec<_> = outcomes.into_iter().map(|outcome| outcome.result.unwrap()).collect();
    assert_eq!(changes, [Change::Unchanged, Change::Changed]);
    assert_eq!(driver.observe().unwrap(), all([desired]));
}

#[test]
#[ignore = "needs a kernel with IPVS: cargo xtask vm uml"]
fn version_and_time_outs() {
    let (mut driver, _) = driver();
    let info = driver.table().info().unwrap();
    assert!(info.version >= (1, 2, 1) && info.table_size.is_power_of_two(), "{info:?}");
    let before = driver.table().timeouts().unwrap();
    let wanted = Timeouts { tcp: Duration::from_hours(24), ..Timeouts::default() };
    driver.table().set_timeouts(&wanted).unwrap();
    assert_eq!(driver.table().timeouts().unwrap(), Timeouts { tcp: wanted.tcp, ..before });
}

/// What an operator sees has to agree with us; ipvsadm is in the guests of `cargo xtask vm`.
#[test]
#[ignore = "needs a kernel with IPVS: cargo xtask vm uml"]
fn an_operator_sees_the_same() {
    let netns = Netns::anonymous().unwrap();
    let mut driver = IpvsDriver::new(KernelTable::open(&netns, Writes::default()).unwrap());
    let options = HashOptions { fallback: true, port: true };
    let v4 = Service::new(at(Transport::Tcp, "10.1.0.1:80"), Scheduler::Maglev(options));
    let mut v6 = Service::new(mark(Family::V6, 258), Scheduler::WeightedRoundRobin);
    v6.persistence = Some(Persistence { timeout: Duration::from_secs(77), prefix: 64 });
    let nat = Destination::new("10.2.0.1:8080".parse().unwrap(), Forwarding::Nat, 3);
    let direct = Destination::new("[fd02::1]:0".parse().unwrap(), Forwarding::DirectRouting, 0);
    succeeded(
        driver.reconcile(&all([VirtualService::new(v4, [nat]), VirtualService::new(v6, [direct])])).unwrap(),
    );
    let output = netns.run(|| Command::new("ipvsadm").args(["--save", "--numeric"]).output()).unwrap();
    let output = output.expect("ipvsadm");
    let mut lines: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "-A -f 258 -6 -s wrr -p 77 -M 64",
            "-A -t 10.1.0.1:80 -s mh -b mh-fallback,mh-port",
            "-a -f 258 -6 -r [fd02::1]:0 -g -w 0",
            "-a -t 10.1.0.1:80 -r 10.2.0.1:8080 -m -w 3",
        ]
    );
}

/// Waits until the kernel, which adds up counters now and then, has seen this many connections.
fn counted(driver: &mut IpvsDriver<KernelTable>, key: &ServiceKey, connections: u64) -> ServiceStatus {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = driver.table().service(key).unwrap().unwrap();
        if status.stats.connections == connections {
            return status;
        }
        assert!(Instant::now() < deadline, "never {connections} connections: {status:?}");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

#[test]
#[ignore = "needs a kernel with IPVS: cargo xtask vm uml"]
fn connections_are_spread_drained_and_counted_and_keep_the_client_s_address() {
    let path = Path::new();
    let writes = Writes::default();
    let mut driver = IpvsDriver::new(KernelTable::open(&path.director, writes).unwrap());
    let nat = |address: &str| Destination::new(address.parse().unwrap(), Forwarding::Nat, 1);
    let key4 = at(Transport::Tcp, VIP4);
    let services = |weight: u32| {
        let mut first = nat(SERVERS4[0]);
        first.weight = weight;
        let http4 = VirtualService::new(Service::new(key4, Scheduler::RoundRobin), [first, nat(SERVERS4[1])]);
        let service = |key| Service::new(key, Scheduler::RoundRobin);
        let http6 = VirtualService::new(service(at(Transport::Tcp, VIP6)), SERVERS6.map(nat));
        let marked = VirtualService::new(service(mark(Family::V4, 7)), SERVERS4.map(nat));
        all([http4, http6, marked])
    };
    succeeded(driver.reconcile(&services(1)).unwrap());
    for (front, servers, client) in
        [(VIP4, SERVERS4, CLIENT4), (VIP6, SERVERS6, CLIENT6), (MARKED, SERVERS4, CLIENT4)]
    {
        let answers: Vec<_> = (0..10).map(|_| path.ask(front)).collect();
        for server in servers {
            let served = answers.iter().filter(|answer| answer.server.to_string() == server).count();
            assert_eq!(served, 5, "{front}: {answers:?}");
        }
        assert!(answers.iter().all(|answer| answer.seen.to_string() == client), "{answers:?}");
        assert!(answers.iter().all(|answer| answer.port == answer.own_port), "{answers:?}");
    }
    let status = counted(&mut driver, &key4, 10);
    assert!(status.stats.in_packets >= 40 && status.stats.out_bytes > 0, "{status:?}");
    let destinations = driver.table().destinations(&key4).unwrap();
    assert!(destinations.iter().all(|each| each.stats.connections == 5), "{destinations:?}");

    // A drained destination keeps its connection and gets no new one.
    let mut kept = path.connect(VIP4);
    let held = talk(&mut kept);
    assert_eq!(
        succeeded(driver.reconcile(&services(0)).unwrap()),
        usize::from(held.server.to_string() == SERVERS4[0]).max(1)
    );
    for _ in 0..6 {
        assert_eq!(path.ask(VIP4).server.to_string(), SERVERS4[1]);
    }
    assert_eq!(talk(&mut kept).server, held.server);
    assert!(!path.has_conntrack_entries(), "the path needs no connection tracking");
}

#[test]
#[ignore = "needs a kernel with IPVS: cargo xtask vm uml"]
fn a_thousand_services_of_ten_destinations() {
    let (mut driver, writes) = driver();
    let desired = all((0..1000u16).map(|number| {
        let [high, low] = number.to_be_bytes();
        let key = ServiceKey::Address { transport: Transport::Tcp, address: ([10, 1, high, low], 80).into() };
        let destinations =
            (1..=10).map(|host| Destination::new(([10, 2, low, host], 8080).into(), Forwarding::Nat, 1));
        VirtualService::new(Service::new(key, Scheduler::RoundRobin), destinations)
    }));
    let start = Instant::now();
    assert_eq!(succeeded(driver.reconcile(&desired).unwrap()), 11_000);
    let made = start.elapsed();
    let start = Instant::now();
    assert!(driver.reconcile(&desired).unwrap().is_empty());
    let compared = start.elapsed();
    let before = writes.total();
    let mut one = desired.first_key_value().unwrap().1.clone();
    let observed = one.clone();
    one.destinations.values_mut().next().unwrap().weight = 0;
    let start = Instant::now();
    assert_eq!(succeeded(driver.ensure(&one, Some(&observed))), 1);
    let changed = start.elapsed();
    assert_eq!(writes.total() - before, 1, "one change is one write, however big the table");
    println!(
        "1,000 services x 10 destinations: made in {made:.2?}, compared in {compared:.2?}, one changed in {changed:.2?}"
    );
    assert!(made < Duration::from_secs(20), "{made:?}");
}

//! The driver itself: idempotence, adoption, attachment, make-before-break.

use std::ffi::CString;
use std::process::Command;

use aya::programs::SchedClassifier;
use shoal_agent::drivers::bpf::{
    self, Attachment, BpfDriver, Collected, Connecting, Opened, Program, ServiceSpec, Trial,
};
use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::{FlowKey, PortKey};
use shoal_ebpf_common::maglev::{self, Member, Policy};
use shoal_ebpf_common::reason::{Event, Reason};
use shoal_ebpf_common::values::{EndpointVal, PortVal, TaskIf};
use shoal_ebpf_common::verdict::Out;

use super::Kernel;
use super::fixture::{Plane, place};
use super::support::direct_cases;
use super::support::fuzz::{self, Random};
use super::support::host::Host;
use super::support::packet::{ACK, SYN, Segment, TCP, UDP};
use super::support::world::{self, Action, LOCAL, REMOTE, SERVICE, V4, World};

pub(crate) fn service(endpoints: &[u64]) -> ServiceSpec {
    ServiceSpec::new(
        7,
        Policy::Flow,
        endpoints.iter().map(|&endpoint| Member { endpoint, weight: 1 }).collect(),
    )
}

#[test]
fn writing_the_same_twice_writes_once() {
    let mut plane = Plane::new();
    let driver = plane.driver();
    let (key, value) = (PortKey::new(world::addr(V4.node), 80, TCP), PortVal::new(1, 8080));
    assert!(driver.ports.upsert(&key, &value).unwrap());
    assert!(!driver.ports.upsert(&key, &value).unwrap());
    assert!(driver.ports.upsert(&key, &PortVal::new(2, 8080)).unwrap());
    assert_eq!(driver.ports.dump().unwrap(), [(key, PortVal::new(2, 8080))].into());
    assert!(driver.ports.remove(&key).unwrap());
    assert!(!driver.ports.remove(&key).unwrap());
    assert!(driver.upsert_service(1, &service(&[1, 2])).unwrap());
    assert!(!driver.upsert_service(1, &service(&[2, 1])).unwrap(), "the order of members means nothing");
    assert!(driver.upsert_service(1, &service(&[1])).unwrap());
}

#[test]
fn many_writes_at_once_find_memory() {
    let mut plane = Plane::new();
    let driver = plane.driver();
    for port in 1..=5_000 {
        let key = PortKey::new(world::addr(V4.node), port, TCP);
        assert!(driver.ports.upsert(&key, &PortVal::new(1, port)).unwrap(), "port {port}");
    }
    assert_eq!(driver.ports.dump().unwrap().len(), 5_000);
}

#[test]
fn what_was_loaded_for_a_trial_is_adopted_or_goes() {
    let config = place();
    Trial::load(config.clone()).unwrap().keep();
    let (driver, opened) = BpfDriver::open(&config).unwrap();
    assert_eq!(opened, Opened::Adopted);
    drop(Trial::load(config.clone()).unwrap());
    assert!(config.dir.exists(), "what was there before a trial stays");
    driver.remove_all().unwrap();
    drop(Trial::load(config.clone()).unwrap());
    assert!(!config.dir.exists(), "nothing is left of {}", config.dir.display());
}

#[test]
fn a_restart_adopts_and_changes_nothing() {
    let mut plane = Plane::new();
    plane.driver().upsert_service(1, &service(&[1, 2, 3])).unwrap();
    plane.driver().upsert_service(2, &service(&[4])).unwrap();
    let before = (plane.driver().services().unwrap(), plane.driver().service_table(1).unwrap());
    assert_eq!(plane.reopen(), Opened::Adopted);
    assert_eq!((plane.driver().services().unwrap(), plane.driver().service_table(1).unwrap()), before);
    assert!(!plane.driver().upsert_service(1, &service(&[1, 2, 3])).unwrap());
    // The slots in use were found: a new table takes others.
    plane.driver().upsert_service(3, &service(&[5])).unwrap();
    assert_eq!(plane.driver().service_table(1).unwrap(), before.1);
}

#[test]
fn a_service_moves_to_a_new_region_and_frees_the_old() {
    let mut plane = Plane::new();
    let mut bases = Vec::new();
    for round in 0..400 {
        // Of two sizes in turn.
        let members = &[round, round + 1][..if round % 2 == 0 { 1 } else { 2 }];
        plane.driver().upsert_service(1, &service(members)).unwrap_or_else(|error| {
            assert!(error.is_retryable(), "{error}");
            // Regions rest for a moment before they are used again.
            super::fixture::rest();
            plane.driver().upsert_service(1, &service(members)).unwrap();
            false
        });
        let value = plane.driver().services().unwrap()[&1];
        assert!(bases.last() != Some(&value.base), "never over the table in use");
        bases.push(value.base);
        let table = plane.driver().service_table(1).unwrap();
        assert!(table.iter().all(|id| members.contains(id)));
    }
    assert!(plane.driver().remove_service(1).unwrap());
    assert!(!plane.driver().remove_service(1).unwrap());
    assert!(plane.driver().service_table(1).unwrap().is_empty());
}

#[test]
fn a_change_of_members_writes_the_slots_that_differ() {
    let mut plane = Plane::new();
    let driver = plane.driver();
    let mut random = Random::new(7);
    let mut members: Vec<u64> = (1..=10).collect();
    driver.upsert_service(1, &service(&members)).unwrap();
    assert_eq!(driver.take_slot_writes(), 251, "the whole table");
    driver.upsert_service(2, &service(&[77])).unwrap();
    driver.take_slot_writes();
    for next in 11..200 {
        let (before, base) = (driver.service_table(1).unwrap(), driver.services().unwrap()[&1].base);
        // One comes, one goes, one takes another's place: between 8 and 15 members the size stays.
        let place = random.below(members.len());
        match (members.len(), next % 3) {
            (..=8, _) => members.push(next),
            (15.., _) | (_, 0) => drop(members.remove(place)),
            (_, 1) => members.push(next),
            _ => members[place] = next,
        }
        assert!(driver.upsert_service(1, &service(&members)).unwrap());
        let after = driver.service_table(1).unwrap();
        assert_eq!(after, maglev::build(service(&members).members(), 7), "the same as from nothing");
        assert_eq!(driver.services().unwrap()[&1].base, base, "in place");
        let differing = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert_eq!(driver.take_slot_writes(), u64::try_from(differing).unwrap());
        // One share of a table changes of necessity; Maglev changes some more.
        assert!(differing < before.len() / 2, "{differing} slots for one change");
    }
    assert_eq!(driver.service_table(2).unwrap(), [77; 31], "its neighbor's are as they were");
}

#[test]
fn many_entries_are_written_at_once() {
    let mut plane = Plane::new();
    let driver = plane.driver();
    let entries: Vec<_> = (1..=20_000)
        .map(|port| (PortKey::new(world::addr(V4.node), port, TCP), PortVal::new(port.into(), port)))
        .collect();
    driver.ports.write_all(&entries).unwrap();
    assert_eq!(driver.ports.dump().unwrap(), entries.iter().copied().collect());
    // More than the map holds: an error, and what went before is there.
    let many: Vec<_> = (1..=65_535)
        .map(|port| (PortKey::new(world::addr(V4.node2), port, TCP), PortVal::new(1, port)))
        .collect();
    assert!(driver.ports.write_all(&many).is_err());
    assert!(driver.ports.get(&many[0].0).unwrap().is_some());
}

#[test]
fn udp_flows_of_a_removed_endpoint_are_purged() {
    let mut kernel = Kernel::new();
    world::node(&mut kernel);
    kernel.set_service(SERVICE, &[LOCAL]);
    for proto in [TCP, UDP] {
        let packet = Segment::new(proto, (V4.client, 40_000), (V4.node, 8080)).bytes();
        assert_eq!(kernel.run(Program::MeshIngress, &packet).action, Action::Redirect);
    }
    let driver = kernel.driver();
    assert_eq!(driver.flows_of(LOCAL).unwrap(), 2);
    assert_eq!((driver.flows().unwrap().len(), driver.replies().unwrap().len()), (2, 2));
    assert!(driver.remove_endpoint(REMOTE).unwrap());
    assert_eq!(driver.purge_withdrawn().unwrap(), 0, "none of that one");
    // One that is back before its flows are purged keeps them.
    let endpoint = driver.endpoints.get(&LOCAL).unwrap().unwrap();
    assert!(driver.remove_endpoint(LOCAL).unwrap());
    driver.endpoints.upsert(&LOCAL, &endpoint).unwrap();
    assert_eq!(driver.purge_withdrawn().unwrap(), 0);
    assert!(driver.remove_endpoint(LOCAL).unwrap());
    assert_eq!(driver.purge_withdrawn().unwrap(), 1);
    assert!(driver.flows().unwrap().keys().all(|key| key.proto() == TCP));
    assert!(driver.replies().unwrap().keys().all(|key| key.proto() == TCP));
    assert_eq!(driver.purge_withdrawn().unwrap(), 0, "nothing was removed since");
}

#[test]
fn flows_of_many_removed_endpoints_and_ports_are_purged_at_once() {
    let mut kernel = Kernel::new();
    world::node(&mut kernel);
    for (endpoint, client) in [(LOCAL, 40_000), (REMOTE, 40_001)] {
        kernel.set_service(SERVICE, &[endpoint]);
        let packet = Segment::new(UDP, (V4.client, client), (V4.node, 8080)).bytes();
        assert_eq!(kernel.run(Program::MeshIngress, &packet).action, Action::Redirect);
    }
    let driver = kernel.driver();
    assert_eq!((driver.flows().unwrap().len(), driver.replies().unwrap().len()), (2, 2));
    for endpoint in [LOCAL, REMOTE] {
        assert!(driver.remove_endpoint(endpoint).unwrap());
        assert_eq!(driver.flows().unwrap().len(), 2, "left until all that goes has gone");
    }
    assert_eq!(driver.purge_withdrawn().unwrap(), 2);
    assert_eq!((driver.flows().unwrap().len(), driver.replies().unwrap().len()), (0, 0));
}

#[test]
fn udp_flows_of_a_withdrawn_port_are_purged_where_it_is_published_no_more() {
    let mut kernel = Kernel::new();
    world::node(&mut kernel);
    kernel.set_service(SERVICE, &[LOCAL]);
    for (node, port) in [(V4.node, 8080), (V4.node2, 8080)] {
        let packet = Segment::new(UDP, (V4.client, 40_000), (node, port)).bytes();
        assert_eq!(kernel.run(Program::MeshIngress, &packet).action, Action::Redirect);
    }
    let driver = kernel.driver();
    let scope = |addr| PortKey::new(world::addr(addr), 8080, UDP);
    let left = |driver: &BpfDriver| -> Vec<_> { driver.flows().unwrap().keys().map(|key| key.dst).collect() };
    // From every address to two: of one service on one of them, of another on the other.
    driver.ports.upsert(&scope(V4.node), &PortVal::new(SERVICE, 80)).unwrap();
    driver.ports.upsert(&scope(V4.node2), &PortVal::new(SERVICE + 1, 80)).unwrap();
    driver.withdraw(&PortKey::new(Addr::ANY, 8080, UDP)).unwrap();
    assert_eq!(driver.purge_withdrawn().unwrap(), 1);
    assert_eq!(left(driver), [world::addr(V4.node)]);
    driver.ports.remove(&scope(V4.node)).unwrap();
    assert_eq!(driver.purge_withdrawn().unwrap(), 0, "nothing was withdrawn since");
    driver.withdraw(&scope(V4.node)).unwrap();
    assert_eq!(driver.purge_withdrawn().unwrap(), 1);
    assert_eq!((left(driver), driver.replies().unwrap().len()), (vec![], 0));
}

#[test]
fn programs_and_services_are_counted() {
    let mut kernel = Kernel::new();
    world::node(&mut kernel);
    for port in 0..10 {
        let packet = Segment::new(TCP, (V4.client, 40_000 + port), (V4.node, 8080)).bytes();
        kernel.run(Program::MeshIngress, &packet);
    }
    kernel.run(Program::MeshIngress, &Segment::new(TCP, (V4.client, 1), (V4.node, 22)).bytes());
    let stats = kernel.driver().stats().unwrap();
    assert_eq!(stats[&(Program::MeshIngress, Event::Received)], 11);
    assert_eq!(stats[&(Program::MeshIngress, Event::Forwarded)], 10);
    assert_eq!(stats[&(Program::MeshIngress, Event::Passed)], 1);
    assert_eq!(stats[&(Program::TaskTx, Event::Received)], 0);
    assert_eq!(kernel.driver().connections().unwrap(), [(SERVICE, 10)].into());
    assert!(kernel.driver().drops().unwrap().iter().all(|(_, &count)| count == 0));
    assert!(kernel.driver().drops().unwrap().contains_key(&Reason::NotMember));
}

#[test]
fn a_full_flow_table_makes_room() {
    let mut kernel = Kernel::new();
    world::node(&mut kernel);
    for port in 1..=6000 {
        let packet = Segment::new(TCP, (V4.client, port), (V4.node, 8080));
        for flags in [SYN, ACK] {
            let run = kernel.run(Program::MeshIngress, &packet.clone().flags(flags).bytes());
            assert_eq!(run.action, Action::Redirect);
        }
    }
    let flows = kernel.driver().flows().unwrap();
    assert!(flows.len() <= 4096 && flows.len() > 2000, "{} flows", flows.len());
    let newest = FlowKey { sport: 6000, ..*flows.keys().next().unwrap() };
    assert!(flows.contains_key(&newest), "the newest flow is there");
}

#[test]
fn flows_that_had_their_time_are_collected() {
    /// Ticks: a little more than seconds.
    const MINUTES: [u32; 3] = [57, 170, 500_000];
    let mut kernel = Kernel::new();
    world::node(&mut kernel);
    kernel.set_service(SERVICE, &[LOCAL]);
    let flow = |proto, port| Segment::new(proto, (V4.client, port), (V4.node, 8080));
    for port in 1..=200 {
        kernel.run(Program::MeshIngress, &flow(TCP, port).bytes());
    }
    for packet in [flow(UDP, 300), flow(TCP, 301)] {
        kernel.run(Program::MeshIngress, &packet.bytes());
        kernel.run(Program::MeshIngress, &packet.flags(ACK).bytes());
    }
    let driver = kernel.driver();
    let now = bpf::clock();
    let collected = driver.collect(now).unwrap();
    let live = [(SERVICE, 2)].into();
    // By endpoint: the same two.
    let endpoints = [(LOCAL, 2)].into();
    let bytes = collected.bytes.clone();
    assert_eq!(collected, Collected { entries: (202, 202), proposed: 0, removed: 0, live, endpoints, bytes });
    let fills: Vec<_> = driver.fills(1).into_iter().filter(|fill| fill.entries == 202).collect();
    assert_eq!(fills.iter().map(|fill| fill.map).collect::<Vec<_>>(), ["FLOWS", "REPLIES"]);
    assert!(fills.iter().all(|fill| fill.limit == 4096), "{fills:?}");
    for (ticks, left) in MINUTES.into_iter().zip([2, 1, 0]) {
        let before = driver.flows().unwrap().len();
        let collected = driver.collect(bpf::clock() + ticks).unwrap();
        let gone = (before - left) * 2;
        assert_eq!(
            (collected.entries, collected.proposed, collected.removed),
            ((before, before), gone, gone)
        );
        let found = (driver.flows().unwrap().len(), driver.replies().unwrap().len());
        assert_eq!(found, (left, left), "datagrams, then connections");
    }
}

/// Runs a check on a thread with a network namespace of its own, where a veth `t0` has been made.
pub(crate) fn in_namespace(check: impl FnOnce(u32) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)");
        ip(&["link", "add", "t0", "type", "veth", "peer", "name", "t1"]);
        check(index("t0"));
    });
    thread.join().expect("the check holds");
}

fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().expect("run ip").success(), "ip {args:?}");
}

fn index(name: &str) -> u32 {
    let name = CString::new(name).expect("a name");
    nix::net::if_::if_nametoindex(name.as_c_str()).expect("the interface exists")
}

#[test]
fn attachments_survive_a_restart_and_end_with_their_device() {
    in_namespace(|ifindex| {
        let mut plane = Plane::new();
        let at = |program| Attachment { ifindex, program };
        assert!(plane.driver().attach(ifindex, Program::MeshIngress).unwrap());
        assert!(!plane.driver().attach(ifindex, Program::MeshIngress).unwrap(), "attached already");
        assert!(plane.driver().attach(ifindex, Program::TaskTx).unwrap());
        let both = [at(Program::MeshIngress), at(Program::TaskTx)];
        assert_eq!(plane.driver().attached().unwrap(), both.into());
        assert_eq!(plane.reopen(), Opened::Adopted);
        assert_eq!(plane.driver().attached().unwrap(), both.into());
        assert!(!plane.driver().attach(ifindex, Program::TaskTx).unwrap(), "adopted");
        assert!(plane.driver().detach(ifindex, Program::TaskTx).unwrap());
        assert!(!plane.driver().detach(ifindex, Program::TaskTx).unwrap());
        assert_eq!(plane.driver().attached().unwrap(), [at(Program::MeshIngress)].into());
        ip(&["link", "del", "t0"]);
        assert!(plane.driver().attached().unwrap().is_empty());
        let error = plane.driver().attach(ifindex, Program::MeshIngress).unwrap_err();
        assert!(error.is_retryable(), "the device may come: {error}");
    });
}

#[test]
fn another_build_replaces_programs_in_place() {
    in_namespace(|ifindex| {
        let mut plane = Plane::new();
        plane.driver().attach(ifindex, Program::MeshIngress).unwrap();
        plane.driver().upsert_service(1, &service(&[1])).unwrap();
        // As if the pinned programs were of another build: another directory name.
        let pins = plane.driver().program_pin(Program::MeshIngress);
        let old = pins.parent().unwrap().with_file_name("progs-0123456789abcdef");
        std::fs::rename(pins.parent().unwrap(), &old).unwrap();
        assert_eq!(plane.reopen(), Opened::Loaded { replaced: 1 });
        assert!(!old.exists(), "the old programs are let go");
        assert_eq!(plane.driver().services().unwrap().len(), 1, "the maps stayed");
        assert_eq!(plane.driver().attached().unwrap().len(), 1);
        assert_eq!(plane.reopen(), Opened::Adopted);
    });
}

#[test]
fn programs_of_another_layout_go_when_these_are_there() {
    let mut plane = Plane::new();
    let generation = plane.driver().program_pin(Program::MeshIngress);
    let base = generation.ancestors().nth(3).unwrap().to_owned();
    std::fs::create_dir_all(base.join("gen-1/links")).unwrap();
    assert!(plane.driver().remove_other_layouts().unwrap());
    assert!(!base.join("gen-1").exists() && generation.exists());
    assert!(!plane.driver().remove_other_layouts().unwrap());
}

#[test]
fn the_kernel_does_what_the_host_says() {
    let mut kernel = Kernel::new();
    let mut host = Host::default();
    world::node(&mut kernel);
    world::node(&mut host);
    let mut random = Random::new(4711);
    let mut unrouted = 0;
    for round in 0..20_000 {
        let packet = fuzz::packet(&mut random);
        if !fuzz::has_ip_header(&packet) {
            continue;
        }
        let program = random.pick(Program::ALL);
        let (here, there) = (host.run(program, &packet), kernel.run(program, &packet));
        if here.out == Some(Out::Route) {
            // There is no route in an empty namespace.
            assert_eq!(there.action, Action::Drop);
            unrouted += 1;
            continue;
        }
        assert_eq!(here.action, there.action, "round {round}: {program:?} on {packet:02x?}");
        assert_eq!(here.bytes, there.bytes, "round {round}: {program:?} on {packet:02x?}");
    }
    assert!(unrouted > 0);
    for &reason in Reason::ALL {
        let expected = if reason == Reason::NoRoute { unrouted } else { host.drops(reason) };
        assert_eq!(expected, kernel.drops(reason), "{reason:?}");
    }
}

#[test]
fn connections_through_a_tunnel_keep_within_its_mtu() {
    in_namespace(|ifindex| {
        ip(&["link", "set", "t0", "mtu", "1450"]);
        let mut kernel = Kernel::new();
        world::node(&mut kernel);
        kernel.set_endpoint(REMOTE, EndpointVal { ifindex, ..world::remote_endpoint() });
        let option = |mss: u16| [vec![2, 4], mss.to_be_bytes().to_vec()].concat();
        for (family, headers) in [(world::V4, 40), (world::V6, 60)] {
            for (service, limit) in [(REMOTE, 1450 - headers), (LOCAL, 8960)] {
                kernel.set_service(SERVICE, &[service]);
                let mut syn = Segment::new(TCP, (family.client, 40_000), (family.node, 8080));
                syn.tcp_options = option(8960);
                let run = kernel.run(Program::MeshIngress, &syn.bytes());
                assert_eq!(Segment::parse(&run.bytes).tcp_options, option(limit), "to {service:x}");
                kernel.driver().purge(|_, _| true).unwrap();
            }
        }
    });
}

/// Where there are routes, the cases of direct server return are about them.
#[test]
fn a_task_answers_its_clients_by_the_kernels_routes() {
    in_namespace(|ifindex| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forward IPv4");
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("forward IPv6");
        ip(&["link", "set", "lo", "up"]);
        ip(&["link", "set", "t1", "up"]);
        ip(&["link", "set", "t0", "up", "mtu", "1450"]);
        ip(&["route", "add", "default", "dev", "t0"]);
        ip(&["-6", "route", "add", "default", "dev", "t0"]);
        for case in [
            direct_cases::a_task_answers_as_the_door_that_was_asked,
            direct_cases::an_answer_whose_door_is_not_known_goes_to_the_router,
            direct_cases::an_answer_that_nothing_leads_out_goes_to_the_router,
            direct_cases::a_router_may_change_its_mind,
            direct_cases::flows_by_several_doors_do_not_alias,
            direct_cases::fragments_of_such_a_flow_follow_their_first,
        ] {
            let mut kernel = Kernel::with_uplink(ifindex);
            case(&mut kernel);
            assert!(kernel.outward);
        }
        // What a client sends comes through a tunnel.
        let mut kernel = Kernel::with_uplink(ifindex);
        direct_cases::task_node(&mut kernel);
        for (family, headers) in [(world::V4, 40), (world::V6, 60)] {
            kernel.set_task_if(world::IFINDEX, TaskIf { ingress_vxlan: ifindex, ..world::ingress_leg() });
            let option = |mss: u16| [vec![2, 4], mss.to_be_bytes().to_vec()].concat();
            let mut answer = direct_cases::opened(&mut kernel, &family);
            answer.tcp_options = option(8960);
            let run = kernel.run(Program::TaskTx, &answer.bytes());
            assert_eq!(Segment::parse(&run.bytes).tcp_options, option(1450 - headers));
        }
    });
}

/// A control group of its own, where the unified hierarchy is mounted.
pub(crate) fn own_group() -> std::path::PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("list mounts");
    let mut points = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let point = points.next().and_then(|line| line.split(' ').nth(1)).expect("a unified hierarchy");
    std::path::Path::new(point).join(format!("shoal-bpf-test-{}", std::process::id()))
}

#[test]
fn programs_at_a_control_group_are_adopted_and_put_right() {
    let mut plane = Plane::new();
    let group = own_group();
    assert!(plane.driver().can_lead_connections(), "the kernel takes the programs");
    assert_eq!(plane.driver().connecting(&group).expect("look"), Connecting::Off);
    assert!(plane.driver().lead_connections(&group).expect("attach"));
    assert!(!plane.driver().lead_connections(&group).expect("attach again"), "nothing to write");
    assert_eq!(plane.reopen(), Opened::Adopted);
    assert_eq!(plane.driver().connecting(&group).expect("look"), Connecting::Whole);

    std::fs::remove_dir(&group).expect("remove the group");
    assert_eq!(plane.driver().connecting(&group).expect("look"), Connecting::Partly);
    std::fs::create_dir(&group).expect("make it again");
    assert_eq!(plane.driver().connecting(&group).expect("look"), Connecting::Partly);
    assert!(plane.driver().lead_connections(&group).expect("attach"));
    assert_eq!(plane.driver().connecting(&group).expect("look"), Connecting::Whole);

    assert!(plane.driver().leave_connections().expect("detach"));
    assert!(!plane.driver().leave_connections().expect("detach again"), "nothing to write");
    assert_eq!(plane.driver().connecting(&group).expect("look"), Connecting::Off);
    std::fs::remove_dir(&group).expect("remove the group");
}

/// The kernel gives up on a program that takes it a million instructions to verify, and other kernels take up to three times
/// as many as this one (where it is 6.18; those that have none of it tell nothing).
#[test]
fn programs_leave_the_verifier_room() {
    let mut plane = Plane::new();
    for &program in Program::ALL {
        let pin = plane.driver().program_pin(program);
        let info = SchedClassifier::from_pin(pin).and_then(|program| program.info()).expect("as it was made");
        if let Some(count) = info.verified_instruction_count() {
            assert!(count < 400_000, "{}: {count}", program.name());
        }
    }
}

//! What a packet costs in the programs, as JSON: nanoseconds by BPF_PROG_TEST_RUN, with few services and with many.
//!
//! Needs root: `cargo xtask bench cost`. A run of the kernel's repeats a program on one packet, as the last run left it, so
//! each packet here is one that comes to the same again: unchanged, or changed back and forth by two flows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, ensure};
use aya::TestRun;
use aya::programs::{SchedClassifier, TestRunOptions};
use clap::Parser;
use serde::Serialize;
use shoal_agent::drivers::bpf::{BpfConfig, BpfDriver, Program, ServiceSpec};
use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::{LocalKey, Mac, PortKey, RouterKey};
use shoal_ebpf_common::maglev::{Member, Policy};
use shoal_ebpf_common::values::{ENDPOINT_LOCAL, EndpointVal, LocalVal, NodeConfig, PortVal, TaskIf};

#[derive(Parser)]
struct Args {
    /// Services of the small data plane
    #[arg(long, default_value_t = 10)]
    few: u32,
    /// Services of the large one
    #[arg(long, default_value_t = 10_000)]
    many: u32,
    /// Endpoints of each
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// Runs of each program, of which the kernel gives the mean
    #[arg(long, default_value_t = 200_000)]
    repeat: u32,
    /// How often that is done; the least counts, as all else is the machine's
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Only packets whose name has this in it
    #[arg(long, default_value = "")]
    packet: String,
}

#[derive(Serialize)]
struct Document {
    bench: &'static str,
    kernel: String,
    compiled: bool,
    few: u32,
    many: u32,
    costs: Vec<Cost>,
}

#[derive(Serialize)]
struct Cost {
    packet: &'static str,
    few_ns: f64,
    many_ns: f64,
}

const ROUTER: Mac = [2, 0, 0, 0, 0, 1];
const OTHER_ROUTER: Mac = [2, 0, 0, 0, 0, 2];
const TASK: Mac = [2, 1, 0, 0, 0, 1];
const LO: u32 = 1;
const NETWORK: u32 = 200;

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let small = Plane::new(args.few, args.endpoints)?;
    let large = Plane::new(args.many, args.endpoints)?;
    let mut costs = Vec::new();
    for (packet, program, bytes, action) in packets() {
        if !packet.contains(&args.packet) {
            continue;
        }
        let (mut few_ns, mut many_ns) = (f64::MAX, f64::MAX);
        for _ in 0..args.rounds {
            few_ns = few_ns.min(small.cost(program, &bytes, action, args.repeat).context(packet)?);
            many_ns = many_ns.min(large.cost(program, &bytes, action, args.repeat).context(packet)?);
        }
        costs.push(Cost { packet, few_ns, many_ns });
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let compiled = small.0.is_compiled()?;
    small.0.remove_all()?;
    large.0.remove_all()?;
    let document = Document { bench: "cost", kernel, compiled, few: args.few, many: args.many, costs };
    println!("{}", serde_json::to_string_pretty(&document)?);
    Ok(())
}

/// Redirected, or left to the stack (`linux/pkt_cls.h`).
const REDIRECT: u32 = 7;
const UNSPEC: u32 = u32::MAX;

/// Name, program, packet, and what becomes of it.
fn packets() -> Vec<(&'static str, Program, Vec<u8>, u32)> {
    let (client4, client6) = (v4("192.0.2.9"), v6("2001:db8::9"));
    let (node4, node6) = (v4("198.51.100.1"), v6("2001:db8:1::1"));
    let (task4, task6) = (v4("10.255.1.1"), v6("fd0a::1:1"));
    let there = |from, to| segment(OTHER_ROUTER, TASK, from, (to, 80));
    let back = |from, to| {
        let mut bytes = segment(TASK, OTHER_ROUTER, (from, 80), (to, 40_000));
        bytes.extend([0; 10]);
        bytes
    };
    let known = |from, to| segment(ROUTER, TASK, (from, 40_000), (to, 8080));
    let mut all = vec![
        ("known flow of a published port, IPv4", Program::MeshIngress, known(client4, node4), REDIRECT),
        ("known flow of a published port, IPv6", Program::MeshIngress, known(client6, node6), REDIRECT),
    ];
    for (name, from, to) in [
        ("flow of another node's, delivered, IPv4", client4, task4),
        ("flow of another node's, delivered, IPv6", client6, task6),
    ] {
        all.push((name, Program::OverlayRx, there((from, 40_000), to), REDIRECT));
    }
    for (name, from, to) in [
        ("task's answer to another node, IPv4", task4, client4),
        ("task's answer to another node, IPv6", task6, client6),
    ] {
        all.push((name, Program::TaskTx, back(from, to), REDIRECT));
    }
    let other = segment(OTHER_ROUTER, ROUTER, (client4, 40_000), (node4, 22));
    let mut foreign = other.clone();
    foreign.splice(12..14, [0x88, 0xcc]);
    all.push(("packet of no published port", Program::MeshIngress, other, UNSPEC));
    // What the kernel takes to run a program at all, and the program to see that it has nothing to do.
    all.push(("frame that is not IP (LLDP)", Program::MeshIngress, foreign, UNSPEC));
    all
}

fn v4(text: &str) -> IpAddr {
    text.parse::<Ipv4Addr>().expect("an address").into()
}

fn v6(text: &str) -> IpAddr {
    text.parse::<Ipv6Addr>().expect("an address").into()
}

/// A TCP segment with data. Its checksums are wrong, which no program looks at.
fn segment(src_mac: Mac, dst_mac: Mac, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(dst_mac);
    bytes.extend(src_mac);
    match (src.0, dst.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([8, 0, 0x45, 0, 0, 60, 0, 0, 0, 0, 64, 6, 0, 0]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, 6, 64]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        _ => {}
    }
    bytes.extend(src.1.to_be_bytes());
    bytes.extend(dst.1.to_be_bytes());
    // ACK and PSH; no options.
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0x10, 0, 0, 0, 0, 0]);
    bytes.extend([7; 20]);
    bytes
}

struct Plane(BpfDriver);

impl Plane {
    fn new(services: u32, endpoints: u32) -> anyhow::Result<Self> {
        let dir = format!("/tmp/shoal-cost-{}-{services}", std::process::id());
        // Each table has about a hundred slots for each endpoint.
        let slot_entries = 4096 + services * endpoints * 32;
        let (driver, _) = BpfDriver::open(&BpfConfig { slot_entries, ..BpfConfig::new(dir) })?;
        let mut plane = Self(driver);
        plane.node()?;
        for service in 1..=services {
            plane.service(service, endpoints)?;
        }
        plane.back_and_forth()?;
        Ok(plane)
    }

    fn node(&mut self) -> anyhow::Result<()> {
        let driver = &mut self.0;
        driver.set_config(NodeConfig { router_mac: ROUTER, vxlan_port: 7378, ..NodeConfig::default() })?;
        driver.routers.upsert(&RouterKey::new(OTHER_ROUTER), &1)?;
        let (ip4, ip6) = (Addr::from(v4("10.255.1.1")), Addr::from(v6("fd0a::1:1")));
        driver.local.upsert(&LocalKey::new(LO, TASK), &LocalVal { ip4, ip6, veth: LO, network: NETWORK })?;
        let task = TaskIf {
            ip4,
            ip6,
            ingress_ip4: ip4,
            ingress_ip6: ip6,
            mac: TASK,
            ingress_mac: TASK,
            network: NETWORK,
            vxlan: LO,
            ingress_vxlan: LO,
            ..TaskIf::default()
        };
        driver.task_ifs.upsert(&LO, &task)?;
        for addr in [v4("198.51.100.1"), v4("198.51.100.2"), v6("2001:db8:1::1"), v6("2001:db8:1::2")] {
            driver.local_addrs.upsert(&addr.into(), &0)?;
        }
        Ok(())
    }

    /// A service with a published port. (Ports begin again with the next protocol number, which costs the same.)
    fn service(&mut self, service: u32, endpoints: u32) -> anyhow::Result<()> {
        let driver = &mut self.0;
        let id = u64::from(service) << 8;
        let mut members = Vec::new();
        for endpoint in 0..u64::from(endpoints) {
            let [.., a, b, c] = (id | endpoint).to_be_bytes();
            let value = EndpointVal {
                ip4: Addr::from(IpAddr::from([10, a, b, c])),
                mac: [2, 1, 0, a, b, c],
                ifindex: LO,
                ..EndpointVal::default()
            };
            driver.endpoints.upsert(&(id | endpoint), &value)?;
            members.push(Member { endpoint: id | endpoint, weight: 1 });
        }
        driver.upsert_service(id, &ServiceSpec::new(7, Policy::Flow, members))?;
        let port = u16::try_from(10_000 + service).context("too many services")?;
        driver.ports.upsert(&PortKey::new(Addr::ANY, port, 6), &PortVal::new(id, 80))?;
        Ok(())
    }

    /// Two services whose endpoints have each other's published address and port.
    fn back_and_forth(&mut self) -> anyhow::Result<()> {
        let places = [("198.51.100.1", "2001:db8:1::1"), ("198.51.100.2", "2001:db8:1::2")];
        for (id, (at, to)) in [(1_u64, (0, 1)), (2, (1, 0))] {
            let driver = &mut self.0;
            let (ip4, ip6) = (Addr::from(v4(places[to].0)), Addr::from(v6(places[to].1)));
            let value = EndpointVal { ip4, ip6, mac: TASK, flags: ENDPOINT_LOCAL, ifindex: LO, pad: 0 };
            driver.endpoints.upsert(&id, &value)?;
            driver.upsert_service(
                id,
                &ServiceSpec::new(7, Policy::Flow, vec![Member { endpoint: id, weight: 1 }]),
            )?;
            for addr in [Addr::from(v4(places[at].0)), Addr::from(v6(places[at].1))] {
                driver.ports.upsert(&PortKey::new(addr, 8080, 6), &PortVal::new(id, 8080))?;
            }
        }
        Ok(())
    }

    /// Nanoseconds that a program takes for a packet whose flow is known.
    fn cost(&self, program: Program, packet: &[u8], action: u32, repeat: u32) -> anyhow::Result<f64> {
        // An answer is known by the request before it.
        if program == Program::TaskTx {
            for (_, program, bytes, action) in
                packets().into_iter().filter(|packet| packet.1 == Program::OverlayRx)
            {
                self.run(program, &bytes, action, 1)?;
            }
        }
        self.run(program, packet, action, 4)?;
        self.run(program, packet, action, repeat)
    }

    fn run(&self, program: Program, packet: &[u8], action: u32, repeat: u32) -> anyhow::Result<f64> {
        let program = SchedClassifier::from_pin(self.0.program_pin(program))?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.repeat = repeat;
        let result = program.test_run(options)?;
        ensure!(result.return_value == action, "the program returned {}", result.return_value);
        Ok(result.duration.as_secs_f64() * 1e9)
    }
}

//! How fast the agent programs a node, as JSON: from nothing, and one endpoint at a time, with few services and with many.
//!
//! Needs root: `cargo xtask bench scale`. Each run is a process of its own, so that what it holds is that run's: the
//! daemon's own ledger, reconciler and drivers in a network namespace that nobody else sees, with maps of their own.
//! There is neither session nor task: what is told is made here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::Serialize;
use shoal_agent::drivers::bpf::{BpfConfig, BpfDriver};
use shoal_agent::drivers::dns::{DnsConfig, DnsDriver};
use shoal_agent::drivers::egress::Egress;
use shoal_agent::drivers::link::Nl;
use shoal_agent::drivers::overlay::Overlay;
use shoal_agent::drivers::runtime::fake::FakeRuntime;
use shoal_agent::facility::{FormerValues, HostFacility, Parts, ReservedPorts};
use shoal_agent::facts::EgressBook;
use shoal_agent::ledger::Ledger;
use shoal_agent::netns::{Netns, NetnsDir};
use shoal_agent::reconciler::{Applied, Context, KernelEvents, Reconciler, Reports};
use shoal_agent::stats::Stats;
use shoal_types::assignment::{
    AssignedNetwork, AssignedService, Assignment, ClusterView, Delta, Endpoint, Member, Object, Reserved,
};
use shoal_types::object::{Attachment, Slot};
use shoal_types::{
    ClusterId, DirectRouting, DualAddr, DualNet, EndpointId, Generation, LbEngine, LbPolicy, NetworkId,
    NodeId, Protocol, PublishedPort, ServiceId, ServiceIndex, TaskId, Vni,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Args {
    /// Services, each with a published port
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of each, half on either of two other nodes
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// Endpoints taken out and put back in, one after the other
    #[arg(long, default_value_t = 20)]
    changes: u32,
    /// Seconds of doing nothing, to see what that costs
    #[arg(long, default_value_t = 10)]
    idle: u64,
}

#[derive(Serialize)]
struct Document {
    kernel: String,
    services: u32,
    endpoints: u32,
    fill: Fill,
    changes: Vec<Change>,
    /// CPU time of the process in a second of doing nothing, milliseconds.
    idle_ms_per_s: f64,
    memory: Memory,
}

#[derive(Serialize)]
struct Fill {
    /// From the snapshot to "programmed".
    ms: f64,
    /// Of that: written to disk.
    ledger_ms: f64,
    writes: u64,
}

#[derive(Serialize)]
struct Change {
    /// Whether the endpoint goes out of the mesh or comes back.
    out: bool,
    ms: f64,
    ledger_ms: f64,
    pass_ms: f64,
    writes: u64,
}

/// Resident memory, KiB.
#[derive(Serialize)]
struct Memory {
    idle: u64,
    full: u64,
    /// At most until all was programmed,
    filling: u64,
    /// and at most from there on, with looks at everything.
    looking: u64,
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn main() -> anyhow::Result<()> {
    shoal_agent::memory::share();
    let args = Args::parse();
    if std::env::var_os("SHOAL_LOG").is_some() {
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    }
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace (needs root)")?;
    let address = "add 192.0.2.1/24 dev up0";
    for words in [
        "link set lo up",
        "link add up0 type veth peer name up1",
        &format!("addr {address}"),
        "link set up0 up",
        "link set up1 up",
    ] {
        let status = Command::new("ip").args(words.split(' ')).status().context("run ip")?;
        ensure!(status.success(), "ip {words}: {status}");
    }
    let scratch = tempfile::tempdir()?;
    let bpf_dir = Path::new("/sys/fs/bpf").join(format!("shoal-scale-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let document = runtime.block_on(measure(&args, scratch.path(), &bpf_dir))?;
    println!("{}", serde_json::to_string_pretty(&document)?);
    Ok(())
}

async fn measure(args: &Args, scratch: &Path, bpf_dir: &Path) -> anyhow::Result<Document> {
    let swarm = Swarm { services: args.services, endpoints: args.endpoints };
    let mut agent = Agent::start(scratch, bpf_dir)?;
    agent.replace(Swarm::base()).await?;
    let idle = resident("VmRSS")?;
    let objects = swarm.all();
    let begin = Instant::now();
    let (ledger_ms, applied) = agent.replace(objects).await?;
    let fill = Fill { ms: ms(begin.elapsed()), ledger_ms, writes: applied.writes };
    ensure!(applied.errors.is_empty(), "not programmed: {:?}", applied.errors.first());
    let filling = resident("VmHWM")?;
    forget_peak()?;
    let mut changes = Vec::new();
    for number in 0..args.changes {
        let service = (number * 7919) % args.services;
        for out in [true, false] {
            let endpoint = Object::Endpoint(swarm.endpoint(service, number % args.endpoints, !out));
            let begin = Instant::now();
            let (ledger_ms, applied) = agent.apply(endpoint).await?;
            ensure!(applied.errors.is_empty(), "not programmed: {:?}", applied.errors.first());
            changes.push(Change {
                out,
                ms: ms(begin.elapsed()),
                ledger_ms,
                pass_ms: ms(applied.took),
                writes: applied.writes,
            });
        }
    }
    let before = cpu()?;
    tokio::time::sleep(Duration::from_secs(args.idle)).await;
    let idle_ms_per_s = ms(cpu()?.saturating_sub(before)) / f64::from(u32::try_from(args.idle.max(1))?);
    let memory = Memory { idle, full: resident("VmRSS")?, filling, looking: resident("VmHWM")? };
    Box::pin(agent.stop()).await?;
    Ok(Document {
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        services: args.services,
        endpoints: args.endpoints,
        fill,
        changes,
        idle_ms_per_s,
        memory,
    })
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// CPU time of this process.
fn cpu() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

/// A line of `/proc/self/status`, KiB.
fn resident(line: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let found = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
    let number = found.and_then(|text| text.split_whitespace().next()).context("no such line")?;
    Ok(number.parse()?)
}

/// Has the peak of resident memory begin anew (proc(5), `clear_refs`).
fn forget_peak() -> anyhow::Result<()> {
    std::fs::write("/proc/self/clear_refs", "5").context("clear_refs")
}

/// The daemon, without session and tasks.
struct Agent {
    ledger: Ledger,
    assignment: watch::Sender<Arc<Assignment>>,
    applied: watch::Receiver<Option<Applied>>,
    closing: CancellationToken,
    reconciler: tokio::task::JoinHandle<HostFacility>,
    _netlink: shoal_agent::netns::Netlink,
}

impl Agent {
    fn start(scratch: &Path, bpf_dir: &Path) -> anyhow::Result<Self> {
        let stats = Arc::new(Stats::default());
        let netlink = Netns::current()?.netlink()?;
        let (bpf, _) = BpfDriver::open(&BpfConfig::new(bpf_dir))?;
        let fast_lane = bpf.is_compiled()?;
        let facility = HostFacility::new(Parts {
            overlay: Overlay::new(Nl::new(netlink.handle(), &stats.writes), NetnsDir::new(scratch)),
            egress: Egress::new(stats.writes.clone()),
            bpf,
            dns: DnsDriver::new(DnsConfig::default(), stats.dns.clone(), stats.told.clone()),
            book: EgressBook::open(&scratch.join("egress.json"), shoal_agent::durable::Unkept::default())?,
            reserved: ReservedPorts::open(&scratch.join("reserved-ports"))?,
            former: FormerValues::open(&scratch.join("former.json"))?,
            data_addr: data_addr(1),
            mtu: None,
            lb_engine: LbEngine::Ebpf,
            fast_lane,
            // No task runs here.
            connect_hooks: Some(false),
            group: None,
            writes: stats.writes.clone(),
        });
        let ledger = Ledger::open(&scratch.join("assignment"))?;
        let (assignment, told) = watch::channel(Arc::new(Assignment::default()));
        let (reports, closing) = (Reports::default(), CancellationToken::new());
        let reconciler = Reconciler::new(Context {
            facility,
            runtime: Arc::new(FakeRuntime::new()),
            assignment: told,
            reports: reports.clone(),
            stats,
            node: node(1),
            health_dir: scratch.join("health"),
            events: KernelEvents::listen()?,
            closing: closing.clone(),
        });
        let reconciler = tokio::spawn(reconciler.run());
        let applied = reports.applied();
        Ok(Self { ledger, assignment, applied, closing, reconciler, _netlink: netlink })
    }

    /// Hands a snapshot over and waits until it is programmed: how long the ledger took, and what came of it.
    async fn replace(&mut self, objects: Vec<Object>) -> anyhow::Result<(f64, Applied)> {
        let generation = Generation(self.ledger.generation().0 + 1);
        let begin = Instant::now();
        self.ledger.replace(generation, objects)?;
        self.publish(begin).await
    }

    /// The same for a changed object.
    async fn apply(&mut self, object: Object) -> anyhow::Result<(f64, Applied)> {
        let from = self.ledger.generation();
        let delta = Delta { from, to: Generation(from.0 + 1), upserts: vec![object], removes: Vec::new() };
        let begin = Instant::now();
        self.ledger.apply(delta)?;
        self.publish(begin).await
    }

    async fn publish(&mut self, begin: Instant) -> anyhow::Result<(f64, Applied)> {
        let ledger_ms = ms(begin.elapsed());
        let generation = self.ledger.generation();
        self.assignment.send_replace(Arc::new(self.ledger.assignment().clone()));
        let done = self.applied.wait_for(|applied| {
            applied
                .as_ref()
                .is_some_and(|applied| applied.generation == generation || !applied.errors.is_empty())
        });
        let applied = done.await?.clone().context("a report")?;
        Ok((ledger_ms, applied))
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.closing.cancel();
        Ok(self.reconciler.await?.tear_down().await?)
    }
}

/// What a node is told: it has no task, and is in the ingress network.
struct Swarm {
    services: u32,
    endpoints: u32,
}

fn node(number: u8) -> NodeId {
    NodeId::from_entropy(u128::from(number) << 100)
}

fn data_addr(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

fn network() -> NetworkId {
    NetworkId::from_entropy(1 << 100)
}

/// The address of an endpoint in the ingress network: its number in a /12.
fn place(number: u32) -> Attachment {
    let v4 = Ipv4Addr::from(0x0af0_0000 + number);
    let v6 = Ipv6Addr::from((0xfd0a << 112) + u128::from(number));
    Attachment { endpoint: EndpointId(number), network: network(), addr: DualAddr { v4, v6 } }
}

impl Swarm {
    /// Three nodes and the ingress network.
    fn base() -> Vec<Object> {
        let named = |text: &str| text.parse().expect("a label");
        let router = |number: u8| place(u32::from(number));
        let mut objects = vec![
            Object::Cluster(ClusterView {
                id: ClusterId::from_entropy(1 << 100),
                name: named("scale"),
                data_port: 7378,
                node: node(1),
                node_name: named("n1"),
                router: router(1),
                lb_engine: LbEngine::Ebpf,
                direct: DirectRouting::Off,
                reserved: Reserved::default(),
            }),
            Object::Network(AssignedNetwork {
                id: network(),
                name: named("ingress"),
                vni: Vni::new(4096).expect("24 bits"),
                subnets: DualNet {
                    v4: "10.240.0.0/12".parse().expect("a subnet"),
                    v6: "fd0a::/64".parse().expect("a subnet"),
                },
                internal: false,
                ingress: true,
            }),
        ];
        objects.extend((1..=3).map(|number| {
            Object::Member(Member {
                node: node(number),
                name: named(&format!("n{number}")),
                data_addr: data_addr(number),
                router: router(number),
            })
        }));
        objects
    }

    fn all(&self) -> Vec<Object> {
        let mut objects = Self::base();
        for service in 0..self.services {
            objects.push(Object::Service(Self::service(service)));
            objects.extend((0..self.endpoints).map(|n| Object::Endpoint(self.endpoint(service, n, true))));
        }
        objects
    }

    fn service(number: u32) -> AssignedService {
        let published = u16::try_from(1024 + number).expect("fewer services than ports");
        AssignedService {
            id: service_id(number),
            index: ServiceIndex(number + 1),
            name: format!("s{number}").parse().expect("a label"),
            vips: Vec::new(),
            ports: vec![PublishedPort::everywhere(Protocol::Tcp, published, 80)],
            lb: LbPolicy::Auto,
            dnsrr: Vec::new(),
        }
    }

    fn endpoint(&self, service: u32, number: u32, serving: bool) -> Endpoint {
        let at = place(16 + service * self.endpoints + number);
        Endpoint {
            id: at.endpoint,
            network: network(),
            addr: at.addr,
            node: node(if number.is_multiple_of(2) { 2 } else { 3 }),
            task: TaskId::from_entropy((7 << 100) + u128::from(at.endpoint.0)),
            service: service_id(service),
            slot: Slot::Number(number + 1),
            serving,
            weight: shoal_types::Weight::default(),
        }
    }
}

fn service_id(number: u32) -> ServiceId {
    ServiceId::from_entropy((9 << 100) + u128::from(number))
}

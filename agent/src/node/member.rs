//! Everything that runs for a member: reconciler, session, renewal, and on a manager its supervisor.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use shoal_types::Generation;
use shoal_types::assignment::Assignment;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::record::Record;
use crate::config::Config;
use crate::drivers::bpf::BpfDriver;
use crate::drivers::dns::{DnsConfig, DnsDriver};
use crate::drivers::egress::Egress;
use crate::drivers::link::Nl;
use crate::drivers::overlay::Overlay;
use crate::drivers::runtime::Runtime;
use crate::drivers::runtime::process::ProcessRuntime;
use crate::drivers::runtime::process::unified_group;
use crate::durable;
use crate::facility::{FormerValues, HostFacility, Parts, ReservedPorts};
use crate::facts::EgressBook;
use crate::ledger::Ledger;
use crate::netns::{Netlink, Netns, NetnsDir};
use crate::pki::{Credentials, Identity};
use crate::probe::Prober;
use crate::reconciler::{Context, KernelEvents, Reconciler, Reports, chain};
use crate::session::{ManagerAddrs, Renewal, Session};
use crate::shadow::Shadows;
use crate::stats::Stats;
use crate::supervisor::Supervisor;

/// A running membership.
pub(super) struct Member {
    record: Arc<ArcSwap<Record>>,
    pub(super) credentials: Credentials,
    pub(super) assignment: Arc<watch::Sender<Arc<Assignment>>>,
    reports: Reports,
    closing: CancellationToken,
    reconciler: JoinHandle<HostFacility>,
    others: Vec<JoinHandle<()>>,
    supervisor: Option<Supervisor>,
    /// Keeps the node's netlink connection open.
    netlink: Netlink,
}

/// The drivers of a node, over the namespace this process is in.
pub(super) fn facility(
    config: &Config,
    stats: &Stats,
    netlink: &Netlink,
    data_addr: std::net::IpAddr,
) -> anyhow::Result<HostFacility> {
    let (bpf, opened) = BpfDriver::open(&config.data_plane())?;
    let fast_lane = match config.fast_lane {
        Some(wanted) => wanted,
        None => bpf.is_compiled()?,
    };
    tracing::info!(?opened, fast_lane, "data plane");
    let nl = Nl::new(netlink.handle(), &stats.writes);
    let dns = DnsConfig {
        upstream_resolv_conf: config.resolv_conf.clone(),
        search: config.dns_search,
        ..DnsConfig::default()
    };
    durable::ensure_dir(&config.agent_dir(), 0o700)?;
    let namespaces = NetnsDir::new(&config.run_dir);
    let swept = namespaces.sweep()?;
    if swept > 0 {
        tracing::info!(swept, "removed mount points of namespaces that were not made");
    }
    Ok(HostFacility::new(Parts {
        overlay: Overlay::new(nl, namespaces).with_netkit(config.netkit),
        egress: Egress::new(stats.writes.clone()),
        bpf,
        dns: DnsDriver::new(dns, stats.dns.clone(), stats.told.clone()),
        book: EgressBook::open(&config.agent_dir().join("egress.json"), stats.unkept.clone())?,
        reserved: ReservedPorts::open(&config.agent_dir().join("reserved-ports"))?,
        former: FormerValues::open(&config.agent_dir().join("former.json"))?,
        data_addr,
        mtu: config.mtu,
        lb_engine: config.lb_engine,
        fast_lane,
        connect_hooks: config.connect_hooks,
        group: unified_group(&config.cgroup)?,
        writes: stats.writes.clone(),
    }))
}

/// Starts what runs beside the reconciler.
fn others(
    session: Session,
    renewal: Renewal,
    prober: Prober,
    shadows: Shadows,
    keep: impl Future<Output = ()> + Send + 'static,
) -> Vec<JoinHandle<()>> {
    vec![
        tokio::spawn(session.run()),
        tokio::spawn(renewal.run()),
        tokio::spawn(prober.run()),
        tokio::spawn(shadows.run()),
        tokio::spawn(keep),
    ]
}

impl Member {
    /// Starts it: the ledger is programmed at once, whether a manager answers or not.
    pub(super) fn start(
        config: &Arc<Config>,
        stats: &Arc<Stats>,
        runtime: &Arc<ProcessRuntime>,
        record: Record,
        supervisor: Option<Supervisor>,
    ) -> anyhow::Result<Self> {
        let identity = Identity::load(&config.pki_dir())?;
        let credentials = Credentials::new(&identity, &record.cluster)?;
        // Leaving takes it away.
        durable::ensure_dir(&config.state_dir.join("tasks"), 0o711)?;
        let netlink = Netns::current()?.netlink()?;
        let facility = facility(config, stats, &netlink, record.data_addr)?;
        let ledger = open_ledger(config).telling(stats.unkept.clone());
        Stats::set(&stats.generation, ledger.generation().0);
        let assignment = Arc::new(watch::Sender::new(Arc::new(ledger.assignment().clone())));
        let (reports, closing) = (Reports::default(), CancellationToken::new());
        let runtime: Arc<dyn Runtime> = Arc::<ProcessRuntime>::clone(runtime);
        let reconciler = Reconciler::new(Context {
            facility,
            runtime: Arc::clone(&runtime),
            assignment: assignment.subscribe(),
            reports: reports.clone(),
            stats: Arc::clone(stats),
            node: record.node.clone(),
            health_dir: config.agent_dir().join("health"),
            events: KernelEvents::listen().context("cannot listen to changes of links")?,
            closing: closing.clone(),
        });
        let managers: ManagerAddrs = Arc::new(watch::Sender::new(record.managers.clone()));
        let session = Session {
            credentials: credentials.clone(),
            managers: Arc::clone(&managers),
            ledger,
            assignment: Arc::clone(&assignment),
            reports: reports.clone(),
            runtime,
            description: super::description(config),
            data_addr: record.data_addr,
            stats: Arc::clone(stats),
            closing: closing.clone(),
        };
        let renewal = Renewal {
            dir: config.pki_dir(),
            credentials: credentials.clone(),
            managers: Arc::clone(&managers),
            local: supervisor.is_some().then(|| config.control_socket()),
            stats: Arc::clone(stats),
            closing: closing.clone(),
        };
        let nl = Nl::new(netlink.handle(), &stats.writes);
        let prober = Prober::new(nl, assignment.subscribe(), Arc::clone(stats), closing.clone());
        let shadows = Shadows {
            assignment: assignment.subscribe(),
            stats: Arc::clone(stats),
            closing: closing.clone(),
        };
        let record = Arc::new(ArcSwap::from_pointee(record));
        let keep =
            keep_managers(Arc::clone(config), Arc::clone(&record), managers.subscribe(), closing.clone());
        Ok(Self {
            record,
            credentials,
            assignment,
            reports,
            closing,
            reconciler: tokio::spawn(reconciler.run()),
            others: others(session, renewal, prober, shadows, keep),
            supervisor,
            netlink,
        })
    }

    /// What it is a member of.
    pub(super) fn record(&self) -> Arc<Record> {
        self.record.load_full()
    }

    /// Whether there is something to be programmed.
    pub(super) fn has_assignment(&self) -> bool {
        self.assignment.borrow().generation > Generation(0)
    }

    /// Waits for the first pass over an assignment. Returns whether it came in time.
    pub(super) async fn wait_programmed(&self, deadline: Duration) -> bool {
        let mut applied = self.reports.applied();
        let programmed = applied
            .wait_for(|report| report.as_ref().is_some_and(|report| report.generation > Generation(0)));
        timeout(deadline, programmed).await.is_ok_and(|outcome| outcome.is_ok())
    }

    /// Takes the swarm's name over from the assignment: a certificate does not have it.
    pub(super) fn learn_cluster_name(&self, config: &Config) {
        let Some(name) = self.assignment.borrow().cluster().map(|cluster| cluster.name.to_string()) else {
            return;
        };
        let mut next = (*self.record.load_full()).clone();
        next.cluster_name = name;
        if let Err(error) = next.store(config) {
            tracing::warn!(error = chain(&error), "the swarm's name is not kept");
        }
        self.record.store(Arc::new(next));
    }

    /// Ends what runs; tasks and data path stay.
    pub(super) async fn shut_down(self) {
        let (facility, netlink) = self.close().await;
        if let Some(facility) = facility {
            facility.shut_down().await;
        }
        netlink.close().await;
    }

    /// Ends what runs and hands over what can take the rest away.
    pub(super) async fn close(mut self) -> (Option<HostFacility>, Netlink) {
        self.closing.cancel();
        for task in self.others {
            // A task that panicked was logged by the panic itself.
            drop(task.await);
        }
        let facility = self.reconciler.await.ok();
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.stop().await;
        }
        (facility, self.netlink)
    }
}

fn open_ledger(config: &Config) -> Ledger {
    let path = config.agent_dir().join("assignment");
    Ledger::open(&path).unwrap_or_else(|error| {
        // What is programmed stays until a manager says what should be.
        tracing::error!(error = chain(&error), "starting without a ledger");
        Ledger::empty(&path)
    })
}

/// Keeps the managers' addresses on disk as they change.
async fn keep_managers(
    config: Arc<Config>,
    record: Arc<ArcSwap<Record>>,
    mut managers: watch::Receiver<Vec<std::net::SocketAddr>>,
    closing: CancellationToken,
) {
    loop {
        // Both arms only wait.
        tokio::select! {
            () = closing.cancelled() => return,
            changed = managers.changed() => if changed.is_err() { return },
        }
        let mut next = (*record.load_full()).clone();
        next.managers.clone_from(&managers.borrow_and_update());
        if let Err(error) = next.store(&config) {
            tracing::warn!(error = chain(&error), "the managers' addresses are not kept");
        }
        record.store(Arc::new(next));
    }
}

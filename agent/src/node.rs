//! The node: in no swarm, or a member with everything that runs for it.

mod address;
mod diagnose;
mod form;
mod leave;
mod member;
mod peers;
mod preflight;
mod record;

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use shoal_api::pb;
use shoal_api::status::ApiError;
use shoal_types::object::{NodeDescription, NodeRole};
use shoal_types::{ErrorCode, NodeLb};
use tokio::sync::Mutex;

use crate::config::Config;
use crate::drivers::runtime::process::{ProcessConfig, ProcessRuntime};
use crate::reconciler::{chain, now};
use crate::session;
use crate::stats::Stats;

use member::Member;
use record::Record;

pub(crate) use peers::troubles;
pub use preflight::preflight;
/// The daemon's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The first programming after a start or a join may take so long.
const FIRST_PASS: Duration = Duration::from_secs(30);

/// The node.
pub struct Node {
    config: Arc<Config>,
    stats: Arc<Stats>,
    runtime: Arc<ProcessRuntime>,
    /// What it is a member of, for those who only ask.
    record: ArcSwapOption<Record>,
    membership: AtomicI32,
    /// What runs for it; held by whoever changes the membership.
    member: Mutex<Option<Member>>,
}

/// An error as the local API tells it: what failed, and the chain of causes.
fn failed(code: ErrorCode, what: &str, error: &dyn std::error::Error) -> ApiError {
    ApiError::new(code, format!("{what}: {}", chain(error)))
}

impl Node {
    /// Opens the runtime; running tasks stay as they are.
    pub fn open(config: Arc<Config>, stats: Arc<Stats>) -> anyhow::Result<Arc<Self>> {
        let runtime = ProcessRuntime::open(ProcessConfig {
            open_files: config.task_files,
            ..ProcessConfig::new(&config.state_dir, &config.run_dir, &config.cgroup)
        })?;
        Ok(Arc::new(Self {
            config,
            stats,
            runtime: Arc::new(runtime),
            record: ArcSwapOption::empty(),
            membership: AtomicI32::new(pb::Membership::None.into()),
            member: Mutex::new(None),
        }))
    }

    /// Takes up the membership that the disk tells of, and waits until it is programmed once.
    pub async fn recover(&self) -> anyhow::Result<()> {
        let Some(record) = Record::load(&self.config)? else { return Ok(()) };
        let mut slot = self.member.lock().await;
        let supervisor = match record.role {
            NodeRole::Manager => Some(self.start_control(&record)?),
            NodeRole::Worker => None,
        };
        let member = Member::start(&self.config, &self.stats, &self.runtime, record, supervisor)?;
        self.become_member(&member);
        // Without a ledger there is nothing to be programmed until a manager answers: that is no reason to wait.
        if member.has_assignment() && !member.wait_programmed(FIRST_PASS).await {
            tracing::warn!("the first pass takes long; going on");
        }
        *slot = Some(member);
        Ok(())
    }

    fn become_member(&self, member: &Member) {
        self.record.store(Some(member.record()));
        self.set_membership(pb::Membership::Active);
    }

    fn set_membership(&self, membership: pb::Membership) {
        self.membership.store(membership.into(), Ordering::Relaxed);
    }

    /// Ends everything that runs for the membership; tasks and data path stay.
    pub async fn shut_down(&self) {
        if let Some(member) = self.member.lock().await.take() {
            member.shut_down().await;
        }
    }

    /// Whether the node is a member that was programmed, or no member.
    pub fn is_ready(&self) -> bool {
        let member = self.membership.load(Ordering::Relaxed) == i32::from(pb::Membership::Active);
        !member || Stats::get(&self.stats.applied) > 0 || Stats::get(&self.stats.generation) == 0
    }

    /// All there is to know about the node.
    pub fn info(&self) -> pb::LocalNode {
        let stats = &self.stats;
        let mut info = pb::LocalNode {
            version: VERSION.to_owned(),
            membership: self.membership.load(Ordering::Relaxed),
            node_name: self.config.name.to_string(),
            generation: Stats::get(&stats.generation),
            applied_generation: Stats::get(&stats.applied),
            kernel_writes_total: stats.writes.total(),
            drift_repairs_total: stats.drift().values().sum(),
            adopted_objects: Stats::get(&stats.adopted),
            tasks_running: u32::try_from(Stats::get(&stats.tasks_running)).unwrap_or(u32::MAX),
            lb_engine: stats.lb().engine.to_string(),
            drops: stats
                .drops()
                .into_iter()
                .filter(|(_, packets)| *packets > 0)
                .map(|(reason, packets)| pb::DropCount { reason: reason.to_owned(), packets })
                .collect(),
            warnings: stats.warnings(),
            maps: stats
                .maps()
                .into_iter()
                .map(|fill| pb::MapFill {
                    map: fill.map.to_owned(),
                    entries: fill.entries,
                    limit: fill.limit,
                })
                .collect(),
            session_since_ms: Stats::get(&stats.session_since_ms),
            cert_expires_at_ms: Stats::get(&stats.cert_expires_ms),
            cert_renewal_overdue: session::is_overdue(
                Stats::get(&stats.cert_issued_ms),
                Stats::get(&stats.cert_expires_ms),
                now().0,
            ),
            peers: peers::shown(&stats.probes),
            shadowed: stats.shadowed.borrow().clone(),
            connected: Stats::get(&stats.session_since_ms) > 0,
            ..Default::default()
        };
        if let Some(record) = &*self.record.load() {
            info.node_id = record.node.to_string();
            info.node_name = record.name.to_string();
            info.cluster_id = record.cluster.to_string();
            info.cluster_name.clone_from(&record.cluster_name);
            info.set_role(record.role.into());
            info.data_addr = record.data_addr.to_string();
            info.manager_addrs = record.managers.iter().map(ToString::to_string).collect();
            if record.role == NodeRole::Manager {
                info.control_socket = self.config.control_socket().display().to_string();
            }
        }
        info
    }
}

/// What the node says about itself to the managers.
fn description(config: &Config) -> NodeDescription {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kib = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    NodeDescription {
        hostname: host.unwrap_or_default(),
        cpu_milli: u64::try_from(cores).unwrap_or(1) * 1000,
        memory: kib.unwrap_or(0) * 1024,
        version: VERSION.to_owned(),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        // What it does is said after the first pass, when it is known.
        lb: NodeLb { setting: config.lb_engine, in_use: None },
    }
}

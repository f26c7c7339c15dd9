//! Taking away everything of this node, found by its marks, with or without any state on disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shoal_plan::{Objects, Op, Slice, plan};

use crate::config::Config;
use crate::drivers::bpf::{BpfConfig, BpfDriver};
use crate::drivers::dns::{DnsConfig, DnsDriver, DnsMetrics, Told};
use crate::drivers::egress::Egress;
use crate::drivers::link::{Nl, Writes};
use crate::drivers::overlay::Overlay;
use crate::drivers::runtime::Runtime;
use crate::drivers::runtime::process::{ProcessConfig, ProcessRuntime};
use crate::durable;
use crate::facility::{Facility, FacilityError, FormerValues, HostFacility, Parts, ReservedPorts};
use crate::facts::EgressBook;
use crate::netns::{Netns, NetnsDir};
use crate::reconciler::chain;
use crate::supervisor;

/// Grace of tasks when the machine is cleaned.
const GRACE: Duration = Duration::from_secs(2);

/// Stops and removes all tasks, and what the runtime keeps for itself.
pub async fn remove_tasks(runtime: &Arc<ProcessRuntime>, grace: Duration) -> anyhow::Result<()> {
    let mut removals = tokio::task::JoinSet::new();
    for task in runtime.observe().await? {
        let runtime = Arc::clone(runtime);
        removals.spawn(async move {
            let id = task.spec.task;
            // One that never ran has nothing to be stopped; removing kills whatever is left.
            if let Err(error) = runtime.stop(&id, grace).await {
                tracing::debug!(task = id, error = chain(&error), "not stopped");
            }
            runtime.remove(&id).await
        });
    }
    let mut failure = None;
    while let Some(removed) = removals.join_next().await {
        if let Err(error) = removed? {
            tracing::warn!(error = chain(&error), "a task is left");
            failure = Some(error);
        }
    }
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(runtime.remove_own()?),
    }
}

/// Removes everything that is observed, in the order of a plan, then the data plane and the namespaces' directory.
/// Goes on past failures and tells the first.
pub async fn take_down(mut facility: HostFacility, config: &Config) -> anyhow::Result<()> {
    let nothing = Objects::new();
    let mut failure = None;
    let (mut observed, mut unseen) = facility.look_at_few(&nothing, true).await;
    for slice in Slice::ALL {
        match facility.look_at_many(slice).await {
            Ok(mut objects) => observed.append(&mut objects),
            Err(error) => unseen.push(error),
        }
    }
    for error in unseen {
        tracing::warn!(error = chain(&error), "not looked at, and left if it is there");
        if !is_without_nft(&error) {
            failure.get_or_insert(anyhow::Error::from(error));
        }
    }
    for op in plan(&nothing, &observed).ops() {
        if let Op::Remove { object, .. } = op
            && let Err(error) = facility.remove(object).await
        {
            tracing::warn!(key = ?op.key(), error = chain(&error), "not removed");
            failure.get_or_insert(anyhow::Error::from(error).context(format!("{:?}", op.key())));
        }
    }
    let torn = facility.tear_down().await.context("the data plane");
    let namespaces = NetnsDir::new(&config.run_dir).remove_all().context("namespaces");
    if let Err(error) = std::fs::remove_dir(&config.bpf_dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(%error, "the bpffs directory stays");
    }
    failure.map_or(Ok(()), Err).and(torn).and(namespaces)
}

/// Whether there is no `nft`. Where none is there is no table, unless it was uninstalled since, which nobody can tell.
fn is_without_nft(error: &FacilityError) -> bool {
    matches!(error, FacilityError::Egress(error) if error.is_absent())
}

/// Whether a shoald of this node runs.
fn is_running(config: &Config) -> bool {
    std::os::unix::net::UnixStream::connect(config.api_socket()).is_ok()
}

/// `shoald cleanup`: removes all that is this node's.
pub async fn clean(config: &Config) -> anyhow::Result<()> {
    anyhow::ensure!(
        !is_running(config),
        "shoald is running; let it leave ('shoal swarm leave --force') or stop it first"
    );
    supervisor::end_stale(&config.run_dir.join("control.pid"))?;
    let mut failure = None;
    if config.state_dir.join("tasks").exists() {
        let runtime = open_runtime(config)?;
        failure = remove_tasks(&runtime, GRACE).await.err();
    }
    // Tasks that no directory tells of any more are known by their control group.
    for group in cgroups(&config.cgroup) {
        empty_cgroup(Path::new(&group))?;
    }
    let connection = Netns::current()?.netlink()?;
    let nl = Nl::new(connection.handle(), &Writes::default());
    let overlay = Overlay::new(nl, NetnsDir::new(&config.run_dir));
    if config.bpf_dir.exists() || !found_in_kernel(config, &overlay).await?.is_empty() {
        durable::ensure_dir(&config.agent_dir(), 0o700)?;
        let (bpf, _) = BpfDriver::open(&BpfConfig::new(&config.bpf_dir))?;
        let facility = HostFacility::new(Parts {
            overlay,
            egress: Egress::new(Writes::default()),
            bpf,
            dns: DnsDriver::new(DnsConfig::default(), DnsMetrics::default(), Told::default()),
            book: EgressBook::open(&config.agent_dir().join("egress.json"), durable::Unkept::default())?,
            reserved: ReservedPorts::open(&config.agent_dir().join("reserved-ports"))?,
            former: FormerValues::open(&config.agent_dir().join("former.json"))?,
            data_addr: std::net::Ipv4Addr::UNSPECIFIED.into(),
            mtu: None,
            lb_engine: shoal_types::LbEngine::Auto,
            fast_lane: false,
            connect_hooks: Some(false),
            group: None,
            writes: Writes::default(),
        });
        Box::pin(take_down(facility, config)).await?;
    }
    connection.close().await;
    for name in ["pki", "agent", "control", "tasks"] {
        durable::remove_dir(&config.state_dir.join(name))?;
    }
    durable::remove(&config.state_dir.join("node.json"))?;
    for name in ["api.sock", "ready", "control.pid"] {
        durable::remove(&config.run_dir.join(name))?;
    }
    durable::remove_dir(&config.run_dir.join("control"))?;
    failure.map_or(Ok(()), Err)
}

fn open_runtime(config: &Config) -> anyhow::Result<Arc<ProcessRuntime>> {
    let runtime = ProcessConfig::new(&config.state_dir, &config.run_dir, &config.cgroup);
    Ok(Arc::new(ProcessRuntime::open(runtime)?))
}

/// Links, namespaces and the table, told by name.
async fn found_in_kernel(config: &Config, overlay: &Overlay) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let links = overlay.netlink().links().await?;
    found.extend(
        links
            .iter()
            .filter(|link| link.name.has_our_prefix() && (link.mark().is_some() || link.alias.is_empty()))
            .map(|link| format!("link {}", link.name)),
    );
    found.extend(NetnsDir::new(&config.run_dir).list()?.into_iter().map(|name| format!("namespace {name}")));
    match Egress::new(Writes::default()).observe().await {
        Ok(Some(_)) => found.push("nftables table inet shoal".to_owned()),
        Ok(None) => {}
        Err(error) if error.is_absent() => {}
        Err(error) => found.push(format!("perhaps the nftables table inet shoal: {}", chain(&error))),
    }
    Ok(found)
}

/// `shoald cleanup --check`: everything of this node that is there.
pub async fn leftovers(config: &Config) -> anyhow::Result<Vec<String>> {
    let connection = Netns::current()?.netlink()?;
    let nl = Nl::new(connection.handle(), &Writes::default());
    let overlay = Overlay::new(nl, NetnsDir::new(&config.run_dir));
    let mut found = found_in_kernel(config, &overlay).await?;
    connection.close().await;
    found.extend(entries(&config.bpf_dir).into_iter().map(|name| format!("pins {name}")));
    if config.state_dir.join("tasks").exists() {
        let tasks = open_runtime(config)?.observe().await?;
        found.extend(tasks.into_iter().map(|task| format!("task {}", task.spec.task)));
    }
    found.extend(cgroups(&config.cgroup).into_iter().map(|path| format!("control group {path}")));
    if config.state_dir.join("node.json").exists() {
        found.push("membership of a swarm".to_owned());
    }
    Ok(found)
}

fn entries(dir: &Path) -> Vec<String> {
    // What isn't there has no entries.
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path().display().to_string()).collect()
}

/// Kills what is in a control group and those below it, and removes them.
fn empty_cgroup(group: &Path) -> anyhow::Result<()> {
    for child in entries(group) {
        if Path::new(&child).is_dir() {
            empty_cgroup(Path::new(&child))?;
        }
    }
    let begin = std::time::Instant::now();
    loop {
        let pids = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines().filter_map(|line| line.parse().ok()) {
            // It may have ended since; the next look shows.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        match std::fs::remove_dir(group) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && begin.elapsed() < GRACE => {
                std::thread::park_timeout(Duration::from_millis(20));
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", group.display()));
            }
            _ => return Ok(()),
        }
    }
}

/// Directories of our control group in the hierarchies that are mounted where they usually are.
fn cgroups(name: &str) -> Vec<String> {
    let root = Path::new("/sys/fs/cgroup");
    let mut roots = vec![root.to_owned()];
    roots.extend(entries(root).into_iter().map(Into::into));
    let paths = roots.into_iter().map(|hierarchy: std::path::PathBuf| hierarchy.join(name));
    paths.filter(|path| path.join("cgroup.procs").exists()).map(|path| path.display().to_string()).collect()
}

//! A manager's life: open, found or recover, serve, stop.
//!
//! Tasks: the proposer, the leader loop, liveness, renewal of the own certificate, the two doors with a task per
//! connection and per session, and the consensus library's own. All of them end with one token.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use shoal_core::command::{FirstManager, InitCluster};
use shoal_core::{Command, Outcome};
use shoal_types::id::Name;
use shoal_types::object::NodeDescription;
use shoal_types::{ClusterId, LbEngine, NetworkId, NodeId};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::ca::{self, Authority, SharedAuthority};
use crate::config::Args;
use crate::consensus::{Consensus, ConsensusError, Voter};
use crate::counters::Counters;
use crate::dispatcher::logs::LogBroker;
use crate::dispatcher::sessions::Sessions;
use crate::manager::Manager;
use crate::proposer::Proposer;
use crate::raft::{RaftNode, RaftOptions, TlsSlot};
use crate::seal::{DataKey, entropy, write_private};
use crate::tls::own::OwnCert;
use crate::tls::{client_config, server_config};
use crate::{clock, leader, liveness, server};

const SNAPSHOT_EVERY: u64 = 5_000;
const STOP_DEADLINE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(500);

/// Words for clusters that were given no name.
const CLUSTER_NAMES: [&str; 16] = [
    "anchovy",
    "barracuda",
    "cuttle",
    "dolphin",
    "eel",
    "flounder",
    "grouper",
    "herring",
    "kelp",
    "lamprey",
    "mackerel",
    "narwhal",
    "otter",
    "pilchard",
    "ray",
    "sardine",
];

/// A manager that serves.
pub struct Running {
    /// What its services share.
    pub manager: Arc<Manager>,
    raft: Arc<RaftNode>,
    doors: Vec<JoinHandle<()>>,
    socket: PathBuf,
}

/// Opens the state, founds the cluster if asked to, and serves. Returns when the local socket is there.
pub async fn start(args: &Args, stop: CancellationToken) -> anyhow::Result<Running> {
    make_dir(&args.state_dir).with_context(|| format!("cannot use {}", args.state_dir.display()))?;
    let key = Arc::new(DataKey::load_or_create(&args.state_dir.join("data.key"))?);
    let own = own_node_id(&args.state_dir, args.bootstrap)?;
    let pki = args.state_dir.join("pki");
    let tls = TlsSlot::default();
    let raft = RaftNode::start(RaftOptions {
        dir: args.state_dir.join("raft"),
        key: Arc::clone(&key),
        own: Voter { node: own.clone(), addr: args.advertise.to_string() },
        tls: Arc::clone(&tls),
        snapshot_every: SNAPSHOT_EVERY,
    })
    .await?;
    let manager = Arc::new(share(&own, &raft, &stop));

    // A manager that was here before serves its peers at once: they may need it to elect anyone.
    let mut doors = Vec::new();
    let mut cert = OwnCert::load(&pki, &own)?;
    if let Some(cert) = &cert {
        doors.push(open_remote(args, &manager, &raft, &tls, cert).await?);
    }
    if args.bootstrap {
        raft.found().await?;
    } else if !raft.is_founded().await? {
        bail!("{} holds no cluster; run it with --bootstrap to found one", args.state_dir.display());
    }
    let authority = recover_or_init(args, &manager, &key).await?;
    if cert.as_ref().is_some_and(|cert| cert.ca() != authority.cert()) {
        bail!("{} holds certificates of another cluster; move it away", pki.display());
    }
    if cert.is_none() {
        let issued = OwnCert::issue(&pki, &authority, &own)?;
        doors.push(open_remote(args, &manager, &raft, &tls, &issued).await?);
        cert = Some(issued);
    }
    if let Some(cert) = cert {
        tokio::spawn(cert.keep_fresh(Arc::clone(&authority), stop.clone()));
    }
    announce(args, &manager).await?;
    tokio::spawn(leader::run(Arc::clone(&manager)));
    tokio::spawn(liveness::run(Arc::clone(&manager), args.liveness()));
    let local = server::bind_local(&args.socket)
        .with_context(|| format!("cannot make the socket {}", args.socket.display()))?;
    doors.push(server::serve_local(&manager, local));
    Ok(Running { manager, raft, doors, socket: args.socket.clone() })
}

impl Running {
    /// Serves until told to stop; an error when consensus failed.
    pub async fn wait(&self) -> Result<(), ConsensusError> {
        // Cancel safe: both only wait.
        tokio::select! {
            () = self.manager.stop.cancelled() => Ok(()),
            error = self.raft.failed() => Err(error),
        }
    }

    /// Stops: streams end, then consensus, then the process may go. What was acknowledged is on disk long before.
    pub async fn shutdown(self) {
        self.manager.stop.cancel();
        drop(fs::remove_file(&self.socket));
        let closed = futures_util::future::join_all(self.doors);
        if tokio::time::timeout(STOP_DEADLINE, closed).await.is_err() {
            tracing::warn!("connections are still open; stopping anyway");
        }
        settle(&*self.raft).await;
        self.raft.shutdown().await;
    }
}

/// Makes the state as it is the snapshot. The next start may be of another version: it goes on from what was decided
/// instead of deciding old commands again by its own rules.
async fn settle(raft: &dyn Consensus) {
    let mut position = raft.position();
    let applied = position.borrow().applied;
    let saved = async {
        raft.snapshot().await?;
        let saved = position.wait_for(|now| now.snapshot >= applied).await;
        saved.map(|now| now.snapshot).map_err(|e| ConsensusError::Stopped(e.to_string()))
    };
    match tokio::time::timeout(STOP_DEADLINE, saved).await {
        Ok(Ok(index)) => tracing::info!(index, "the state is saved whole"),
        Ok(Err(error)) => tracing::warn!(%error, "the state is not saved whole"),
        Err(_) => tracing::warn!("the state was not saved whole in time"),
    }
}

fn share(own: &NodeId, raft: &Arc<RaftNode>, stop: &CancellationToken) -> Manager {
    let consensus: Arc<dyn Consensus> = Arc::<RaftNode>::clone(raft);
    Manager {
        own: own.clone(),
        proposer: Proposer::start(Arc::clone(&consensus), stop.clone()),
        consensus,
        ca: OnceLock::new(),
        meter: ca::meter::CompareMeter::default(),
        sessions: Arc::new(Sessions::default()),
        logs: Arc::new(LogBroker::default()),
        counters: Arc::new(Counters::default()),
        stop: stop.clone(),
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn own_node_id(state_dir: &Path, may_make: bool) -> anyhow::Result<NodeId> {
    let path = state_dir.join("node-id");
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().with_context(|| format!("{} holds no node id", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound && may_make => {
            let id = NodeId::from_entropy(entropy()?);
            write_private(&path, id.as_str().as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(id)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("{} holds no cluster; run it with --bootstrap to found one", state_dir.display())
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

async fn open_remote(
    args: &Args,
    manager: &Arc<Manager>,
    raft: &Arc<RaftNode>,
    tls: &TlsSlot,
    cert: &OwnCert,
) -> anyhow::Result<JoinHandle<()>> {
    tls.store(Some(client_config(cert.swap(), cert.ca())?));
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let config = server_config(cert.swap(), cert.ca())?;
    Ok(server::serve_remote(manager, Arc::clone(raft), listener, config))
}

/// Waits for the state, founds the cluster in it when there is none, and opens its CA.
async fn recover_or_init(
    args: &Args,
    manager: &Arc<Manager>,
    key: &DataKey,
) -> anyhow::Result<SharedAuthority> {
    wait_for_state(manager).await?;
    if manager.now().state.cluster().is_none() {
        if !args.bootstrap {
            bail!("the state holds no cluster; run it with --bootstrap to found one");
        }
        let mut commands = vec![Command::InitCluster(Box::new(founding(args, manager, key)?))];
        if args.lb_engine != LbEngine::Auto {
            // In the same entry of the log: there is no moment in which the cluster is there and the choice is not.
            commands.push(Command::SetLbEngine { engine: args.lb_engine });
        }
        for verdict in manager.proposer.propose_all(commands).await? {
            match verdict? {
                Outcome::Cluster { id, node } => tracing::info!(cluster = %id, %node, "cluster founded"),
                Outcome::Done => tracing::info!(engine = %args.lb_engine, "engine chosen"),
                other => bail!("unexpected outcome of founding: {other:?}"),
            }
        }
    }
    let view = manager.now();
    let cluster = view.state.cluster().ok_or_else(|| anyhow!("the cluster was founded and is not there"))?;
    let authority = Arc::new(Authority::open(cluster, key)?);
    manager.ca.get_or_init(|| Arc::clone(&authority));
    Ok(authority)
}

async fn wait_for_state(manager: &Manager) -> anyhow::Result<()> {
    loop {
        match manager.consensus.read_barrier().await {
            Ok(()) => return Ok(()),
            Err(ConsensusError::NoLeader | ConsensusError::Timeout) => {
                tracing::info!("waiting for a leader");
            }
            Err(error) => return Err(error.into()),
        }
        // Cancel safe: both only wait.
        tokio::select! {
            () = manager.stop.cancelled() => bail!("stopped while waiting for a leader"),
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

fn founding(args: &Args, manager: &Manager, key: &DataKey) -> anyhow::Result<InitCluster> {
    let now = clock::now();
    let id = ClusterId::from_entropy(entropy()?);
    let made = ca::create(&id, key, now)?;
    let hostname = nix::sys::utsname::uname()?.nodename().to_string_lossy().into_owned();
    let drawn = usize::try_from(entropy()? % 16)?;
    let name = match (&args.cluster_name, CLUSTER_NAMES.get(drawn)) {
        (Some(name), _) => name.clone(),
        (None, Some(word)) => word.parse::<Name>()?,
        (None, None) => bail!("no name for the cluster"),
    };
    Ok(InitCluster {
        id,
        name,
        data_port: args.data_port,
        cert_lifetime_ms: args.cert_lifetime.saturating_mul(1_000),
        ca_cert_der: made.cert_der,
        ca_key_sealed: made.key_sealed,
        pools: args.pools()?,
        ingress: NetworkId::from_entropy(entropy()?),
        manager: FirstManager {
            id: manager.own.clone(),
            name_hint: args.node_name.clone().unwrap_or_else(|| hostname.clone()),
            control_addr: args.advertise,
            data_addr: args.data_addr,
            description: NodeDescription { hostname, ..NodeDescription::default() },
        },
    })
}

/// Tells the cluster where this manager is now.
async fn announce(args: &Args, manager: &Manager) -> anyhow::Result<()> {
    let view = manager.now();
    let own = view.state.nodes().get(&manager.own);
    if own.is_some_and(|node| node.control_addr != Some(args.advertise)) {
        let command = Command::SetControlAddr { id: manager.own.clone(), addr: args.advertise };
        manager.proposer.propose("", command).await??;
    }
    Ok(())
}

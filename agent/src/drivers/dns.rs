//! Names for tasks: one resolver per task, on 127.0.0.11:53 inside the task's network namespace.
//!
//! A resolver answers from the [`Zone`] it was given (a snapshot, swapped whole) and forwards other names from
//! the agent's own namespace. Deciding is apart from doing: [`zone`] turns a question into a decision without
//! any I/O; [`server`](self) reads and writes sockets; [`forward`](self) talks to the upstream servers.
//!
//! Limits, so that a task can neither exhaust the agent nor turn it against others: a response is never
//! answered; queries over 4 KiB, idle and slow TCP connections are cut; forwards in flight are bounded per
//! task and per node (beyond: SERVFAIL); names and addresses of the cluster are never forwarded.
//!
//! What managers told last is answered whether they are there or not. A name that isn't in it is denied only while
//! they are ([`Told`]).

mod forward;
mod message;
mod metrics;
pub mod resolv;
mod server;
pub mod zone;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::netns::{Netns, NetnsError};

pub use metrics::{AnsweredBy, DnsMetrics};
pub use zone::{NetworkRecords, NetworkZone, Reserved, ServiceRecord, TaskRecord, Zone};

use forward::Forwarder;
use server::{Server, Shared};

/// What the DNS driver needs to know about its node.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Names the upstream servers. Read again when it changes.
    pub upstream_resolv_conf: PathBuf,
    /// Whether tasks have the search domains named there.
    pub search: bool,
    /// How long one upstream server may take for one try.
    pub forward_timeout: Duration,
    /// Forwards in flight on the whole node; beyond, SERVFAIL.
    pub max_forwards: usize,
    /// Forwards in flight for one task; beyond, SERVFAIL.
    pub max_forwards_per_task: usize,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            upstream_resolv_conf: "/etc/resolv.conf".into(),
            search: true,
            forward_timeout: Duration::from_secs(2),
            max_forwards: 1024,
            max_forwards_per_task: 64,
        }
    }
}

/// Whether managers tell this node of changes. While they don't, a name that isn't known may exist by now: nobody is
/// told that it does not. Clones share it; at first nobody was told anything.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<AtomicBool>);

impl Told {
    /// Takes over whether they do.
    pub fn set(&self, told: bool) {
        self.0.store(told, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What can go wrong with a task's resolver.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The task's namespace can't be entered.
    #[error("resolver of task '{task}'")]
    Netns {
        /// The task.
        task: String,
        /// Why.
        #[source]
        source: NetnsError,
    },
    /// A socket can't be made.
    #[error("resolver of task '{task}': cannot listen on 127.0.0.11:53/{protocol}")]
    Listen {
        /// The task.
        task: String,
        /// `udp` or `tcp`.
        protocol: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DnsError {
    /// Whether trying again later may help: all of these can be a namespace that is not ready yet.
    pub fn is_retryable(&self) -> bool {
        true
    }
}

/// The resolvers of a node's tasks. Its operations are called by one owner, the reconciler.
#[derive(Debug)]
pub struct DnsDriver {
    forwarder: Arc<Forwarder>,
    metrics: DnsMetrics,
    told: Told,
    servers: Mutex<BTreeMap<String, Running>>,
    max_forwards_per_task: usize,
}

#[derive(Debug)]
struct Running {
    server: Server,
    view: Arc<ArcSwap<Zone>>,
    netns_inode: u64,
}

impl DnsDriver {
    /// A driver without resolvers. Forwards go out of the namespace this process runs in.
    pub fn new(config: DnsConfig, metrics: DnsMetrics, told: Told) -> Self {
        let max_forwards_per_task = config.max_forwards_per_task;
        Self {
            forwarder: Arc::new(Forwarder::new(config, metrics.clone())),
            metrics,
            told,
            servers: Mutex::default(),
            max_forwards_per_task,
        }
    }

    /// Makes a task's resolver serve this view, starting it if it isn't there (or stands in a namespace that
    /// was replaced). Returns whether anything had to be changed.
    pub async fn ensure(&self, task: &str, netns: &Path, view: Arc<Zone>) -> Result<bool, DnsError> {
        let failed = |source| DnsError::Netns { task: task.to_owned(), source };
        let opened = Netns::open(netns).map_err(failed)?;
        let netns_inode = opened.inode().map_err(failed)?;
        if let Some(changed) = self.update(task, netns_inode, &view) {
            return Ok(changed);
        }
        self.remove(task).await;
        let view = Arc::new(ArcSwap::new(view));
        let shared = Shared {
            view: Arc::clone(&view),
            forwarder: Arc::clone(&self.forwarder),
            metrics: self.metrics.clone(),
            told: self.told.clone(),
        };
        let server = Server::start(task, &opened, shared, self.max_forwards_per_task)?;
        self.servers().insert(task.to_owned(), Running { server, view, netns_inode });
        Ok(true)
    }

    /// Swaps the view of a resolver that runs in the right namespace; `None` if there is no such resolver.
    fn update(&self, task: &str, netns_inode: u64, view: &Arc<Zone>) -> Option<bool> {
        let servers = self.servers();
        let running = servers.get(task)?;
        if running.netns_inode != netns_inode || !running.server.is_alive() {
            return None;
        }
        let current = running.view.load();
        let changed = !Arc::ptr_eq(&current, view) && **current != **view;
        if changed {
            running.view.store(Arc::clone(view));
        }
        Some(changed)
    }

    /// Stops a task's resolver and returns when its sockets are closed, so that the namespace can go.
    /// Returns whether there was one.
    pub async fn remove(&self, task: &str) -> bool {
        let running = self.servers().remove(task);
        match running {
            Some(running) => {
                running.server.stop().await;
                true
            }
            None => false,
        }
    }

    /// The domains that tasks with a way out try unqualified names in: the host's, as they are now.
    pub fn search_domains(&self) -> Vec<String> {
        self.forwarder.search_domains()
    }

    /// The tasks whose resolvers run.
    pub fn observe(&self) -> BTreeSet<String> {
        self.servers()
            .iter()
            .filter(|(_, running)| running.server.is_alive())
            .map(|(task, _)| task.clone())
            .collect()
    }

    /// Stops all resolvers.
    pub async fn shutdown(&self) {
        let all = std::mem::take(&mut *self.servers());
        for running in all.into_values() {
            running.server.stop().await;
        }
    }

    fn servers(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        // The map is whole at every instant the lock is free: a panic elsewhere doesn't spoil it.
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

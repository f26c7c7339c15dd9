//! What a manager exports, in the text format of Prometheus. It serves no HTTP: the node's daemon asks for this over the
//! local socket and hands it out with its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use shoal_core::State;

use crate::manager::Manager;

/// All of them, as this manager has them: maybe behind the leader, and without asking anybody.
pub fn text(manager: &Manager) -> String {
    let mut out = Text(String::new());
    let leadership = manager.consensus.leadership().borrow().clone();
    let position = *manager.consensus.position().borrow();
    out.one("shoal_raft_is_leader", "gauge", "Whether this manager leads", leadership.is_self.into());
    out.one("shoal_raft_term", "gauge", "Term of Raft", leadership.term);
    out.one("shoal_raft_last_index", "gauge", "Last entry in the log", position.last);
    out.one("shoal_raft_applied_index", "gauge", "Last entry that is applied here", position.applied);
    out.one("shoal_raft_snapshot_index", "gauge", "Last entry that the snapshot covers", position.snapshot);
    objects(&mut out, &manager.now().state);
    counters(&mut out, manager);
    out.0
}

fn objects(out: &mut Text, state: &State) {
    let mut nodes: BTreeMap<String, u64> = BTreeMap::new();
    for node in state.nodes().values() {
        let labels = format!("state=\"{}\",role=\"{}\"", label(node.state), label(node.role));
        *nodes.entry(labels).or_default() += 1;
    }
    out.series("shoal_manager_nodes", "gauge", "Nodes, by state and role", &nodes);
    let mut tasks: BTreeMap<String, u64> = BTreeMap::new();
    for task in state.tasks().values() {
        *tasks.entry(format!("state=\"{}\"", label(task.status.state))).or_default() += 1;
    }
    out.series("shoal_manager_tasks", "gauge", "Tasks that are kept, by state", &tasks);
    out.one("shoal_manager_services", "gauge", "Services", count(state.services().len()));
    out.one("shoal_manager_networks", "gauge", "Networks", count(state.networks().len()));
}

fn counters(out: &mut Text, manager: &Manager) {
    let counters = &manager.counters;
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let metered = read(&counters.joins_metered);
    let joins = [
        ("accepted", read(&counters.joins)),
        ("metered", metered),
        // Counted a moment later than the other.
        ("refused", read(&counters.joins_refused).saturating_sub(metered)),
    ];
    let joins = joins.map(|(result, number)| (format!("result=\"{result}\""), number)).into();
    out.series("shoal_manager_join_attempts_total", "counter", "Attempts to join, by result", &joins);
    for (name, help, counter) in [
        ("shoal_tls_failures_total", "TLS handshakes with this manager that failed", &counters.tls_failures),
        (
            "shoal_manager_connections_refused_total",
            "Connections to this manager that were refused as there were too many",
            &counters.connections_refused,
        ),
        ("shoal_authz_denied_total", "Calls that the caller's role does not allow", &counters.authz_denied),
        (
            "shoal_manager_leader_rejections_total",
            "Commands of the leader's own loops that the state refused",
            &counters.leader_rejections,
        ),
    ] {
        out.one(name, "counter", help, read(counter));
    }
}

/// A state's or role's name in small letters.
fn label(of: impl std::fmt::Debug) -> String {
    format!("{of:?}").to_lowercase()
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _written = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, number: u64) {
        self.head(name, kind, help);
        let _written = writeln!(self.0, "{name} {number}");
    }

    fn series(&mut self, name: &str, kind: &str, help: &str, numbers: &BTreeMap<String, u64>) {
        self.head(name, kind, help);
        for (labels, number) in numbers {
            let _written = writeln!(self.0, "{name}{{{labels}}} {number}");
        }
    }
}

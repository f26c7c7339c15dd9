//! What `shoal --json` says, as far as fixtures read it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::command::Run;
use crate::node::Node;

/// An address of a task or a service in a network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// IPv4 address.
    pub v4: Ipv4Addr,
    /// IPv6 address.
    pub v6: Ipv6Addr,
}

impl Attachment {
    /// Both addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// A task, as `service ps` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Its id.
    pub id: String,
    /// `service.slot`.
    pub name: String,
    /// Name of its node.
    pub node: String,
    /// `running`, `failed`, …
    pub state: String,
    /// Since when, as text.
    pub since: String,
    /// `starting`, `healthy` or `unhealthy`; nothing without a health check.
    pub health: Option<String>,
    /// Why.
    pub message: String,
    /// `running`, `shutdown`, …
    pub desired_state: String,
    /// Its process on the node.
    pub pid: Option<i32>,
    /// What is left of one that drains, once somebody has counted.
    #[serde(default)]
    pub connections: Option<u32>,
    /// Where it is reached.
    pub addresses: Vec<Attachment>,
}

impl Task {
    /// Its place in a network.
    pub fn attachment(&self, network: &str) -> anyhow::Result<&Attachment> {
        let found = self.addresses.iter().find(|attachment| attachment.network == network);
        found.with_context(|| format!("{} isn't on '{network}': {:?}", self.name, self.addresses))
    }

    /// Its process on the machine.
    pub fn process(&self) -> anyhow::Result<i32> {
        self.pid.with_context(|| format!("{} has no process id", self.name))
    }

    /// Its network namespace.
    pub fn netns(&self) -> anyhow::Result<PathBuf> {
        Ok(Path::new("/proc").join(self.process()?.to_string()).join("ns/net"))
    }

    /// Its control group, in the unified hierarchy as this process sees it.
    pub fn control_group(&self) -> anyhow::Result<PathBuf> {
        let text = std::fs::read_to_string(format!("/proc/{}/cgroup", self.process()?))?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/")).context("no unified group")?;
        Ok(unified()?.join(path))
    }

    /// A program inside its network namespace (and none of its others).
    pub fn run_line(&self, line: &str) -> anyhow::Result<Run> {
        Ok(Run::line(line).netns(self.netns()?))
    }
}

/// The mount point of the unified hierarchy of control groups.
fn unified() -> anyhow::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mut points = mounts.lines().map(|line| line.split(' ').skip(1));
    let point = points.find_map(|mut fields| {
        let point = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
    });
    point.context("no unified hierarchy is mounted")
}

/// Parses items of one kind.
pub(crate) fn items<T: serde::de::DeserializeOwned>(items: Vec<Value>) -> anyhow::Result<Vec<T>> {
    items
        .into_iter()
        .map(|item| serde_json::from_value(item.clone()).with_context(|| format!("not as expected: {item}")))
        .collect()
}

impl Node {
    /// Tasks of a service that run and shall run.
    pub fn running_tasks(&self, service: &str) -> anyhow::Result<Vec<Task>> {
        let mut tasks: Vec<Task> = items(self.items(&["service", "ps", service])?)?;
        tasks.retain(|task| task.state == "running" && task.desired_state == "running");
        Ok(tasks)
    }

    /// All tasks of a service that are remembered.
    pub fn all_tasks(&self, service: &str) -> anyhow::Result<Vec<Task>> {
        items(self.items(&["service", "ps", "--all", service])?)
    }

    /// The virtual IP of a service in a network.
    pub fn vip(&self, service: &str, network: &str) -> anyhow::Result<Attachment> {
        let services = self.items(&["service", "inspect", service])?;
        let vips: Vec<Attachment> = services
            .iter()
            .map(|service| serde_json::from_value(service["vips"].clone()))
            .collect::<Result<Vec<Vec<_>>, _>>()?
            .concat();
        let found = vips.iter().find(|vip| vip.network == network);
        found.cloned().with_context(|| format!("'{service}' has no VIP on '{network}': {vips:?}"))
    }
}

/// What a name server said.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// `NOERROR`, `NXDOMAIN`, …
    pub status: String,
    /// The data of the answer's records.
    pub data: BTreeSet<String>,
    /// The same, in the order of the answer.
    pub ordered: Vec<String>,
    /// How long the shortest-lived record may be kept, in seconds.
    pub ttl: Option<u32>,
}

impl Names {
    /// The answer, which must be one of addresses.
    pub fn addresses(&self) -> anyhow::Result<BTreeSet<IpAddr>> {
        ensure!(self.status == "NOERROR", "the name server said {}", self.status);
        self.data.iter().map(|data| data.parse().with_context(|| format!("not an address: {data}"))).collect()
    }
}

/// Asks the resolver of a task, as the task would.
pub fn dig(task: &Task, name: &str, kind: &str, tcp: bool) -> anyhow::Result<Names> {
    let transport = if tcp { "+tcp" } else { "+notcp" };
    let question = if kind == "PTR" { format!("-x {name}") } else { format!("-t {kind} {name}") };
    let line = format!("dig @127.0.0.11 +noall +answer +comments +tries=1 +time=5 {transport} {question}");
    let text = task.run_line(&line)?.stdout().with_context(|| format!("{} asked for {name}", task.name))?;
    let status = text.split_once("status: ").and_then(|(_, rest)| rest.split(',').next());
    let status = status.with_context(|| format!("dig printed {text}"))?.to_owned();
    // Name, TTL, class, type, and the rest is the data.
    let records = text.lines().filter(|line| !line.starts_with(';') && !line.trim().is_empty());
    let records: Vec<Vec<_>> = records.map(|line| line.split_whitespace().collect()).collect();
    let data = |fields: &Vec<&str>| Some(fields.get(4..)?.join(" ").trim_end_matches('.').to_owned());
    let ordered: Vec<String> = records.iter().filter_map(data).collect();
    let ttl = records.iter().filter_map(|fields| fields.get(1)?.parse().ok()).min();
    Ok(Names { status, data: ordered.iter().cloned().collect(), ordered, ttl })
}

//! From an assigned task to what the runtime is told.

use std::fmt::Write as _;
use std::path::PathBuf;

use shoal_types::NodeId;
use shoal_types::assignment::AssignedTask;

use crate::drivers::dns::resolv::task_resolv_conf;
use crate::drivers::runtime::{Limits, RuntimeSpec};
use shoal_types::object::Slot;

/// What a task is run with.
pub(super) fn runtime_spec(
    task: &AssignedTask,
    netns: PathBuf,
    node: &NodeId,
    node_name: &str,
    search: &[String],
) -> RuntimeSpec {
    let fill = |text: &str| fill_template(text, task, node, node_name);
    let process = &task.spec.process;
    let resources = &task.spec.resources;
    let limit = |value: u64| (value > 0).then_some(value);
    let hostname =
        process.hostname.as_deref().map_or_else(|| format!("{}-{}", task.service_name, task.slot), fill);
    let mut spec = RuntimeSpec::new(task.id.as_str(), process.command.clone(), netns);
    spec.service = task.service_name.to_string();
    spec.slot = match task.slot {
        Slot::Number(number) => number.into(),
        Slot::Node(_) => 0,
    };
    spec.hosts = hosts(task, &hostname);
    spec.hostname = hostname;
    spec.env = process
        .env
        .iter()
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => (name.to_owned(), fill(value)),
            None => (pair.clone(), String::new()),
        })
        .collect();
    spec.workdir = process.workdir.as_deref().map(PathBuf::from);
    spec.user.clone_from(&process.user);
    spec.root = process.root.as_deref().map(PathBuf::from);
    spec.limits = Limits {
        cpu_millis: limit(resources.limit_cpu_milli),
        memory_bytes: limit(resources.limit_memory),
        pids: limit(resources.limit_pids),
    };
    spec.capabilities.clone_from(&process.cap_add);
    spec.read_only = process.read_only;
    spec.stop_signal = task.spec.stop_signal.to_string();
    spec.resolv_conf = resolv_conf(task, search);
    spec
}

/// What the service says goes before what the node has.
fn resolv_conf(task: &AssignedTask, node: &[String]) -> String {
    let dns = &task.dns;
    let search = match dns.search.as_slice() {
        [] => node,
        [none] if none == "." => &[],
        own => own,
    };
    task_resolv_conf(search, &dns.options)
}

fn hosts(task: &AssignedTask, hostname: &str) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    if let Some(at) = task.attachments.first() {
        for ip in at.addr.iter() {
            // Writing to a String cannot fail.
            let _written = writeln!(text, "{ip}\t{hostname}");
        }
    }
    text
}

fn fill_template(text: &str, task: &AssignedTask, node: &NodeId, node_name: &str) -> String {
    let slot = task.slot.to_string();
    [
        ("{{.Service.Name}}", task.service_name.as_str()),
        ("{{.Service.ID}}", task.service.as_str()),
        ("{{.Task.ID}}", task.id.as_str()),
        ("{{.Task.Slot}}", slot.as_str()),
        ("{{.Node.ID}}", node.as_str()),
        ("{{.Node.Hostname}}", node_name),
    ]
    .iter()
    .fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
}

//! Services.

use serde_json::{Value, json};
use shoal_api::pb;
use shoal_api::pb::service_spec;

use super::Lookup;
use super::ports::{docker_ports, docker_spec_ports, ports_item, ports_text, spec_ports_item};
use super::words::{
    attachments_item, endpoint_mode, health_test, labels, labels_text, policy, restart_condition,
    update_order,
};
use crate::output::listing::{Column, Row};
use crate::output::time::rfc3339;

/// Columns of `service ls`.
pub(crate) const SERVICE_COLUMNS: &[Column] = &[
    ("ID", "ID"),
    ("NAME", "Name"),
    ("MODE", "Mode"),
    ("REPLICAS", "Replicas"),
    ("COMMAND", "Command"),
    ("PORTS", "Ports"),
];

fn mode(spec: &pb::ServiceSpec) -> &'static str {
    match spec.mode {
        Some(service_spec::Mode::Global(_)) => "global",
        _ => "replicated",
    }
}

fn process(spec: &pb::ServiceSpec) -> pb::ProcessSpec {
    spec.task.as_ref().and_then(|task| task.process.clone()).unwrap_or_default()
}

/// A line of `service ls`.
pub(crate) fn service_row(info: &pb::ServiceInfo, lookup: &Lookup) -> Row {
    let spec = info.spec.clone().unwrap_or_default();
    let fields = json!({
        "ID": lookup.id(&info.id),
        "Name": spec.name,
        "Mode": mode(&spec),
        "Replicas": format!("{}/{}", info.running, info.wanted),
        "Command": lookup.command(&process(&spec).command),
        "Ports": ports_text(&info.ports),
        "Networks": networks_text(&spec, lookup),
        "VIPs": vips_text(info, lookup),
        "LB": policy(&spec),
        "EndpointMode": endpoint_mode(&spec),
        "Labels": labels_text(&spec.labels),
        "Converged": info.converged,
        "Version": info.version,
        "CreatedAt": rfc3339(info.created_at_ms),
        "UpdatedAt": rfc3339(info.updated_at_ms),
    });
    Row { id: lookup.id(&info.id), fields, item: service_item(info, lookup) }
}

fn networks_text(spec: &pb::ServiceSpec, lookup: &Lookup) -> String {
    spec.networks.iter().map(|n| lookup.network(&n.network)).collect::<Vec<_>>().join(",")
}

fn vips_text(info: &pb::ServiceInfo, lookup: &Lookup) -> String {
    let one = |vip: &pb::Attachment| format!("{}:{}", lookup.network(&vip.network), vip.v4);
    info.vips.iter().map(one).collect::<Vec<_>>().join(",")
}

/// The `shoal/v1` item of a service.
fn service_item(info: &pb::ServiceInfo, lookup: &Lookup) -> Value {
    let spec = info.spec.clone().unwrap_or_default();
    json!({
        "id": info.id,
        "name": spec.name,
        "index": info.index,
        "version": info.version,
        "mode": mode(&spec),
        "running": info.running,
        "wanted": info.wanted,
        "updated": info.updated,
        "converged": info.converged,
        "removing": info.removing,
        "vips": attachments_item(&info.vips, lookup),
        "ports": ports_item(&info.ports),
        "lb": policy(&spec),
        "endpointMode": endpoint_mode(&spec),
        "createdAt": rfc3339(info.created_at_ms),
        "updatedAt": rfc3339(info.updated_at_ms),
        "spec": spec_item(&spec, lookup),
    })
}

/// The spec within an item; also what `--dry-run` compares.
pub(crate) fn spec_item(spec: &pb::ServiceSpec, lookup: &Lookup) -> Value {
    let task = spec.task.clone().unwrap_or_default();
    let process = task.process.unwrap_or_default();
    let resources = task.resources.unwrap_or_default();
    let restart = task.restart.unwrap_or_default();
    let update = spec.update.unwrap_or_default();
    let dns = spec.dns.clone().unwrap_or_default();
    let replicas = match spec.mode {
        Some(service_spec::Mode::Replicas(n)) => Some(n),
        _ => None,
    };
    let network =
        |n: &pb::AttachmentSpec| json!({ "network": lookup.network(&n.network), "aliases": n.aliases });
    json!({
        "name": spec.name,
        "mode": mode(spec),
        "replicas": replicas,
        "process": {
            "command": process.command, "env": process.env, "workdir": process.workdir, "user": process.user,
            "hostname": process.hostname, "root": process.root, "capAdd": process.cap_add,
            "readOnly": process.read_only,
        },
        "resources": {
            "limitCpuMilli": resources.limit_cpu_milli, "limitMemory": resources.limit_memory,
            "limitPids": resources.limit_pids, "reserveCpuMilli": resources.reserve_cpu_milli,
            "reserveMemory": resources.reserve_memory,
        },
        "restart": {
            "condition": restart_condition(restart.condition()), "delayMs": restart.delay_ms,
            "maxAttempts": restart.max_attempts, "windowMs": restart.window_ms,
        },
        "health": task.health.as_ref().map(health_item),
        "update": {
            "parallelism": update.parallelism, "delayMs": update.delay_ms,
            "order": update_order(update.order()),
        },
        "stopSignal": task.stop_signal,
        "stopGraceMs": task.stop_grace_ms,
        "drainMs": spec.drain_ms,
        "lb": policy(spec),
        "endpointMode": endpoint_mode(spec),
        "dns": { "servers": dns.servers, "search": dns.search, "options": dns.options },
        "constraints": task.constraints,
        "maxPerNode": task.max_per_node,
        "forceUpdate": task.force_update,
        "networks": spec.networks.iter().map(network).collect::<Value>(),
        "ports": spec_ports_item(&spec.ports),
        "labels": labels(&spec.labels),
    })
}

fn health_item(check: &pb::HealthCheck) -> Value {
    json!({
        "test": health_test(check), "intervalMs": check.interval_ms, "timeoutMs": check.timeout_ms,
        "retries": check.retries, "startPeriodMs": check.start_period_ms,
    })
}

/// What `service inspect` prints, with docker's names.
pub(crate) fn service_object(info: &pb::ServiceInfo, lookup: &Lookup) -> Row {
    let spec = info.spec.clone().unwrap_or_default();
    let vip = |a: &pb::Attachment| json!({ "NetworkID": a.network, "Network": lookup.network(&a.network), "Addr": a.v4, "Addr6": a.v6 });
    let fields = json!({
        "ID": info.id,
        "Version": { "Index": info.version },
        "CreatedAt": rfc3339(info.created_at_ms),
        "UpdatedAt": rfc3339(info.updated_at_ms),
        "Spec": docker_spec(&spec, lookup),
        "Endpoint": {
            "Mode": endpoint_mode(&spec),
            "Ports": docker_ports(&info.ports),
            "VirtualIPs": info.vips.iter().map(vip).collect::<Value>(),
            "LB": policy(&spec),
        },
        "ServiceStatus": {
            "RunningTasks": info.running, "DesiredTasks": info.wanted, "UpdatedTasks": info.updated,
            "Converged": info.converged, "Removing": info.removing,
        },
    });
    Row { id: info.id.clone(), fields, item: service_item(info, lookup) }
}

/// A spec with docker's names; durations in nanoseconds as there.
fn docker_spec(spec: &pb::ServiceSpec, lookup: &Lookup) -> Value {
    let update = spec.update.unwrap_or_default();
    let mode = match spec.mode {
        Some(service_spec::Mode::Global(_)) => json!({ "Global": {} }),
        Some(service_spec::Mode::Replicas(n)) => json!({ "Replicated": { "Replicas": n } }),
        None => json!({}),
    };
    json!({
        "Name": spec.name,
        "Labels": labels(&spec.labels),
        "TaskTemplate": docker_task(spec, lookup),
        "Mode": mode,
        "UpdateConfig": {
            "Parallelism": update.parallelism, "Delay": nanos(update.delay_ms),
            "Order": update_order(update.order()),
        },
        "EndpointSpec": {
            "Mode": endpoint_mode(spec), "LB": policy(spec), "Ports": docker_spec_ports(&spec.ports),
        },
        "Drain": nanos(spec.drain_ms),
    })
}

fn docker_task(spec: &pb::ServiceSpec, lookup: &Lookup) -> Value {
    let task = spec.task.clone().unwrap_or_default();
    let dns = spec.dns.clone().unwrap_or_default();
    let process = task.process.unwrap_or_default();
    let resources = task.resources.unwrap_or_default();
    let restart = task.restart.unwrap_or_default();
    let network = |n: &pb::AttachmentSpec| json!({ "Target": n.network, "Name": lookup.network(&n.network), "Aliases": n.aliases });
    json!({
        "Runtime": "process",
        "ProcessSpec": {
            "Command": process.command, "Env": process.env, "Dir": process.workdir, "User": process.user,
            "Hostname": process.hostname, "Root": process.root, "CapabilityAdd": process.cap_add,
            "ReadOnly": process.read_only, "StopSignal": task.stop_signal,
            "StopGracePeriod": nanos(task.stop_grace_ms),
            "Healthcheck": task.health.as_ref().map(docker_health),
            "DNSConfig": { "Nameservers": dns.servers, "Search": dns.search, "Options": dns.options },
        },
        "Resources": {
            "Limits": {
                "NanoCPUs": resources.limit_cpu_milli.saturating_mul(1_000_000),
                "MemoryBytes": resources.limit_memory, "Pids": resources.limit_pids,
            },
            "Reservations": {
                "NanoCPUs": resources.reserve_cpu_milli.saturating_mul(1_000_000),
                "MemoryBytes": resources.reserve_memory,
            },
        },
        "RestartPolicy": {
            "Condition": restart_condition(restart.condition()), "Delay": nanos(restart.delay_ms),
            "MaxAttempts": restart.max_attempts, "Window": nanos(restart.window_ms),
        },
        "Placement": { "Constraints": task.constraints, "MaxReplicas": task.max_per_node },
        "Networks": spec.networks.iter().map(network).collect::<Value>(),
        "ForceUpdate": task.force_update,
    })
}

fn docker_health(check: &pb::HealthCheck) -> Value {
    json!({
        "Test": health_test(check), "Interval": nanos(check.interval_ms), "Timeout": nanos(check.timeout_ms),
        "Retries": check.retries, "StartPeriod": nanos(check.start_period_ms),
    })
}

fn nanos(ms: u64) -> u64 {
    ms.saturating_mul(1_000_000)
}

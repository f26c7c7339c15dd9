//! Nodes.

use serde_json::{Value, json};
use shoal_api::pb;
use shoal_types::Weight;

use super::Lookup;
use super::words::{attachments_item, availability, engine, labels, labels_text, node_role, node_state};
use crate::output::listing::{Column, Row};
use crate::output::time::rfc3339;

/// Columns of `node ls`; the asterisk marks the node that was asked.
pub(crate) const NODE_COLUMNS: &[Column] = &[
    ("ID", "MarkedID"),
    ("NAME", "Hostname"),
    ("STATUS", "Status"),
    ("AVAILABILITY", "Availability"),
    ("WEIGHT", "Weight"),
    ("ROLE", "Role"),
    ("ADDRESS", "Address"),
    ("TASKS", "Tasks"),
    ("VERSION", "EngineVersion"),
];

/// A line of `node ls`. `own` is the id of the node that was asked.
pub(crate) fn node_row(node: &pb::NodeInfo, own: &str, lookup: &Lookup) -> Row {
    let description = node.description.clone().unwrap_or_default();
    let role = if node.leader { "manager (leader)" } else { node_role(node.role()) };
    let manager_status = match (node.role(), node.leader) {
        (_, true) => "Leader",
        (pb::NodeRole::Manager, false) => "Reachable",
        _ => "",
    };
    let id = lookup.id(&node.id);
    let fields = json!({
        "ID": id,
        "MarkedID": if node.id == own { format!("{id} *") } else { id.clone() },
        "Self": node.id == own,
        "Hostname": node.name,
        "Name": node.name,
        "Status": node_state(node.state()),
        "Availability": availability(node.availability()),
        "Weight": weight(node),
        "ManagerStatus": manager_status,
        "Role": role,
        "Address": node.data_addr,
        "Tasks": node.tasks_running,
        "EngineVersion": description.version,
        "LBEngine": description.lb_engine,
        "Labels": labels_text(&node.labels),
    });
    Row { id, fields, item: node_item(node, lookup) }
}

fn node_item(node: &pb::NodeInfo, lookup: &Lookup) -> Value {
    let description = node.description.clone().unwrap_or_default();
    let router: Vec<pb::Attachment> = node.router.iter().cloned().collect();
    json!({
        "id": node.id,
        "name": node.name,
        "role": node_role(node.role()),
        "leader": node.leader,
        "state": node_state(node.state()),
        "stateSince": rfc3339(node.state_since_ms),
        "availability": availability(node.availability()),
        "weight": weight(node),
        "controlAddr": node.control_addr,
        "dataAddr": node.data_addr,
        "router": attachments_item(&router, lookup).get(0),
        "tasksRunning": node.tasks_running,
        "appliedGeneration": node.applied_generation,
        "joinedAt": rfc3339(node.joined_at_ms),
        "labels": labels(&node.labels),
        "hostname": description.hostname,
        "cpuMilli": description.cpu_milli,
        "memory": description.memory,
        "version": description.version,
        "kernel": description.kernel,
        "lbEngine": known_engine(&description),
        "lbSetting": engine(&description.lb_setting),
        "ipvs": known_engine(&description).map(|_| description.ipvs),
        "lbLingering": description.lb_lingering,
    })
}

/// Managers of versions before weights give all the same.
fn weight(node: &pb::NodeInfo) -> u32 {
    node.weight.unwrap_or(Weight::default().into())
}

/// What balances on a node, once it has said so.
fn known_engine(description: &pb::NodeDescription) -> Option<&str> {
    Some(description.lb_engine.as_str()).filter(|engine| !engine.is_empty())
}

/// What `node inspect` prints, with docker's names.
pub(crate) fn node_object(node: &pb::NodeInfo, lookup: &Lookup) -> Row {
    let description = node.description.clone().unwrap_or_default();
    let mut fields = json!({
        "ID": node.id,
        "CreatedAt": rfc3339(node.joined_at_ms),
        "Spec": {
            "Role": node_role(node.role()), "Availability": availability(node.availability()),
            "Weight": weight(node), "Labels": labels(&node.labels),
        },
        "Description": {
            "Hostname": node.name,
            "Platform": { "OS": "linux", "Kernel": description.kernel },
            "Resources": {
                "NanoCPUs": description.cpu_milli.saturating_mul(1_000_000), "MemoryBytes": description.memory,
            },
            "Engine": {
                "EngineVersion": description.version, "LBEngine": known_engine(&description),
                "LBSetting": engine(&description.lb_setting),
                "IPVS": known_engine(&description).map(|_| description.ipvs),
                "LBLingering": description.lb_lingering,
            },
        },
        "Status": {
            "State": node_state(node.state()), "Since": rfc3339(node.state_since_ms), "Addr": node.data_addr,
            "RunningTasks": node.tasks_running, "AppliedGeneration": node.applied_generation,
        },
    });
    if let (pb::NodeRole::Manager, Some(object)) = (node.role(), fields.as_object_mut()) {
        object.insert(
            "ManagerStatus".to_owned(),
            json!({ "Leader": node.leader, "Reachability": "reachable", "Addr": node.control_addr }),
        );
    }
    Row { id: node.id.clone(), fields, item: node_item(node, lookup) }
}

/// What a node says of itself, as an item.
pub(crate) fn local_item(local: &pb::LocalNode) -> Value {
    let membership = match local.membership() {
        pb::Membership::Active => "active",
        pb::Membership::Joining => "joining",
        pb::Membership::Leaving => "leaving",
        pb::Membership::None | pb::Membership::Unspecified => "none",
    };
    let drops: serde_json::Map<String, Value> =
        local.drops.iter().map(|drop| (drop.reason.clone(), drop.packets.into())).collect();
    let maps: serde_json::Map<String, Value> = local
        .maps
        .iter()
        .map(|fill| (fill.map.clone(), json!({ "entries": fill.entries, "limit": fill.limit })))
        .collect();
    json!({
        "id": local.node_id,
        "name": local.node_name,
        "version": local.version,
        "membership": membership,
        "role": node_role(local.role()),
        "swarm": local.cluster_name,
        "swarmId": local.cluster_id,
        "connected": local.connected,
        "sessionSince": rfc3339(local.session_since_ms),
        "managers": local.manager_addrs,
        "dataAddr": local.data_addr,
        "generation": local.generation,
        "appliedGeneration": local.applied_generation,
        "kernelWritesTotal": local.kernel_writes_total,
        "driftRepairsTotal": local.drift_repairs_total,
        "adoptedObjects": local.adopted_objects,
        "tasksRunning": local.tasks_running,
        "lbEngine": local.lb_engine,
        "drops": drops,
        "warnings": local.warnings,
        "peers": local.peers.as_ref().map(peers_item),
        "maps": maps,
        "certExpiresAt": rfc3339(local.cert_expires_at_ms),
        "shadowed": local.shadowed,
        "certRenewalOverdue": local.cert_renewal_overdue,
    })
}

fn peers_item(peers: &pb::Peers) -> Value {
    let troubles: Vec<Value> = peers
        .troubles
        .iter()
        .map(|trouble| {
            json!({
                "name": trouble.name,
                "address": trouble.address,
                "state": trouble.state,
                "evidence": trouble.evidence,
                "fix": trouble.fix,
            })
        })
        .collect();
    json!({
        "total": peers.total,
        "answering": peers.answering,
        "troubles": troubles,
        "clocks": peers.clocks,
    })
}

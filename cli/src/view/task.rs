//! Tasks.

use serde_json::json;
use shoal_api::pb;

use super::Lookup;
use super::words::{attachments_item, desired_state, health, task_state};
use crate::failure::one_line;
use crate::output::listing::{Column, Row};
use crate::output::time::{age, rfc3339};

/// Columns of `service ps` and `node ps`.
pub(crate) const TASK_COLUMNS: &[Column] = &[
    ("NAME", "Name"),
    ("COMMAND", "Command"),
    ("NODE", "Node"),
    ("DESIRED", "DesiredState"),
    ("STATE", "CurrentState"),
    ("HEALTH", "Health"),
    ("ADDRESS", "Address"),
    ("REASON", "Reason"),
];

/// Order of a list: service, slot, then the newest first.
pub(crate) fn task_order(task: &pb::TaskInfo) -> (String, u32, String, std::cmp::Reverse<u64>) {
    let (number, node) = match task.slot.as_ref().and_then(|slot| slot.slot.clone()) {
        Some(pb::slot::Slot::Number(number)) => (number, String::new()),
        Some(pb::slot::Slot::Node(_)) | None => (0, task.name.clone()),
    };
    (task.service_name.clone(), number, node, std::cmp::Reverse(task.created_at_ms))
}

/// The address others reach it at: that in its first overlay, else the one in ingress.
fn address(task: &pb::TaskInfo, lookup: &Lookup) -> String {
    let own = task.attachments.iter().find(|a| a.network != lookup.ingress);
    let chosen = own.or_else(|| task.attachments.first());
    chosen.map(|a| if a.v4.is_empty() { a.v6.clone() } else { a.v4.clone() }).unwrap_or_default()
}

/// A line of `service ps`.
pub(crate) fn task_row(task: &pb::TaskInfo, lookup: &Lookup) -> Row {
    let status = task.status.clone().unwrap_or_default();
    let command = task.spec.as_ref().and_then(|spec| spec.process.as_ref()).map(|p| p.command.clone());
    let command = command.unwrap_or_default();
    let state = task_state(status.state());
    let reason = drain(task, lookup.now_ms).unwrap_or_else(|| reason(&status));
    let slot = task.slot.as_ref().and_then(|slot| slot.slot.clone());
    let slot = match &slot {
        Some(pb::slot::Slot::Number(number)) => number.to_string(),
        Some(pb::slot::Slot::Node(node)) => node.clone(),
        None => String::new(),
    };
    let fields = json!({
        "ID": lookup.id(&task.id),
        "Name": task.name,
        "Service": task.service_name,
        "Slot": slot,
        "Command": lookup.command(&command),
        "Node": task.node_name,
        "DesiredState": desired_state(task.desired()),
        "CurrentState": format!("{state} {}", age(status.since_ms, lookup.now_ms)),
        "State": state,
        "Health": health(status.health()),
        "Address": address(task, lookup),
        "Reason": reason,
        "Error": reason,
        "ExitCode": status.exit_code,
        "CreatedAt": rfc3339(task.created_at_ms),
    });
    let item = json!({
        "id": task.id,
        "name": task.name,
        "service": task.service_name,
        "serviceId": task.service,
        "slot": slot,
        "node": task.node_name,
        "nodeId": task.node,
        "desiredState": desired_state(task.desired()),
        "state": state,
        "health": Some(health(status.health())).filter(|word| !word.is_empty()),
        "since": rfc3339(status.since_ms),
        "message": status.message,
        "connections": status.connections,
        "drainEndsAt": task.drain_ends_ms.map(rfc3339),
        "exitCode": status.exit_code,
        "pid": status.pid,
        "addresses": attachments_item(&task.attachments, lookup),
        "command": command,
        "taskVersion": task.task_version,
        "createdAt": rfc3339(task.created_at_ms),
    });
    Row { id: lookup.id(&task.id), fields, item }
}

/// Why a task that takes no new flows still runs: `draining: 12 connections, 7 s left`.
fn drain(task: &pb::TaskInfo, now_ms: u64) -> Option<String> {
    let status = task.status.as_ref()?;
    if task.desired() != pb::DesiredState::Draining || !status.message.is_empty() {
        return None;
    }
    let Some(end) = task.drain_ends_ms else {
        return Some("draining: not yet withdrawn by every node".to_owned());
    };
    let left = end.saturating_sub(now_ms).div_ceil(1_000);
    Some(match status.connections {
        None => format!("draining: {left} s left"),
        Some(1) => format!("draining: 1 connection, {left} s left"),
        Some(count) => format!("draining: {count} connections, {left} s left"),
    })
}

/// Message and exit code, in one line.
pub(crate) fn reason(status: &pb::TaskStatus) -> String {
    let message = one_line(&status.message);
    match status.exit_code {
        Some(code) if code != 0 && message.is_empty() => format!("exit code {code}"),
        Some(code) if code != 0 && !message.contains(&code.to_string()) => {
            format!("{message} (exit code {code})")
        }
        _ => message,
    }
}

//! Enumerations and small values as words.

use serde_json::{Map, Value, json};
use shoal_api::pb;

use super::Lookup;

/// `running`, `failed`, ...
pub(crate) fn task_state(state: pb::TaskState) -> &'static str {
    match state {
        pb::TaskState::Unspecified => "unknown",
        pb::TaskState::Pending => "pending",
        pb::TaskState::Assigned => "assigned",
        pb::TaskState::Preparing => "preparing",
        pb::TaskState::Starting => "starting",
        pb::TaskState::Running => "running",
        pb::TaskState::Complete => "complete",
        pb::TaskState::Shutdown => "shutdown",
        pb::TaskState::Failed => "failed",
        pb::TaskState::Rejected => "rejected",
        pb::TaskState::Orphaned => "orphaned",
    }
}

/// What a task's health check says; empty without one.
pub(super) fn health(health: pb::Health) -> &'static str {
    match health {
        pb::Health::Unspecified => "",
        pb::Health::Starting => "starting",
        pb::Health::Healthy => "healthy",
        pb::Health::Unhealthy => "unhealthy",
    }
}

/// A health check's question in docker's words, which know no other than the first two.
pub(super) fn health_test(check: &pb::HealthCheck) -> Vec<String> {
    match &check.probe {
        Some(pb::health_check::Probe::Command(command)) => match command.words.as_slice() {
            [shell, flag, text] if shell == "/bin/sh" && flag == "-c" => {
                vec!["CMD-SHELL".to_owned(), text.clone()]
            }
            words => std::iter::once("CMD".to_owned()).chain(words.iter().cloned()).collect(),
        },
        Some(pb::health_check::Probe::Http(http)) => {
            vec!["HTTP".to_owned(), format!("http://{}{}", http.target, http.path)]
        }
        Some(pb::health_check::Probe::Tcp(target)) => vec!["TCP".to_owned(), target.clone()],
        None => vec!["NONE".to_owned()],
    }
}

pub(super) fn desired_state(state: pb::DesiredState) -> &'static str {
    match state {
        pb::DesiredState::Unspecified => "unknown",
        pb::DesiredState::Running => "running",
        pb::DesiredState::Draining => "draining",
        pb::DesiredState::Shutdown => "shutdown",
        pb::DesiredState::Remove => "remove",
    }
}

/// The engine a swarm is set to; a manager of the first version says nothing, which is auto.
pub(crate) fn engine(word: &str) -> &str {
    if word.is_empty() { "auto" } else { word }
}

/// How a service balances.
pub(super) fn policy(spec: &pb::ServiceSpec) -> &str {
    if spec.lb.is_empty() { "auto" } else { &spec.lb }
}

/// What a service's name stands for.
pub(super) fn endpoint_mode(spec: &pb::ServiceSpec) -> &str {
    if spec.endpoint_mode.is_empty() { "vip" } else { &spec.endpoint_mode }
}

/// `worker` or `manager`.
pub(crate) fn node_role(role: pb::NodeRole) -> &'static str {
    match role {
        pb::NodeRole::Unspecified => "unknown",
        pb::NodeRole::Worker => "worker",
        pb::NodeRole::Manager => "manager",
    }
}

pub(super) fn node_state(state: pb::NodeState) -> &'static str {
    match state {
        pb::NodeState::Unspecified | pb::NodeState::Unknown => "unknown",
        pb::NodeState::Ready => "ready",
        pb::NodeState::Suspect => "suspect",
        pb::NodeState::Down => "down",
    }
}

pub(super) fn availability(availability: pb::Availability) -> &'static str {
    match availability {
        pb::Availability::Unspecified => "unknown",
        pb::Availability::Active => "active",
        pb::Availability::Pause => "pause",
        pb::Availability::Drain => "drain",
    }
}

pub(super) fn protocol(protocol: pb::Protocol) -> &'static str {
    match protocol {
        pb::Protocol::Udp => "udp",
        pb::Protocol::Sctp => "sctp",
        _ => "tcp",
    }
}

pub(super) fn restart_condition(condition: pb::RestartCondition) -> &'static str {
    match condition {
        pb::RestartCondition::None => "none",
        pb::RestartCondition::OnFailure => "on-failure",
        _ => "any",
    }
}

pub(super) fn update_order(order: pb::UpdateOrder) -> &'static str {
    match order {
        pb::UpdateOrder::StopFirst => "stop-first",
        _ => "start-first",
    }
}

/// A command as one line, quoted where a shell would need it.
pub(super) fn command_text(command: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=@%+,".contains(c);
    let word = |w: &String| {
        if !w.is_empty() && w.chars().all(plain) {
            w.clone()
        } else {
            format!("'{}'", w.replace('\'', r"'\''"))
        }
    };
    command.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Attachments as items.
pub(super) fn attachments_item(attachments: &[pb::Attachment], lookup: &Lookup) -> Value {
    let one = |a: &pb::Attachment| {
        json!({
            "network": lookup.network(&a.network), "networkId": a.network, "v4": a.v4, "v6": a.v6,
            "endpoint": a.endpoint,
        })
    };
    attachments.iter().map(one).collect()
}

/// Labels in the order of their keys.
pub(super) fn labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Value {
    let map: Map<String, Value> = labels.into_iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
    Value::Object(map)
}

/// `a=1,b=2`.
pub(super) fn labels_text<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let mut pairs: Vec<String> = labels.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.sort();
    pairs.join(",")
}

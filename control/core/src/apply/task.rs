//! Tasks: what the leader loops do with them.

use shoal_types::id::{NodeId, TaskId};
use shoal_types::object::{DesiredState, Health, NodeState, Task, TaskState, TaskStatus, Timestamp};

use super::At;
use crate::addresses;
use crate::command::{Command, Outcome};
use crate::rejection::{Kind, Rejection};
use crate::state::{RestartHistory, State};
use crate::{host_ports, view};

/// Attempts that are remembered of a slot at most.
const ATTEMPTS_REMEMBERED: usize = 1_000;

fn find<'a>(state: &'a State, id: &TaskId) -> Result<&'a Task, Rejection> {
    state.tasks.get(id).ok_or_else(|| Rejection::not_found(Kind::Task, id))
}

fn outdated(what: &str, why: impl Into<String>) -> Rejection {
    Rejection::Outdated { what: what.to_owned(), why: why.into() }
}

pub(super) fn create(state: &mut State, at: At, command: &Command) -> Result<Outcome, Rejection> {
    let Command::CreateTask { id, service, slot, not_before, replaces, restart, message } = command else {
        return Ok(Outcome::Unchanged);
    };
    if state.tasks.contains_key(id) {
        return Err(Rejection::IdTaken { kind: Kind::Task, id: id.to_string() });
    }
    let owner = state.services.get(service).ok_or_else(|| Rejection::not_found(Kind::Service, service))?;
    if owner.removing {
        return Err(Rejection::Removing { service: owner.spec.name.clone() });
    }
    if let Some(old) = replaces {
        let old = find(state, old)?;
        if !old.status.state.is_terminal() || old.service != *service || old.slot != *slot {
            return Err(outdated("create-task", "the task it replaces has not ended, or is of another slot"));
        }
    }
    let task = Task {
        id: id.clone(),
        service: service.clone(),
        slot: slot.clone(),
        spec: owner.spec.task.clone(),
        task_version: owner.task_version,
        node: None,
        desired: DesiredState::Running,
        desired_index: at.index,
        desired_at: at.now,
        status: status(TaskState::Pending, at.now, message.clone()),
        attachments: Vec::new(),
        created_at: at.now,
        not_before: *not_before,
    };
    if let Some(old) = replaces {
        state.edit_task(old, |t| move_desired(t, at, DesiredState::Shutdown));
    }
    if *restart {
        count_attempt(state, at, &task);
    }
    state.put_task(task);
    Ok(Outcome::Done)
}

fn status(state: TaskState, since: Timestamp, message: String) -> TaskStatus {
    TaskStatus {
        state,
        since,
        message,
        exit_code: None,
        pid: None,
        health: Health::Unchecked,
        connections: None,
    }
}

/// Remembers a restart while the policy has a limit to hold against it.
fn count_attempt(state: &mut State, at: At, task: &Task) {
    let limit =
        usize::try_from(task.spec.restart.max_attempts).unwrap_or(usize::MAX).min(ATTEMPTS_REMEMBERED);
    let key = (task.service.clone(), task.slot.clone());
    if limit == 0 {
        state.restarts.remove(&key);
        return;
    }
    let history = state.restarts.entry(key).or_default();
    if history.task_version != task.task_version {
        *history = RestartHistory { task_version: task.task_version, at: Vec::new() };
    }
    history.at.push(at.now);
    let surplus = history.at.len().saturating_sub(limit);
    history.at.drain(..surplus);
}

pub(super) fn assign(state: &mut State, at: At, id: &TaskId, node: &NodeId) -> Result<Outcome, Rejection> {
    let task = find(state, id)?;
    if task.status.state != TaskState::Pending || task.desired != DesiredState::Running {
        return Err(outdated("assign-task", "the task is not waiting for a node"));
    }
    if !state.nodes.contains_key(node) {
        return Err(Rejection::not_found(Kind::Node, node));
    }
    let service = state
        .services
        .get(&task.service)
        .ok_or_else(|| Rejection::not_found(Kind::Service, &task.service))?;
    let host_ports = host_ports::of(&service.ports);
    if let Some((place, other)) = host_ports::in_the_way(state, node, &service.id, &host_ports) {
        return Err(outdated(
            "assign-task",
            format!("service '{}' has port {place} on the node", other.spec.name),
        ));
    }
    let networks = addresses::networks_of(state, &service.spec);
    let asked_by = format!("task '{}'", view::task_name(state, task));
    let attachments = addresses::allocate(state, &networks, &asked_by)?;
    state.edit_task(id, |t| {
        t.node = Some(node.clone());
        t.attachments = attachments;
        t.status = status(TaskState::Assigned, at.now, String::new());
    });
    Ok(Outcome::Done)
}

pub(super) fn set_pending_reason(
    state: &mut State,
    id: &TaskId,
    message: &str,
) -> Result<Outcome, Rejection> {
    let task = find(state, id)?;
    if task.status.state != TaskState::Pending {
        return Err(outdated("set-pending-reason", "the task has a node"));
    }
    state.edit_task(id, |t| message.clone_into(&mut t.status.message));
    Ok(Outcome::Done)
}

fn move_desired(task: &mut Task, at: At, desired: DesiredState) {
    if desired > task.desired {
        task.desired = desired;
        task.desired_index = at.index;
        task.desired_at = at.now;
    }
}

pub(super) fn set_desired(
    state: &mut State,
    at: At,
    id: &TaskId,
    desired: DesiredState,
) -> Result<Outcome, Rejection> {
    if find(state, id)?.desired >= desired {
        return Ok(Outcome::Unchanged);
    }
    state.edit_task(id, |t| move_desired(t, at, desired));
    Ok(Outcome::Done)
}

pub(super) fn pass_barrier(state: &mut State, at: At, ids: &[TaskId]) -> Outcome {
    let draining: Vec<&TaskId> = ids
        .iter()
        .filter(|id| state.tasks.get(*id).is_some_and(|t| t.desired == DesiredState::Draining))
        .collect();
    if draining.is_empty() {
        return Outcome::Unchanged;
    }
    for id in draining {
        state.tracks.entry(id.clone()).or_default().barrier_at.get_or_insert(at.now);
    }
    Outcome::Done
}

pub(super) fn remove(state: &mut State, at: At, id: &TaskId) -> Result<Outcome, Rejection> {
    let task = find(state, id)?;
    let node = task.node.as_ref().and_then(|n| state.nodes.get(n));
    let unreachable = task.desired == DesiredState::Remove && node.is_none_or(|n| n.state == NodeState::Down);
    let unplaced = task.node.is_none() && task.desired >= DesiredState::Shutdown;
    if !(task.status.state.is_terminal() || unreachable || unplaced) {
        return Err(outdated("remove-task", "the task has not ended and its node is alive"));
    }
    let held = task.attachments.clone();
    if let (Some(node), false) = (node.map(|n| n.id.clone()), held.is_empty()) {
        // The node may still run it, unseen: nobody gets these addresses before it has let go.
        let stranded = state.stranded.entry(node).or_default();
        stranded.index = stranded.index.max(at.index);
        stranded.attachments.extend(held);
    } else {
        addresses::release(state, &held);
    }
    state.drop_task(id);
    Ok(Outcome::Done)
}

//! Tasks.

use std::collections::BTreeMap;

use shoal_api::pb;
use shoal_core::{State, view};
use shoal_types::ServiceId;
use shoal_types::object::{Slot, Task};
use tonic::Status;

use super::describe;
use crate::manager::{Manager, rejection};

pub(super) async fn list(manager: &Manager, request: pb::ListTasksRequest) -> Result<pb::TaskList, Status> {
    let seen = manager.read().await?;
    let state = seen.state.as_ref();
    let service = match request.service.as_str() {
        "" => None,
        target => Some(view::find_service(state, target).map_err(rejection)?.id.clone()),
    };
    let node = match request.node.as_str() {
        "" => None,
        target => Some(view::find_node(state, target).map_err(rejection)?.id.clone()),
    };
    let mut tasks: Vec<&Task> = match (&service, &node) {
        (Some(service), _) => state.tasks_of_service(service).collect(),
        (None, Some(node)) => state.tasks_of_node(node).collect(),
        (None, None) => state.tasks().values().collect(),
    };
    if let Some(node) = &node {
        tasks.retain(|task| task.node.as_ref() == Some(node));
    }
    if !request.all {
        tasks = current(tasks);
    }
    sort(state, &mut tasks);
    Ok(pb::TaskList { tasks: tasks.into_iter().map(|task| describe::task(state, task)).collect() })
}

/// Tasks that are not over, and of each slot the last one that is.
pub(super) fn current(tasks: Vec<&Task>) -> Vec<&Task> {
    let mut last: BTreeMap<(ServiceId, Slot), &Task> = BTreeMap::new();
    let (over, mut shown): (Vec<&Task>, Vec<&Task>) =
        tasks.into_iter().partition(|task| task.status.state.is_terminal());
    for task in over {
        let newest = last.entry((task.service.clone(), task.slot.clone())).or_insert(task);
        if (task.created_at, &task.id) > (newest.created_at, &newest.id) {
            *newest = task;
        }
    }
    shown.extend(last.into_values());
    shown
}

/// By service name, slot, and newest first within a slot.
pub(super) fn sort(state: &State, tasks: &mut [&Task]) {
    tasks.sort_by_cached_key(|task| {
        let service = state.services().get(&task.service).map(|s| s.spec.name.clone());
        (service, task.slot.clone(), std::cmp::Reverse((task.created_at, task.id.clone())))
    });
}

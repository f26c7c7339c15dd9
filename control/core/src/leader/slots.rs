//! A service's tasks by slot.

use std::collections::BTreeMap;

use shoal_types::object::{DesiredState, Service, Slot, Task};

use crate::state::State;

/// The tasks of one slot; each list oldest first.
#[derive(Debug, Default)]
pub(crate) struct SlotTasks<'a> {
    /// Wanted to run, whatever became of them: an ended one waits for the restart policy.
    pub(crate) live: Vec<&'a Task>,
    /// On their way out.
    pub(crate) leaving: Vec<&'a Task>,
    /// Ended, and something else is in their place.
    pub(crate) past: Vec<&'a Task>,
}

impl<'a> SlotTasks<'a> {
    /// Live tasks that have not ended.
    pub(crate) fn alive(&self) -> impl DoubleEndedIterator<Item = &'a Task> + '_ {
        self.live.iter().copied().filter(|t| !t.status.state.is_terminal())
    }

    /// Live tasks that have ended.
    pub(crate) fn ended(&self) -> impl DoubleEndedIterator<Item = &'a Task> + '_ {
        self.live.iter().copied().filter(|t| t.status.state.is_terminal())
    }

    /// Whether the slot has, or has had, a task of an older spec.
    pub(crate) fn has_older_than(&self, task_version: u64) -> bool {
        self.live.iter().chain(&self.leaving).chain(&self.past).any(|t| t.task_version < task_version)
    }
}

/// A service and its tasks.
#[derive(Debug)]
pub(crate) struct ServiceTasks<'a> {
    pub(crate) service: &'a Service,
    pub(crate) slots: BTreeMap<Slot, SlotTasks<'a>>,
}

impl<'a> ServiceTasks<'a> {
    pub(crate) fn of(state: &'a State, service: &'a Service) -> Self {
        let mut slots: BTreeMap<Slot, SlotTasks<'a>> = BTreeMap::new();
        for task in state.tasks_of_service(&service.id) {
            let slot = slots.entry(task.slot.clone()).or_default();
            if task.desired == DesiredState::Running {
                slot.live.push(task);
            } else if task.status.state.is_terminal() {
                slot.past.push(task);
            } else {
                slot.leaving.push(task);
            }
        }
        for slot in slots.values_mut() {
            for list in [&mut slot.live, &mut slot.leaving, &mut slot.past] {
                list.sort_by_key(|t| (t.task_version, state.order(&t.id)));
            }
        }
        Self { service, slots }
    }

    /// Live tasks of a slot.
    pub(crate) fn live(&self, slot: &Slot) -> Vec<&'a Task> {
        self.slots.get(slot).map(|s| s.live.clone()).unwrap_or_default()
    }

    /// Slots that have a live task.
    pub(crate) fn live_slots(&self) -> impl Iterator<Item = (&Slot, &SlotTasks<'a>)> {
        self.slots.iter().filter(|(_, tasks)| !tasks.live.is_empty())
    }
}

//! How a task's status stands in logs and snapshots. Their format does not name fields, so none can be added: the health
//! of a task that has a check, and the connections of one that drains, travel in its state; a status without is written as
//! ever.

use serde::{Deserialize, Serialize};

use super::{Health, TaskState, TaskStatus, Timestamp};

/// See [`TaskStatus`].
#[derive(Serialize, Deserialize)]
pub(super) struct Status {
    state: State,
    since: Timestamp,
    message: String,
    exit_code: Option<i32>,
    pid: Option<u32>,
}

/// The first ten are those of [`TaskState`], in its order.
#[derive(Serialize, Deserialize)]
enum State {
    Pending,
    Assigned,
    Preparing,
    Starting,
    Running,
    Complete,
    Shutdown,
    Failed,
    Rejected,
    Orphaned,
    Checked { state: TaskState, health: Health },
    Counted { state: TaskState, health: Health, connections: u32 },
}

impl State {
    const fn of(state: TaskState, health: Health, connections: Option<u32>) -> Self {
        if let Some(connections) = connections {
            return Self::Counted { state, health, connections };
        }
        if !matches!(health, Health::Unchecked) {
            return Self::Checked { state, health };
        }
        match state {
            TaskState::Pending => Self::Pending,
            TaskState::Assigned => Self::Assigned,
            TaskState::Preparing => Self::Preparing,
            TaskState::Starting => Self::Starting,
            TaskState::Running => Self::Running,
            TaskState::Complete => Self::Complete,
            TaskState::Shutdown => Self::Shutdown,
            TaskState::Failed => Self::Failed,
            TaskState::Rejected => Self::Rejected,
            TaskState::Orphaned => Self::Orphaned,
        }
    }

    const fn parts(self) -> (TaskState, Health, Option<u32>) {
        let state = match self {
            Self::Pending => TaskState::Pending,
            Self::Assigned => TaskState::Assigned,
            Self::Preparing => TaskState::Preparing,
            Self::Starting => TaskState::Starting,
            Self::Running => TaskState::Running,
            Self::Complete => TaskState::Complete,
            Self::Shutdown => TaskState::Shutdown,
            Self::Failed => TaskState::Failed,
            Self::Rejected => TaskState::Rejected,
            Self::Orphaned => TaskState::Orphaned,
            Self::Checked { state, health } => return (state, health, None),
            Self::Counted { state, health, connections } => return (state, health, Some(connections)),
        };
        (state, Health::Unchecked, None)
    }
}

impl From<Status> for TaskStatus {
    fn from(stored: Status) -> Self {
        let (state, health, connections) = stored.state.parts();
        let Status { since, message, exit_code, pid, .. } = stored;
        Self { state, health, since, message, exit_code, pid, connections }
    }
}

impl From<TaskStatus> for Status {
    fn from(status: TaskStatus) -> Self {
        let TaskStatus { state, health, since, message, exit_code, pid, connections } = status;
        Self { state: State::of(state, health, connections), since, message, exit_code, pid }
    }
}

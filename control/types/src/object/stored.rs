//! How a task's status and a node stand in logs and snapshots. Their format does not name fields, so none can be added: the
//! health of a task that has a check, and the connections of one that drains, travel in its state, and a node's weight in its
//! availability; what has none of them is written as ever.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{Attachment, Health, NodeDescription, NodeRole, NodeState, TaskState, TaskStatus, Timestamp};
use crate::id::{Name, NodeId};
use crate::lb::Weight;

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

/// See [`super::Node`].
#[derive(Serialize, Deserialize)]
pub(super) struct Node {
    id: NodeId,
    name: Name,
    role: NodeRole,
    availability: Availability,
    state: NodeState,
    state_since: Timestamp,
    joined_at: Timestamp,
    control_addr: Option<SocketAddr>,
    data_addr: IpAddr,
    router: Attachment,
    description: NodeDescription,
    labels: BTreeMap<String, String>,
}

/// The first three are those of [`super::Availability`], in its order.
#[derive(Serialize, Deserialize)]
enum Availability {
    Active,
    Pause,
    Drain,
    Weighted { availability: super::Availability, weight: Weight },
}

impl Availability {
    fn of(availability: super::Availability, weight: Weight) -> Self {
        if weight != Weight::default() {
            return Self::Weighted { availability, weight };
        }
        match availability {
            super::Availability::Active => Self::Active,
            super::Availability::Pause => Self::Pause,
            super::Availability::Drain => Self::Drain,
        }
    }

    fn parts(self) -> (super::Availability, Weight) {
        let availability = match self {
            Self::Active => super::Availability::Active,
            Self::Pause => super::Availability::Pause,
            Self::Drain => super::Availability::Drain,
            Self::Weighted { availability, weight } => return (availability, weight),
        };
        (availability, Weight::default())
    }
}

impl From<Node> for super::Node {
    fn from(stored: Node) -> Self {
        let (availability, weight) = stored.availability.parts();
        Self {
            id: stored.id,
            name: stored.name,
            role: stored.role,
            availability,
            weight,
            state: stored.state,
            state_since: stored.state_since,
            joined_at: stored.joined_at,
            control_addr: stored.control_addr,
            data_addr: stored.data_addr,
            router: stored.router,
            description: stored.description,
            labels: stored.labels,
        }
    }
}

impl From<super::Node> for Node {
    fn from(node: super::Node) -> Self {
        Self {
            id: node.id,
            name: node.name,
            role: node.role,
            availability: Availability::of(node.availability, node.weight),
            state: node.state,
            state_since: node.state_since,
            joined_at: node.joined_at,
            control_addr: node.control_addr,
            data_addr: node.data_addr,
            router: node.router,
            description: node.description,
            labels: node.labels,
        }
    }
}

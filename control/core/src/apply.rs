//! Commands applied to the state. Every handler checks first and changes then: nothing fallible follows the first
//! change, so a rejection leaves the state as it was.

mod balancing;
mod cluster;
mod network;
mod node;
mod report;
mod service;
mod service_spec;
mod task;
mod token;

use shoal_types::object::Timestamp;

use crate::command::{Command, Outcome};
use crate::rejection::Rejection;
use crate::state::State;

/// Where in the log and when an entry is applied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    pub(crate) index: u64,
    pub(crate) now: Timestamp,
}

/// Applies one command.
pub(crate) fn command(state: &mut State, at: At, command: &Command) -> Result<Outcome, Rejection> {
    if let Command::InitCluster(init) = command {
        return cluster::init(state, at, init);
    }
    if state.cluster.is_none() {
        return Err(Rejection::NotInitialized);
    }
    match command {
        Command::InitCluster(_) => Err(Rejection::NotInitialized),
        Command::CreateNetwork { id, spec } => network::create(state, at, id, spec),
        Command::RemoveNetwork { id } => network::remove(state, id),
        Command::CreateService { id, spec } => service::create(state, at, id, spec),
        Command::UpdateService { id, spec, expect_version } => {
            service::update(state, at, id, spec, *expect_version)
        }
        Command::ScaleService { id, replicas } => service::scale(state, at, id, *replicas),
        Command::RemoveService { id } => service::remove(state, at, id),
        Command::CreateToken { id, role, secret_sha256, ttl_ms, uses } => token::create(
            state,
            at,
            id,
            token::Terms { role: *role, secret_sha256, ttl_ms: *ttl_ms, uses: *uses },
        ),
        Command::RemoveToken { id } => token::remove(state, id),
        Command::Join(join) => node::join(state, at, join),
        Command::UpdateNode { id, availability, labels_add, labels_remove } => {
            node::update(state, id, *availability, None, labels_add, labels_remove)
        }
        Command::WeighNode { id, weight, availability, labels_add, labels_remove } => {
            node::update(state, id, *availability, Some(*weight), labels_add, labels_remove)
        }
        Command::RemoveNode { id, force } => node::remove(state, at, id, *force),
        Command::NodeLeft { id } => node::left(state, at, id),
        Command::SetNodeState { id, state: verdict } => node::set_state(state, at, id, *verdict),
        Command::NodeHello { id, description, data_addr } => {
            node::hello(state, at, id, description, *data_addr)
        }
        Command::SetControlAddr { id, addr } => node::set_control_addr(state, id, *addr),
        Command::ReportTasks { node, updates } => report::tasks(state, at, node, updates),
        Command::CreateTask { .. } => task::create(state, at, command),
        Command::AssignTask { id, node } => task::assign(state, at, id, node),
        Command::SetPendingReason { id, message } => task::set_pending_reason(state, id, message),
        Command::SetDesired { id, desired } => task::set_desired(state, at, id, *desired),
        Command::PassBarrier { ids } => Ok(task::pass_barrier(state, at, ids)),
        Command::RemoveTask { id } => task::remove(state, at, id),
        Command::FinishServiceRemoval { id } => service::finish_removal(state, id),
        Command::ReleaseStranded { node } => node::release_stranded(state, node),
        Command::SetLbEngine { engine } => balancing::set_engine(state, *engine),
        Command::ReportLb { node, lb } => balancing::report(state, node, *lb),
        Command::SetDirectRouting { direct } => balancing::set_direct(state, at, *direct),
    }
}

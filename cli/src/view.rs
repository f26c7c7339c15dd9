//! Objects as rows: docker's field names for templates and tables, `shoal/v1` items for `--json`.

mod network;
mod node;
mod ports;
mod service;
mod task;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;

use shoal_api::pb;

pub(crate) use network::{NETWORK_COLUMNS, TOKEN_COLUMNS, network_object, network_row, token_row};
pub(crate) use node::{NODE_COLUMNS, local_item, node_object, node_row};
pub(crate) use ports::{chosen, spec_ports_texts};
pub(crate) use service::{SERVICE_COLUMNS, service_object, service_row, spec_item};
pub(crate) use task::{TASK_COLUMNS, reason, task_order, task_row};
pub(crate) use words::{engine, node_role, task_state};

/// Characters of a command in a table.
const COMMAND_WIDTH: usize = 40;

/// What rows need besides the object itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lookup {
    /// Names of networks by id.
    pub(crate) networks: BTreeMap<String, String>,
    /// Id of the ingress network.
    pub(crate) ingress: String,
    /// Print ids whole.
    pub(crate) no_trunc: bool,
    /// The present, milliseconds since the epoch.
    pub(crate) now_ms: u64,
}

impl Lookup {
    /// Takes names from the list of networks.
    pub(crate) fn new(networks: &[pb::NetworkInfo], no_trunc: bool, now_ms: u64) -> Self {
        let name = |n: &pb::NetworkInfo| n.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default();
        Self {
            networks: networks.iter().map(|n| (n.id.clone(), name(n))).collect(),
            ingress: networks.iter().find(|n| n.ingress).map(|n| n.id.clone()).unwrap_or_default(),
            no_trunc,
            now_ms,
        }
    }

    /// An id as tables show it.
    pub(crate) fn id(&self, id: &str) -> String {
        if self.no_trunc { id.to_owned() } else { id.chars().take(12).collect() }
    }

    /// A command as tables show it.
    pub(crate) fn command(&self, command: &[String]) -> String {
        let text = words::command_text(command);
        if self.no_trunc || text.chars().count() <= COMMAND_WIDTH {
            return text;
        }
        text.chars().take(COMMAND_WIDTH - 1).chain(['…']).collect()
    }

    /// A network's name, or its id when the name is not known.
    pub(crate) fn network(&self, id: &str) -> String {
        self.networks.get(id).cloned().unwrap_or_else(|| id.to_owned())
    }
}

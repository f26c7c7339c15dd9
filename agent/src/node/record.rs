//! The membership on disk.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shoal_api::pb;
use shoal_types::id::Name;
use shoal_types::object::NodeRole;
use shoal_types::{ClusterId, NodeId};

use crate::config::Config;
use crate::durable::{self, FileError};

/// What the node is a member of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Format of this file.
    format: u32,
    pub(super) node: NodeId,
    pub(super) name: Name,
    pub(super) cluster: ClusterId,
    pub(super) cluster_name: String,
    pub(super) role: NodeRole,
    pub(super) managers: Vec<SocketAddr>,
    pub(super) data_addr: IpAddr,
    /// Where the manager of this node is reached.
    pub(super) advertise: Option<SocketAddr>,
}

const FORMAT: u32 = 1;

/// Why the record can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf, #[source] serde_json::Error),
    #[error("{} is of format {found}; this release knows format {FORMAT}", path.display())]
    Format { path: PathBuf, found: u32 },
    #[error("the manager's answer can't be used")]
    Answer(#[from] shoal_api::wire::WireError),
}

fn path(config: &Config) -> PathBuf {
    config.state_dir.join("node.json")
}

impl Record {
    /// From a certificate that a manager issued.
    pub(super) fn new(certificate: &pb::Certificate, data_addr: IpAddr) -> Result<Self, RecordError> {
        use shoal_api::wire::field;
        let managers = certificate
            .manager_addrs
            .iter()
            .map(|text| field("manager_addrs", text))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            format: FORMAT,
            node: field("node_id", &certificate.node_id)?,
            name: field("node_name", &certificate.node_name)?,
            cluster: field("cluster_id", &certificate.cluster_id)?,
            cluster_name: String::new(),
            role: certificate.role().try_into()?,
            managers,
            data_addr,
            advertise: None,
        })
    }

    /// Reads it; none when the node is in no swarm.
    pub(super) fn load(config: &Config) -> Result<Option<Self>, RecordError> {
        let path = path(config);
        let Some(content) = durable::read(&path)? else { return Ok(None) };
        let record: Self =
            serde_json::from_slice(&content).map_err(|error| RecordError::Damaged(path.clone(), error))?;
        if record.format == FORMAT {
            Ok(Some(record))
        } else {
            Err(RecordError::Format { path, found: record.format })
        }
    }

    /// Writes it.
    pub(super) fn store(&self, config: &Config) -> Result<(), RecordError> {
        let path = path(config);
        let content =
            serde_json::to_vec_pretty(self).map_err(|error| RecordError::Damaged(path.clone(), error))?;
        durable::write(&path, &content, 0o600)?;
        Ok(())
    }

    /// Forgets it.
    pub(super) fn forget(config: &Config) -> Result<(), FileError> {
        durable::remove(&path(config))
    }
}

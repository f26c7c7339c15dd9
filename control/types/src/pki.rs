//! Words that certificates of a cluster use; both ends of a connection check them.
//!
//! Subject: O = cluster id, OU = [`CertRole`], CN = node id. Names: `<node-id>.shoal`, and for managers also
//! [`MANAGER_SERVER_NAME`], because an agent dials an address and does not know which manager is behind it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::id::NodeId;

/// DNS name in every manager's certificate: what a TLS client asks for when it dials any manager.
pub const MANAGER_SERVER_NAME: &str = "manager.shoal";

/// How much earlier than it was issued a certificate says its life begins: clocks of nodes may be that far behind.
pub const BACKDATE: Duration = Duration::from_hours(1);

/// DNS name in the certificate of one node.
pub fn node_server_name(node: &NodeId) -> String {
    format!("{node}.shoal")
}

/// What the holder of a certificate may do: the subject's organisational unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CertRole {
    /// `shoald`: its own node's session, its own renewal.
    Agent,
    /// `shoal-control`: also Raft and the operator's API.
    Manager,
}

impl CertRole {
    /// As it stands in the certificate.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Manager => "manager",
        }
    }
}

impl fmt::Display for CertRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CertRole {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "agent" => Ok(Self::Agent),
            "manager" => Ok(Self::Manager),
            _ => Err(format!("'{text}' is no role of a certificate; known are agent and manager")),
        }
    }
}

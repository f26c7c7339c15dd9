//! Addresses of networks: host numbers per network, first those never used, then the longest unused.
use serde::{Deserialize, Serialize};
use shoal_types::id::NetworkId;
use std::collections::{BTreeMap, VecDeque};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ipam {
    pub(crate) hosts: BTreeMap<NetworkId, VecDeque<u32>>,
}

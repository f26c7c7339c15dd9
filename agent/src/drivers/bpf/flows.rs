//! Flows the programs recorded: reading them, and purging those that must not go on.

use std::collections::BTreeMap;

use shoal_ebpf_common::keys::FlowKey;
use shoal_ebpf_common::packet::{UDP, reply_key};
use shoal_ebpf_common::values::{FlowVal, ReplyVal};

use super::{BpfDriver, BpfError};

impl BpfDriver {
    /// Every flow, as the client sends it.
    pub fn flows(&self) -> Result<BTreeMap<FlowKey, FlowVal>, BpfError> {
        self.flows.dump()
    }

    /// What happens to answers, by the tuple the endpoint sends.
    pub fn replies(&self) -> Result<BTreeMap<FlowKey, ReplyVal>, BpfError> {
        self.replies.dump()
    }

    /// Flows to an endpoint; zero of them is when draining may end.
    pub fn flows_of(&self, endpoint: u64) -> Result<usize, BpfError> {
        Ok(self.flows()?.values().filter(|flow| flow.endpoint == endpoint).count())
    }

    /// Removes the UDP flows of an endpoint that is gone, so that their clients' next packets go elsewhere.
    /// Returns how many. TCP flows stay: their packets are refused, which ends them.
    pub fn purge_udp(&mut self, endpoint: u64) -> Result<usize, BpfError> {
        self.purge(|key, flow| key.proto() == UDP && flow.endpoint == endpoint)
    }

    /// Removes the UDP flows of a published port that is withdrawn. Returns how many.
    pub fn purge_udp_port(&mut self, port: u16) -> Result<usize, BpfError> {
        self.purge(|key, _| key.proto() == UDP && key.network() == 0 && key.dport == port)
    }

    /// Removes every flow the predicate names, in both directions. Returns how many.
    pub fn purge(&mut self, gone: impl Fn(&FlowKey, &FlowVal) -> bool) -> Result<usize, BpfError> {
        let mut purged = 0;
        for (key, flow) in self.flows()? {
            if !gone(&key, &flow) {
                continue;
            }
            if let Some(endpoint) = self.endpoints.get(&flow.endpoint)? {
                self.replies.remove(&reply_key(&key, &flow, endpoint.addr(key.src.is_v4())))?;
            }
            self.flows.remove(&key)?;
            purged += 1;
        }
        Ok(purged)
    }
}

//! Flows the programs recorded: reading them, and purging those that must not go on.

use std::collections::{BTreeMap, BTreeSet};

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::{FlowKey, PortKey};
use shoal_ebpf_common::packet::{UDP, reply_key};
use shoal_ebpf_common::values::{
    FlowVal, PROPOSE_ANYWAY, PROPOSE_FLOW, PROPOSE_REPLY, Proposal, REPLY_STEER, ReplyVal,
};

use super::{BpfDriver, BpfError};

impl BpfDriver {
    /// Removes what is recorded under a key, of a flow or of its answers, as a full table does: the bytes it has counted are
    /// lost. The other record stays, and makes up for it with the flow's next packet.
    pub fn forget(&mut self, key: &FlowKey) -> Result<bool, BpfError> {
        Ok(self.flows.remove(key)? | self.replies.remove(key)?)
    }

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

    /// Takes an endpoint away. Returns whether it was there. Its UDP flows go with the next [`BpfDriver::purge_withdrawn`], so
    /// that their clients' next packets go elsewhere. TCP flows stay: their packets are refused, which ends them.
    pub fn remove_endpoint(&mut self, endpoint: u64) -> Result<bool, BpfError> {
        let removed = self.endpoints.remove(&endpoint)?;
        self.gone.insert(endpoint);
        Ok(removed)
    }

    /// Takes a published port away. Returns whether it was there. Its UDP flows go with the next
    /// [`BpfDriver::purge_withdrawn`].
    pub fn withdraw(&mut self, port: &PortKey) -> Result<bool, BpfError> {
        let removed = self.ports.remove(port)?;
        if port.proto == UDP {
            self.withdrawn.insert(port.port);
        }
        Ok(removed)
    }

    /// Removes the UDP flows of endpoints that are gone and of withdrawn ports, but for those to addresses on which their
    /// service still publishes the port. Returns how many. To be called when all that goes has gone: of endpoints and ports
    /// there may be thousands, and to find the flows of any, all flows are looked at.
    pub fn purge_withdrawn(&mut self) -> Result<usize, BpfError> {
        if self.withdrawn.is_empty() && self.gone.is_empty() {
            return Ok(0);
        }
        let ports = self.withdrawn.clone();
        let mut endpoints = BTreeSet::new();
        for id in &self.gone {
            // One that is back meanwhile keeps its flows.
            if self.endpoints.get(id)?.is_none() {
                endpoints.insert(*id);
            }
        }
        let mut published = self.ports.dump()?;
        published.retain(|key, _| key.proto == UDP && ports.contains(&key.port));
        let goes_on = |key: &FlowKey, flow: &FlowVal| {
            [Addr::ANY, key.dst].into_iter().any(|addr| {
                let port = published.get(&PortKey::new(addr, key.dport, UDP));
                port.is_some_and(|port| port.service == flow.service)
            })
        };
        let is_withdrawn = |key: &FlowKey, flow: &FlowVal| {
            key.network() == 0 && ports.contains(&key.dport) && !goes_on(key, flow)
        };
        let purged = self.purge(|key, flow| {
            key.proto() == UDP && (endpoints.contains(&flow.endpoint) || is_withdrawn(key, flow))
        })?;
        self.withdrawn.clear();
        self.gone.clear();
        Ok(purged)
    }

    /// Removes every flow the predicate names, in both directions. Returns how many.
    pub fn purge(&mut self, gone: impl Fn(&FlowKey, &FlowVal) -> bool) -> Result<usize, BpfError> {
        let flows = self.flows.scan()?.into_iter();
        let flows: BTreeMap<FlowKey, FlowVal> = flows.filter(|(key, flow)| gone(key, flow)).collect();
        let mut orphans = false;
        let mut proposals = Vec::new();
        for (key, flow) in &flows {
            match self.endpoints.get(&flow.endpoint)? {
                Some(endpoint) => {
                    let answers = reply_key(key, flow, endpoint.addr(key.src.is_v4()));
                    proposals.push(anyway(PROPOSE_REPLY, answers));
                }
                None => orphans = true,
            }
            proposals.push(anyway(PROPOSE_FLOW, *key));
        }
        self.propose_all(&proposals)?;
        if orphans {
            self.purge_answers(&flows)?;
        }
        Ok(flows.len())
    }

    /// Removes what was recorded for the answers to flows whose endpoint, and with it the address that answers, is
    /// already gone.
    fn purge_answers(&mut self, flows: &BTreeMap<FlowKey, FlowVal>) -> Result<(), BpfError> {
        let mut proposals = Vec::new();
        for (answers, reply) in self.replies.scan()? {
            let request = FlowKey {
                src: answers.dst,
                dst: reply.addr,
                sport: reply.client_port,
                dport: reply.port,
                scope: answers.scope,
            };
            let is_gone = flows.get(&request).is_some_and(|flow| flow.target_port == answers.sport);
            if reply.kind == REPLY_STEER || !is_gone {
                continue;
            }
            proposals.push(anyway(PROPOSE_REPLY, answers));
        }
        self.propose_all(&proposals)?;
        Ok(())
    }
}

/// An entry that goes even if it has been used since.
fn anyway(table: u32, key: FlowKey) -> Proposal {
    Proposal { key, table: table | PROPOSE_ANYWAY, ..Proposal::default() }
}

//! Taking flows away that have had their time: what is found is proposed to a program, which removes it if it has not been
//! used since.

use std::collections::BTreeMap;
use std::io;

use aya::maps::{Array, MapData};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use shoal_ebpf_common::keys::FlowKey;
use shoal_ebpf_common::life::{PROPOSALS, TICK_SHIFT, idle, is_expired, is_live};
use shoal_ebpf_common::values::{ALIASED, BALANCED, PROPOSE_FLOW, PROPOSE_NOTHING, PROPOSE_REPLY, Proposal};

use super::pod::Plain;
use super::table::map_error;
use super::totals::{Totals, of_records};
use super::{BpfDriver, BpfError, sys};

/// What a look at the tables of flows found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Entries of the table of flows, and of the table of answers.
    pub entries: (usize, usize),
    /// Entries whose time was over.
    pub proposed: usize,
    /// Those that were removed: the others were used meanwhile.
    pub removed: usize,
    /// Flows that are under way, by the table of endpoints that led them.
    pub live: BTreeMap<u64, u64>,
    /// The same, by the endpoint they were led to; without those whose endpoint a balancer knows.
    pub endpoints: BTreeMap<u64, u64>,
    /// Bytes of all flows there ever were, but for what a full table gave up.
    pub bytes: Totals,
}

/// The programs' clock (see [`shoal_ebpf_common::life`]), now.
pub fn clock() -> u32 {
    u32::try_from((sys::monotonic() >> TICK_SHIFT) & u64::from(u32::MAX)).unwrap_or(0)
}

impl BpfDriver {
    /// Removes what has had its time by a moment of the programs' clock.
    pub fn collect(&mut self, now: u32) -> Result<Collected, BpfError> {
        // In this order, what goes meanwhile may be missed until the next time, but nothing is counted twice.
        let totals = self.totals()?;
        let (flows, replies) = (self.flows.scan()?, self.replies.scan()?);
        let entries = (flows.len(), replies.len());
        let (mut live, mut endpoints) = (BTreeMap::<u64, u64>::new(), BTreeMap::<u64, u64>::new());
        // A record of a translated port is a task's node's, beside that of the flow where it entered.
        for (key, flow) in flows.iter().filter(|(_, flow)| flow.endpoint != ALIASED) {
            if is_live(key.proto(), flow.state, idle(now, flow.seen)) {
                *live.entry(flow.service).or_default() += 1;
                if flow.endpoint != BALANCED {
                    *endpoints.entry(flow.endpoint).or_default() += 1;
                }
            }
        }
        let bytes = self.tell(&totals, &of_records(&flows, &replies))?;
        let flows = flows.iter().map(|(key, flow)| (PROPOSE_FLOW, key, flow.seen, flow.state));
        let replies = replies.iter().map(|(key, reply)| (PROPOSE_REPLY, key, reply.seen, reply.state));
        let expired = |key: &FlowKey, seen, state| is_expired(key.proto(), state, idle(now, seen));
        let proposals: Vec<_> = flows
            .chain(replies)
            .filter(|(_, key, seen, state)| expired(key, *seen, *state))
            .map(|(table, key, seen, state)| Proposal { key: *key, seen, state, table, pad: 0 })
            .collect();
        let removed = self.propose_all(&proposals)?;
        Ok(Collected { entries, proposed: proposals.len(), removed, live, endpoints, bytes })
    }

    /// Has a program remove entries, which takes their bytes over. Returns how many it did.
    pub(super) fn propose_all(&mut self, proposals: &[Proposal]) -> Result<usize, BpfError> {
        let mut removed = 0;
        for part in proposals.chunks(usize::try_from(PROPOSALS).unwrap_or(1)) {
            removed += self.propose(part)?;
        }
        Ok(removed)
    }

    fn propose(&mut self, proposals: &[Proposal]) -> Result<usize, BpfError> {
        let end = Proposal { table: PROPOSE_NOTHING, ..Proposal::default() };
        for (index, proposal) in (0..PROPOSALS).zip(proposals.iter().chain([&end])) {
            set(&mut self.proposed, index, *proposal)?;
        }
        let path = self.dirs.collector();
        let error = |source| BpfError::Pin { path: path.clone(), action: "run", source };
        let program = SchedClassifier::from_pin(&path).map_err(|source| error(io::Error::other(source)))?;
        // The kernel wants a packet; the program doesn't look at it.
        let packet = [0; 64];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&packet);
        let result = program.test_run(options).map_err(|source| error(io::Error::other(source)))?;
        Ok(usize::try_from(result.return_value).unwrap_or(0))
    }
}

fn set(
    proposed: &mut Array<MapData, Plain<Proposal>>,
    index: u32,
    proposal: Proposal,
) -> Result<(), BpfError> {
    proposed.set(index, Plain(proposal), 0).map_err(|source| map_error("PROPOSED", "write", source))
}

//! What the programs count.

use std::collections::BTreeMap;

use aya::maps::{MapData, PerCpuArray};
use shoal_ebpf_common::reason::{Event, Program, Reason, stat_index};

use super::table::{is_gone, map_error};
use super::{BpfDriver, BpfError};
use crate::in_use::MapFill;

impl BpfDriver {
    /// Packets dropped, by reason.
    pub fn drops(&self) -> Result<BTreeMap<Reason, u64>, BpfError> {
        let read = |&reason: &Reason| Ok((reason, sum(&self.drops, "DROPS", reason.index())?));
        Reason::ALL.iter().map(read).collect()
    }

    /// What each program did.
    pub fn stats(&self) -> Result<BTreeMap<(Program, Event), u64>, BpfError> {
        let mut stats = BTreeMap::new();
        for &program in Program::ALL {
            for &event in Event::ALL {
                stats.insert((program, event), sum(&self.stats, "STATS", stat_index(program, event))?);
            }
        }
        Ok(stats)
    }

    /// How full the maps are that can fill, as of the last time that each was read; `counters`: how many services
    /// [`BpfDriver::connections`] told of.
    pub fn fills(&self, counters: usize) -> Vec<MapFill> {
        let slots = u64::from(aya::maps::Array::len(&self.slots));
        vec![
            MapFill {
                map: "CONNECTIONS",
                entries: counters.try_into().unwrap_or(u64::MAX),
                limit: self.services.fill().limit,
            },
            self.total_fill(),
            self.flows.fill(),
            self.replies.fill(),
            self.services.fill(),
            self.endpoints.fill(),
            MapFill { map: "SLOTS", entries: slots.saturating_sub(self.free_slots.left()), limit: slots },
            self.ports.fill(),
            self.vips.fill(),
            self.peers.fill(),
            self.local.fill(),
            self.task_ifs.fill(),
            self.clients.fill(),
            self.members.fill(),
            self.local_addrs.fill(),
            self.doors.fill(),
            self.outward.fill(),
            self.routers.fill(),
            self.tunnels.fill(),
            self.balancer_ifs.fill(),
        ]
    }

    /// New flows each service was given.
    pub fn connections(&self) -> Result<BTreeMap<u64, u64>, BpfError> {
        let mut connections = BTreeMap::new();
        for entry in &self.connections {
            let (service, counts) = entry.map_err(|source| map_error("CONNECTIONS", "list", source))?;
            connections.insert(service, counts.iter().sum());
        }
        Ok(connections)
    }

    pub(crate) fn forget_connections(&mut self, service: u64) -> Result<(), BpfError> {
        match self.connections.remove(&service) {
            Err(source) if !is_gone(&source) => Err(map_error("CONNECTIONS", "remove from", source)),
            _ => Ok(()),
        }
    }
}

pub(super) fn sum(map: &PerCpuArray<MapData, u64>, name: &'static str, index: u32) -> Result<u64, BpfError> {
    let counts = map.get(&index, 0).map_err(|source| map_error(name, "read", source))?;
    Ok(counts.iter().sum())
}

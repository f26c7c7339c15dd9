//! Services: a Maglev table each, in a region of `SLOTS`, replaced make-before-break.

use std::collections::BTreeMap;
use std::time::Instant;

use shoal_ebpf_common::maglev::{self, Member, Policy};
use shoal_ebpf_common::values::ServiceVal;

use super::pod::Plain;
use super::table::map_error;
use super::{BpfDriver, BpfError};

/// The members of a service, from which every node computes the same table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Hash seed, replicated with the service.
    pub seed: u64,
    /// How they are chosen.
    pub policy: Policy,
    /// Endpoints that get new flows, with their weights.
    members: Vec<Member>,
}

impl ServiceSpec {
    /// A service of these members, in any order; those of weight 0 and duplicates are left out.
    pub fn new(seed: u64, policy: Policy, members: Vec<Member>) -> Self {
        Self { seed, policy, members: maglev::normalize(members) }
    }

    /// The members, sorted by endpoint.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Compare with [`ServiceVal::digest`] of what is observed: equal means nothing to write.
    pub fn digest(&self) -> u64 {
        maglev::digest(self.policy, &self.members, self.seed)
    }
}

impl BpfDriver {
    /// The services in the kernel.
    pub fn services(&self) -> Result<BTreeMap<u64, ServiceVal>, BpfError> {
        self.services.dump()
    }

    /// Sets the members of a service: writes the table to a new region, switches the service to it, frees the old
    /// one. Members must be in `endpoints` before. Returns whether it wrote.
    pub fn upsert_service(&mut self, id: u64, spec: &ServiceSpec) -> Result<bool, BpfError> {
        let digest = spec.digest();
        let old = self.services.get(&id)?;
        if old.is_some_and(|old| old.digest == digest && old.seed == spec.seed) {
            return Ok(false);
        }
        let table = spec.policy.build(&spec.members, spec.seed);
        let len = u32::try_from(table.len()).unwrap_or(u32::MAX);
        let now = Instant::now();
        let base = match len {
            0 => 0,
            _ => self.free_slots.take(len, now).ok_or(BpfError::SlotsFull { wanted: len })?,
        };
        let value = ServiceVal { seed: spec.seed, digest, base, len, policy: spec.policy.number(), pad: 0 };
        if let Err(error) = self.write_table(base, &table, id, value) {
            self.free_slots.retire(base, len, now);
            return Err(error);
        }
        if let Some(old) = old {
            self.free_slots.retire(old.base, old.len, now);
        }
        Ok(true)
    }

    /// Removes a service and frees its region. Returns whether it was there.
    pub fn remove_service(&mut self, id: u64) -> Result<bool, BpfError> {
        let Some(old) = self.services.get(&id)? else { return Ok(false) };
        self.services.remove(&id)?;
        self.free_slots.retire(old.base, old.len, Instant::now());
        self.forget_connections(id)?;
        Ok(true)
    }

    /// The endpoint in each slot of a service; for tests and inspection.
    pub fn service_table(&self, id: u64) -> Result<Vec<u64>, BpfError> {
        let Some(service) = self.services.get(&id)? else { return Ok(Vec::new()) };
        (service.base..service.base + service.len)
            .map(|slot| {
                let value = self.slots.get(&slot, 0).map_err(|source| map_error("SLOTS", "read", source))?;
                Ok(value.0)
            })
            .collect()
    }

    fn write_table(&mut self, base: u32, table: &[u64], id: u64, value: ServiceVal) -> Result<(), BpfError> {
        for (slot, &endpoint) in (base..).zip(table) {
            self.slots.set(slot, Plain(endpoint), 0).map_err(|source| map_error("SLOTS", "write", source))?;
        }
        self.services.upsert(&id, &value)?;
        Ok(())
    }
}

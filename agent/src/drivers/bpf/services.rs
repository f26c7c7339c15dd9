//! Services: a Maglev table each, in a region of `SLOTS`, changed where it differs or replaced make-before-break.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::Instant;

use aya::maps::IterableMap;
use aya::sys::SyscallError;
use shoal_ebpf_common::maglev::{self, Member, Policy};
use shoal_ebpf_common::values::ServiceVal;

use super::pod::Plain;
use super::table::map_error;
use super::window::Window;
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

    /// Whether a service's entry, as it was read, is one of this driver's: it names the region that the driver gave the
    /// service. Entries are also changed by others.
    pub fn is_ours(&self, id: u64, value: &ServiceVal) -> bool {
        self.regions.get(&id) == Some(&(value.base, value.len))
    }

    /// Whether a service's region, as of an entry that is ours, holds the table of these members. It is built for that.
    pub fn holds(&self, value: &ServiceVal, spec: &ServiceSpec) -> Result<bool, BpfError> {
        Ok(self.read_slots(value.base, value.len)? == spec.policy.build(&spec.members, spec.seed))
    }

    /// Sets the members of a service, which must be in `endpoints` before. Returns whether it wrote.
    ///
    /// A table of the same size is changed in place, slot by slot: each names an endpoint that new flows may go to,
    /// before and after. Else the table is written to a new region, the service switched to it, and the old one freed.
    /// What somebody else did to the entry or to slots is put right.
    pub fn upsert_service(&mut self, id: u64, spec: &ServiceSpec) -> Result<bool, BpfError> {
        let digest = spec.digest();
        let old = self.services.get(&id)?.filter(|old| self.is_ours(id, old));
        let table = spec.policy.build(&spec.members, spec.seed);
        let len = u32::try_from(table.len()).unwrap_or(u32::MAX);
        let (seed, policy) = (spec.seed, spec.policy.number());
        let value = ServiceVal { seed, digest, base: 0, len, policy, pad: 0 };
        let former = self.regions.get(&id).copied();
        match (old, former) {
            (Some(old), _) if old == (ServiceVal { base: old.base, ..value }) => {
                return self.put_right(old, &table);
            }
            (Some(old), _) if (old.seed, old.len, old.policy) == (seed, len, policy) => {
                self.change_table(id, &table, ServiceVal { base: old.base, ..value })?;
            }
            // The entry is lost or was changed by somebody: its region is still its own.
            (None, Some((base, had))) if had == len => {
                self.change_table(id, &table, ServiceVal { base, ..value })?;
            }
            _ => {
                let base = self.replace_table(id, &table, value)?;
                self.regions.insert(id, (base, len));
                if let Some((base, len)) = former {
                    self.free_slots.retire(base, len, Instant::now());
                }
            }
        }
        Ok(true)
    }

    /// Writes the slots of a table that differ from what they should be. Returns whether it wrote.
    fn put_right(&mut self, value: ServiceVal, table: &[u64]) -> Result<bool, BpfError> {
        let found = self.read_slots(value.base, value.len)?;
        let changed = differing(value.base, table, &found);
        self.write_slots(&changed)?;
        Ok(!changed.is_empty())
    }

    /// How many slots were written since this was asked last.
    pub fn take_slot_writes(&mut self) -> u64 {
        std::mem::take(&mut self.slot_writes)
    }

    fn change_table(&mut self, id: u64, table: &[u64], value: ServiceVal) -> Result<(), BpfError> {
        // Until it is whole it is no table of any members: who finds it half done must not take it for the former one.
        self.services.upsert(&id, &ServiceVal { digest: !value.digest, ..value })?;
        let found = self.read_slots(value.base, value.len)?;
        self.write_slots(&differing(value.base, table, &found))?;
        self.services.upsert(&id, &value)?;
        Ok(())
    }

    /// Writes a table to a new region and switches the service to it. Returns where it is.
    fn replace_table(&mut self, id: u64, table: &[u64], value: ServiceVal) -> Result<u32, BpfError> {
        let (len, now) = (value.len, Instant::now());
        let base = match len {
            0 => 0,
            _ => self.free_slots.take(len, now).ok_or(BpfError::SlotsFull { wanted: len })?,
        };
        let slots: Vec<(u32, u64)> = (base..).zip(table.iter().copied()).collect();
        let written =
            self.write_slots(&slots).and_then(|()| self.services.upsert(&id, &ServiceVal { base, ..value }));
        if let Err(error) = written {
            self.free_slots.retire(base, len, now);
            return Err(error);
        }
        Ok(base)
    }

    /// Removes a service and frees its region. Returns whether it was there.
    pub fn remove_service(&mut self, id: u64) -> Result<bool, BpfError> {
        let removed = self.services.remove(&id)?;
        // Not by the entry: somebody may have changed it.
        if let Some((base, len)) = self.regions.remove(&id) {
            self.free_slots.retire(base, len, Instant::now());
        }
        if removed {
            self.forget_connections(id)?;
        }
        Ok(removed)
    }

    /// The endpoint in each slot of a service; for tests and inspection.
    pub fn service_table(&self, id: u64) -> Result<Vec<u64>, BpfError> {
        let Some(service) = self.services.get(&id)? else { return Ok(Vec::new()) };
        self.read_slots(service.base, service.len)
    }

    fn read_slots(&self, base: u32, len: u32) -> Result<Vec<u64>, BpfError> {
        if len == 0 {
            return Ok(Vec::new());
        }
        if base.checked_add(len).is_none_or(|end| end > self.slots.len()) {
            return Err(BpfError::Layout { map: "SLOTS" });
        }
        self.window(base, len, "read").map(|window| window.read())
    }

    fn window(&self, base: u32, len: u32, action: &'static str) -> Result<Window, BpfError> {
        let map = IterableMap::<u32, Plain<u64>>::map(&self.slots).fd().as_fd();
        Window::open(map, base, len).map_err(|io_error| {
            let source = SyscallError { call: "mmap", io_error };
            map_error("SLOTS", action, source.into())
        })
    }

    /// Writes slots of a region, in ascending order.
    fn write_slots(&mut self, slots: &[(u32, u64)]) -> Result<(), BpfError> {
        let (Some((first, _)), Some((last, _))) = (slots.first(), slots.last()) else { return Ok(()) };
        if *last >= self.slots.len() {
            return Err(BpfError::Layout { map: "SLOTS" });
        }
        let window = self.window(*first, last - first + 1, "write")?;
        for (slot, value) in slots {
            let index = usize::try_from(slot - first).ok();
            index.and_then(|index| window.set(index, *value)).ok_or(BpfError::Layout { map: "SLOTS" })?;
        }
        self.slot_writes += u64::try_from(slots.len()).unwrap_or(0);
        Ok(())
    }
}

/// The slots of a table, from `base` on, that hold something else.
fn differing(base: u32, table: &[u64], found: &[u64]) -> Vec<(u32, u64)> {
    let slots = (base..).zip(table).zip(found);
    slots.filter(|((_, wanted), found)| wanted != found).map(|((slot, id), _)| (slot, *id)).collect()
}

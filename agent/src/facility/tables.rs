//! Whether services have the tables that are wanted. The kernel holds a table and the digest of what it was made from: an
//! equal digest tells that the driver wrote it, not that nobody has written there since. Slots are many, so each look
//! compares only so many of them, those of the next services in turn.

use std::collections::{BTreeMap, BTreeSet};

use shoal_ebpf_common::values::ServiceVal;
use shoal_plan::object::{LbService, Object, ServiceKey};
use shoal_plan::{Key, Objects};
use shoal_types::LbPolicy;

use crate::drivers::bpf::{BpfDriver, BpfError};

use super::mesh::{service_key, spec};

/// Slots that a look compares: all of a node with 260 services of ten endpoints. It takes some milliseconds.
const AT_ONCE: u64 = 1 << 16;

/// The services in the maps: those that are as wanted, and what differs from any that is. With a `turn`, slots of some are
/// compared, from that service on.
pub(super) fn observe(
    bpf: &BpfDriver,
    desired: &Objects,
    turn: Option<&mut u64>,
    found: &mut Vec<Object>,
) -> Result<(), BpfError> {
    let services = bpf.services()?;
    let due = turn.map(|turn| due(&services, turn)).unwrap_or_default();
    for (id, value) in services {
        let key = service_key(id);
        let is_compared = due.contains(&id);
        let service = match desired.get(&Key::LbService(key)) {
            Some(Object::LbService(wanted)) if is_so(bpf, (id, &value), wanted, is_compared)? => {
                wanted.clone()
            }
            _ => another(key, value.seed),
        };
        found.push(Object::LbService(service));
    }
    Ok(())
}

/// Whether a service is as wanted.
fn is_so(
    bpf: &BpfDriver,
    (id, value): (u64, &ServiceVal),
    wanted: &LbService,
    is_compared: bool,
) -> Result<bool, BpfError> {
    let spec = spec(wanted);
    let is_told = bpf.is_ours(id, value)
        && wanted.seed == value.seed
        && spec.policy.number() == value.policy
        && spec.digest() == value.digest;
    Ok(is_told && (!is_compared || bpf.holds(value, &spec)?))
}

/// A service that differs from any that is wanted.
fn another(key: ServiceKey, seed: u64) -> LbService {
    LbService { key, seed: !seed, policy: LbPolicy::Auto, members: Vec::new() }
}

/// The services whose slots are compared now: as many as there is time for, at least one, each but once. The turn moves on.
fn due(services: &BTreeMap<u64, ServiceVal>, turn: &mut u64) -> BTreeSet<u64> {
    let (mut due, mut slots) = (BTreeSet::new(), 0);
    for (id, value) in services.range(*turn..).chain(services.range(..*turn)) {
        if slots > 0 && slots + u64::from(value.len) > AT_ONCE {
            *turn = *id;
            return due;
        }
        slots += u64::from(value.len);
        due.insert(*id);
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(number: u64, len: u32) -> BTreeMap<u64, ServiceVal> {
        (0..number).map(|id| (id * 3, ServiceVal { len, ..ServiceVal::default() })).collect()
    }

    #[test]
    fn few_are_compared_each_time_and_many_in_turn() {
        let mut turn = 0;
        let few = services(261, 251);
        assert_eq!(due(&few, &mut turn).len(), 261);
        assert_eq!(due(&few, &mut turn).len(), 261);
        let many = services(1000, 251);
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let next = due(&many, &mut turn);
            assert_eq!(next.len(), 261);
            assert!(seen.is_disjoint(&next), "none comes twice before all have come");
            seen.extend(next);
        }
        seen.extend(due(&many, &mut turn));
        assert_eq!(seen.len(), 1000);
    }

    #[test]
    fn a_table_larger_than_a_look_has_its_turn_too() {
        let mut turn = 0;
        let large = services(3, 1 << 17);
        let looks: Vec<_> = (0..3).flat_map(|_| due(&large, &mut turn)).collect();
        assert_eq!(looks, [0, 3, 6]);
    }
}

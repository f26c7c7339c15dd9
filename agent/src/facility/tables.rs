//! Whether services have the tables that are wanted. The kernel holds a table and the digest of what it was made from: an
//! equal digest tells that the driver wrote it, not that nobody has written there since. Slots are many, so each look
//! compares only so many of them, those of the next services in turn.

use std::collections::{BTreeMap, BTreeSet};

use shoal_ebpf_common::values::ServiceVal;
use shoal_plan::object::{LbService, Object, ServiceKey};
use shoal_plan::{Key, Objects};
use shoal_types::LbPolicy;
use tokio::task::yield_now;

use crate::drivers::bpf::{BpfDriver, BpfError};

use super::mesh::{service_key, spec};

/// Slots that a look compares: all of a node with 260 services of ten endpoints. It takes some milliseconds.
const AT_ONCE: u64 = 1 << 16;

/// Services that are compared without a pause.
const PIECE: usize = 256;

/// The services in the maps: those that are as wanted, and what differs from any that is. With a `turn`, slots of some are
/// compared, from that service on. Reads in pieces, between which a look may be given up.
pub(super) async fn observe(
    bpf: &BpfDriver,
    desired: &Objects,
    turn: Option<&mut Turn>,
    found: &mut Vec<Object>,
) -> Result<(), BpfError> {
    yield_now().await;
    let services = bpf.services()?;
    let (due, next) = turn.as_ref().map(|turn| due(&services, turn.service)).unwrap_or_default();
    let mut all_right = true;
    yield_now().await;
    for (place, (id, value)) in services.into_iter().enumerate() {
        if place % PIECE == PIECE - 1 {
            yield_now().await;
        }
        let key = service_key(id);
        let is_compared = due.contains(&id);
        let service = match desired.get(&Key::LbService(key)) {
            Some(Object::LbService(wanted)) if is_so(bpf, (id, &value), wanted, is_compared)? => {
                wanted.clone()
            }
            _ => {
                all_right &= !is_compared;
                another(key, value.seed)
            }
        };
        found.push(Object::LbService(service));
    }
    if let Some(turn) = turn {
        turn.end(next, all_right);
    }
    Ok(())
}

/// Whose slots are compared next.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    service: u64,
    /// Looks in a row that found something to differ there. They may have been given up before it was put right.
    again: u32,
}

/// So often what differed is compared again: what stays so keeps no other from its turn.
const AGAIN: u32 = 16;

impl Turn {
    /// What was due is compared. It is again, if something differed.
    const fn end(&mut self, next: u64, all_right: bool) {
        *self = if all_right || self.again == AGAIN {
            Self { service: next, again: 0 }
        } else {
            Self { service: self.service, again: self.again + 1 }
        };
    }
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

/// The services whose slots are compared now, from one on: as many as there is time for, at least one, each but once. And from
/// which on they are the next time.
fn due(services: &BTreeMap<u64, ServiceVal>, from: u64) -> (BTreeSet<u64>, u64) {
    let (mut due, mut slots) = (BTreeSet::new(), 0);
    for (id, value) in services.range(from..).chain(services.range(..from)) {
        if slots > 0 && slots + u64::from(value.len) > AT_ONCE {
            return (due, *id);
        }
        slots += u64::from(value.len);
        due.insert(*id);
    }
    (due, from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(number: u64, len: u32) -> BTreeMap<u64, ServiceVal> {
        (0..number).map(|id| (id * 3, ServiceVal { len, ..ServiceVal::default() })).collect()
    }

    /// What a look after the last one compares.
    fn look(services: &BTreeMap<u64, ServiceVal>, turn: &mut Turn) -> BTreeSet<u64> {
        let (due, next) = due(services, turn.service);
        turn.end(next, true);
        due
    }

    #[test]
    fn few_are_compared_each_time_and_many_in_turn() {
        let mut turn = Turn::default();
        let few = services(261, 251);
        assert_eq!(look(&few, &mut turn).len(), 261);
        assert_eq!(look(&few, &mut turn).len(), 261);
        let many = services(1000, 251);
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let next = look(&many, &mut turn);
            assert_eq!(next.len(), 261);
            assert!(seen.is_disjoint(&next), "none comes twice before all have come");
            seen.extend(next);
        }
        seen.extend(look(&many, &mut turn));
        assert_eq!(seen.len(), 1000);
    }

    #[test]
    fn a_table_larger_than_a_look_has_its_turn_too() {
        let mut turn = Turn::default();
        let large = services(3, 1 << 17);
        let looks: Vec<_> = (0..3).flat_map(|_| look(&large, &mut turn)).collect();
        assert_eq!(looks, [0, 3, 6]);
    }

    #[test]
    fn what_differed_is_compared_again() {
        let mut turn = Turn::default();
        for again in 1..=AGAIN {
            turn.end(7, false);
            assert_eq!(turn, Turn { service: 0, again });
        }
        turn.end(7, false);
        assert_eq!(turn, Turn { service: 7, again: 0 }, "what stays so keeps no other from its turn");
    }
}

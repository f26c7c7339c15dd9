//! Bytes of flows: what their records have counted, and what those had that are gone.
//!
//! A record counts while it lasts. What it had, a program adds to `TOTALS` when it removes the record or gives its place to
//! another flow; what a full table gives up by itself is lost.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{MapData, MapError, PerCpuHashMap, PerCpuValues};
use shoal_ebpf_common::keys::FlowKey;
use shoal_ebpf_common::life::is_counted;
use shoal_ebpf_common::values::{FlowVal, ReplyVal, TotalKey, TotalVal};

use super::pod::Plain;
use super::table::{is_gone, map_error, open_map};
use super::{BpfDriver, BpfError};
use crate::in_use::MapFill;

pub(super) const TOTALS: &str = "TOTALS";
/// [`TotalKey::endpoint`] of all endpoints of a service that are gone. Only this side writes it.
const GONE: u64 = 0;

pub(super) type TotalMap = PerCpuHashMap<MapData, Plain<TotalKey>, Plain<TotalVal>>;
/// Bytes by endpoint and service.
pub type Totals = BTreeMap<TotalKey, TotalVal>;

/// What was told of each, which is never less later.
#[derive(Debug, Default)]
pub(crate) struct Told(Totals);

impl Told {
    /// Takes over what there is now.
    fn raise(&mut self, totals: &Totals, live: &Totals) {
        for key in totals.keys().chain(live.keys().filter(|key| !totals.contains_key(key))) {
            let of = |counted: &Totals| counted.get(key).copied().unwrap_or_default();
            let now = sum(of(totals), of(live));
            let told = self.0.entry(*key).or_default();
            // A record that went while the tables were read is in neither of them: it shows the next time.
            *told = TotalVal {
                requests: told.requests.max(now.requests),
                answers: told.answers.max(now.answers),
            };
        }
    }

    /// An endpoint is gone: what was told of it is its service's.
    fn fold(&mut self, key: &TotalKey) {
        if let Some(value) = self.0.remove(key) {
            let gone = self.0.entry(TotalKey { endpoint: GONE, ..*key }).or_default();
            *gone = sum(*gone, value);
        }
    }

    fn forget(&mut self, key: &TotalKey) {
        self.0.remove(key);
    }
}

const fn sum(a: TotalVal, b: TotalVal) -> TotalVal {
    TotalVal { requests: a.requests + b.requests, answers: a.answers + b.answers }
}

/// What records have counted. Each that an endpoint is counted for is in it, with nothing at least.
pub(super) fn of_records(flows: &[(FlowKey, FlowVal)], replies: &[(FlowKey, ReplyVal)]) -> Totals {
    let mut live = Totals::new();
    let mut add = |endpoint, service, requests, answers| {
        if is_counted(endpoint) {
            let of: &mut TotalVal = live.entry(TotalKey { endpoint, service }).or_default();
            *of = sum(*of, TotalVal { requests, answers });
        }
    };
    for (_, flow) in flows {
        add(flow.endpoint, flow.service, flow.bytes, 0);
    }
    for (_, reply) in replies {
        add(reply.endpoint, reply.service, 0, reply.bytes);
    }
    live
}

impl BpfDriver {
    /// Bytes of flows whose records are gone.
    pub fn totals(&self) -> Result<Totals, BpfError> {
        read(&self.totals)
    }

    /// How full the map is, as of the last time that all was told.
    pub(super) fn total_fill(&self) -> MapFill {
        let entries = u64::try_from(self.told.0.len()).unwrap_or(u64::MAX);
        MapFill { map: TOTALS, entries, limit: self.endpoints.fill().limit }
    }

    /// Bytes of all flows by endpoint and service, from the totals as they were before `live` was read. What is of no use
    /// any more is removed from them.
    pub(super) fn tell(&mut self, totals: &Totals, live: &Totals) -> Result<Totals, BpfError> {
        self.told.raise(totals, live);
        let all: Vec<TotalKey> = self.told.0.keys().copied().collect();
        for key in all {
            if live.contains_key(&key)
                || (key.endpoint != GONE && self.endpoints.get(&key.endpoint)?.is_some())
            {
                continue;
            }
            if self.services.get(&key.service)?.is_none() {
                self.remove_total(&key)?;
                self.told.forget(&key);
            } else if key.endpoint != GONE {
                self.fold(&key, totals.get(&key).copied())?;
                self.told.fold(&key);
            }
        }
        Ok(self.told.0.clone())
    }

    /// Adds what an endpoint that is gone had to what its service has of such.
    fn fold(&mut self, key: &TotalKey, had: Option<TotalVal>) -> Result<(), BpfError> {
        let Some(had) = had else { return Ok(()) };
        let gone = TotalKey { endpoint: GONE, service: key.service };
        let so_far = match self.totals.get(&Plain(gone), 0) {
            Ok(values) => whole(&values),
            Err(MapError::KeyNotFound) => TotalVal::default(),
            Err(source) => return Err(map_error(TOTALS, "read", source)),
        };
        write(&mut self.totals, gone, sum(so_far, had))?;
        self.remove_total(key)
    }

    fn remove_total(&mut self, key: &TotalKey) -> Result<(), BpfError> {
        match self.totals.remove(&Plain(*key)) {
            Err(source) if !is_gone(&source) => Err(map_error(TOTALS, "remove from", source)),
            _ => Ok(()),
        }
    }

    /// Brings over the totals of other programs that are not known here.
    pub(super) fn carry_totals(&mut self, from: &Path) -> Result<(), BpfError> {
        if !from.join(TOTALS).exists() {
            return Ok(());
        }
        let map: TotalMap =
            open_map(from, TOTALS)?.try_into().map_err(|source| map_error(TOTALS, "open", source))?;
        let known = self.totals()?;
        for (key, value) in read(&map)?.into_iter().filter(|(key, _)| !known.contains_key(key)) {
            write(&mut self.totals, key, value)?;
        }
        Ok(())
    }
}

fn read(map: &TotalMap) -> Result<Totals, BpfError> {
    let mut totals = Totals::new();
    for entry in map {
        match entry {
            Ok((key, values)) => {
                totals.insert(key.0, whole(&values));
            }
            // Removed between the key and its value.
            Err(MapError::KeyNotFound) => {}
            Err(source) => return Err(map_error(TOTALS, "list", source)),
        }
    }
    Ok(totals)
}

fn whole(values: &PerCpuValues<Plain<TotalVal>>) -> TotalVal {
    values.iter().fold(TotalVal::default(), |total, value| sum(total, value.0))
}

/// Writes a total that no program writes at the same time.
fn write(map: &mut TotalMap, key: TotalKey, value: TotalVal) -> Result<(), BpfError> {
    let cpus = aya::util::nr_cpus().map_err(|(_, source)| map_error(TOTALS, "write", source.into()))?;
    let mut values = vec![Plain(TotalVal::default()); cpus];
    if let Some(first) = values.first_mut() {
        first.0 = value;
    }
    let values =
        PerCpuValues::try_from(values).map_err(|source| map_error(TOTALS, "write", source.into()))?;
    map.insert(Plain(key), values, 0).map_err(|source| map_error(TOTALS, "write", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TotalKey = TotalKey { endpoint: 1, service: 7 };
    const B: TotalKey = TotalKey { endpoint: 2, service: 7 };
    const REST: TotalKey = TotalKey { endpoint: GONE, service: 7 };

    fn value(requests: u64, answers: u64) -> TotalVal {
        TotalVal { requests, answers }
    }

    #[test]
    fn what_was_told_is_never_less_later() {
        let mut told = Told::default();
        told.raise(&[(A, value(100, 10))].into(), &[(A, value(5, 50)), (B, value(7, 0))].into());
        assert_eq!(told.0, [(A, value(105, 60)), (B, value(7, 0))].into());
        // A full table has given up the records of one; the other's are being removed.
        told.raise(&[(A, value(100, 10))].into(), &Totals::new());
        assert_eq!(told.0, [(A, value(105, 60)), (B, value(7, 0))].into());
        told.raise(&[(A, value(100, 10)), (B, value(9, 1))].into(), &[(A, value(6, 51))].into());
        assert_eq!(told.0, [(A, value(106, 61)), (B, value(9, 1))].into());
    }

    #[test]
    fn the_sum_of_a_service_stays_when_an_endpoint_goes() {
        let mut told = Told::default();
        told.raise(&[(A, value(100, 10)), (B, value(3, 4)), (REST, value(1, 1))].into(), &Totals::new());
        told.fold(&A);
        assert_eq!(told.0, [(B, value(3, 4)), (REST, value(101, 11))].into());
        // As the map has it by then.
        told.raise(&[(B, value(3, 4)), (REST, value(101, 11))].into(), &Totals::new());
        assert_eq!(told.0, [(B, value(3, 4)), (REST, value(101, 11))].into());
    }

    #[test]
    fn records_that_no_endpoint_is_counted_for_count_nothing() {
        use shoal_ebpf_common::values::{ALIASED, BALANCED};
        let flow = |endpoint, bytes| {
            (FlowKey::default(), FlowVal { endpoint, service: 7, bytes, ..FlowVal::default() })
        };
        let reply = |endpoint, bytes| {
            (FlowKey::default(), ReplyVal { endpoint, service: 7, bytes, ..ReplyVal::default() })
        };
        let flows = [flow(1, 3), flow(BALANCED, 5), flow(ALIASED, 5), flow(1, 4), flow(2, 0)];
        let counted = of_records(&flows, &[reply(0, 9), reply(1, 8)]);
        assert_eq!(counted, [(A, value(7, 8)), (B, value(0, 0))].into());
    }
}

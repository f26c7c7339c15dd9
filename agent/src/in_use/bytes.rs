//! Bytes that services carried, as counters that never fall.

use std::collections::BTreeMap;

use super::{OTHERS, ServiceUse};

/// Bytes of IP packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// What clients sent.
    pub requests: u64,
    /// What they were answered, as far as that came by.
    pub answers: u64,
    /// Whether answers of some flows went another way, so that nobody knows of them here.
    pub one_way: bool,
}

impl Bytes {
    /// What clients were answered, if all of it came by.
    pub fn answers(&self) -> Option<u64> {
        (!self.one_way).then_some(self.answers)
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.answers += other.answers;
        self.one_way |= other.one_way;
    }
}

/// Makes counters of sums that may fall: an endpoint that is in a sum may go, and so may a table of the kernel's with all it
/// has counted. What there was then is added from then on.
#[derive(Debug, Default)]
pub struct Grown(BTreeMap<Name, [Counter; 2]>);

/// Service, network, and slot if it is one's.
type Name = (String, String, Option<String>);

#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    last: u64,
    gone: u64,
}

impl Counter {
    fn raise(&mut self, now: u64) -> u64 {
        self.gone += self.last.saturating_sub(now);
        self.last = now;
        self.gone + now
    }
}

impl Grown {
    /// Adds to what there is now what there was before. What is not named any more is forgotten.
    pub fn raise(&mut self, services: &mut BTreeMap<(String, String), ServiceUse>) {
        let mut before = std::mem::take(&mut self.0);
        let mut raise = |name: Name, bytes: &mut Bytes| {
            let mut counters = before.remove(&name).unwrap_or_default();
            bytes.requests = counters[0].raise(bytes.requests);
            bytes.answers = counters[1].raise(bytes.answers);
            self.0.insert(name, counters);
        };
        for ((service, network), of) in services {
            raise((service.clone(), network.clone(), None), &mut of.flows.bytes);
            for (slot, used) in of.slots.iter_mut().filter(|(slot, _)| *slot != OTHERS) {
                raise((service.clone(), network.clone(), Some(slot.clone())), &mut used.bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{EndpointUse, Flows};
    use super::*;

    type Services = BTreeMap<(String, String), ServiceUse>;

    fn bytes(requests: u64, answers: u64) -> Bytes {
        Bytes { requests, answers, one_way: false }
    }

    fn web(whole: Bytes, slots: &[(&str, Bytes)]) -> Services {
        let flows = Flows { bytes: whole, ..Flows::default() };
        let slots =
            slots.iter().map(|(slot, bytes)| ((*slot).to_owned(), EndpointUse { live: 0, bytes: *bytes }));
        let used = ServiceUse { flows, slots: slots.collect(), ..ServiceUse::default() };
        [(("web".to_owned(), "ingress".to_owned()), used)].into()
    }

    fn raised(grown: &mut Grown, mut services: Services) -> Services {
        grown.raise(&mut services);
        services
    }

    #[test]
    fn a_counter_goes_on_from_where_it_was_when_an_endpoint_leaves_its_slot() {
        let mut grown = Grown::default();
        let first = web(bytes(100, 1000), &[("1", bytes(60, 600)), ("2", bytes(40, 400))]);
        assert_eq!(raised(&mut grown, first.clone()), first);
        // The task of slot 2 is replaced, and the kernel's table with it.
        let next = web(bytes(70, 700), &[("1", bytes(70, 700)), ("2", bytes(0, 0))]);
        let told = web(bytes(100, 1000), &[("1", bytes(70, 700)), ("2", bytes(40, 400))]);
        assert_eq!(raised(&mut grown, next), told);
        let next = web(bytes(75, 701), &[("1", bytes(70, 700)), ("2", bytes(5, 1))]);
        let told = web(bytes(105, 1001), &[("1", bytes(70, 700)), ("2", bytes(45, 401))]);
        assert_eq!(raised(&mut grown, next), told);
    }

    #[test]
    fn what_is_not_told_any_more_is_forgotten() {
        let mut grown = Grown::default();
        let mut services = web(bytes(100, 10), &[("1", bytes(100, 10))]);
        grown.raise(&mut services);
        grown.raise(&mut Services::new());
        let again = web(bytes(5, 5), &[("1", bytes(5, 5))]);
        assert_eq!(raised(&mut grown, again.clone()), again);
        assert_eq!(grown.0.len(), 2);
    }

    #[test]
    fn answers_that_go_another_way_are_unknown_and_not_none() {
        let mut sum = bytes(1, 2);
        assert_eq!(sum.answers(), Some(2));
        sum.add(Bytes { requests: 3, answers: 0, one_way: true });
        assert_eq!((sum.requests, sum.answers()), (4, None));
    }
}

//! Between the plan's virtual services and the tables of IPVS, one in each balancer's namespace.
//!
//! A whole look at the tables costs a dump for each service, so it is taken every few seconds; in between, what was
//! read and written last stands for them. Somebody else's change is found at the next look.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use shoal_plan::object::{Balancer, FirewallMark, Object, Place, Virtual, VirtualForward, VirtualScheduler};
use shoal_plan::{Key, Objects};

use super::FacilityError;
use super::carried::{Carried, Marks};
use crate::drivers::ipvs::{
    Destination, Family, Forwarding, HashOptions, IpvsDriver, IpvsError, IpvsTable, KernelTable, Scheduler,
    Service, ServiceKey, VirtualCounts, VirtualService, VirtualServices, settings,
};
use crate::drivers::link::Writes;
use crate::drivers::overlay::Overlay;

/// How long what is known stands for the tables.
const LOOK: Duration = Duration::from_secs(4);
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The tables, as last seen.
pub(super) struct Balancers {
    known: BTreeMap<Place, Table>,
    looked: Option<Instant>,
    marks: Marks,
    /// What virtual services carried by the last look at all of them.
    carried: Carried,
    /// The table that was written last: opening one takes a thread in its namespace. It keeps the namespace alive, so it
    /// is closed by the next look and before that balancer goes.
    open: Option<(Place, IpvsDriver<KernelTable>)>,
    writes: Writes,
}

#[derive(Default)]
struct Table {
    services: VirtualServices,
    counts: VirtualCounts,
    /// Whether the settings were right.
    tuned: bool,
}

impl Balancers {
    pub(super) fn new(writes: Writes) -> Self {
        Self {
            known: BTreeMap::new(),
            looked: None,
            marks: Marks::default(),
            carried: Carried::default(),
            open: None,
            writes,
        }
    }

    /// The virtual services that are there. A balancer whose table has something else in it, or wrong settings, is not
    /// intact.
    pub(super) fn observe(
        &mut self,
        overlay: &Overlay,
        desired: &Objects,
        thorough: bool,
        found: &mut Objects,
    ) -> Result<(), FacilityError> {
        self.open = None;
        let places = overlay.balancers()?;
        let stale = self.looked.is_none_or(|looked| thorough && looked.elapsed() >= LOOK);
        self.known.retain(|place, _| places.contains(place));
        for place in places {
            if stale || !self.known.contains_key(&place) {
                let table = self.look(overlay, &place)?;
                self.known.insert(place.clone(), table);
            }
            if let Some(table) = self.known.get(&place) {
                table.show(&place, desired, found);
            }
        }
        if stale {
            self.looked = Some(Instant::now());
            self.count(desired);
        }
        Ok(())
    }

    /// What virtual services carried. It is less than before when one is gone, or was made anew.
    pub(super) fn carried(&self) -> &Carried {
        &self.carried
    }

    fn count(&mut self, desired: &Objects) {
        self.carried = Carried::default();
        if self.known.is_empty() {
            return;
        }
        self.marks.learn(desired);
        let known = &self.known;
        self.marks.retain(|place, mark| known.get(place).is_some_and(|table| table.knows(mark)));
        for (place, table) in known {
            for (key, counts) in &table.counts {
                if let Some(mark) = mark_of(key) {
                    self.carried.add((place, mark), counts, desired, &self.marks);
                }
            }
        }
    }

    fn look(&self, overlay: &Overlay, place: &Place) -> Result<Table, FacilityError> {
        let netns = overlay.balancer_netns(place)?;
        let mut table = match KernelTable::open(&netns, self.writes.clone()) {
            Ok(table) => table,
            // Nothing can be in it. (Making the balancer says so.)
            Err(IpvsError::ModuleMissing) => return Ok(Table::default()),
            Err(error) => return Err(error.into()),
        };
        let tuned = settings::are_intact(&netns, &mut table)?;
        let (services, counts) = IpvsDriver::new(table).observe_counted()?;
        Ok(Table { services, counts, tuned })
    }

    /// Makes a balancer, or makes it so: namespace, links, settings, and nothing of somebody else's in its table.
    pub(super) async fn ensure_balancer(
        &mut self,
        overlay: &Overlay,
        balancer: &Balancer,
    ) -> Result<(), FacilityError> {
        self.open = None;
        overlay.ensure_balancer(balancer).await?;
        let netns = overlay.balancer_netns(&balancer.place)?;
        let mut table = KernelTable::open(&netns, self.writes.clone())?;
        self.writes.add(settings::ensure(&netns, &mut table)?);
        let known = self.known.entry(balancer.place.clone()).or_default();
        known.tuned = true;
        let mut driver = IpvsDriver::new(table);
        let foreign: Vec<_> = known.services.keys().filter(|key| mark_of(key).is_none()).copied().collect();
        for key in foreign {
            driver.remove(&key).result?;
            known.services.remove(&key);
        }
        Ok(())
    }

    /// Removes a balancer with its table.
    pub(super) async fn remove_balancer(
        &mut self,
        overlay: &Overlay,
        balancer: &Balancer,
    ) -> Result<(), FacilityError> {
        self.open = None;
        self.known.remove(&balancer.place);
        Ok(overlay.remove_balancer(balancer).await?)
    }

    /// Makes a virtual service so, in both families; writes only what differs from what is known.
    pub(super) fn ensure(&mut self, overlay: &Overlay, wanted: &Virtual) -> Result<(), FacilityError> {
        let driver = driver(&mut self.open, overlay, &wanted.place, &self.writes)?;
        let known = self.known.entry(wanted.place.clone()).or_default();
        for family in FAMILIES {
            let service = translated(wanted, family)?;
            let key = service.service.key;
            let outcomes = driver.ensure(&service, known.services.get(&key));
            match outcomes.into_iter().find_map(|outcome| outcome.result.err()) {
                None => {
                    known.services.insert(key, service);
                }
                Some(error) => {
                    // What is there now, the next look shows.
                    self.looked = None;
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Removes a virtual service.
    pub(super) fn remove(
        &mut self,
        overlay: &Overlay,
        virtual_service: &Virtual,
    ) -> Result<(), FacilityError> {
        let driver = driver(&mut self.open, overlay, &virtual_service.place, &self.writes)?;
        let known = self.known.entry(virtual_service.place.clone()).or_default();
        for family in FAMILIES {
            let key = key_of(virtual_service.mark, family)?;
            driver.remove(&key).result?;
            known.services.remove(&key);
        }
        Ok(())
    }

    /// Whether any connection is left in the tables.
    pub(super) fn has_connections(&self, overlay: &Overlay) -> Result<bool, FacilityError> {
        for place in overlay.balancers()? {
            let netns = overlay.balancer_netns(&place)?;
            let mut table = match KernelTable::open(&netns, self.writes.clone()) {
                Ok(table) => table,
                Err(IpvsError::ModuleMissing) => continue,
                Err(error) => return Err(error.into()),
            };
            for service in table.services()? {
                let destinations = table.destinations(&service.service.key)?;
                if destinations.iter().any(|each| each.active + each.inactive > 0) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// The driver of a table, opened if it isn't the one that is open.
fn driver<'a>(
    open: &'a mut Option<(Place, IpvsDriver<KernelTable>)>,
    overlay: &Overlay,
    place: &Place,
    writes: &Writes,
) -> Result<&'a mut IpvsDriver<KernelTable>, FacilityError> {
    let opened = match open.take() {
        Some(opened) if opened.0 == *place => opened,
        _ => {
            let table = KernelTable::open(&overlay.balancer_netns(place)?, writes.clone())?;
            (place.clone(), IpvsDriver::new(table))
        }
    };
    Ok(&mut open.insert(opened).1)
}

impl Table {
    fn knows(&self, mark: FirewallMark) -> bool {
        FAMILIES
            .into_iter()
            .any(|family| key_of(mark, family).is_ok_and(|key| self.services.contains_key(&key)))
    }

    fn show(&self, place: &Place, desired: &Objects, found: &mut Objects) {
        let marks: BTreeSet<_> = self.services.keys().filter_map(mark_of).collect();
        let is_ours_alone = self.services.keys().all(|key| mark_of(key).is_some());
        if let Some(Object::Balancer(balancer)) = found.get_mut(&Key::Balancer(place.clone())) {
            balancer.intact &= self.tuned && is_ours_alone;
        }
        for mark in marks {
            let key = Key::Virtual(place.clone(), mark);
            let shown = match desired.get(&key) {
                Some(Object::Virtual(wanted)) if self.has(wanted) => Virtual::clone(wanted),
                _ => unknown(place, mark),
            };
            found.insert(key, Object::from(shown));
        }
    }

    /// Whether a virtual service is as wanted, in both families.
    fn has(&self, wanted: &Virtual) -> bool {
        FAMILIES.into_iter().all(|family| {
            let Ok(wanted) = translated(wanted, family) else { return false };
            self.services.get(&wanted.service.key).is_some_and(|found| is_so(found, &wanted))
        })
    }
}

fn is_so(found: &VirtualService, wanted: &VirtualService) -> bool {
    found.service == wanted.service
        && found.destinations.len() == wanted.destinations.len()
        && wanted.destinations.iter().all(|(address, destination)| {
            found.destinations.get(address).is_some_and(|found| found.satisfies(destination))
        })
}

/// Stands for a virtual service that is not as anybody wants it.
fn unknown(place: &Place, mark: FirewallMark) -> Virtual {
    Virtual {
        place: place.clone(),
        mark,
        scheduler: VirtualScheduler::Unknown,
        forward: VirtualForward::Direct,
        destinations: BTreeMap::new(),
    }
}

fn mark_of(key: &ServiceKey) -> Option<FirewallMark> {
    match key {
        ServiceKey::Mark { mark, .. } => FirewallMark::new(mark.get()),
        ServiceKey::Address { .. } => None,
    }
}

fn key_of(mark: FirewallMark, family: Family) -> Result<ServiceKey, IpvsError> {
    let mark = NonZeroU32::new(mark.get()).ok_or_else(|| IpvsError::Refused {
        action: "use firewall mark 0".to_owned(),
        source: std::io::ErrorKind::InvalidInput.into(),
    })?;
    Ok(ServiceKey::Mark { family, mark })
}

/// A virtual service of the plan as the driver speaks of it.
fn translated(wanted: &Virtual, family: Family) -> Result<VirtualService, IpvsError> {
    let service = Service::new(key_of(wanted.mark, family)?, scheduler(wanted.scheduler));
    let destinations = wanted.destinations.values().map(|destination| {
        let ip = match family {
            Family::V4 => destination.addr.v4.into(),
            Family::V6 => destination.addr.v6.into(),
        };
        let (port, forwarding) = match wanted.forward {
            VirtualForward::Translated(port) => (port, Forwarding::Nat),
            VirtualForward::Direct => (0, Forwarding::DirectRouting),
        };
        Destination::new(SocketAddr::new(ip, port), forwarding, destination.weight)
    });
    Ok(VirtualService::new(service, destinations))
}

/// Without the fallback, a client whose slot belongs to a draining destination would be refused.
fn scheduler(scheduler: VirtualScheduler) -> Scheduler {
    match scheduler {
        VirtualScheduler::RoundRobin | VirtualScheduler::Unknown => Scheduler::RoundRobin,
        VirtualScheduler::WeightedRoundRobin => Scheduler::WeightedRoundRobin,
        VirtualScheduler::LeastConnections => Scheduler::LeastConnections,
        VirtualScheduler::WeightedLeastConnections => Scheduler::WeightedLeastConnections,
        VirtualScheduler::Maglev => Scheduler::Maglev(HashOptions { fallback: true, port: true }),
        VirtualScheduler::Source => Scheduler::Maglev(HashOptions { fallback: true, port: false }),
    }
}

#[cfg(test)]
mod tests {
    use shoal_types::{DualAddr, EndpointId, Protocol};

    use super::*;
    use shoal_plan::object::VirtualDestination;

    fn web() -> Virtual {
        let destination = |last, weight| VirtualDestination {
            addr: DualAddr {
                v4: [10, 0, 0, last].into(),
                v6: [0xfd00, 0, 0, 0, 0, 0, 0, last.into()].into(),
            },
            weight,
        };
        Virtual {
            place: Place::Ingress,
            mark: FirewallMark::of_port(Protocol::Tcp, 8080),
            scheduler: VirtualScheduler::Maglev,
            forward: VirtualForward::Translated(80),
            destinations: [(EndpointId(7), destination(9, 1)), (EndpointId(8), destination(3, 0))].into(),
        }
    }

    fn table(wanted: &Virtual) -> Table {
        let services = FAMILIES.map(|family| translated(wanted, family).expect("a mark"));
        let services = services.into_iter().map(|each| (each.service.key, each)).collect();
        Table { services, counts: VirtualCounts::new(), tuned: true }
    }

    fn shown(table: &Table, desired: &Objects) -> Objects {
        let mut found = Objects::new();
        table.show(&Place::Ingress, desired, &mut found);
        found
    }

    #[test]
    fn destinations_are_made_in_the_order_of_their_numbers() {
        let service = translated(&web(), Family::V4).expect("a mark");
        let order: Vec<_> = service.in_sequence().map(|each| each.address.to_string()).collect();
        assert_eq!(order, ["10.0.0.9:80", "10.0.0.3:80"]);
    }

    #[test]
    fn what_is_as_wanted_is_shown_so_and_anything_else_as_a_difference() {
        let wanted = web();
        let desired: Objects = [Object::from(wanted.clone())].map(|object| (object.key(), object)).into();
        assert_eq!(shown(&table(&wanted), &desired), desired);
        let mut drained = table(&wanted);
        let key = key_of(wanted.mark, Family::V6).expect("a mark");
        drained.services.get_mut(&key).expect("there").destinations.pop_first();
        assert_ne!(shown(&drained, &desired), desired, "a destination of one family is missing");
        drained.services.remove(&key);
        assert_ne!(shown(&drained, &desired), desired, "a family is missing");
        // Nobody wants it: it is there to be removed.
        assert_eq!(shown(&table(&wanted), &Objects::new()).len(), 1);
    }
}

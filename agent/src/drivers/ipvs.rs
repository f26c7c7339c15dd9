//! IPVS: the kernel's virtual services, over generic netlink.
//!
//! [`IpvsDriver`] makes a namespace's table what it should be: it observes, ensures, removes and prunes, writes only
//! differences, and says for each object what became of it. A table belongs to one network namespace that is ours
//! alone, so everything in it is ours. It stays when the daemon goes.
//!
//! [`KernelTable`] is the kernel's table, [`FakeTable`] one in memory; [`wire`] has the messages. Nothing here runs a
//! task or a thread.

mod fake;
mod model;
pub mod settings;
mod socket;
mod table;
pub mod wire;

use std::collections::{BTreeMap, BTreeSet};

pub use fake::FakeTable;
pub use model::{
    Destination, DestinationKey, DestinationStatus, Family, Forwarding, HashOptions, Info, Persistence,
    Scheduler, Service, ServiceKey, ServiceStatus, Stats, Timeouts, Transport, VirtualService,
};
pub use socket::KernelTable;
pub use table::{IpvsError, IpvsTable, Object};

/// Virtual services by key: what is desired, and what is observed.
pub type VirtualServices = BTreeMap<ServiceKey, VirtualService>;

/// What was counted by key.
pub type VirtualCounts = BTreeMap<ServiceKey, Counts>;

/// What a service and its destinations counted. Those that are gone are still in what the service did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of the service.
    pub service: Stats,
    /// Of each destination that is there.
    pub destinations: BTreeMap<DestinationKey, Stats>,
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Created,
    /// It has another form.
    Changed,
    /// It is gone.
    Removed,
    /// Somebody else had done it already.
    Unchanged,
}

/// What was done to an object, or why not.
#[derive(Debug)]
pub struct Outcome {
    /// The object.
    pub object: Object,
    /// What became of it.
    pub result: Result<Change, IpvsError>,
}

/// Makes a table what it should be.
#[derive(Debug)]
pub struct IpvsDriver<T> {
    table: T,
}

impl<T: IpvsTable> IpvsDriver<T> {
    /// A driver of this table.
    pub fn new(table: T) -> Self {
        Self { table }
    }

    /// The table, for counters and settings.
    pub fn table(&mut self) -> &mut T {
        &mut self.table
    }

    /// Everything in the table.
    pub fn observe(&mut self) -> Result<VirtualServices, IpvsError> {
        Ok(self.observe_counted()?.0)
    }

    /// Everything in the table, and what it has counted.
    pub fn observe_counted(&mut self) -> Result<(VirtualServices, VirtualCounts), IpvsError> {
        let (mut observed, mut counts) = (BTreeMap::new(), BTreeMap::new());
        for status in self.table.services()? {
            let key = status.service.key;
            let found = self.table.destinations(&key)?;
            let destinations = found.iter().map(|each| (each.destination.address, each.stats)).collect();
            counts.insert(key, Counts { service: status.stats, destinations });
            let destinations = found.into_iter().map(|each| each.destination);
            observed.insert(key, VirtualService::new(status.service, destinations));
        }
        Ok((observed, counts))
    }

    /// Makes a service and its destinations so, given what was observed of it. Destinations that came are there before
    /// those that went are removed. Only what had to be touched has an outcome.
    pub fn ensure(&mut self, desired: &VirtualService, observed: Option<&VirtualService>) -> Vec<Outcome> {
        if observed.is_none()
            && desired.destinations.len() > 1
            && let Some(first) = first_form(&desired.service)
        {
            return self.ensure_by_way_of(first, desired);
        }
        self.ensure_directly(desired, observed)
    }

    /// Makes a new service in a form that is cheap to fill, then gives it its own.
    fn ensure_by_way_of(&mut self, first: Service, desired: &VirtualService) -> Vec<Outcome> {
        let first = VirtualService::new(first, desired.in_sequence().copied());
        let mut outcomes = self.ensure_directly(&first, None);
        if outcomes.iter().all(|outcome| outcome.result.is_ok()) {
            let last = self.ensure_directly(desired, Some(&first));
            // To who looks, the service was made once.
            outcomes.extend(last.into_iter().filter(|outcome| outcome.result.is_err()));
        }
        outcomes
    }

    fn ensure_directly(
        &mut self,
        desired: &VirtualService,
        observed: Option<&VirtualService>,
    ) -> Vec<Outcome> {
        let key = desired.service.key;
        let mut outcomes = Vec::new();
        if observed.is_none_or(|observed| observed.service != desired.service) {
            let result = self.write_service(&desired.service, observed.is_some());
            let failed = result.is_err();
            outcomes.push(Outcome { object: Object::Service(key), result });
            // Without its service, no destination can be there; an old form of it still serves.
            if failed && observed.is_none() {
                return outcomes;
            }
        }
        let none = BTreeMap::new();
        let found = observed.map_or(&none, |observed| &observed.destinations);
        let mut new = Vec::new();
        for destination in desired.in_sequence() {
            match found.get(&destination.address) {
                Some(known) => outcomes.extend(self.ensure_destination(&key, destination, Some(known))),
                None => new.push(destination),
            }
        }
        outcomes.extend(self.create_destinations(&key, &new));
        for (address, destination) in found {
            if !desired.destinations.contains_key(address) {
                outcomes.push(self.remove_destination(&key, destination));
            }
        }
        outcomes
    }

    /// Makes one destination so, given what was observed of it.
    pub fn ensure_destination(
        &mut self,
        key: &ServiceKey,
        desired: &Destination,
        observed: Option<&Destination>,
    ) -> Option<Outcome> {
        if observed.is_some_and(|observed| observed.satisfies(desired)) {
            return None;
        }
        let object = Object::Destination(*key, desired.address);
        Some(Outcome { object, result: self.write_destination(key, desired, observed.is_some()) })
    }

    /// Removes a destination, and with it its connections: give it weight 0 and wait to let them end.
    pub fn remove_destination(&mut self, key: &ServiceKey, destination: &Destination) -> Outcome {
        let result = self.table.delete_destination(key, destination);
        Outcome { object: Object::Destination(*key, destination.address), result: removed(result) }
    }

    /// Removes a service with all its destinations.
    pub fn remove(&mut self, key: &ServiceKey) -> Outcome {
        Outcome { object: Object::Service(*key), result: removed(self.table.delete_service(key)) }
    }

    /// Removes every observed service that isn't among those to keep.
    pub fn prune(&mut self, observed: &VirtualServices, keep: &BTreeSet<ServiceKey>) -> Vec<Outcome> {
        observed.keys().filter(|key| !keep.contains(*key)).map(|key| self.remove(key)).collect()
    }

    /// A full pass: observes, ensures all that is desired, then prunes the rest.
    pub fn reconcile(&mut self, desired: &VirtualServices) -> Result<Vec<Outcome>, IpvsError> {
        let observed = self.observe()?;
        let mut outcomes = Vec::new();
        for (key, service) in desired {
            outcomes.extend(self.ensure(service, observed.get(key)));
        }
        outcomes.extend(self.prune(&observed, &desired.keys().copied().collect()));
        Ok(outcomes)
    }

    fn create_destinations(&mut self, key: &ServiceKey, new: &[&Destination]) -> Vec<Outcome> {
        let object = |destination: &Destination| Object::Destination(*key, destination.address);
        let results = match self.table.create_destinations(key, new) {
            Ok(results) => results,
            Err(error) => {
                let first = new.first().map(|destination| object(destination));
                return first.map(|object| Outcome { object, result: Err(error) }).into_iter().collect();
            }
        };
        let mut outcomes = Vec::new();
        for (destination, result) in new.iter().zip(results) {
            let result = match result {
                Err(IpvsError::Exists(_)) => self.settle_destination(key, destination),
                created => created.map(|()| Change::Created),
            };
            outcomes.push(Outcome { object: object(destination), result });
        }
        outcomes
    }

    fn write_service(&mut self, desired: &Service, is_there: bool) -> Result<Change, IpvsError> {
        if is_there {
            match self.table.change_service(desired) {
                Err(IpvsError::NotFound(_)) => {}
                changed => return changed.map(|()| Change::Changed),
            }
        }
        match self.table.create_service(desired) {
            Err(IpvsError::Exists(object)) => {
                match self.table.service(&desired.key)? {
                    Some(status) if status.service == *desired => Ok(Change::Unchanged),
                    Some(_) => self.table.change_service(desired).map(|()| Change::Changed),
                    // It comes and goes: another pass.
                    None => Err(IpvsError::NotFound(object)),
                }
            }
            created => created.map(|()| Change::Created),
        }
    }

    fn write_destination(
        &mut self,
        key: &ServiceKey,
        desired: &Destination,
        is_there: bool,
    ) -> Result<Change, IpvsError> {
        if is_there {
            match self.table.change_destination(key, desired) {
                Err(IpvsError::NotFound(Object::Destination(..))) => {}
                changed => return changed.map(|()| Change::Changed),
            }
        }
        match self.table.create_destination(key, desired) {
            Err(IpvsError::Exists(_)) => self.settle_destination(key, desired),
            created => created.map(|()| Change::Created),
        }
    }

    /// Compares a destination that turned out to be there.
    fn settle_destination(&mut self, key: &ServiceKey, desired: &Destination) -> Result<Change, IpvsError> {
        let mut there = self.table.destinations(key)?.into_iter().map(|status| status.destination);
        match there.find(|destination| destination.address == desired.address) {
            Some(destination) if destination.satisfies(desired) => Ok(Change::Unchanged),
            Some(_) => self.table.change_destination(key, desired).map(|()| Change::Changed),
            // It comes and goes: another pass.
            None => Err(IpvsError::NotFound(Object::Destination(*key, desired.address))),
        }
    }
}

/// A form of a service that costs nothing to add destinations to, if its own does: the kernel computes a Maglev table
/// anew with each (`ip_vs_mh_dest_changed`).
fn first_form(service: &Service) -> Option<Service> {
    matches!(service.scheduler, Scheduler::Maglev(_))
        .then(|| Service { scheduler: Scheduler::RoundRobin, ..service.clone() })
}

/// What is gone is removed, whoever did it.
fn removed(result: Result<(), IpvsError>) -> Result<Change, IpvsError> {
    match result {
        Ok(()) => Ok(Change::Removed),
        Err(IpvsError::NotFound(_)) => Ok(Change::Unchanged),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;

//! A table in memory that answers as the kernel does, for tests of what is built on it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::model::{
    Destination, DestinationKey, DestinationStatus, Forwarding, Info, Service, ServiceKey, ServiceStatus,
    Stats, Timeouts, VirtualService,
};
use super::table::{IpvsError, IpvsTable, Object};

/// The table.
#[derive(Debug)]
pub struct FakeTable {
    services: BTreeMap<ServiceKey, VirtualService>,
    timeouts: Timeouts,
    /// Names of schedulers that this "kernel" lacks.
    pub missing_schedulers: BTreeSet<String>,
    /// Addresses that its namespace has itself.
    pub local: BTreeSet<DestinationKey>,
    /// Whether it has the module at all.
    pub has_module: bool,
    /// Changes done so far.
    pub writes: usize,
}

impl Default for FakeTable {
    fn default() -> Self {
        let [tcp, tcp_fin, udp] = [900, 120, 300].map(Duration::from_secs);
        Self {
            services: BTreeMap::new(),
            timeouts: Timeouts { tcp, tcp_fin, udp },
            missing_schedulers: BTreeSet::new(),
            local: BTreeSet::new(),
            has_module: true,
            writes: 0,
        }
    }
}

impl FakeTable {
    /// What is in it.
    pub fn content(&self) -> &BTreeMap<ServiceKey, VirtualService> {
        &self.services
    }

    fn check_module(&self) -> Result<(), IpvsError> {
        if self.has_module { Ok(()) } else { Err(IpvsError::ModuleMissing) }
    }

    fn check_scheduler(&self, service: &Service) -> Result<(), IpvsError> {
        self.check_module()?;
        let scheduler = service.scheduler.name().to_owned();
        if self.missing_schedulers.contains(&scheduler) {
            return Err(IpvsError::SchedulerMissing { scheduler, service: service.key });
        }
        Ok(())
    }

    fn found(&mut self, key: &ServiceKey) -> Result<&mut VirtualService, IpvsError> {
        self.check_module()?;
        self.services.get_mut(key).ok_or(IpvsError::NotFound(Object::Service(*key)))
    }

    fn shown(&self, destination: &Destination) -> Destination {
        if self.local.contains(&destination.address) {
            Destination { forwarding: Forwarding::LocalNode, ..*destination }
        } else {
            *destination
        }
    }
}

fn refused(key: &ServiceKey, destination: &Destination) -> Result<(), IpvsError> {
    if destination.upper < destination.lower {
        let action = format!("write {}", Object::Destination(*key, destination.address));
        return Err(IpvsError::Refused { action, source: std::io::Error::from_raw_os_error(libc::ERANGE) });
    }
    Ok(())
}

impl IpvsTable for FakeTable {
    fn services(&mut self) -> Result<Vec<ServiceStatus>, IpvsError> {
        self.check_module()?;
        let status =
            |each: &VirtualService| ServiceStatus { service: each.service.clone(), stats: Stats::default() };
        Ok(self.services.values().map(status).collect())
    }

    fn service(&mut self, key: &ServiceKey) -> Result<Option<ServiceStatus>, IpvsError> {
        Ok(self.services()?.into_iter().find(|status| status.service.key == *key))
    }

    fn destinations(&mut self, key: &ServiceKey) -> Result<Vec<DestinationStatus>, IpvsError> {
        self.check_module()?;
        let status = |destination: &Destination| DestinationStatus {
            destination: *destination,
            active: 0,
            inactive: 0,
            persistent: 0,
            stats: Stats::default(),
        };
        Ok(self
            .services
            .get(key)
            .into_iter()
            .flat_map(|each| each.destinations.values())
            .map(status)
            .collect())
    }

    fn create_service(&mut self, service: &Service) -> Result<(), IpvsError> {
        self.check_module()?;
        if self.services.contains_key(&service.key) {
            return Err(IpvsError::Exists(Object::Service(service.key)));
        }
        self.check_scheduler(service)?;
        self.services.insert(service.key, VirtualService::new(service.clone(), []));
        self.writes += 1;
        Ok(())
    }

    fn change_service(&mut self, service: &Service) -> Result<(), IpvsError> {
        self.found(&service.key)?;
        self.check_scheduler(service)?;
        self.found(&service.key)?.service = service.clone();
        self.writes += 1;
        Ok(())
    }

    fn delete_service(&mut self, key: &ServiceKey) -> Result<(), IpvsError> {
        self.found(key)?;
        self.services.remove(key);
        self.writes += 1;
        Ok(())
    }

    fn create_destination(&mut self, key: &ServiceKey, destination: &Destination) -> Result<(), IpvsError> {
        let shown = self.shown(destination);
        let service = self.found(key)?;
        refused(key, destination)?;
        if service.destinations.contains_key(&destination.address) {
            return Err(IpvsError::Exists(Object::Destination(*key, destination.address)));
        }
        service.destinations.insert(destination.address, shown);
        self.writes += 1;
        Ok(())
    }

    fn change_destination(&mut self, key: &ServiceKey, destination: &Destination) -> Result<(), IpvsError> {
        let shown = self.shown(destination);
        let service = self.found(key)?;
        refused(key, destination)?;
        let missing = IpvsError::NotFound(Object::Destination(*key, destination.address));
        *service.destinations.get_mut(&destination.address).ok_or(missing)? = shown;
        self.writes += 1;
        Ok(())
    }

    fn delete_destination(&mut self, key: &ServiceKey, destination: &Destination) -> Result<(), IpvsError> {
        let removed = self.found(key)?.destinations.remove(&destination.address);
        removed.ok_or(IpvsError::NotFound(Object::Destination(*key, destination.address)))?;
        self.writes += 1;
        Ok(())
    }

    fn timeouts(&mut self) -> Result<Timeouts, IpvsError> {
        self.check_module().map(|()| self.timeouts)
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<(), IpvsError> {
        self.check_module()?;
        let wanted = [timeouts.tcp, timeouts.tcp_fin, timeouts.udp];
        let held = [&mut self.timeouts.tcp, &mut self.timeouts.tcp_fin, &mut self.timeouts.udp];
        for (held, wanted) in held.into_iter().zip(wanted).filter(|(_, wanted)| !wanted.is_zero()) {
            *held = wanted;
        }
        self.writes += 1;
        Ok(())
    }

    fn info(&mut self) -> Result<Info, IpvsError> {
        self.check_module().map(|()| Info { version: (1, 2, 1), table_size: 4096 })
    }
}

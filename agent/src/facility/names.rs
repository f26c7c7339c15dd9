//! From the plan's names to the zones that resolvers answer from.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_plan::object::{NetworkNames, ReservedNames, Resolver};

use crate::drivers::dns::{NetworkRecords, NetworkZone, Reserved, ServiceRecord, TaskRecord, Zone};

/// Zones of networks, made once for all tasks in them and kept while the names stay.
#[derive(Debug, Default)]
pub(super) struct ZoneCache {
    networks: BTreeMap<String, (Arc<NetworkNames>, Arc<NetworkZone>)>,
    reserved: Option<(Arc<ReservedNames>, Arc<Reserved>)>,
}

impl ZoneCache {
    /// A task's view.
    pub(super) fn zone(&mut self, resolver: &Resolver) -> Zone {
        let networks = resolver.networks.iter().map(|names| self.network(names)).collect();
        Zone::new(networks, self.reserved(&resolver.reserved), resolver.forward).asking(&resolver.servers)
    }

    fn network(&mut self, names: &Arc<NetworkNames>) -> Arc<NetworkZone> {
        if let Some((known, zone)) = self.networks.get(&names.name)
            && known == names
        {
            return Arc::clone(zone);
        }
        let zone = Arc::new(NetworkZone::new(&records(names)));
        self.networks.insert(names.name.clone(), (Arc::clone(names), Arc::clone(&zone)));
        zone
    }

    fn reserved(&mut self, names: &Arc<ReservedNames>) -> Arc<Reserved> {
        if let Some((known, reserved)) = &self.reserved
            && known == names
        {
            return Arc::clone(reserved);
        }
        let reserved = Arc::new(Reserved {
            networks: names.networks.clone(),
            slots: names.slots.clone(),
            subnets: names.subnets.iter().copied().collect(),
        });
        self.reserved = Some((Arc::clone(names), Arc::clone(&reserved)));
        reserved
    }
}

fn records(names: &NetworkNames) -> NetworkRecords {
    let services = names.services.iter().map(|service| ServiceRecord {
        name: service.name.clone(),
        aliases: service.aliases.clone(),
        vips: service.vips.clone(),
        targets: service.targets.iter().copied().collect(),
    });
    let tasks = names.tasks.iter().map(|task| TaskRecord {
        service: task.service.clone(),
        slot: task.slot.clone(),
        serving: task.serving,
        idle: task.idle,
        addresses: task.addresses.clone(),
    });
    NetworkRecords {
        name: names.name.clone(),
        subnets: vec![names.subnets.0.into(), names.subnets.1.into()],
        services: services.collect(),
        tasks: tasks.collect(),
    }
}

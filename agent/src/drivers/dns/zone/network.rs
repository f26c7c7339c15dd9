//! The names of one network, ready to be looked up.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, AAAA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;
use shoal_types::Protocol;

use super::service::ServicePort;
use super::{TTL_TASK, TTL_VIP};

/// More addresses or tasks than this are not put into one answer; which ones changes with each answer.
pub(super) const MAX_RECORDS: usize = 512;

/// What is known about one network: input to [`NetworkZone::new`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkRecords {
    /// The network's name.
    pub name: String,
    /// Its subnets.
    pub subnets: Vec<IpNet>,
    /// The services attached to it.
    pub services: Vec<ServiceRecord>,
    /// The tasks attached to it.
    pub tasks: Vec<TaskRecord>,
}

/// A service in a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRecord {
    /// The service's name.
    pub name: String,
    /// Further names for the same in this network.
    pub aliases: Vec<String>,
    /// Its virtual IPs here; without any, its name stands for its serving tasks (endpoint mode `dnsrr`); for idle ones
    /// only if all are.
    pub vips: Vec<IpAddr>,
    /// Ports that its tasks are published with.
    pub targets: Vec<(Protocol, u16)>,
}

/// A task in a network, whether it takes new flows or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskRecord {
    /// The service it belongs to.
    pub service: String,
    /// Its slot: the task is called `service.slot`.
    pub slot: String,
    /// Whether it takes new flows.
    pub serving: bool,
    /// Whether its node has weight 0.
    pub idle: bool,
    /// Its addresses here.
    pub addresses: Vec<IpAddr>,
}

/// The names of one network, ready to be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkZone {
    pub(super) name: String,
    pub(super) known: bool,
    pub(super) subnets: Vec<IpNet>,
    names: HashMap<String, Addresses>,
    /// By service name and alias: several services may share an alias.
    services: HashMap<String, Vec<Arc<Instances>>>,
    reverse: HashMap<IpAddr, String>,
}

/// Addresses under one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
    pub(super) ttl: u32,
}

impl Addresses {
    pub(super) fn new(addresses: &[IpAddr], ttl: u32) -> Self {
        let mut this = Self { ttl, ..Self::default() };
        this.add(addresses);
        this
    }

    fn add(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            match address {
                IpAddr::V4(v4) => self.v4.push(*v4),
                IpAddr::V6(v6) => self.v6.push(*v6),
            }
        }
    }

    /// Both together, kept as long as the shorter-lived.
    fn join(&mut self, other: &Self) {
        self.v4.extend(&other.v4);
        self.v6.extend(&other.v6);
        self.ttl = self.ttl.min(other.ttl);
    }

    pub(super) fn data(&self, qtype: RecordType, rotation: usize) -> Vec<RData> {
        let mut data = Vec::new();
        if matches!(qtype, RecordType::A | RecordType::ANY) {
            data.extend(rotated(&self.v4, rotation).map(|address| RData::A(A(*address))));
        }
        if matches!(qtype, RecordType::AAAA | RecordType::ANY) {
            data.extend(rotated(&self.v6, rotation).map(|address| RData::AAAA(AAAA(*address))));
        }
        data
    }
}

fn rotated<T>(items: &[T], rotation: usize) -> impl Iterator<Item = &T> {
    let start = rotation.checked_rem(items.len()).unwrap_or(0);
    items.iter().cycle().skip(start).take(items.len().min(MAX_RECORDS))
}

/// The serving tasks of a service, as SRV records have them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Instances {
    targets: Vec<(Protocol, u16)>,
    /// Name within the network (`web.1`) and addresses. A task and its replacement that both serve are one.
    tasks: BTreeMap<String, Addresses>,
    /// Those of them that are not idle.
    busy: BTreeMap<String, Addresses>,
}

impl Instances {
    /// The addresses of all, and those that a name without a virtual IP stands for.
    fn addresses(&self) -> (Addresses, Addresses) {
        let joined = |tasks: &BTreeMap<String, Addresses>| {
            let mut joined = Addresses::new(&[], TTL_TASK);
            for addresses in tasks.values() {
                joined.join(addresses);
            }
            joined
        };
        let chosen = if self.busy.is_empty() { &self.tasks } else { &self.busy };
        (joined(&self.tasks), joined(chosen))
    }

    /// Port numbers that a question means. The network is open inside, so a number that is not published is as good
    /// as one that is; without a number it is those that are.
    fn ports(&self, asked: ServicePort) -> Vec<u16> {
        match asked.number {
            Some(number) => vec![number],
            None => {
                self.targets.iter().filter(|(p, _)| *p == asked.protocol).map(|(_, port)| *port).collect()
            }
        }
    }
}

/// Records that answer a question for instances, and those that save the next questions.
#[derive(Debug, Default)]
pub(super) struct Located {
    pub(super) answers: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

impl NetworkZone {
    /// Builds the look-up tables of a network. When two things claim one name, a service keeps it before an alias;
    /// services with one alias share it.
    pub fn new(records: &NetworkRecords) -> Self {
        let mut this = Self::unknown(&records.name, records.subnets.clone());
        this.known = true;
        let mut instances: HashMap<String, Instances> = HashMap::new();
        for task in &records.tasks {
            let service = task.service.to_ascii_lowercase();
            let name = format!("{service}.{}", task.slot.to_ascii_lowercase());
            for address in &task.addresses {
                this.reverse.insert(*address, name.clone());
            }
            if task.serving {
                let of_service = instances.entry(service).or_default();
                let busy = (!task.idle).then_some(&mut of_service.busy);
                for tasks in busy.into_iter().chain([&mut of_service.tasks]) {
                    let entry = tasks.entry(name.clone()).or_insert_with(|| Addresses::new(&[], TTL_TASK));
                    entry.add(&task.addresses);
                }
            }
            // A replacement and the task it replaces have one name for a while: both answer to it.
            let entry = this.names.entry(name).or_insert_with(|| Addresses::new(&[], TTL_TASK));
            entry.add(&task.addresses);
        }
        let mut services: Vec<(&ServiceRecord, Arc<Instances>)> = Vec::new();
        for service in &records.services {
            let name = service.name.to_ascii_lowercase();
            let mut own = instances.remove(&name).unwrap_or_default();
            own.targets.clone_from(&service.targets);
            for vip in &service.vips {
                this.reverse.insert(*vip, name.clone());
            }
            let own = Arc::new(own);
            this.name_service(&name, service, &own);
            services.push((service, own));
        }
        let mut aliased: Vec<(String, &ServiceRecord, &Arc<Instances>)> = Vec::new();
        for (service, own) in &services {
            let mut aliases: Vec<_> =
                service.aliases.iter().map(|alias| alias.to_ascii_lowercase()).collect();
            aliases.sort_unstable();
            aliases.dedup();
            aliases.retain(|alias| !this.services.contains_key(alias));
            aliased.extend(aliases.into_iter().map(|alias| (alias, *service, own)));
        }
        for (alias, service, own) in aliased {
            this.name_service(&alias, service, own);
        }
        this
    }

    /// Lets a name stand for a service, beside those that it stands for already.
    fn name_service(&mut self, name: &str, service: &ServiceRecord, own: &Arc<Instances>) {
        let (tasks, chosen) = own.addresses();
        let vips = Addresses::new(&service.vips, TTL_VIP);
        let all = format!("tasks.{name}");
        for (name, addresses) in
            [(name, if service.vips.is_empty() { &chosen } else { &vips }), (&all, &tasks)]
        {
            match self.names.get_mut(name) {
                Some(others) => others.join(addresses),
                None => drop(self.names.insert(name.to_owned(), addresses.clone())),
            }
        }
        self.services.entry(name.to_owned()).or_default().push(Arc::clone(own));
    }

    /// A network the task is in, whose names are not known (yet, or any more).
    pub fn unknown(name: &str, subnets: Vec<IpNet>) -> Self {
        Self {
            name: name.to_ascii_lowercase(),
            known: false,
            subnets,
            names: HashMap::new(),
            services: HashMap::new(),
            reverse: HashMap::new(),
        }
    }

    /// The network's name, in lower case.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a name within the network stands for.
    pub(super) fn addresses(&self, name: &str) -> Option<&Addresses> {
        self.names.get(name)
    }

    /// Whose address it is: a name within the network.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&str> {
        self.reverse.get(&address).map(String::as_str)
    }

    /// Whether a name is a service's, or an alias.
    pub(super) fn has_service(&self, name: &str) -> bool {
        self.services.contains_key(name)
    }

    /// SRV records of the services under a name, owned by the name that was asked for: one per serving task and
    /// port, each with the task's own name as target.
    pub(super) fn locate(&self, name: &str, asked: ServicePort, owner: &Name, rotation: usize) -> Located {
        let mut found = Vec::new();
        for service in self.services.get(name).into_iter().flatten() {
            for port in service.ports(asked) {
                found.extend(service.tasks.iter().map(|(task, addresses)| (port, task, addresses)));
            }
        }
        let mut located = Located::default();
        for (port, task, addresses) in rotated(&found, rotation) {
            let Ok(target) = Name::from_ascii(format!("{task}.{}.", self.name)) else { continue };
            let data = addresses.data(RecordType::ANY, 0);
            let more = data.into_iter().map(|data| Record::from_rdata(target.clone(), addresses.ttl, data));
            located.additionals.extend(more);
            let record = RData::SRV(SRV::new(0, 1, *port, target));
            located.answers.push(Record::from_rdata(owner.clone(), TTL_TASK, record));
        }
        located
    }
}

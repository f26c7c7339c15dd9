//! What a task may know: an immutable snapshot that turns a question into a decision, without any I/O.
//!
//! A [`NetworkZone`] holds the names of one network and is shared by all tasks in it; a [`Zone`] is one task's
//! view: the networks it is in, in order, and what it must not ask the outside. The rules, in order:
//!
//! 1. Only class IN; zone transfers and the root are refused.
//! 2. Reverse names: an address of a known task or VIP has its name; other addresses of the cluster and the
//!    loopback have none; the rest is for the outside.
//! 3. `localhost` is the loopback.
//! 4. Names of the view, unqualified or ending in a network's name. A name that exists has no error, whatever
//!    type is asked for.
//! 5. Names that can only mean something of the cluster don't exist: unqualified ones, `tasks.x`, `x.1`, and
//!    those below a network's name, also of networks the task isn't in. They never reach the outside.
//! 6. The rest is for the outside; for a task with internal networks only it is refused.
//!
//! While nothing (or not all) is known, what isn't found is SERVFAIL: a client tries again after that, but
//! believes that a name doesn't exist.

mod reverse;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use ipnet::IpNet;

/// How long, in seconds, an answer may be kept: task addresses come and go.
pub const TTL_TASK: u32 = 5;
/// A service keeps its virtual IP for life.
pub const TTL_VIP: u32 = 30;
/// More addresses than this are not put into one answer; which ones changes with each answer.
const MAX_ADDRESSES: usize = 512;

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
    /// Its virtual IPs here; without any, its name stands for its endpoints (endpoint mode `dnsrr`).
    pub vips: Vec<IpAddr>,
    /// The addresses of its healthy tasks here.
    pub endpoints: Vec<IpAddr>,
}

/// A task in a network, healthy or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskRecord {
    /// The service it belongs to.
    pub service: String,
    /// Its slot: the task is called `service.slot`.
    pub slot: u64,
    /// The host name it has, if that is to be found too.
    pub hostname: Option<String>,
    /// Its addresses here.
    pub addresses: Vec<IpAddr>,
}

/// What belongs to the cluster as far as the node knows, and is never asked outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// The names of all networks, also those the task isn't in.
    pub networks: BTreeSet<String>,
    /// All subnets and the pools they come from.
    pub subnets: Vec<IpNet>,
}

/// The names of one network, ready to be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkZone {
    name: String,
    known: bool,
    subnets: Vec<IpNet>,
    names: HashMap<String, Addresses>,
    reverse: HashMap<IpAddr, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Addresses {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
    ttl: u32,
}

impl Addresses {
    fn new(addresses: &[IpAddr], ttl: u32) -> Self {
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

    fn data(&self, qtype: RecordType, rotation: usize) -> Vec<RData> {
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
    items.iter().cycle().skip(start).take(items.len().min(MAX_ADDRESSES))
}

impl NetworkZone {
    /// Builds the look-up tables of a network. When two things claim one name, a service keeps it before an
    /// alias, an alias before a task, and a task's proper name before a host name; several tasks with one host
    /// name share it.
    pub fn new(records: &NetworkRecords) -> Self {
        let mut names: HashMap<String, Addresses> = HashMap::new();
        let mut reverse = HashMap::new();
        for service in &records.services {
            let name = service.name.to_ascii_lowercase();
            names.insert(name.clone(), service_addresses(service));
            names.insert(format!("tasks.{name}"), Addresses::new(&service.endpoints, TTL_TASK));
            for vip in &service.vips {
                reverse.insert(*vip, name.clone());
            }
        }
        for service in &records.services {
            for alias in &service.aliases {
                names.entry(alias.to_ascii_lowercase()).or_insert_with(|| service_addresses(service));
            }
        }
        let mut hostnames: HashMap<String, Addresses> = HashMap::new();
        for task in &records.tasks {
            let name = format!("{}.{}", task.service.to_ascii_lowercase(), task.slot);
            for address in &task.addresses {
                reverse.insert(*address, name.clone());
            }
            // A replacement and the task it replaces have one name for a while: both answer to it.
            names.entry(name).or_insert_with(|| Addresses::new(&[], TTL_TASK)).add(&task.addresses);
            if let Some(hostname) = &task.hostname {
                hostnames
                    .entry(hostname.to_ascii_lowercase())
                    .or_insert_with(|| Addresses::new(&[], TTL_TASK))
                    .add(&task.addresses);
            }
        }
        hostnames.extend(names);
        Self {
            name: records.name.to_ascii_lowercase(),
            known: true,
            subnets: records.subnets.clone(),
            names: hostnames,
            reverse,
        }
    }

    /// A network the task is in, whose names are not known (yet, or any more).
    pub fn unknown(name: &str, subnets: Vec<IpNet>) -> Self {
        Self {
            name: name.to_ascii_lowercase(),
            known: false,
            subnets,
            names: HashMap::new(),
            reverse: HashMap::new(),
        }
    }

    /// The network's name, in lower case.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn service_addresses(service: &ServiceRecord) -> Addresses {
    if service.vips.is_empty() {
        Addresses::new(&service.endpoints, TTL_TASK)
    } else {
        Addresses::new(&service.vips, TTL_VIP)
    }
}

/// One task's view of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    known: bool,
    networks: Vec<Arc<NetworkZone>>,
    reserved: Arc<Reserved>,
    forwards: bool,
}

/// What to do with a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Answer with these records; none means that the name exists without records of this type.
    Answer(Vec<Record>),
    /// The name doesn't exist.
    NxDomain,
    /// It isn't known whether the name exists.
    ServFail,
    /// The question is not answered here.
    Refused,
    /// Such questions are not answered here or passed on.
    NotImplemented,
    /// Ask the upstream servers.
    Forward,
}

impl Zone {
    /// A task's view: its networks in the order their names are looked up. `forwards` is false for a task whose
    /// networks are all internal.
    pub fn new(networks: Vec<Arc<NetworkZone>>, reserved: Arc<Reserved>, forwards: bool) -> Self {
        Self { known: true, networks, reserved, forwards }
    }

    /// The view of a task about which nothing is known yet: every question is SERVFAIL.
    pub fn unknown() -> Self {
        Self { known: false, networks: Vec::new(), reserved: Arc::default(), forwards: false }
    }

    /// Decides on a question. `rotation` turns the order of several addresses.
    pub fn decide(&self, name: &Name, qtype: RecordType, class: DNSClass, rotation: usize) -> Decision {
        if class != DNSClass::IN {
            return Decision::Refused;
        }
        if matches!(qtype, RecordType::AXFR | RecordType::IXFR) || name.is_root() {
            return Decision::Refused;
        }
        if !self.known {
            return Decision::ServFail;
        }
        if let Some(prefix) = reverse::parse(name) {
            return self.decide_reverse(name, prefix, qtype);
        }
        let text = text_of(name);
        if text == "localhost" || text.ends_with(".localhost") {
            let loopback = Addresses::new(&[Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], TTL_VIP);
            return answer(name, loopback.ttl, loopback.data(qtype, 0));
        }
        let found = self.find(&text);
        if !found.is_empty() {
            // With several networks, the first that has such a record answers.
            let data = found.iter().map(|entry| (entry.ttl, entry.data(qtype, rotation)));
            let (ttl, data) = data.into_iter().find(|(_, data)| !data.is_empty()).unwrap_or_default();
            return answer(name, ttl, data);
        }
        self.decide_absent(&text, qtype)
    }

    fn decide_reverse(&self, name: &Name, prefix: IpNet, qtype: RecordType) -> Decision {
        let is_address = prefix.prefix_len() == prefix.max_prefix_len();
        let owner = self.networks.iter().find_map(|zone| Some((zone, zone.reverse.get(&prefix.addr())?)));
        if let (true, Some((zone, owner))) = (is_address, owner) {
            let Ok(target) = Name::from_ascii(format!("{owner}.{}.", zone.name)) else {
                return Decision::ServFail;
            };
            let wanted = matches!(qtype, RecordType::PTR | RecordType::ANY);
            return answer(name, TTL_TASK, if wanted { vec![RData::PTR(PTR(target))] } else { Vec::new() });
        }
        let overlaps = |net: &IpNet| net.contains(&prefix) || prefix.contains(net);
        if self.networks.iter().any(|zone| zone.subnets.iter().any(overlaps)) {
            return self.absent(is_address);
        }
        if self.reserved.subnets.iter().any(overlaps) || prefix.addr().is_loopback() {
            return if is_address { Decision::NxDomain } else { Decision::Answer(Vec::new()) };
        }
        self.outside(qtype)
    }

    /// A name of ours that isn't there: below it may be some, unless it is a full name.
    fn absent(&self, is_full: bool) -> Decision {
        match (self.networks.iter().all(|zone| zone.known), is_full) {
            (false, _) => Decision::ServFail,
            (true, true) => Decision::NxDomain,
            (true, false) => Decision::Answer(Vec::new()),
        }
    }

    /// What the view has under a name, unqualified first.
    fn find(&self, text: &str) -> Vec<&Addresses> {
        let unqualified = self.networks.iter().filter_map(|zone| zone.names.get(text));
        let qualified = self.networks.iter().filter_map(|zone| {
            let rest = text.strip_suffix(zone.name.as_str())?.strip_suffix('.')?;
            zone.names.get(rest)
        });
        unqualified.chain(qualified).collect()
    }

    fn decide_absent(&self, text: &str, qtype: RecordType) -> Decision {
        if self.networks.iter().any(|zone| zone.name == text) {
            return Decision::Answer(Vec::new());
        }
        if let Some(zone) = self.networks.iter().find(|zone| is_below(text, &zone.name)) {
            return if zone.known { Decision::NxDomain } else { Decision::ServFail };
        }
        if self.reserved.networks.iter().any(|network| is_below(text, network)) {
            return Decision::NxDomain;
        }
        let (first, last) = (text.split('.').next(), text.rsplit('.').next());
        let labels = text.split('.').count();
        let is_ours = labels == 1
            || (labels == 2 && first == Some("tasks"))
            || last.is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
        if is_ours { self.absent(true) } else { self.outside(qtype) }
    }

    fn outside(&self, qtype: RecordType) -> Decision {
        match (self.forwards, qtype) {
            (false, _) => Decision::Refused,
            // Made for amplification, obsolete by RFC 8482.
            (true, RecordType::ANY) => Decision::NotImplemented,
            (true, _) => Decision::Forward,
        }
    }
}

fn answer(name: &Name, ttl: u32, data: Vec<RData>) -> Decision {
    Decision::Answer(data.into_iter().map(|data| Record::from_rdata(name.clone(), ttl, data)).collect())
}

fn is_below(text: &str, network: &str) -> bool {
    text.strip_suffix(network).is_some_and(|rest| rest.ends_with('.'))
}

/// The name in lower case, without the final dot. A dot or backslash inside a label is escaped, so that it
/// can't pass for a boundary.
fn text_of(name: &Name) -> String {
    let mut text = String::with_capacity(name.len());
    for label in name {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            if matches!(byte, b'.' | b'\\') {
                text.push('\\');
            }
            text.push(char::from(byte.to_ascii_lowercase()));
        }
    }
    text
}

#[cfg(test)]
mod tests;

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
//! 5. `_8080._tcp.x` and `_tcp.x` say where service `x` is, by SRV records.
//! 6. Names that can only mean something of the cluster don't exist: unqualified ones, `tasks.x`, `x.1`, those of
//!    rule 5 for an unqualified `x`, and those below a network's name, also of networks the task isn't in. They never
//!    reach the outside.
//! 7. The rest is for the outside; for a task with internal networks only it is refused.
//!
//! While nothing (or not all) is known, what isn't found is SERVFAIL: a client tries again after that, but
//! believes that a name doesn't exist.

mod network;
mod reverse;
mod service;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use ipnet::IpNet;

pub use network::{NetworkRecords, NetworkZone, ServiceRecord, TaskRecord};

use network::{Addresses, Located};
use service::Asked;

/// How long, in seconds, an answer may be kept: task addresses come and go.
pub const TTL_TASK: u32 = 5;
/// A service keeps its virtual IP for life.
pub const TTL_VIP: u32 = 30;

/// What belongs to the cluster as far as the node knows, and is never asked outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// The names of all networks, also those the task isn't in.
    pub networks: BTreeSet<String>,
    /// What tasks of global services have in place of a number: `web.SLOT`.
    pub slots: BTreeSet<String>,
    /// All subnets and the pools they come from.
    pub subnets: Vec<IpNet>,
}

/// One task's view of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    known: bool,
    networks: Vec<Arc<NetworkZone>>,
    reserved: Arc<Reserved>,
    forwards: bool,
    servers: Arc<[SocketAddr]>,
}

/// What to do with a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Answer with these records; none means that the name exists without records of this type.
    Answer(Vec<Record>),
    /// Answer with the first, and add the second if there is room: they save further questions.
    AnswerWith(Vec<Record>, Vec<Record>),
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
        Self { known: true, networks, reserved, forwards, servers: Arc::default() }
    }

    /// The same, asking these servers instead of the node's, unless there are none.
    #[must_use]
    pub fn asking(self, servers: &[IpAddr]) -> Self {
        Self { servers: servers.iter().map(|server| (*server, 53).into()).collect(), ..self }
    }

    /// The servers to ask; none: the node's.
    pub(super) fn servers(&self) -> Arc<[SocketAddr]> {
        Arc::clone(&self.servers)
    }

    /// The view of a task about which nothing is known yet: every question is SERVFAIL.
    pub fn unknown() -> Self {
        Self { known: false, ..Self::new(Vec::new(), Arc::default(), false) }
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
        if let Some((asked, service)) = service::parse(&text) {
            return self.decide_service(name, asked, service, qtype, rotation);
        }
        self.decide_absent(&text, qtype)
    }

    fn decide_reverse(&self, name: &Name, prefix: IpNet, qtype: RecordType) -> Decision {
        let is_address = prefix.prefix_len() == prefix.max_prefix_len();
        let owner = self.networks.iter().find_map(|zone| Some((zone, zone.owner(prefix.addr())?)));
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

    /// Where a service is.
    fn decide_service(
        &self,
        name: &Name,
        asked: Asked,
        service: &str,
        qtype: RecordType,
        rotation: usize,
    ) -> Decision {
        let zones: Vec<_> = self.candidates(service).filter(|(zone, own)| zone.has_service(own)).collect();
        if zones.is_empty() {
            return self.decide_absent(service, qtype);
        }
        let Asked::Port(port) = asked else { return self.absent(true) };
        if !matches!(qtype, RecordType::SRV | RecordType::ANY) {
            return Decision::Answer(Vec::new());
        }
        let located = zones.iter().map(|(zone, own)| zone.locate(own, port, name, rotation));
        let Located { answers, additionals } =
            located.into_iter().find(|located| !located.answers.is_empty()).unwrap_or_default();
        Decision::AnswerWith(answers, additionals)
    }

    /// Where a name may be found: in every network as it is, then in the one that it ends with.
    fn candidates<'a, 't>(&'a self, text: &'t str) -> impl Iterator<Item = (&'a NetworkZone, &'t str)> {
        let zones = || self.networks.iter().map(Arc::as_ref);
        let qualified = zones().filter_map(move |zone| {
            let rest = text.strip_suffix(zone.name())?.strip_suffix('.')?;
            Some((zone, rest))
        });
        zones().map(move |zone| (zone, text)).chain(qualified)
    }

    /// What the view has under a name.
    fn find(&self, text: &str) -> Vec<&Addresses> {
        self.candidates(text).filter_map(|(zone, own)| zone.addresses(own)).collect()
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
        let is_slot = |label: &str| self.reserved.slots.contains(label);
        let is_ours = labels == 1
            || (labels == 2 && (first == Some("tasks") || last.is_some_and(is_slot)))
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

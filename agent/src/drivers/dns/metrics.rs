//! What the resolvers count.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters of all resolvers of a node. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct DnsMetrics {
    queries: Family<QueryLabels, Counter>,
    /// Messages that could not be read as a query, and responses sent to us.
    pub malformed: Counter,
    /// Queries and connections refused for too many at once.
    pub rate_limited: Counter,
    /// Forwards in flight.
    pub forward_inflight: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryLabels {
    r#type: &'static str,
    rcode: &'static str,
    zone: &'static str,
}

/// Who answered a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnsweredBy {
    /// The resolver itself.
    Own,
    /// An upstream server.
    Upstream,
}

impl DnsMetrics {
    /// Names the metrics in a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("shoal_dns_queries", "Queries answered", self.queries.clone());
        registry.register("shoal_dns_malformed", "Messages that are no query", self.malformed.clone());
        registry.register("shoal_dns_rate_limited", "Queries over a limit", self.rate_limited.clone());
        registry.register("shoal_dns_forward_inflight", "Forwards in flight", self.forward_inflight.clone());
    }

    /// How many queries of a kind were answered.
    pub fn queries(&self, qtype: RecordType, code: ResponseCode, by: AnsweredBy) -> u64 {
        self.queries.get_or_create(&labels(qtype, code, by)).get()
    }

    pub(super) fn answered(&self, qtype: RecordType, code: ResponseCode, by: AnsweredBy) {
        self.queries.get_or_create(&labels(qtype, code, by)).inc();
    }
}

/// A bounded set of labels, whatever clients ask for.
fn labels(qtype: RecordType, code: ResponseCode, by: AnsweredBy) -> QueryLabels {
    QueryLabels {
        r#type: match qtype {
            RecordType::A => "A",
            RecordType::AAAA => "AAAA",
            RecordType::ANY => "ANY",
            RecordType::CNAME => "CNAME",
            RecordType::HTTPS => "HTTPS",
            RecordType::MX => "MX",
            RecordType::NS => "NS",
            RecordType::PTR => "PTR",
            RecordType::SOA => "SOA",
            RecordType::SRV => "SRV",
            RecordType::TXT => "TXT",
            _ => "other",
        },
        rcode: match code {
            ResponseCode::NoError => "NOERROR",
            ResponseCode::FormErr => "FORMERR",
            ResponseCode::ServFail => "SERVFAIL",
            ResponseCode::NXDomain => "NXDOMAIN",
            ResponseCode::NotImp => "NOTIMP",
            ResponseCode::Refused => "REFUSED",
            _ => "other",
        },
        zone: match by {
            AnsweredBy::Own => "own",
            AnsweredBy::Upstream => "upstream",
        },
    }
}

//! What the resolvers count.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

/// Label values of types; clients may ask for any of 65536.
const TYPES: [(RecordType, &str); 11] = [
    (RecordType::A, "A"),
    (RecordType::AAAA, "AAAA"),
    (RecordType::ANY, "ANY"),
    (RecordType::CNAME, "CNAME"),
    (RecordType::HTTPS, "HTTPS"),
    (RecordType::MX, "MX"),
    (RecordType::NS, "NS"),
    (RecordType::PTR, "PTR"),
    (RecordType::SOA, "SOA"),
    (RecordType::SRV, "SRV"),
    (RecordType::TXT, "TXT"),
];
/// Label values of response codes.
const CODES: [(ResponseCode, &str); 6] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::NotImp, "NOTIMP"),
    (ResponseCode::Refused, "REFUSED"),
];
const OTHER: &str = "other";
/// Label values of who answered.
const ZONES: [&str; 2] = ["own", "upstream"];
/// Upper bounds of the histogram, microseconds.
const BOUNDS_US: [u64; 10] = [50, 100, 250, 1_000, 5_000, 25_000, 100_000, 500_000, 1_000_000, 5_000_000];

/// Counters of all resolvers of a node. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct DnsMetrics(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// One more of each for what is in no list.
    queries: [[[AtomicU64; CODES.len() + 1]; TYPES.len() + 1]; ZONES.len()],
    latency: [Latency; ZONES.len()],
    malformed: AtomicU64,
    rate_limited: AtomicU64,
    inflight: AtomicU64,
}

#[derive(Debug, Default)]
struct Latency {
    /// Those within each bound and no smaller one; the last is for the rest.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

/// Who answered a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnsweredBy {
    /// The resolver itself.
    Own,
    /// An upstream server.
    Upstream,
}

impl AnsweredBy {
    const fn index(self) -> usize {
        match self {
            Self::Own => 0,
            Self::Upstream => 1,
        }
    }
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

impl DnsMetrics {
    /// How many queries of a kind were answered.
    pub fn queries(&self, qtype: RecordType, code: ResponseCode, by: AnsweredBy) -> u64 {
        get(self.counter(qtype, code, by))
    }

    /// Messages that could not be read as a query, and responses sent to us.
    pub fn malformed(&self) -> u64 {
        get(&self.0.malformed)
    }

    /// Queries and connections refused for too many at once.
    pub fn rate_limited(&self) -> u64 {
        get(&self.0.rate_limited)
    }

    /// Forwards in flight.
    pub fn forwards_inflight(&self) -> u64 {
        get(&self.0.inflight)
    }

    fn counter(&self, qtype: RecordType, code: ResponseCode, by: AnsweredBy) -> &AtomicU64 {
        let qtype = TYPES.iter().position(|(known, _)| *known == qtype).unwrap_or(TYPES.len());
        let code = CODES.iter().position(|(known, _)| *known == code).unwrap_or(CODES.len());
        &self.0.queries[by.index()][qtype][code]
    }

    pub(super) fn answered(&self, qtype: RecordType, code: ResponseCode, by: AnsweredBy, took: Duration) {
        add(self.counter(qtype, code, by), 1);
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let latency = &self.0.latency[by.index()];
        let bucket = BOUNDS_US.iter().position(|bound| took_us <= *bound).unwrap_or(BOUNDS_US.len());
        add(&latency.buckets[bucket], 1);
        add(&latency.sum_us, took_us);
    }

    pub(super) fn count_malformed(&self) {
        add(&self.0.malformed, 1);
    }

    pub(super) fn count_rate_limited(&self) {
        add(&self.0.rate_limited, 1);
    }

    pub(super) fn forward_begins(&self) {
        add(&self.0.inflight, 1);
    }

    pub(super) fn forward_ends(&self) {
        self.0.inflight.fetch_sub(1, Ordering::Relaxed);
    }

    /// All of them in the text format of Prometheus. Series of queries that nobody asked are left out.
    pub fn text(&self) -> String {
        let mut out = String::new();
        head(&mut out, "shoal_dns_queries_total", "counter", "Queries answered by the tasks' resolvers");
        for (zone, types) in ZONES.iter().zip(&self.0.queries) {
            for (qtype, codes) in names(&TYPES).zip(types) {
                for (code, counter) in names(&CODES).zip(codes) {
                    let number = get(counter);
                    if number > 0 || (*zone, qtype, code) == ("own", "A", "NOERROR") {
                        let labels = format!("type=\"{qtype}\",rcode=\"{code}\",zone=\"{zone}\"");
                        line(&mut out, &format!("shoal_dns_queries_total{{{labels}}} {number}"));
                    }
                }
            }
        }
        head(&mut out, "shoal_dns_seconds", "histogram", "Time from a query to its answer");
        for (zone, latency) in ZONES.iter().zip(&self.0.latency) {
            latency.write(&mut out, zone);
        }
        for (name, kind, help, number) in [
            (
                "shoal_dns_forward_inflight",
                "gauge",
                "Queries that upstream servers are asked",
                &self.0.inflight,
            ),
            (
                "shoal_dns_rate_limited_total",
                "counter",
                "Queries and connections over a limit",
                &self.0.rate_limited,
            ),
            ("shoal_dns_malformed_total", "counter", "Messages that are no query", &self.0.malformed),
        ] {
            head(&mut out, name, kind, help);
            line(&mut out, &format!("{name} {}", get(number)));
        }
        out
    }
}

impl Latency {
    fn write(&self, out: &mut String, zone: &str) {
        let mut total = 0;
        let bounds = BOUNDS_US.iter().map(|us| Duration::from_micros(*us).as_secs_f64().to_string());
        for (bound, bucket) in bounds.chain(["+Inf".to_owned()]).zip(&self.buckets) {
            total += get(bucket);
            line(out, &format!("shoal_dns_seconds_bucket{{zone=\"{zone}\",le=\"{bound}\"}} {total}"));
        }
        let sum = Duration::from_micros(get(&self.sum_us)).as_secs_f64();
        line(out, &format!("shoal_dns_seconds_sum{{zone=\"{zone}\"}} {sum}"));
        line(out, &format!("shoal_dns_seconds_count{{zone=\"{zone}\"}} {total}"));
    }
}

/// The label values of a list, and the one for the rest.
fn names<T>(list: &'static [(T, &'static str)]) -> impl Iterator<Item = &'static str> {
    list.iter().map(|(_, name)| *name).chain([OTHER])
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _written = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_in_the_text() {
        let metrics = DnsMetrics::default();
        let shown = metrics.clone();
        metrics.answered(RecordType::A, ResponseCode::NXDomain, AnsweredBy::Own, Duration::from_micros(60));
        metrics.answered(
            RecordType::NULL,
            ResponseCode::YXDomain,
            AnsweredBy::Upstream,
            Duration::from_secs(9),
        );
        metrics.answered(RecordType::SRV, ResponseCode::NoError, AnsweredBy::Own, Duration::from_millis(2));
        metrics.count_malformed();
        metrics.forward_begins();
        let text = shown.text();
        for expected in [
            "shoal_dns_queries_total{type=\"A\",rcode=\"NOERROR\",zone=\"own\"} 0",
            "shoal_dns_queries_total{type=\"A\",rcode=\"NXDOMAIN\",zone=\"own\"} 1",
            "shoal_dns_queries_total{type=\"SRV\",rcode=\"NOERROR\",zone=\"own\"} 1",
            "shoal_dns_queries_total{type=\"other\",rcode=\"other\",zone=\"upstream\"} 1",
            "shoal_dns_seconds_bucket{zone=\"own\",le=\"0.00005\"} 0",
            "shoal_dns_seconds_bucket{zone=\"own\",le=\"0.0001\"} 1",
            "shoal_dns_seconds_bucket{zone=\"own\",le=\"0.005\"} 2",
            "shoal_dns_seconds_bucket{zone=\"upstream\",le=\"5\"} 0",
            "shoal_dns_seconds_bucket{zone=\"upstream\",le=\"+Inf\"} 1",
            "shoal_dns_seconds_sum{zone=\"own\"} 0.00206",
            "shoal_dns_seconds_count{zone=\"upstream\"} 1",
            "shoal_dns_malformed_total 1",
            "shoal_dns_rate_limited_total 0",
            "shoal_dns_forward_inflight 1",
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected} is not in\n{text}");
        }
        assert_eq!(text.matches("shoal_dns_queries_total{").count(), 4, "only what was asked:\n{text}");
    }
}

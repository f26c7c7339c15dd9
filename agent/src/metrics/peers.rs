//! The ways to the other nodes. No more series than for so many peers, those that are not well first: each node of a
//! large swarm telling of every other one is more than anybody reads.

use std::cmp::Reverse;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shoal_plan::probe::{Report, State};

use super::Text;
use crate::probe::Probes;

const PEERS: usize = 64;
const STATES: [&str; 6] = ["ok", "untried", "late", "narrow", "silent", "unanswering"];

type Column = (&'static str, &'static str, &'static str, fn(&Report, &Probes) -> Option<String>);

const COLUMNS: [Column; 8] = [
    (
        "shoal_peer_reachable",
        "gauge",
        "Whether a node answers by the tunnel; of a node that never did nothing is said",
        |report, _| match report.state {
            State::Untried | State::Unanswering => None,
            State::Silent { .. } => Some("0".to_owned()),
            State::Fine | State::Late(_) | State::Narrow { .. } => Some("1".to_owned()),
        },
    ),
    (
        "shoal_peer_rtt_seconds",
        "gauge",
        "Time the fastest answer of a node took last, both daemons included",
        |report, _| report.rtt.map(seconds),
    ),
    (
        "shoal_peer_mtu_bytes",
        "gauge",
        "The largest of the probed packets that arrived at a node last, without the tunnel's header; 0: none",
        |report, _| (report.state != State::Untried).then(|| report.passes.to_string()),
    ),
    ("shoal_peer_last_success_timestamp_seconds", "gauge", "When a node answered last", |report, probes| {
        let since = probes.since(report.answered_at?);
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(since);
        Some(at.as_secs().to_string())
    }),
    ("shoal_peer_clock_offset_seconds", "gauge", "By how much a node's clock is ahead", |report, _| {
        report.offset.map(|offset| thousandths(offset.ahead_ms))
    }),
    ("shoal_peer_probes_sent_total", "counter", "Probes that were sent to a node", |report, _| {
        Some(report.counts.sent.to_string())
    }),
    ("shoal_peer_probes_answered_total", "counter", "Probes that it answered", |report, _| {
        Some(report.counts.answered.to_string())
    }),
    (
        "shoal_peer_probes_late_total",
        "counter",
        "Probes that it answered, but after more than 1 s",
        |report, _| Some(report.counts.late.to_string()),
    ),
];

fn seconds(time: Duration) -> String {
    format!("{:.6}", time.as_secs_f64())
}

fn thousandths(ms: i64) -> String {
    format!("{}{}.{:03}", if ms < 0 { "-" } else { "" }, ms.unsigned_abs() / 1000, ms.unsigned_abs() % 1000)
}

/// Peers by state, and one by one.
pub(super) fn text(out: &mut Text, probes: &Probes) {
    let mut reports: Vec<(bool, &'static str, Report)> = probes
        .reports()
        .into_iter()
        .map(|report| {
            let told = probes.told(&report);
            (told.is_trouble(), told.word, report)
        })
        .collect();
    out.head("shoal_peers", "gauge", "The other nodes, by how they answer by the tunnel");
    for state in STATES {
        let number = reports.iter().filter(|(_, word, _)| *word == state).count();
        out.series("shoal_peers", "state", state, super::count(number));
    }
    reports.sort_by(|a, b| (Reverse(a.0), a.2.name.as_str()).cmp(&(Reverse(b.0), b.2.name.as_str())));
    reports.truncate(PEERS);
    for (name, kind, help, value) in COLUMNS {
        out.head(name, kind, help);
        for (_, _, report) in &reports {
            if let Some(value) = value(report, probes) {
                out.raw(&format!("{name}{{peer=\"{}\"}} {value}", report.name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousandths_keep_their_sign() {
        assert_eq!([0, 310, -90_004, -4].map(thousandths), ["0.000", "0.310", "-90.004", "-0.004"]);
    }

    #[test]
    fn without_peers_there_are_states_only() {
        let mut out = Text::default();
        text(&mut out, &Probes::default());
        assert!(out.0.contains("shoal_peers{state=\"silent\"} 0\n"), "{}", out.0);
        assert!(!out.0.contains("{peer="));
    }
}

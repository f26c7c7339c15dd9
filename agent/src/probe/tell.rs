//! What is told of the ways to other nodes, in words.

use std::net::IpAddr;
use std::time::Duration;

use shoal_plan::probe::{Report, State};

/// The tunnel as this node has it, for what is said of it.
#[derive(Debug, Clone, Default)]
pub struct Way {
    /// Where its packets come from.
    pub address: String,
    /// UDP port.
    pub port: u16,
    /// Bytes the tunnel adds to a packet.
    pub overhead: u16,
}

impl Way {
    /// From an address and a port.
    pub fn new(address: IpAddr, port: u16) -> Self {
        Self { address: address.to_string(), port, overhead: if address.is_ipv4() { 50 } else { 70 } }
    }
}

/// What is told of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The state in a word: `ok`, `untried`, `late`, `narrow`, `silent` or `unanswering`.
    pub word: &'static str,
    /// What was found; empty when all is well or nothing is known.
    pub evidence: String,
    /// What to do.
    pub fix: String,
}

impl Told {
    /// Whether it is worth a line.
    pub const fn is_trouble(&self) -> bool {
        !self.evidence.is_empty()
    }
}

/// Puts a report into words. `now` is on the clock of the reports.
pub(super) fn told(report: &Report, now: Duration, way: &Way) -> Told {
    let Report { name, address, .. } = report;
    let Way { address: own, port, overhead } = way;
    let open =
        format!("open {port}/udp between {own} and {address} in both directions (firewall, security group)");
    let (word, evidence, fix) = match report.state {
        State::Fine => ("ok", String::new(), String::new()),
        State::Untried => ("untried", String::new(), String::new()),
        State::Late(time) => (
            "late",
            format!("{name} ({address}) answers, but only after {:.1} s", time.as_secs_f64()),
            "see what uses up the CPUs, here and there: the tunnel itself works".to_owned(),
        ),
        State::Narrow { passes, fails } => (
            "narrow",
            format!(
                "packets of {passes} bytes from here arrive at {name} ({address}), those of {fails} do not"
            ),
            format!(
                "let every link between carry {} bytes (with the tunnel's {overhead}), or set network.mtu to what they \
                 carry; if they do, turn off the network card's offloads for tunnels \
                 ('ethtool -K DEV tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off')",
                fails.saturating_add(*overhead)
            ),
        ),
        State::Silent { heard: true } => (
            "silent",
            format!("frames from here do not arrive at {name} ({address}), though its own arrive here"),
            format!(
                "let {port}/udp from {own} in at {address}, and out here (firewall, security group, a hypervisor that \
                 takes VXLAN for its own)"
            ),
        ),
        State::Silent { heard: false } => (
            "silent",
            format!("nothing comes from {name} ({address}) by the tunnel{}", last(report, now)),
            format!(
                "see that the host and shoald run there; {open}; 'shoal doctor' there tells whether frames from here \
                 arrive"
            ),
        ),
        State::Unanswering => (
            "unanswering",
            format!("{name} ({address}) does not answer probes, and has not since shoald started here"),
            format!("if its shoald is of a version that knows no probes, all may be well; else {open}"),
        ),
    };
    Told { word, evidence, fix }
}

fn last(report: &Report, now: Duration) -> String {
    report
        .answered_at
        .map(|at| format!(", it answered last {} s ago", now.saturating_sub(at).as_secs()))
        .unwrap_or_default()
}

/// A difference of clocks that is worth a line, as `n4 +310 ms`.
pub(crate) fn clock(report: &Report) -> Option<String> {
    let offset = report.offset.filter(|offset| offset.is_worth_telling())?;
    let ahead = offset.ahead_ms;
    Some(match ahead.unsigned_abs() {
        0..10_000 => format!("{} {ahead:+} ms", report.name),
        _ => format!("{} {:+} s", report.name, ahead / 1000),
    })
}

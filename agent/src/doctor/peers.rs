//! What probes of the other nodes come to.

use shoal_api::pb;
use shoal_plan::probe::{Report, State};

use super::{fail, ok, warn};
use crate::probe::{self, Told};

/// So many are told one by one.
const TOLD: usize = 8;

/// The ways to the other nodes: a check for each that is not well, the rest in one. `left_out` were not asked.
pub fn tunnels(reports: &[Report], left_out: usize, told: impl Fn(&Report) -> Told) -> Vec<pb::Check> {
    let (well, unwell): (Vec<&Report>, Vec<&Report>) =
        reports.iter().partition(|report| matches!(report.state, State::Fine | State::Untried));
    let mut checks: Vec<pb::Check> = unwell
        .iter()
        .take(TOLD)
        .map(|report| {
            let Told { evidence, fix, .. } = told(report);
            let broken = matches!(report.state, State::Silent { .. } | State::Narrow { .. });
            if broken { fail("tunnels", evidence, fix) } else { warn("tunnels", evidence, fix) }
        })
        .collect();
    let more = unwell.len().saturating_sub(TOLD);
    if more > 0 {
        let evidence = format!("{more} more nodes cannot be reached as they should");
        checks.push(fail("tunnels", evidence, "shoal_peer_reachable and shoal_peer_mtu_bytes have them"));
    }
    if checks.is_empty() {
        checks.push(ok("tunnels", summary(&well, left_out)));
    }
    checks
}

fn summary(well: &[&Report], left_out: usize) -> String {
    if well.is_empty() {
        return "there is no other node".to_owned();
    }
    let slowest = well.iter().filter_map(|report| report.rtt).max().unwrap_or_default();
    let largest = well.iter().map(|report| report.passes).min().unwrap_or_default();
    let nodes =
        if well.len() == 1 { "1 node answers".to_owned() } else { format!("{} nodes answer", well.len()) };
    let rest = if left_out == 0 { String::new() } else { format!("; {left_out} more were not asked now") };
    format!(
        "{nodes} by the tunnel, packets up to {largest} bytes arrive there, answers take {:.1} ms at most{rest}",
        slowest.as_secs_f64() * 1000.0
    )
}

/// The other nodes' clocks.
pub fn clocks(reports: &[Report]) -> Option<pb::Check> {
    let off: Vec<String> = reports.iter().filter_map(probe::clock).collect();
    if off.is_empty() {
        let known = reports.iter().filter_map(|report| report.offset);
        let most =
            known.map(|offset| offset.ahead_ms.unsigned_abs().saturating_add(offset.within_ms)).max()?;
        return Some(ok("clocks", format!("the other nodes' are within {most} ms of this one's")));
    }
    let list = off.iter().take(TOLD).cloned().collect::<Vec<_>>().join(", ");
    let rest = match off.len().saturating_sub(TOLD) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(warn(
        "clocks",
        format!("compared with this node's: {list}{rest}"),
        "run a time service on every node (chrony, systemd-timesyncd)",
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shoal_plan::probe::{Counts, Offset};

    use super::*;
    use crate::probe::Probes;

    fn report(n: usize, state: State) -> Report {
        Report {
            name: format!("n{n}").parse().expect("a name"),
            address: "10.0.0.9".parse().expect("an address"),
            state,
            rtt: Some(Duration::from_micros(300)),
            passes: 1450,
            answered_at: None,
            offset: Some(Offset { ahead_ms: -2, within_ms: 1 }),
            counts: Counts::default(),
        }
    }

    fn verdicts(reports: &[Report]) -> Vec<(pb::Verdict, String)> {
        let probes = Probes::default();
        let checks = tunnels(reports, 0, |report| probes.told(report));
        assert!(
            checks.iter().all(|check| (check.verdict() == pb::Verdict::Ok) == check.fix.is_empty()),
            "{checks:?}"
        );
        checks.into_iter().map(|check| (check.verdict(), check.evidence)).collect()
    }

    #[test]
    fn each_state_has_its_verdict_and_words() {
        let cases = [
            (State::Silent { heard: true }, pb::Verdict::Fail, "do not arrive at n1"),
            (State::Silent { heard: false }, pb::Verdict::Fail, "nothing comes from n1"),
            (State::Narrow { passes: 1400, fails: 1450 }, pb::Verdict::Fail, "packets of 1400 bytes"),
            (State::Unanswering, pb::Verdict::Warn, "does not answer probes"),
            (State::Late(Duration::from_millis(1_300)), pb::Verdict::Warn, "only after 1.3 s"),
        ];
        for (state, verdict, words) in cases {
            let told = verdicts(&[report(1, state), report(2, State::Fine)]);
            assert!(
                matches!(&told[..], [(found, text)] if *found == verdict && text.contains(words)),
                "{told:?}"
            );
        }
        let well = verdicts(&[report(1, State::Fine), report(2, State::Fine)]);
        assert_eq!(well[0].0, pb::Verdict::Ok);
        assert!(well[0].1.starts_with("2 nodes answer by the tunnel, packets up to 1450 bytes"), "{well:?}");
        assert_eq!(verdicts(&[])[0].1, "there is no other node");
    }

    #[test]
    fn many_are_told_of_in_few_lines() {
        let reports: Vec<Report> = (0..20).map(|n| report(n, State::Silent { heard: false })).collect();
        let told = verdicts(&reports);
        assert_eq!(told.len(), TOLD + 1);
        assert!(told[TOLD].1.starts_with("12 more"), "{told:?}");
    }

    #[test]
    fn clocks_that_differ_are_named() {
        let mut reports = vec![report(1, State::Fine), report(2, State::Fine)];
        let check = clocks(&reports).expect("known");
        assert_eq!(
            (check.verdict(), check.evidence.as_str()),
            (pb::Verdict::Ok, "the other nodes' are within 3 ms of this one's")
        );
        reports[0].offset = Some(Offset { ahead_ms: 310, within_ms: 1 });
        reports[1].offset = Some(Offset { ahead_ms: -90_000, within_ms: 1 });
        let check = clocks(&reports).expect("known");
        assert_eq!(check.verdict(), pb::Verdict::Warn);
        assert_eq!(check.evidence, "compared with this node's: n1 +310 ms, n2 -90 s");
        reports[0].offset = None;
        reports.truncate(1);
        assert!(clocks(&reports).is_none(), "nobody answered yet");
    }
}

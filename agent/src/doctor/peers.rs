//! What probes of the other nodes come to.

use shoal_api::pb;
use shoal_plan::probe::{Report, State};

use super::{fail, ok, warn};
use crate::probe::{self, Told};

/// So many are told one by one.
const TOLD: usize = 8;

/// The ways to the other nodes: a check for each that is not well, the worst first, and of what is more than a few one
/// for each verdict; the rest in one. `left_out` were not asked.
pub fn tunnels(reports: &[Report], left_out: usize, told: impl Fn(&Report) -> Told) -> Vec<pb::Check> {
    let (untried, asked): (Vec<&Report>, Vec<&Report>) =
        reports.iter().partition(|report| report.state == State::Untried);
    let (well, mut unwell): (Vec<&Report>, Vec<&Report>) =
        asked.into_iter().partition(|report| report.state == State::Fine);
    unwell.sort_by_key(|report| !is_broken(report));
    let (one_by_one, more) = unwell.split_at(unwell.len().min(TOLD));
    let mut checks: Vec<pb::Check> = one_by_one
        .iter()
        .map(|report| {
            let Told { evidence, fix, .. } = told(report);
            if is_broken(report) { fail("tunnels", evidence, fix) } else { warn("tunnels", evidence, fix) }
        })
        .collect();
    let (broken, slow) = more.split_at(more.partition_point(|report| is_broken(report)));
    checks.extend(listed(broken).map(|list| {
        let evidence = format!("packets do not get to {list} by the tunnel either, or only small ones");
        fail(
            "tunnels",
            evidence,
            "as above; shoal_peer_reachable and shoal_peer_mtu_bytes tell which is which",
        )
    }));
    checks.extend(listed(slow).map(|list| {
        let evidence = format!("answers to probes of {list} come late, too, or there are none");
        warn(
            "tunnels",
            evidence,
            "as above; shoal_peer_rtt_seconds and shoal_peer_probes_late_total have them",
        )
    }));
    if checks.is_empty() {
        checks.push(ok("tunnels", summary(&well, untried.len(), left_out)));
    }
    checks
}

/// Whether packets of tasks are lost on the way.
fn is_broken(report: &Report) -> bool {
    matches!(report.state, State::Silent { .. } | State::Narrow { .. })
}

/// `12 more nodes (n8, n9 …)`
fn listed(reports: &[&Report]) -> Option<String> {
    let names: Vec<&str> = reports.iter().map(|report| report.name.as_str()).collect();
    let nodes = if names.len() == 1 { "node" } else { "nodes" };
    (!names.is_empty()).then(|| format!("{} more {nodes} ({})", names.len(), names.join(", ")))
}

fn summary(well: &[&Report], untried: usize, left_out: usize) -> String {
    if well.is_empty() {
        return match untried {
            0 => "there is no other node".to_owned(),
            1 => "1 other node was not asked yet: try again in a few seconds".to_owned(),
            _ => format!("{untried} other nodes were not asked yet: try again in a few seconds"),
        };
    }
    let slowest = well.iter().filter_map(|report| report.rtt).max().unwrap_or_default();
    let largest = well.iter().map(|report| report.passes).min().unwrap_or_default();
    let nodes =
        if well.len() == 1 { "1 node answers".to_owned() } else { format!("{} nodes answer", well.len()) };
    let others = |count: usize, when: &str| match count {
        0 => String::new(),
        _ => format!("; {count} more not asked {when}"),
    };
    format!(
        "{nodes} by the tunnel, packets up to {largest} bytes arrive there, answers take {:.1} ms at most{}{}",
        slowest.as_secs_f64() * 1000.0,
        others(untried, "yet"),
        others(left_out, "now")
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
        let new = [report(1, State::Untried)];
        assert!(verdicts(&new)[0].1.starts_with("1 other node was not asked yet"), "{:?}", verdicts(&new));
        let some = verdicts(&[report(1, State::Fine), report(2, State::Untried)]);
        assert!(
            some[0].1.starts_with("1 node answers") && some[0].1.ends_with("1 more not asked yet"),
            "{some:?}"
        );
    }

    #[test]
    fn many_are_told_of_in_few_lines_by_name_and_with_their_own_verdict() {
        let mut reports: Vec<Report> = (0..4).map(|n| report(n, State::Unanswering)).collect();
        reports.extend((4..14).map(|n| report(n, State::Silent { heard: false })));
        let told = verdicts(&reports);
        assert_eq!(told.len(), TOLD + 2);
        assert!(told[..TOLD].iter().all(|(verdict, _)| *verdict == pb::Verdict::Fail), "the worst first");
        assert_eq!(told[TOLD].0, pb::Verdict::Fail);
        assert!(told[TOLD].1.contains("2 more nodes (n12, n13)"), "{told:?}");
        assert_eq!(told[TOLD + 1].0, pb::Verdict::Warn);
        assert!(told[TOLD + 1].1.contains("4 more nodes (n0, n1, n2, n3)"), "{told:?}");

        let late: Vec<Report> =
            (0..9).map(|n| report(n, State::Late(Duration::from_millis(1_300)))).collect();
        let told = verdicts(&late);
        assert!(
            told.iter().all(|(verdict, _)| *verdict == pb::Verdict::Warn),
            "none of them fails: {told:?}"
        );
        assert!(told[TOLD].1.contains("1 more node (n8)"), "{told:?}");
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

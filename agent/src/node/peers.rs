//! The ways to the other nodes, as the node's own socket shows them.

use shoal_api::pb;
use shoal_plan::probe::State;

use crate::probe::{self, Probes};
use crate::stats::Stats;

/// So many are shown one by one.
const SHOWN: usize = 16;

/// What is not well, a line each, as the managers show it with the node's name: listeners that published ports shadow, and
/// the ways to the other nodes.
pub(crate) fn troubles(stats: &Stats) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(peers) = shown(&stats.probes) {
        lines.extend(peers.troubles.into_iter().map(|trouble| trouble.evidence));
        lines.extend(peers.clocks.into_iter().map(|clock| format!("clock of {clock}")));
    }
    lines.extend(stats.shadowed.borrow().iter().cloned());
    lines
}

/// What probes tell; `None` while there is nobody to be probed.
pub(super) fn shown(probes: &Probes) -> Option<pb::Peers> {
    let reports = probes.reports();
    if reports.is_empty() {
        return None;
    }
    let troubles = reports.iter().filter_map(|report| {
        let told = probes.told(report);
        told.is_trouble().then(|| pb::PeerTrouble {
            name: report.name.to_string(),
            address: report.address.to_string(),
            state: told.word.to_owned(),
            evidence: told.evidence,
            fix: told.fix,
        })
    });
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Some(pb::Peers {
        total: count(reports.len()),
        answering: count(reports.iter().filter(|report| report.state == State::Fine).count()),
        troubles: troubles.take(SHOWN).collect(),
        clocks: reports.iter().filter_map(probe::clock).take(SHOWN).collect(),
    })
}

use crate::harness::Scenario;
use shoal_netns::{Programs, Swarm};
pub(crate) const SCENARIOS: &[Scenario] = &[];
pub(crate) fn start(programs: &Programs) -> anyhow::Result<Swarm> {
    crate::barriers::start(programs)
}

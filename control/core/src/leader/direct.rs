//! Whether virtual IPs stand on the loopbacks of tasks. IPVS forwards to them without translating, so they must be
//! everywhere before the first node forwards so, and stay until the last one has ceased to.
//!
//! ```text
//! Off -> wanted -> Preparing at index G -> every node that may have tasks has programmed G -> Ready
//! Preparing or Ready -> not wanted by any node any more -> Off
//! ```

use shoal_types::lb::{DirectRouting, LbEngine};
use shoal_types::object::NodeState;

use super::{Ctx, LeaderView};
use crate::command::Command;
use crate::state::State;

pub(super) fn plan(ctx: &mut Ctx<'_>, view: &LeaderView) {
    let state = ctx.state;
    let Some(cluster) = &state.cluster else { return };
    let now = cluster.balancing.direct;
    let next = match (now, is_wanted(state, cluster.balancing.engine)) {
        (DirectRouting::Off, true) => DirectRouting::Preparing,
        (DirectRouting::Preparing, true) if is_prepared(state, view, cluster.balancing.direct_since) => {
            DirectRouting::Ready
        }
        (DirectRouting::Preparing | DirectRouting::Ready, false) => DirectRouting::Off,
        _ => return,
    };
    ctx.push(Command::SetDirectRouting { direct: next });
}

/// A node that is silent may still forward so: it counts by what it said last, until it is removed.
fn is_wanted(state: &State, engine: LbEngine) -> bool {
    engine == LbEngine::Ipvs || state.nodes.values().any(|n| n.description.lb.uses_ipvs())
}

/// A suspect node's tasks are sent flows as soon as it is heard again, so it is waited for. One that is down is not: its
/// tasks are replaced, and it may never come back.
fn is_prepared(state: &State, view: &LeaderView, since: u64) -> bool {
    state.nodes.values().all(|n| match n.state {
        NodeState::Ready => view.applied.get(&n.id).is_some_and(|applied| *applied >= since),
        NodeState::Suspect => false,
        NodeState::Down | NodeState::Unknown => true,
    })
}

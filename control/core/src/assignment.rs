//! What one node is told, computed from the state.

use shoal_types::assignment::Assignment;
use shoal_types::id::NodeId;

use crate::state::State;

/// Everything the node needs and nothing else, as of that log index. `None` when the node is no member.
pub fn for_node(state: &State, node: &NodeId, index: u64) -> Option<Assignment> {
    let _ = index;
    state.nodes.get(node)?;
    None
}

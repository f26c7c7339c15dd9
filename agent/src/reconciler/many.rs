//! Operations of a phase: runs of the kinds of which there may be tens of thousands are carried out at once.

use std::collections::BTreeMap;

use shoal_plan::{IfName, Object, Objects, Op, Plan};
use shoal_types::TaskId;

use super::Reconciler;
use super::pass::{Obstacles, Outcome};
use crate::facility::Facility;

/// Fewer are as quick one by one, and tell better what is wrong.
const MANY: usize = 16;

/// Whether carrying out a plan can make nothing else necessary.
pub(super) fn is_final(plan: &Plan<'_>) -> bool {
    plan.ops().all(|op| op.object().is_leaf())
}

/// Whether leaves are as they were wanted once a plan over them is carried out: what they hang on stays or is made before
/// them. (With a device that is replaced, what was found on it goes.)
pub(super) fn settles_leaves(plan: &Plan<'_>) -> bool {
    let replaces = |op: &Op<'_>| match op {
        Op::Ensure { object, found: Some(_) } => {
            matches!(object, Object::Bridge(_) | Object::Vxlan(_) | Object::Leg(_) | Object::Balancer(_))
        }
        _ => false,
    };
    !plan.ops().any(replaces)
}

/// All but leaves.
pub(super) fn few(objects: &Objects) -> Objects {
    let few = objects.iter().filter(|(_, object)| !object.is_leaf());
    few.map(|(key, object)| (key.clone(), object.clone())).collect()
}

/// How many operations from the first on make objects of its kind.
fn run(ops: &[Op<'_>]) -> usize {
    let kind = |op: &Op<'_>| match op {
        Op::Ensure { object, .. } if object.is_leaf() => Some(object.kind()),
        _ => None,
    };
    let Some(first) = ops.first().and_then(kind) else { return 1 };
    ops.iter().take_while(|op| kind(op) == Some(first)).count()
}

impl<F: Facility> Reconciler<F> {
    /// Carries out the operations of a phase, in order.
    pub(super) async fn carry_out_phase(
        &mut self,
        mut ops: &[Op<'_>],
        owners: &BTreeMap<IfName, TaskId>,
        outcome: &mut Outcome,
        obstacles: &mut Obstacles,
        is_drift: bool,
    ) {
        while !ops.is_empty() {
            let (alike, others) = ops.split_at(run(ops));
            let is_quick = alike.len() >= MANY && obstacles.is_none() && self.backoffs.is_empty();
            let made = if is_quick {
                let objects: Vec<&Object> = alike.iter().map(Op::object).collect();
                self.facility.ensure_many(&objects).await.min(alike.len())
            } else {
                0
            };
            let (done, left) = alike.split_at(made);
            for op in done {
                self.made(op, outcome, is_drift);
            }
            for op in left {
                self.step(op, owners, outcome, obstacles, is_drift).await;
            }
            ops = others;
        }
    }
}

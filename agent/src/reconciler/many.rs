//! Operations of a phase: runs of the kinds of which there may be tens of thousands are carried out at once.

use shoal_plan::{Object, Op};

use super::Reconciler;
use super::work::Work;
use crate::facility::Facility;

/// Fewer are as quick one by one, and tell better what is wrong.
const MANY: usize = 16;

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
    /// Carries out operations of a phase, in order.
    pub(super) async fn carry_out_runs(&mut self, mut ops: &[Op<'_>], work: &mut Work) {
        while !ops.is_empty() {
            let (alike, others) = ops.split_at(run(ops));
            let is_quick = alike.len() >= MANY && work.obstacles.is_none() && self.backoffs.is_empty();
            let made = if is_quick {
                let objects: Vec<&Object> = alike.iter().map(Op::object).collect();
                self.facility.ensure_many(&objects).await.min(alike.len())
            } else {
                0
            };
            let (done, left) = alike.split_at(made);
            for op in done {
                self.made(op, work);
            }
            for op in left {
                self.step(op, work).await;
            }
            ops = others;
        }
    }
}

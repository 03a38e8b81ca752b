//! From a snapshot to a plan.

use crate::plan::{Dirty, NodeView, Scope, ServicePlan};
use crate::snapshot::Snapshot;

/// Decides what this node programs for the Services of `snapshot`.
///
/// Pure: equal input gives an equal plan. `dirty` bounds what may have changed since the plan before and
/// becomes the [`Scope`] of the apply. Cost: O(Services + endpoints).
pub fn plan(snapshot: &Snapshot, node: &NodeView, dirty: &Dirty) -> (ServicePlan, Scope) {
    let _ = (snapshot, node, dirty);
    (ServicePlan::empty(), Scope::Full)
}

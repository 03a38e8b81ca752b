//! What happened to a flow on its way through the installed rules.

use std::collections::BTreeSet;

use netd_model::{Masquerade, PoolEndpoint};

/// Where a traced flow ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Rewritten to one of these endpoints. `PoolEndpoint::local` is not known to every backend: compare
    /// address and port only.
    Balance {
        /// Candidates.
        endpoints: BTreeSet<PoolEndpoint>,
        /// Source rewriting.
        masquerade: Masquerade,
    },
    /// Refused.
    Reject,
    /// Dropped.
    Drop,
    /// Not touched by this backend.
    Pass,
}

/// The steps of a flow and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// One line a step, as an operator reads it: the rule, chain or map entry that matched.
    pub steps: Vec<String>,
    /// Where it ends.
    pub outcome: Outcome,
}

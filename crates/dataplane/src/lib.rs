//! The seam between decisions and the kernel: one trait that every service dataplane implements.
//!
//! - [`Dataplane`]: the trait, with its errors and what an apply reports
//! - [`fake`]: an in-memory dataplane for tests and the reference of the conformance suite
//! - [`conformance`]: scenarios with flows and the verdict the oracle expects, run on every backend

#![forbid(unsafe_code)]

pub mod conformance;
pub mod fake;

mod delta;
mod error;
mod trace;

use std::time::Duration;

use netd_model::{Family, Flow, Scope, ServicePlan};

pub use delta::Delta;
pub use error::{ApplyError, TraceError};
pub use trace::{Outcome, Trace};

/// What one apply did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Generation of the plan that is in the kernel now.
    pub generation: u64,
    /// Frontends programmed in all.
    pub frontends: usize,
    /// Endpoints programmed in all (counted once a pool).
    pub endpoints: usize,
    /// Kernel objects (rules, map elements) written or removed by this apply; 0 when nothing changed.
    pub changed: usize,
    /// Decisions this backend cannot render, each by name; traffic to them is not served by it.
    pub refused: Vec<Refusal>,
}

/// One family's share of an apply, done or failed; for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilySync {
    /// The family.
    pub family: Family,
    /// How long it took.
    pub took: Duration,
    /// False when only what the scope names was looked at.
    pub full: bool,
    /// True when the kernel did not take it.
    pub failed: bool,
    /// Rules by table, where the dataplane has rules and nothing failed.
    pub rules: Vec<TableRules>,
}

/// Rules of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRules {
    /// The table's name.
    pub table: &'static str,
    /// Rules in the dataplane's own chains.
    pub total: usize,
    /// Rules that this apply wrote.
    pub written: usize,
}

/// A part of the plan that a backend cannot render.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The frontend, printed.
    pub frontend: String,
    /// The Service port, printed.
    pub service: String,
    /// Why, for a person: names the missing ability.
    pub reason: String,
}

/// One kernel service dataplane. Synchronous: it owns a thread and only makes system calls.
pub trait Dataplane: Send {
    /// The name operators know: `iptables`, `ebpf`.
    fn name(&self) -> &'static str;

    /// Reads back what any version of this backend left in the kernel; the next apply diffs against it.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    fn resync(&mut self) -> Result<(), ApplyError>;

    /// Makes the kernel equal `plan` in one transaction; `scope` bounds the work, never the meaning.
    ///
    /// # Errors
    /// See [`ApplyError`] for what the caller does about each. On error nothing is half-applied.
    fn apply(&mut self, plan: &ServicePlan, scope: &Scope) -> Result<Applied, ApplyError>;

    /// What the applies since the last call did in each family, whether they succeeded or not. A dataplane
    /// that does not do its families apart has nothing to tell (the default).
    fn take_syncs(&mut self) -> Vec<FamilySync> {
        Vec::new()
    }

    /// Looks whether what was applied last is still in the kernel; false after another program removed or
    /// changed any of it. Objects that no other program can take away are intact by nature (the default).
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    fn intact(&mut self) -> Result<bool, ApplyError> {
        Ok(true)
    }

    /// Removes all that this backend ever installed (mode switch, uninstall), and nothing else.
    /// Absent objects are no error.
    ///
    /// # Errors
    /// The first failure, after everything that could be removed has been.
    fn cleanup(&mut self) -> Result<(), ApplyError>;

    /// Steps `flow` through what is installed: conformance tests and `netd trace`.
    ///
    /// # Errors
    /// When the installed state cannot be read or is not understood.
    fn trace(&self, flow: &Flow) -> Result<Trace, TraceError>;
}

//! The eBPF backend behind the seam.

use netd_dataplane::{Applied, ApplyError, Dataplane, Trace, TraceError};
use netd_model::{Flow, Scope, ServicePlan};

use crate::compile::{self, Wanted};
use crate::config::Config;
use crate::error::Error;
use crate::live::{self, Live};
use crate::{links, pins, trace};

/// Socket load balancing by eBPF programs on a cgroup.
///
/// Dropping it leaves everything in the kernel in place and working; [`Dataplane::cleanup`] removes it.
pub struct EbpfDataplane {
    config: Config,
    /// `None` before the first use, and after a failure that leaves the kernel's state in doubt.
    live: Option<Live>,
}

impl EbpfDataplane {
    /// A dataplane that has touched nothing yet.
    pub const fn new(config: Config) -> Self {
        Self { config, live: None }
    }

    fn live(&mut self) -> Result<&mut Live, Error> {
        let live = match self.live.take() {
            Some(live) => live,
            None => Live::open(&self.config)?,
        };
        Ok(self.live.insert(live))
    }
}

impl Dataplane for EbpfDataplane {
    fn name(&self) -> &'static str {
        trace::BACKEND
    }

    fn resync(&mut self) -> Result<(), ApplyError> {
        // The lock goes first: opening takes it again.
        self.live = None;
        self.live().map(drop).map_err(|error| error.into_apply("read back the eBPF maps"))
    }

    fn apply(&mut self, plan: &ServicePlan, _scope: &Scope) -> Result<Applied, ApplyError> {
        let wanted = compile::compile(plan);
        let changed = match self.live().and_then(|live| live.apply(&wanted)) {
            Ok(changed) => changed,
            Err(error) => {
                // What is in the kernel is read back before the next attempt.
                self.live = None;
                return Err(error.into_apply("program the eBPF maps"));
            }
        };
        let endpoints = wanted.pools.values().map(Vec::len).sum();
        let Wanted { services, refused, .. } = wanted;
        Ok(Applied { generation: plan.generation, frontends: services.len(), endpoints, changed, refused })
    }

    fn cleanup(&mut self) -> Result<(), ApplyError> {
        self.live = None;
        let mut first = Ok(());
        for dir in self.config.possible_pin_dirs() {
            let result = pins::clean(&dir, links::detach)
                .map_err(|error| error.into_apply("remove the eBPF dataplane"));
            first = first.and(result);
        }
        first
    }

    fn trace(&self, flow: &Flow) -> Result<Trace, TraceError> {
        let failed = |error: Error| TraceError::Read { backend: trace::BACKEND, source: Box::new(error) };
        if let Some(maps) = self.live.as_ref().and_then(Live::maps) {
            return trace::trace(maps, flow);
        }
        match live::observe(&self.config.pin_dir()).map_err(failed)? {
            Some(maps) => trace::trace(&maps, flow),
            None => Ok(trace::nothing_installed()),
        }
    }
}

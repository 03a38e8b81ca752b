//! The dataplane: plan in, restored rules out.

mod abilities;
mod cleanup;
mod plane;
mod tally;

use std::collections::BTreeMap;
use std::sync::Arc;

use netd_dataplane::{Applied, ApplyError, Dataplane, FamilySync, Refusal, Trace, TraceError};
use netd_kernel::clock::{Clock as _, SystemClock};
use netd_kernel::exec::Exec;
use netd_model::{Family, Flow, Frontend, FrontendKey, Scope, ServicePlan};
use tracing::{info, warn};

use crate::compile::Settings;
use crate::config::IptablesConfig;
use crate::detect::{Host, Implementation, ThisHost, choose, find_tools};
use crate::tool::Tool;
use crate::trace::walk;

use plane::Plane;

/// The name operators know.
pub(crate) const NAME: &str = "iptables";

/// Services through iptables.
pub struct Iptables {
    config: IptablesConfig,
    /// The variant in use.
    variant: Implementation,
    /// One a family in use.
    planes: Vec<Plane>,
    /// Families that cannot be programmed, and why.
    absent: BTreeMap<Family, String>,
    /// Tools of the variant not in use: an earlier run may have left rules there.
    others: Vec<Tool>,
    /// Whether `others` have been looked at.
    swept: bool,
    /// What was done in each family and not told yet.
    syncs: Vec<FamilySync>,
}

impl Iptables {
    /// Finds the host's iptables. The variant is the configured one, or else in this order: the one kubelet
    /// uses, the one netd used before, the one with more rules of others, the one plain `iptables` is.
    ///
    /// Starts processes to ask, changes nothing. Acts on the network namespace of the calling thread, as
    /// all methods do.
    ///
    /// # Errors
    /// [`ApplyError::Config`] when iptables is missing or the mark bit is not one, saying what to do.
    pub fn new(config: IptablesConfig, exec: Arc<dyn Exec>) -> Result<Self, ApplyError> {
        Self::on(&ThisHost, config, exec)
    }

    /// As [`Iptables::new`], on any host.
    pub(crate) fn on(
        host: &dyn Host,
        config: IptablesConfig,
        exec: Arc<dyn Exec>,
    ) -> Result<Self, ApplyError> {
        if config.masquerade_bit > 31 {
            return Err(ApplyError::Config(format!(
                "masquerade bit {} is not between 0 and 31",
                config.masquerade_bit
            )));
        }
        let tools = find_tools(host, config.lock_wait, &exec);
        let variant = choose(&config, &tools, host)?;
        let (chosen, others): (Vec<_>, Vec<_>) = tools.into_iter().partition(|tool| tool.variant == variant);
        let mut absent = BTreeMap::new();
        for family in Family::ALL {
            let reason = if !config.families.contains(&family) {
                format!("{family} is switched off in netd's configuration")
            } else if !host.has_family(family) {
                format!("the kernel has no {family}")
            } else if !chosen.iter().any(|tool| tool.family == family) {
                format!("{variant} for {family} is not installed: install the package iptables")
            } else {
                continue;
            };
            absent.insert(family, reason);
        }
        let planes =
            chosen.into_iter().filter(|tool| !absent.contains_key(&tool.family)).map(Plane::new).collect();
        Ok(Self { config, variant, planes, absent, others, swept: false, syncs: Vec::new() })
    }

    /// The variant in use.
    pub const fn variant(&self) -> Implementation {
        self.variant
    }

    /// Removes what an earlier run left in the variant that is not in use.
    fn sweep(&mut self) {
        if self.swept {
            return;
        }
        self.swept = true;
        for tool in &self.others {
            match cleanup::remove_all(tool) {
                Ok(0) => {}
                Ok(removed) => {
                    info!(variant = %tool.variant, family = %tool.family, removed, "removed rules of an earlier run");
                }
                Err(error) => {
                    warn!(variant = %tool.variant, family = %tool.family, %error, "cannot look for rules of an earlier run");
                }
            }
        }
    }
}

impl Dataplane for Iptables {
    fn name(&self) -> &'static str {
        NAME
    }

    fn resync(&mut self) -> Result<(), ApplyError> {
        self.swept = false;
        self.planes.iter_mut().try_for_each(Plane::resync)
    }

    fn apply(&mut self, plan: &ServicePlan, scope: &Scope) -> Result<Applied, ApplyError> {
        let mut applied = Applied { generation: plan.generation, ..Applied::default() };
        for (family, reason) in &self.absent {
            let refuse = |(key, frontend): (&FrontendKey, &Frontend)| Refusal {
                frontend: key.to_string(),
                service: frontend.port.to_string(),
                reason: reason.clone(),
            };
            applied.refused.extend(plan.family(*family).frontends.iter().map(refuse));
        }
        let mark = 1_u32 << self.config.masquerade_bit;
        // Families share the kernel's generation: each is told what those before it made of it.
        let mut steps = Vec::new();
        for plane in &mut self.planes {
            steps.iter().for_each(|step| plane.follow(*step));
            let plan = plan.family(plane.tool.family);
            let settings = Settings {
                mark,
                random_fully: plane.tool.version.has_wait_and_random_fully(),
                affinity: plane.affinity(plan)?,
                same_address: plane.same_address()?,
            };
            let start = SystemClock.now();
            let result = plane.apply(plan, settings, scope);
            let took = SystemClock.now().duration_since(start);
            let (rules, full) = plane.told();
            let rules = if result.is_ok() { rules } else { Vec::new() };
            let (family, failed) = (plane.tool.family, result.is_err());
            self.syncs.push(FamilySync { family, took, full, failed, rules });
            applied.changed += result?;
            steps.extend(plane.take_moved());
            if let Some(program) = plane.program() {
                applied.frontends += program.frontends();
                applied.endpoints += program.endpoints();
                applied.refused.extend(program.refused().cloned());
            }
        }
        for plane in &mut self.planes {
            steps.iter().for_each(|step| plane.follow(*step));
        }
        self.sweep();
        Ok(applied)
    }

    fn take_syncs(&mut self) -> Vec<FamilySync> {
        std::mem::take(&mut self.syncs)
    }

    /// One `iptables-save` a family: chains, every rule in them and the jumps to them. True before the first
    /// apply.
    fn intact(&mut self) -> Result<bool, ApplyError> {
        for plane in &mut self.planes {
            if !plane.is_intact()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn cleanup(&mut self) -> Result<(), ApplyError> {
        let mut first = None;
        let tools = self.planes.iter().map(|plane| &plane.tool).chain(&self.others);
        for tool in tools {
            if let Err(error) = cleanup::remove_all(tool) {
                warn!(variant = %tool.variant, family = %tool.family, %error, "cleanup failed");
                first.get_or_insert(error);
            }
        }
        self.planes.iter_mut().for_each(Plane::forget);
        first.map_or(Ok(()), Err)
    }

    fn trace(&self, flow: &Flow) -> Result<Trace, TraceError> {
        let family = Family::of(flow.destination);
        let plane = self.planes.iter().find(|plane| plane.tool.family == family);
        let Some(plane) = plane else {
            let reason = self.absent.get(&family).cloned().unwrap_or_default();
            return Err(TraceError::Unknown { backend: NAME, detail: reason });
        };
        let found =
            plane.read().map_err(|error| TraceError::Read { backend: NAME, source: Box::new(error) })?;
        walk(&found, flow)
    }
}

#[cfg(test)]
mod tests;

//! The dataplane: plan in, restored rules out.

mod cleanup;

use std::collections::BTreeMap;
use std::sync::Arc;

use netd_dataplane::{Applied, ApplyError, Dataplane, Refusal, Trace, TraceError};
use netd_kernel::exec::Exec;
use netd_model::{Family, FamilyPlan, Flow, Frontend, FrontendKey, Scope, ServicePlan, Verdict};
use tracing::{debug, info, warn};

use crate::compile::{Settings, compile};
use crate::config::IptablesConfig;
use crate::detect::{Host, Implementation, ThisHost, choose, find_tools};
use crate::restore::transaction;
use crate::rule::{Match, Rule, Table, Target};
use crate::ruleset::{ChainKey, InstalledJump, Line, Ruleset, wanted_jumps};
use crate::tool::Tool;
use crate::trace::walk;

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
}

/// One family.
struct Plane {
    tool: Tool,
    /// What is in the kernel; unknown before the first read and after a failure.
    installed: Option<Ruleset>,
    /// Chains that this iptables prints in words this version does not know, as meant and as printed.
    dialect: BTreeMap<ChainKey, (Vec<Line>, Vec<Line>)>,
    /// Whether the kernel has `xt_recent`; asked when first needed.
    affinity: Option<bool>,
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
        let planes = chosen
            .into_iter()
            .filter(|tool| !absent.contains_key(&tool.family))
            .map(|tool| Plane { tool, installed: None, dialect: BTreeMap::new(), affinity: None })
            .collect();
        Ok(Self { config, variant, planes, absent, others, swept: false })
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

fn needs_affinity(plan: &FamilyPlan) -> bool {
    plan.frontends.values().any(|frontend| {
        let verdicts = &frontend.verdicts;
        [&verdicts.pod, &verdicts.host, &verdicts.other]
            .into_iter()
            .any(|verdict| matches!(verdict, Verdict::Balance { affinity: Some(_), .. }))
    })
}

impl Plane {
    /// Reads what is installed, in this version's words where they are known to mean the same.
    fn read(&self) -> Result<Ruleset, ApplyError> {
        let mut found = self.tool.installed()?;
        for (key, (meant, printed)) in &self.dialect {
            if let Some(lines) = found.chains.get_mut(key)
                && lines == printed
            {
                lines.clone_from(meant);
            }
        }
        Ok(found)
    }

    fn resync(&mut self) -> Result<(), ApplyError> {
        self.installed = None;
        self.installed = Some(self.read()?);
        Ok(())
    }

    /// Makes the kernel have `chains`; returns how many rules changed.
    fn apply(&mut self, chains: BTreeMap<ChainKey, Vec<Line>>, verify: bool) -> Result<usize, ApplyError> {
        if self.installed.is_none() {
            self.resync()?;
        }
        let before = self.installed.take().unwrap_or_default();
        let change = transaction(&before, &chains, &wanted_jumps());
        if change.text.is_empty() {
            self.installed = Some(before);
            return Ok(0);
        }
        debug!(family = %self.tool.family, changed = change.changed, "restoring rules");
        if let Err(error) = self.tool.restore(&change.text) {
            return Err(self.judge(&before, error));
        }
        if verify {
            self.learn(&chains)?;
        }
        let jumps = wanted_jumps().into_iter().map(InstalledJump::from).collect();
        self.installed = Some(Ruleset { chains, jumps });
        Ok(change.changed)
    }

    /// A failed restore: tells a kernel that is not as we left it from one that refused.
    fn judge(&mut self, before: &Ruleset, error: ApplyError) -> ApplyError {
        let Ok(found) = self.read() else { return error };
        let jumps = wanted_jumps();
        let torn =
            found.chains != before.chains || jumps.iter().any(|jump| found.count(jump) != before.count(jump));
        if !torn {
            return error;
        }
        let detail = first_difference(before, &found);
        match error {
            ApplyError::Refused { action, source } => {
                ApplyError::Torn { action: format!("{action}: {source}"), detail }
            }
            other @ (ApplyError::Torn { .. } | ApplyError::Config(_)) => other,
        }
    }

    /// Reads back what was just written. Chains whose rules are printed in other words are remembered, so
    /// that they do not look changed for ever; a chain with another number of rules is an error.
    fn learn(&mut self, written: &BTreeMap<ChainKey, Vec<Line>>) -> Result<(), ApplyError> {
        let found = self.tool.installed()?;
        self.dialect.clear();
        for (key, meant) in written {
            match found.chains.get(key) {
                Some(printed) if printed == meant => {}
                Some(printed) if printed.len() == meant.len() => {
                    self.dialect.insert(key.clone(), (meant.clone(), printed.clone()));
                }
                _ => {
                    return Err(ApplyError::Torn {
                        action: format!("verify chain {} of {}", key.name, key.table.name()),
                        detail: "it is not there as it was written: another program changes it".to_owned(),
                    });
                }
            }
        }
        if let Some((key, (meant, printed))) = self.dialect.first_key_value() {
            let pair = meant.iter().zip(printed).find(|(meant, printed)| meant != printed);
            warn!(
                chains = self.dialect.len(),
                chain = %key.name,
                ?pair,
                "this iptables prints rules in words that are new to netd"
            );
        }
        Ok(())
    }

    /// Whether the kernel can keep affinity; asked when a plan first needs it.
    fn affinity(&mut self, plan: &FamilyPlan) -> Result<bool, ApplyError> {
        match self.affinity {
            Some(known) => Ok(known),
            None if needs_affinity(plan) => {
                let has = self.has_recent()?;
                self.affinity = Some(has);
                Ok(has)
            }
            None => Ok(true),
        }
    }

    /// Tries a rule with `-m recent`.
    fn has_recent(&self) -> Result<bool, ApplyError> {
        const PROBE: &str = "NETD-PROBE";
        let rule = |list: &str| {
            let check = Match::RecentCheck { list: list.to_owned(), seconds: 1 };
            vec![Line::Rule(Rule::new(Target::Return).when(check))]
        };
        let chains = BTreeMap::from([(ChainKey::new(Table::Nat, PROBE), rule(PROBE))]);
        let probe = Ruleset { chains: chains.clone(), jumps: Vec::new() };
        let add = transaction(&Ruleset::default(), &chains, &[]);
        match self.tool.restore(&add.text) {
            Ok(()) => {}
            Err(ApplyError::Refused { action, source }) => {
                let text = source.to_string();
                // The program lacks the extension, or the kernel does.
                if ["`recent'", "No such file or directory", "No chain/target/match", "RULE_APPEND failed"]
                    .iter()
                    .any(|words| text.contains(words))
                {
                    warn!(family = %self.tool.family, error = text, "no xt_recent: no session affinity");
                    return Ok(false);
                }
                return Err(ApplyError::Refused { action, source });
            }
            Err(error) => return Err(error),
        }
        self.tool.restore(&transaction(&probe, &BTreeMap::new(), &[]).text)?;
        Ok(true)
    }
}

fn first_difference(before: &Ruleset, found: &Ruleset) -> String {
    for (key, lines) in &before.chains {
        match found.chains.get(key) {
            None => return format!("chain {} of {} is gone", key.name, key.table.name()),
            Some(now) if now != lines => {
                return format!("chain {} of {} has other rules", key.name, key.table.name());
            }
            Some(_) => {}
        }
    }
    match found.chains.keys().find(|key| !before.chains.contains_key(key)) {
        Some(key) => format!("chain {} of {} is new", key.name, key.table.name()),
        None => "jumps to netd's chains differ".to_owned(),
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
        for plane in &mut self.planes {
            let plan = plan.family(plane.tool.family);
            let settings = Settings {
                mark,
                random_fully: plane.tool.version.has_wait_and_random_fully(),
                affinity: plane.affinity(plan)?,
            };
            let compiled = compile(plan, settings);
            applied.frontends += compiled.frontends;
            applied.endpoints += compiled.endpoints;
            applied.refused.extend(compiled.refused);
            applied.changed += plane.apply(compiled.chains, *scope == Scope::Full)?;
        }
        self.sweep();
        Ok(applied)
    }

    /// One `iptables-save` a family: chains, every rule in them and the jumps to them. True before the first
    /// apply.
    fn intact(&mut self) -> Result<bool, ApplyError> {
        let jumps = wanted_jumps();
        for plane in &self.planes {
            let Some(expected) = plane.installed.as_ref().filter(|expected| !expected.is_empty()) else {
                continue;
            };
            let found = plane.read()?;
            if !transaction(&found, &expected.chains, &jumps).text.is_empty() {
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
        for plane in &mut self.planes {
            plane.installed = None;
            plane.dialect.clear();
        }
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

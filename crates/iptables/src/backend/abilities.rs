//! What the kernel's iptables can do, asked of the kernel itself.

use std::collections::BTreeMap;

use netd_dataplane::ApplyError;
use netd_model::{FamilyPlan, Verdict};
use tracing::warn;

use super::plane::Plane;
use crate::names;
use crate::restore::transaction;
use crate::rule::{Match, Rule, Table, Target};
use crate::ruleset::{ChainKey, Line, Ruleset};

/// The chain of a trial; nothing leads to it.
const PROBE: &str = "NETD-PROBE";

/// What a restore says when the program lacks an extension, or the kernel does.
const LACKING: [&str; 5] = [
    "Couldn't load match",
    "No such file or directory",
    "No chain/target/match",
    "RULE_APPEND failed",
    "missing kernel module",
];

fn needs_affinity(plan: &FamilyPlan) -> bool {
    plan.frontends.values().any(|frontend| {
        let verdicts = &frontend.verdicts;
        [&verdicts.pod, &verdicts.host, &verdicts.other]
            .into_iter()
            .any(|verdict| matches!(verdict, Verdict::Balance { affinity: Some(_), .. }))
    })
}

impl Plane {
    /// Whether the kernel can keep affinity; asked when a plan first needs it.
    pub(super) fn affinity(&mut self, plan: &FamilyPlan) -> Result<bool, ApplyError> {
        if let Some(known) = self.affinity {
            return Ok(known);
        }
        if self.without_affinity.as_ref().is_some_and(|known| known.is_same(&plan.frontends)) {
            return Ok(true);
        }
        if !needs_affinity(plan) {
            self.without_affinity = Some(plan.frontends.clone());
            return Ok(true);
        }
        self.without_affinity = None;
        let has = self.has(Match::RecentCheck { list: PROBE.to_owned(), seconds: 1 })?;
        if !has {
            warn!(family = %self.tool.family, "no xt_recent: no session affinity");
        }
        self.affinity = Some(has);
        Ok(has)
    }

    /// Whether one rule can tell that a packet's source is its destination. A kernel that has such a rule of an
    /// earlier run is not asked.
    pub(super) fn same_address(&mut self) -> Result<bool, ApplyError> {
        if let Some(known) = self.same_address {
            return Ok(known);
        }
        let condition = Match::SameAddress(self.tool.family);
        let uses = |line: &Line| matches!(line, Line::Rule(rule) if rule.matches.contains(&condition));
        let found = match &self.installed {
            Some(installed) => installed.chains.get(&ChainKey::new(Table::Nat, names::POSTROUTING)),
            None => None,
        };
        let has = found.is_some_and(|lines| lines.iter().any(uses)) || self.has(condition)?;
        if !has {
            warn!(family = %self.tool.family, "no xt_bpf: each endpoint costs two rules and a chain more");
        }
        self.same_address = Some(has);
        Ok(has)
    }

    /// Tries a rule with a match, in a chain that nothing leads to.
    fn has(&mut self, condition: Match) -> Result<bool, ApplyError> {
        let before = self.tool.generation();
        let has = self.try_rule(condition)?;
        let after = self.tool.generation();
        // Written and removed; had there been more, others would not be ours.
        let step = before.zip(after).filter(|(from, to)| to.wrapping_sub(*from) <= 2);
        self.moved.extend(step);
        step.into_iter().for_each(|step| self.follow(step));
        Ok(has)
    }

    fn try_rule(&self, condition: Match) -> Result<bool, ApplyError> {
        let lines = vec![Line::Rule(Rule::new(Target::Return).when(condition))];
        let chains = BTreeMap::from([(ChainKey::new(Table::Nat, PROBE), lines)]);
        let probe = Ruleset { chains: chains.clone(), jumps: Vec::new() };
        let add = transaction(&Ruleset::default(), &chains, &[]);
        match self.tool.restore(&add.text) {
            Ok(()) => {}
            Err(ApplyError::Refused { action, source }) => {
                let text = source.to_string();
                if LACKING.iter().any(|words| text.contains(words)) {
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

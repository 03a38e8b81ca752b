//! One family: what its kernel tables have, and how they get what a plan wants.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use netd_dataplane::{ApplyError, TableRules};
use netd_model::{FamilyPlan, Frontend, FrontendKey, OrderedMap, Scope};
use tracing::{debug, warn};

use crate::compile::{Chains, Program, Settings, compile};
use crate::restore::{Transaction, batched, transaction};
use crate::ruleset::{ChainKey, InstalledJump, Line, Ruleset, parse_save, wanted_jumps};
use crate::tool::Tool;

use super::tally::Tally;

/// One family.
pub(super) struct Plane {
    pub(super) tool: Tool,
    /// What is in the kernel; unknown before the first read and after a failure.
    pub(super) installed: Option<Ruleset>,
    /// What `installed` was compiled from, once this process has applied it.
    program: Option<Program>,
    /// Chains that this iptables prints in words this version does not know, as meant and as printed.
    pub(super) dialect: BTreeMap<ChainKey, (Vec<Line>, Vec<Line>)>,
    /// Whether the kernel has `xt_recent`; asked when first needed.
    pub(super) affinity: Option<bool>,
    /// Frontends that were found to need no affinity.
    pub(super) without_affinity: Option<OrderedMap<FrontendKey, Frontend>>,
    /// Whether the kernel has `xt_bpf`; asked before the first apply.
    pub(super) same_address: Option<bool>,
    /// Whether it is known how this iptables prints what is installed.
    verified: bool,
    /// The kernel's generation at which it was known to have `installed`; nf_tables only.
    generation: Option<u32>,
    /// From and to which generation each write led, where nobody else wrote meanwhile; not told yet.
    pub(super) moved: Vec<(u32, u32)>,
    /// How many rules there are.
    tally: Tally,
    /// Whether the last apply looked at everything.
    was_full: bool,
    /// Fingerprint of what was printed when all was last found intact.
    intact: Option<u64>,
}

impl Plane {
    pub(super) fn new(tool: Tool) -> Self {
        Self {
            tool,
            installed: None,
            program: None,
            dialect: BTreeMap::new(),
            affinity: None,
            without_affinity: None,
            same_address: None,
            verified: false,
            generation: None,
            moved: Vec::new(),
            intact: None,
            tally: Tally::default(),
            was_full: true,
        }
    }

    /// Rules by table, and whether the last apply looked at everything.
    pub(super) fn told(&self) -> (Vec<TableRules>, bool) {
        (self.tally.rules(), self.was_full)
    }

    /// Forgets all it knows of the kernel.
    pub(super) fn forget(&mut self) {
        let Self { affinity, same_address, .. } = *self;
        *self = Self { affinity, same_address, ..Self::new(self.tool.clone()) };
    }

    /// What was applied last; nothing before the first apply.
    pub(super) const fn program(&self) -> Option<&Program> {
        self.program.as_ref()
    }

    /// Whether the kernel's generation says that nobody else has changed a rule.
    #[cfg(test)]
    pub(super) fn is_known(&self) -> bool {
        self.generation.is_some() && self.generation == self.tool.generation()
    }

    /// Reads what is installed, in this version's words where they are known to mean the same.
    pub(super) fn read(&self) -> Result<Ruleset, ApplyError> {
        Ok(self.translate(parse_save(&self.tool.save_text()?)))
    }

    fn translate(&self, mut found: Ruleset) -> Ruleset {
        for (key, (meant, printed)) in &self.dialect {
            if let Some(lines) = found.chains.get_mut(key)
                && lines == printed
            {
                lines.clone_from(meant);
            }
        }
        found
    }

    pub(super) fn resync(&mut self) -> Result<(), ApplyError> {
        self.installed = None;
        self.program = None;
        self.intact = None;
        let before = self.tool.generation();
        let found = self.read()?;
        self.generation = self.tool.generation().filter(|now| Some(*now) == before);
        self.installed = Some(found);
        Ok(())
    }

    /// Whether the kernel has what was applied last.
    ///
    /// With nf_tables that costs one question as long as nobody has changed a rule; otherwise all rules are
    /// printed and compared.
    pub(super) fn is_intact(&mut self) -> Result<bool, ApplyError> {
        if self.installed.as_ref().is_none_or(Ruleset::is_empty) {
            return Ok(true);
        }
        let now = self.tool.generation();
        let is_ours_alone = now.is_some() && now == self.generation;
        if is_ours_alone && self.verified {
            return Ok(true);
        }
        let text = self.tool.save_text()?;
        let fingerprint = fingerprint(&text);
        // Reading 100,000 rules takes long; telling that they are the same text does not.
        if self.intact == Some(fingerprint) {
            self.generation = now;
            return Ok(true);
        }
        let found = parse_save(&text);
        if is_ours_alone {
            // Nobody but us wrote since: where words differ, it is how this iptables prints them.
            let Some(chains) = self.installed.as_ref().map(|installed| installed.chains.clone()) else {
                return Ok(true);
            };
            if self.learn(&chains, &found).is_err() {
                return Ok(false);
            }
        }
        let found = self.translate(found);
        let is_intact = self
            .installed
            .as_ref()
            .is_some_and(|expected| transaction(&found, &expected.chains, &wanted_jumps()).text.is_empty());
        self.intact = is_intact.then_some(fingerprint);
        self.generation = now.filter(|_| is_intact);
        self.verified |= is_intact;
        Ok(is_intact)
    }

    /// Makes the kernel have what the plan wants; returns how many rules changed.
    pub(super) fn apply(
        &mut self,
        plan: &FamilyPlan,
        settings: Settings,
        scope: &Scope,
    ) -> Result<usize, ApplyError> {
        if self.installed.is_none() {
            self.resync()?;
        }
        self.was_full = false;
        if let (Scope::Services(services), Some(mut program)) = (scope, self.program.take())
            && let Some(patch) = program.patch(plan, settings, services)
        {
            let changed = self.exchange(&patch.old, &patch.wanted)?;
            program.adopt(patch);
            self.program = Some(program);
            return Ok(changed);
        }
        self.was_full = true;
        let (program, chains) = compile(plan, settings);
        let changed = self.replace(chains)?;
        self.program = Some(program);
        Ok(changed)
    }

    /// Makes the kernel have `chains` and no others of ours.
    fn replace(&mut self, chains: Chains) -> Result<usize, ApplyError> {
        let before = self.installed.take().unwrap_or_default();
        self.tally = Tally::replaced(&before, &chains);
        let change = batched(&before, &chains, &wanted_jumps(), self.tool.batch());
        if change.text.is_empty() {
            self.installed = Some(before);
            return Ok(0);
        }
        debug!(family = %self.tool.family, changed = change.changed, "restoring rules");
        if let Err(error) = self.restore(&change) {
            return Err(self.judge(&before, error));
        }
        // Without generations nobody can tell later who wrote: look at once.
        if self.generation.is_none() && !self.verified {
            let found = self.tool.installed()?;
            self.learn(&chains, &found)?;
        }
        let jumps = wanted_jumps().into_iter().map(InstalledJump::from).collect();
        self.installed = Some(Ruleset { chains, jumps });
        Ok(change.changed)
    }

    /// Exchanges the `old` chains for the `wanted` ones; all others stay.
    fn exchange(&mut self, old: &BTreeSet<ChainKey>, wanted: &Chains) -> Result<usize, ApplyError> {
        let Some(mut before) = self.installed.take() else { return Ok(0) };
        let part = old.iter().chain(wanted.keys()).filter_map(|key| before.chains.get_key_value(key));
        let part = Ruleset {
            chains: part.map(|(key, lines)| (key.clone(), lines.clone())).collect(),
            jumps: Vec::new(),
        };
        let change = batched(&part, wanted, &[], self.tool.batch());
        if !change.text.is_empty() {
            debug!(family = %self.tool.family, changed = change.changed, "restoring rules of some services");
            if let Err(error) = self.restore(&change) {
                return Err(self.judge(&before, error));
            }
        }
        self.tally.exchanged(&before, old, wanted);
        for key in old {
            before.chains.remove(key);
        }
        before.chains.extend(wanted.iter().map(|(key, lines)| (key.clone(), lines.clone())));
        self.installed = Some(before);
        Ok(change.changed)
    }

    /// Hands a change to the restore program, and keeps count of the kernel's generations.
    fn restore(&mut self, change: &Transaction) -> Result<(), ApplyError> {
        let known = self.generation.take().filter(|known| self.tool.generation() == Some(*known));
        self.intact = None;
        // Words known to be the same stay the same; others are to be looked at again.
        self.verified &= self.dialect.is_empty();
        self.tool.restore(&change.text)?;
        // Each table is one transaction; had there been more, others would not be ours.
        self.generation = known.and_then(|known| {
            let now = self.tool.generation()?;
            (now.wrapping_sub(known) <= change.commits).then_some(now)
        });
        self.moved.extend(known.zip(self.generation));
        Ok(())
    }

    /// The generations that writes led from and to; each told once.
    pub(super) fn take_moved(&mut self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.moved)
    }

    /// Another family of ours wrote and nobody else: families share the generation.
    pub(super) fn follow(&mut self, (from, to): (u32, u32)) {
        if self.generation == Some(from) {
            self.generation = Some(to);
        }
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

    /// Compares what was written with what is printed. Chains whose rules are printed in other words are
    /// remembered, so that they do not look changed for ever; a chain with another number of rules is an
    /// error.
    pub(super) fn learn(&mut self, written: &Chains, found: &Ruleset) -> Result<(), ApplyError> {
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
        self.verified = true;
        Ok(())
    }
}

/// Stands for what was printed, without the lines that carry the time or count packets.
fn fingerprint(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    for line in text.lines().filter(|line| !line.starts_with(['#', ':'])) {
        line.hash(&mut hasher);
    }
    hasher.finish()
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

//! How many rules a family has in each table, kept up to date with what each write exchanges.

use std::collections::BTreeSet;

use netd_dataplane::TableRules;

use crate::compile::Chains;
use crate::rule::Table;
use crate::ruleset::{ChainKey, Ruleset};

/// Rules in our chains, by table; the jumps from chains that are not ours are not counted.
#[derive(Debug, Default)]
pub(super) struct Tally {
    total: [usize; Table::ALL.len()],
    /// By the last write.
    written: [usize; Table::ALL.len()],
}

impl Tally {
    /// After a write of everything; counts all.
    pub(super) fn replaced(before: &Ruleset, chains: &Chains) -> Self {
        let mut tally = Self::default();
        for (key, lines) in chains {
            tally.total[at(key.table)] += lines.len();
            tally.count_written(before, key, chains);
        }
        tally
    }

    /// After some chains were exchanged for others; the work is theirs.
    pub(super) fn exchanged(&mut self, before: &Ruleset, old: &BTreeSet<ChainKey>, wanted: &Chains) {
        self.written = Default::default();
        let fresh = wanted.keys().filter(|key| !old.contains(*key));
        for key in old.iter().chain(fresh) {
            let had = before.chains.get(key).map_or(0, |lines| lines.len());
            let total = &mut self.total[at(key.table)];
            *total = total.saturating_sub(had);
        }
        for (key, lines) in wanted {
            self.total[at(key.table)] += lines.len();
            self.count_written(before, key, wanted);
        }
    }

    fn count_written(&mut self, before: &Ruleset, key: &ChainKey, chains: &Chains) {
        if let Some(lines) = chains.get(key).filter(|lines| before.chains.get(key) != Some(*lines)) {
            self.written[at(key.table)] += lines.len();
        }
    }

    /// What is told of it.
    pub(super) fn rules(&self) -> Vec<TableRules> {
        let of = |table: Table| TableRules {
            table: table.name(),
            total: self.total[at(table)],
            written: self.written[at(table)],
        };
        Table::ALL.map(of).into()
    }
}

const fn at(table: Table) -> usize {
    match table {
        Table::Filter => 0,
        Table::Nat => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ruleset::Line;

    fn chains(all: &[(Table, &str, usize)]) -> Chains {
        let lines = |n: usize| (0..n).map(|i| Line::Foreign(format!("-j RETURN -m {i}"))).collect();
        all.iter().map(|(table, name, n)| (ChainKey::new(*table, *name), lines(*n))).collect()
    }

    fn numbers(tally: &Tally) -> Vec<(&'static str, usize, usize)> {
        tally.rules().iter().map(|rules| (rules.table, rules.total, rules.written)).collect()
    }

    #[test]
    fn rules_are_counted_as_chains_come_change_and_go() {
        let mut have = chains(&[(Table::Nat, "A", 3), (Table::Nat, "B", 2), (Table::Filter, "C", 1)]);
        let mut tally = Tally::replaced(&Ruleset::default(), &have);
        assert_eq!(numbers(&tally), [("filter", 1, 1), ("nat", 5, 5)]);
        let before = Ruleset { chains: have.clone(), jumps: Vec::new() };
        let wanted = chains(&[(Table::Nat, "A", 3), (Table::Nat, "B", 4), (Table::Nat, "D", 1)]);
        let old: BTreeSet<ChainKey> = have.keys().filter(|key| key.name != "A").cloned().collect();
        tally.exchanged(&before, &old, &wanted);
        assert_eq!(numbers(&tally), [("filter", 0, 0), ("nat", 8, 5)]);
        have = wanted;
        let same = Ruleset { chains: have.clone(), jumps: Vec::new() };
        assert_eq!(numbers(&Tally::replaced(&same, &have)), [("filter", 0, 0), ("nat", 8, 0)]);
        tally.exchanged(&same, &have.keys().cloned().collect(), &BTreeMap::new());
        assert_eq!(numbers(&tally), [("filter", 0, 0), ("nat", 0, 0)]);
    }
}

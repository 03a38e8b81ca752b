//! The text for `iptables-restore --noflush` that turns what is installed into what is wanted.
//!
//! A restore commits table by table. So that no moment in between sends a flow anywhere but to its old or
//! its new verdict, refusals are first added, then the nat table is exchanged, then refusals that are no
//! longer wanted go: a refusal never meets a flow that nat rewrites, so one too many does no harm.

mod batches;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::rule::Table;
use crate::ruleset::{ChainKey, InstalledJump, Line, Place, Ruleset, WantedJump, is_the_jump};

pub(crate) use batches::BATCH;

/// What one restore changes.
#[derive(Debug)]
pub(crate) struct Transaction {
    /// Input of `iptables-restore`; empty when nothing changes.
    pub(crate) text: String,
    /// Rules, chains and jumps written or removed.
    pub(crate) changed: usize,
    /// Tables committed.
    pub(crate) commits: u32,
}

/// Chains and jumps of one table that a section writes and removes.
#[derive(Default)]
struct Section<'a> {
    write: BTreeMap<&'a str, Vec<&'a Line>>,
    insert: Vec<&'a WantedJump>,
    delete: Vec<&'a InstalledJump>,
    remove: Vec<&'a str>,
}

impl Section<'_> {
    fn is_empty(&self) -> bool {
        self.write.is_empty() && self.insert.is_empty() && self.delete.is_empty() && self.remove.is_empty()
    }

    /// Appends the section and returns how many commits that takes.
    fn render(&self, table: Table, text: &mut String) -> u32 {
        if self.is_empty() {
            return 0;
        }
        // Writing to a String does not fail.
        let _ = writeln!(text, "*{}", table.name());
        // Declaring a chain creates or empties it.
        for name in self.write.keys().chain(&self.remove) {
            let _ = writeln!(text, ":{name} - [0:0]");
        }
        for jump in &self.delete {
            let _ = writeln!(text, "-D {} {}", jump.base, jump.text);
        }
        for (name, lines) in &self.write {
            for line in lines {
                let _ = writeln!(text, "-A {name} {line}");
            }
        }
        for jump in &self.insert {
            let _ = match jump.place {
                Place::First => writeln!(text, "-I {} 1 {}", jump.base, jump.rule),
                Place::Last => writeln!(text, "-A {} {}", jump.base, jump.rule),
            };
        }
        for name in &self.remove {
            let _ = writeln!(text, "-X {name}");
        }
        text.push_str("COMMIT\n");
        1
    }
}

/// What turns `installed` into `chains` with `jumps`, each table in as few commits as can be. O(n log n) in rules.
pub(crate) fn transaction(
    installed: &Ruleset,
    chains: &BTreeMap<ChainKey, Vec<Line>>,
    jumps: &[WantedJump],
) -> Transaction {
    batched(installed, chains, jumps, usize::MAX)
}

/// The same, with at most about `batch` new or unwanted chains of nat in a commit.
pub(crate) fn batched(
    installed: &Ruleset,
    chains: &BTreeMap<ChainKey, Vec<Line>>,
    jumps: &[WantedJump],
    batch: usize,
) -> Transaction {
    let (set, remove) = differences(&installed.chains, chains);
    let missing: Vec<_> = jumps.iter().filter(|jump| installed.count(jump) == 0).collect();
    let surplus = surplus(installed, jumps);
    let mut changed = missing.len() + surplus.len() + remove.len();
    changed += set.iter().map(|(_, lines)| lines.len().max(1)).sum::<usize>();

    let section = |table| Section {
        write: set
            .iter()
            .filter(|(key, _)| key.table == table)
            .map(|(key, lines)| (key.name.as_str(), lines.iter().collect()))
            .collect(),
        insert: missing.iter().copied().filter(|jump| jump.table == table).collect(),
        delete: surplus.iter().copied().filter(|jump| jump.table == table).collect(),
        remove: remove.iter().filter(|key| key.table == table).map(|key| key.name.as_str()).collect(),
    };
    let mut nat = section(Table::Nat);
    let filter = section(Table::Filter);
    let mut text = String::new();
    let unwanted = take_unwanted(installed, &mut nat, batch);
    let inert = render_new(installed, &mut nat, batch, &mut text);
    let exchanged = if nat.is_empty() {
        filter.render(Table::Filter, &mut text)
    } else {
        let (before, after) = split_refusals(installed, filter);
        before.render(Table::Filter, &mut text)
            + nat.render(Table::Nat, &mut text)
            + after.render(Table::Filter, &mut text)
    };
    let gone: u32 = unwanted.into_iter().map(|section| section.render(Table::Nat, &mut text)).sum();
    Transaction { text, changed, commits: inert + exchanged + gone }
}

/// A chain's name with its rules.
type Named<'a> = (&'a ChainKey, &'a Vec<Line>);

/// Chains that are to be written, and those that are to go; nothing is copied.
fn differences<'a>(
    installed: &'a BTreeMap<ChainKey, Vec<Line>>,
    wanted: &'a BTreeMap<ChainKey, Vec<Line>>,
) -> (Vec<Named<'a>>, Vec<&'a ChainKey>) {
    let set = wanted.iter().filter(|(key, lines)| installed.get(*key) != Some(*lines)).collect();
    let remove = installed.keys().filter(|key| !wanted.contains_key(*key)).collect();
    (set, remove)
}

/// Appends the new chains, where they are many, in commits of their own; returns how many. Nothing leads to
/// them before the rest of the section is committed.
fn render_new(installed: &Ruleset, nat: &mut Section<'_>, batch: usize, text: &mut String) -> u32 {
    let is_new = |name: &str| !installed.chains.contains_key(&ChainKey::new(Table::Nat, name));
    if nat.write.len() <= batch {
        return 0;
    }
    let (new, rest) = std::mem::take(&mut nat.write).into_iter().partition(|(name, _)| is_new(name));
    nat.write = rest;
    let mut new: BTreeMap<&str, Vec<&Line>> = new;
    let mut commits = 0;
    for names in batches::batches(&new, batch) {
        let write = names.into_iter().filter_map(|name| Some((name, new.remove(name)?))).collect();
        commits += Section { write, ..Section::default() }.render(Table::Nat, text);
    }
    commits
}

/// Takes the chains that go, where they are many, to sections of their own, which come last: once the rest is
/// committed only they lead to one another, and each goes before those it leads to.
fn take_unwanted<'a>(installed: &'a Ruleset, nat: &mut Section<'a>, batch: usize) -> Vec<Section<'a>> {
    if nat.remove.len() <= batch {
        return Vec::new();
    }
    let lines_of = |name: &str| installed.chains.get(&ChainKey::new(Table::Nat, name));
    let remove = std::mem::take(&mut nat.remove);
    let chains =
        remove.into_iter().map(|name| (name, lines_of(name).into_iter().flatten().collect())).collect();
    let sections = batches::batches(&chains, batch).into_iter().rev();
    sections.map(|remove| Section { remove, ..Section::default() }).collect()
}

/// Splits what filter does into additions, which go before nat, and removals, which go after it.
fn split_refusals<'a>(installed: &'a Ruleset, filter: Section<'a>) -> (Section<'a>, Section<'a>) {
    let mut before = Section { insert: filter.insert, ..Section::default() };
    let mut after = Section { delete: filter.delete, remove: filter.remove, ..Section::default() };
    for (name, lines) in filter.write {
        let wanted: BTreeSet<_> = lines.iter().copied().collect();
        let old = installed.chains.get(&ChainKey::new(Table::Filter, name));
        let kept: Vec<_> = old
            .into_iter()
            .flatten()
            .filter(|line| matches!(line, Line::Rule(_)) && !wanted.contains(line))
            .collect();
        if kept.is_empty() {
            before.write.insert(name, lines);
        } else {
            let mut union = lines.clone();
            union.extend(kept);
            before.write.insert(name, union);
            after.write.insert(name, lines);
        }
    }
    (before, after)
}

/// Installed jumps that are not wanted, or that are there more often than once.
fn surplus<'a>(installed: &'a Ruleset, jumps: &[WantedJump]) -> Vec<&'a InstalledJump> {
    let mut seen = vec![false; jumps.len()];
    let mut surplus = Vec::new();
    for jump in &installed.jumps {
        let wanted = jumps.iter().zip(&mut seen).find(|(wanted, _)| is_the_jump(jump, wanted));
        match wanted {
            Some((_, seen)) if !*seen => *seen = true,
            _ => surplus.push(jump),
        }
    }
    surplus
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::Rule;
    use crate::ruleset::{parse_save, wanted_jumps};

    fn key(table: Table, name: &str) -> ChainKey {
        ChainKey::new(table, name)
    }

    fn reject(address: &str) -> Line {
        Line::Rule(Rule::new(crate::rule::Target::Drop).destination_ip(address.parse().unwrap()))
    }

    fn accept() -> Vec<Line> {
        vec![Line::Rule(Rule::new(crate::rule::Target::Accept))]
    }

    #[test]
    fn nothing_to_do_renders_nothing() {
        let result = transaction(&Ruleset::default(), &BTreeMap::new(), &[]);
        assert!(result.text.is_empty());
        assert_eq!(result.changed, 0);
    }

    #[test]
    fn refusals_are_added_before_nat_and_removed_after_it() {
        let installed = Ruleset {
            chains: BTreeMap::from([(key(Table::Filter, "NETD-F"), vec![reject("10.0.0.1")])]),
            jumps: Vec::new(),
        };
        let wanted = BTreeMap::from([
            (key(Table::Filter, "NETD-F"), vec![reject("10.0.0.2")]),
            (key(Table::Nat, "NETD-N"), accept()),
        ]);
        let result = transaction(&installed, &wanted, &[]);
        assert_eq!(
            result.text,
            "*filter\n:NETD-F - [0:0]\n-A NETD-F -d 10.0.0.2/32 -j DROP\n-A NETD-F -d 10.0.0.1/32 -j DROP\nCOMMIT\n\
             *nat\n:NETD-N - [0:0]\n-A NETD-N -j ACCEPT\nCOMMIT\n\
             *filter\n:NETD-F - [0:0]\n-A NETD-F -d 10.0.0.2/32 -j DROP\nCOMMIT\n"
        );
        assert_eq!(result.changed, 2);
    }

    #[test]
    fn an_unwanted_chain_is_emptied_and_deleted_after_its_references() {
        let installed = parse_save(
            "*nat\n:NETD-A - [0:0]\n:NETD-B - [0:0]\n-A PREROUTING -m comment --comment old -j NETD-A\n-A NETD-A -j NETD-B\nCOMMIT\n",
        );
        let result = transaction(&installed, &BTreeMap::new(), &[]);
        assert_eq!(
            result.text,
            "*nat\n:NETD-A - [0:0]\n:NETD-B - [0:0]\n-D PREROUTING -m comment --comment old -j NETD-A\n-X NETD-A\n-X NETD-B\nCOMMIT\n"
        );
    }

    #[test]
    fn a_doubled_jump_is_reduced_to_one() {
        let jumps = wanted_jumps();
        let mut save = String::from("*nat\n");
        for _ in 0..2 {
            save.push_str(&format!("-A PREROUTING {}\n", jumps[0].rule));
        }
        let result = transaction(&parse_save(&save), &BTreeMap::new(), &jumps[..1]);
        assert_eq!(result.changed, 1);
        assert_eq!(result.text.matches("-D PREROUTING").count(), 1, "{}", result.text);
    }

    /// Every line of a restore leads only to chains that are declared in the same commit or were committed.
    fn assert_leads_somewhere(text: &str, installed: &[&str]) {
        let mut known: BTreeSet<String> = installed.iter().map(|name| (*name).to_owned()).collect();
        for line in text.lines() {
            if let Some(declared) = line.strip_prefix(':') {
                known.insert(declared.split(' ').next().unwrap().to_owned());
            }
            if let Some((_, target)) = line.split_once(" -j NETD-") {
                let target = format!("NETD-{}", target.split(' ').next().unwrap());
                assert!(known.contains(&target), "{line}: no chain {target} yet");
            }
        }
    }

    #[test]
    fn many_new_chains_come_before_anything_leads_to_them() {
        let jump = |name: &str| vec![Line::Rule(Rule::jump(name.to_owned()))];
        let old = BTreeMap::from([(key(Table::Nat, "NETD-A"), accept())]);
        let mut wanted = BTreeMap::from([
            // Leads to a new chain, and is in use: must be exchanged last.
            (key(Table::Nat, "NETD-A"), jump("NETD-B0")),
            (key(Table::Nat, "NETD-Z"), accept()),
        ]);
        for number in 0..10 {
            let next = if number < 9 { format!("NETD-B{}", number + 1) } else { "NETD-Z".to_owned() };
            wanted.insert(key(Table::Nat, &format!("NETD-B{number}")), jump(&next));
        }
        let installed = Ruleset { chains: old, jumps: Vec::new() };
        let result = batched(&installed, &wanted, &[], 3);
        assert_leads_somewhere(&result.text, &["NETD-A"]);
        assert_eq!((result.commits, result.text.matches("COMMIT").count()), (5, 5), "{}", result.text);
        let last = result.text.split("*nat").last().unwrap();
        assert_eq!(last, "\n:NETD-A - [0:0]\n-A NETD-A -j NETD-B0\nCOMMIT\n");
        let whole = transaction(&installed, &wanted, &[]);
        assert_eq!((whole.commits, whole.changed), (1, result.changed));
        let few = batched(&installed, &wanted, &[], 100);
        assert_eq!(few.text, whole.text);
    }

    #[test]
    fn many_unwanted_chains_go_last_and_before_what_they_lead_to() {
        let jump = |name: &str| vec![Line::Rule(Rule::jump(name.to_owned()))];
        let mut chains = BTreeMap::from([(key(Table::Nat, "NETD-A"), jump("NETD-B0"))]);
        for number in 0..10 {
            let next = format!("NETD-B{}", number + 1);
            let lines = if number < 9 { jump(&next) } else { accept() };
            chains.insert(key(Table::Nat, &format!("NETD-B{number}")), lines);
        }
        let installed = Ruleset { chains, jumps: Vec::new() };
        let wanted = BTreeMap::from([(key(Table::Nat, "NETD-A"), accept())]);
        let result = batched(&installed, &wanted, &[], 4);
        assert_eq!((result.commits, result.text.matches("COMMIT").count()), (4, 4), "{}", result.text);
        assert!(result.text.starts_with("*nat\n:NETD-A - [0:0]\n-A NETD-A -j ACCEPT\nCOMMIT\n"));
        let commits: Vec<&str> = result.text.split("COMMIT\n").collect();
        let commit_of =
            |number: u32| commits.iter().position(|text| text.contains(&format!("-X NETD-B{number}\n")));
        for number in 0..9 {
            assert!(commit_of(number).unwrap() <= commit_of(number + 1).unwrap(), "{}", result.text);
        }
        assert_eq!(batched(&installed, &wanted, &[], 100).commits, 1);
    }

    #[test]
    fn chains_in_a_circle_are_still_written() {
        let jump = |name: &str| vec![Line::Rule(Rule::jump(name.to_owned()))];
        let wanted = BTreeMap::from([
            (key(Table::Nat, "NETD-A"), jump("NETD-B")),
            (key(Table::Nat, "NETD-B"), jump("NETD-A")),
        ]);
        let result = batched(&Ruleset::default(), &wanted, &[], 1);
        assert_eq!(result.text.matches("-A NETD").count(), 2, "{}", result.text);
    }
}

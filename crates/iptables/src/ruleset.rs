//! The chains and jumps of one family, wanted or installed, and how they are read from `iptables-save`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::names;
use crate::rule::{Match, Rule, State, Table, parse_rule, split_words};

/// Names a chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChainKey {
    /// Table it is in.
    pub(crate) table: Table,
    /// Its name.
    pub(crate) name: String,
}

impl ChainKey {
    pub(crate) fn new(table: Table, name: impl Into<String>) -> Self {
        Self { table, name: name.into() }
    }
}

/// A line of a chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Line {
    /// A rule that this version may render.
    Rule(Rule),
    /// Anything else, as printed after `-A CHAIN `.
    Foreign(String),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => rule.fmt(f),
            Self::Foreign(text) => f.write_str(text),
        }
    }
}

/// Where a jump goes in its base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before all other rules.
    First,
    /// After all other rules.
    Last,
}

/// A jump from a chain that is not ours into one of ours, as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantedJump {
    pub(crate) table: Table,
    pub(crate) base: &'static str,
    pub(crate) place: Place,
    pub(crate) rule: Rule,
}

/// Such a jump as it is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InstalledJump {
    pub(crate) table: Table,
    /// The chain it is in.
    pub(crate) base: String,
    /// The rule.
    pub(crate) line: Line,
    /// As printed after `-A BASE `, for `-D`.
    pub(crate) text: String,
}

/// All that is ours in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ruleset {
    /// Chains with our prefix.
    pub(crate) chains: BTreeMap<ChainKey, Vec<Line>>,
    /// Rules of other chains that lead into ours, in the order of the tables.
    pub(crate) jumps: Vec<InstalledJump>,
}

impl From<WantedJump> for InstalledJump {
    fn from(wanted: WantedJump) -> Self {
        let text = wanted.rule.to_string();
        Self { table: wanted.table, base: wanted.base.to_owned(), line: Line::Rule(wanted.rule), text }
    }
}

impl Ruleset {
    /// True when nothing of ours is there.
    pub(crate) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.jumps.is_empty()
    }

    /// Installed jumps that equal `wanted`.
    pub(crate) fn count(&self, wanted: &WantedJump) -> usize {
        self.jumps.iter().filter(|jump| is_the_jump(jump, wanted)).count()
    }
}

/// True when `jump` is what `wanted` asks for, wherever in its base chain it stands.
pub(crate) fn is_the_jump(jump: &InstalledJump, wanted: &WantedJump) -> bool {
    jump.table == wanted.table
        && jump.base == wanted.base
        && matches!(&jump.line, Line::Rule(rule) if *rule == wanted.rule)
}

/// The jumps of this backend, in the order in which they are inserted: of two with [`Place::First`] in a
/// chain the later one stands first.
pub(crate) fn wanted_jumps() -> Vec<WantedJump> {
    let first = |table, base, rule| WantedJump { table, base, place: Place::First, rule };
    let services = || Rule::jump(names::SERVICES).note("netd: service addresses");
    let firewall = || {
        let fresh = Match::State(BTreeSet::from([State::New]));
        Rule::jump(names::FIREWALL).when(fresh).note("netd: services that refuse")
    };
    vec![
        first(Table::Nat, "PREROUTING", services()),
        first(Table::Nat, "OUTPUT", services()),
        first(Table::Nat, "POSTROUTING", Rule::jump(names::POSTROUTING).note("netd: masquerade")),
        first(Table::Filter, "INPUT", firewall()),
        first(Table::Filter, "OUTPUT", firewall()),
        first(Table::Filter, "FORWARD", Rule::jump(names::FORWARD).note("netd: service traffic")),
        first(Table::Filter, "FORWARD", firewall()),
        WantedJump {
            table: Table::Filter,
            base: "FORWARD",
            place: Place::Last,
            rule: Rule::jump(names::PODS).note("netd: pod traffic"),
        },
    ]
}

/// Reads what `iptables-save` printed; rules and chains of others are passed over.
pub(crate) fn parse_save(text: &str) -> Ruleset {
    let mut ruleset = Ruleset::default();
    let mut table = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.name() == name.trim());
        }
        let Some(table) = table else { continue };
        if let Some(declared) = line.strip_prefix(':') {
            let name = declared.split_whitespace().next().unwrap_or_default();
            if names::is_ours(name) {
                ruleset.chains.entry(ChainKey::new(table, name)).or_default();
            }
        } else if let Some(appended) = line.strip_prefix("-A ") {
            read_rule(&mut ruleset, table, appended);
        }
    }
    ruleset
}

fn read_rule(ruleset: &mut Ruleset, table: Table, appended: &str) {
    let (chain, text) = appended.split_once(' ').unwrap_or((appended, ""));
    let ours = names::is_ours(chain);
    // Most rules of a busy host are not ours: do not split them.
    if !ours && !text.contains(names::PREFIX) {
        return;
    }
    let words = split_words(text);
    let line = parse_rule(&words).map_or_else(|| Line::Foreign(text.to_owned()), Line::Rule);
    if ours {
        ruleset.chains.entry(ChainKey::new(table, chain)).or_default().push(line);
        return;
    }
    let leads_to_us = words
        .iter()
        .zip(words.iter().skip(1))
        .any(|(flag, value)| matches!(flag.as_str(), "-j" | "-g") && names::is_ours(value));
    if leads_to_us {
        ruleset.jumps.push(InstalledJump { table, base: chain.to_owned(), line, text: text.to_owned() });
    }
}

#[cfg(test)]
mod tests;

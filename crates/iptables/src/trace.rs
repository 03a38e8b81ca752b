//! Steps a flow through installed rules: an interpreter for exactly what this backend renders.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU16;

use netd_dataplane::{Outcome, Trace, TraceError};
use netd_model::{Flow, Masquerade, Origin, PoolEndpoint};

use crate::backend::NAME;
use crate::names;
use crate::rule::{Match, Rule, State, Table, Target};
use crate::ruleset::{ChainKey, Line, Ruleset};

/// Chains that jump deeper than this are a loop; the kernel refuses those.
const DEPTH_MAX: usize = 16;

/// Where a walk through a table may end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Accept,
    Drop,
    Reject,
    Dnat { to: SocketAddr, marked: bool },
}

/// Whether a rule applies; a rule of chance may or may not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Applies {
    Yes,
    No,
    Maybe,
}

/// Steps `flow`, the first packet of a connection, through `ruleset`.
pub(crate) fn walk(ruleset: &Ruleset, flow: &Flow) -> Result<Trace, TraceError> {
    let mut walker = Walker { ruleset, flow, steps: Vec::new(), ends: BTreeSet::new() };
    let base = if flow.origin == Origin::Host { "OUTPUT" } else { "PREROUTING" };
    walker.base(Table::Nat, base)?;
    let ends = std::mem::take(&mut walker.ends);
    if let Some(outcome) = balanced(&ends)? {
        return Ok(Trace { steps: walker.steps, outcome });
    }
    let hooks: &[&str] = match (&flow.origin, flow.destination_is_local) {
        (Origin::Host, true) => &["OUTPUT", "INPUT"],
        (Origin::Host, false) => &["OUTPUT"],
        (Origin::LocalPod | Origin::Remote, true) => &["INPUT"],
        (Origin::LocalPod | Origin::Remote, false) => &["FORWARD"],
    };
    let mut outcome = Outcome::Pass;
    for hook in hooks {
        walker.base(Table::Filter, hook)?;
        if walker.ends.contains(&End::Reject) {
            outcome = Outcome::Reject;
        } else if walker.ends.contains(&End::Drop) {
            outcome = Outcome::Drop;
        }
        if outcome != Outcome::Pass {
            break;
        }
        walker.ends.clear();
    }
    Ok(Trace { steps: walker.steps, outcome })
}

/// The endpoints, when nat rewrites the flow.
fn balanced(ends: &BTreeSet<End>) -> Result<Option<Outcome>, TraceError> {
    let mut endpoints = BTreeSet::new();
    let (mut always, mut never, mut untouched) = (false, false, false);
    for end in ends {
        match end {
            End::Dnat { to, marked } => {
                let Some(port) = NonZeroU16::new(to.port()) else {
                    return Err(unknown(format!("a rewrite to port 0 of {}", to.ip())));
                };
                endpoints.insert(PoolEndpoint { address: to.ip(), port, local: false });
                always |= marked;
                never |= !marked;
            }
            End::Accept | End::Drop | End::Reject => untouched = true,
        }
    }
    if endpoints.is_empty() {
        return Ok(None);
    }
    if untouched || (always && never) {
        return Err(unknown("the rules treat one flow in different ways by chance".to_owned()));
    }
    let masquerade = if always { Masquerade::Always } else { Masquerade::Hairpin };
    Ok(Some(Outcome::Balance { endpoints, masquerade }))
}

fn unknown(detail: String) -> TraceError {
    TraceError::Unknown { backend: NAME, detail }
}

struct Walker<'a> {
    ruleset: &'a Ruleset,
    flow: &'a Flow,
    steps: Vec<String>,
    ends: BTreeSet<End>,
}

/// Where in the rules a packet is.
#[derive(Clone, Copy)]
struct Spot<'a> {
    table: Table,
    chain: &'a str,
    depth: usize,
}

/// The masquerade marks a packet may have at a point; empty when it does not come there.
type Marks = BTreeSet<bool>;

impl<'a> Walker<'a> {
    /// Follows our jumps in a base chain; rules of others are taken to let the flow pass.
    fn base(&mut self, table: Table, base: &str) -> Result<(), TraceError> {
        let mut live = Marks::from([false]);
        let ruleset = self.ruleset;
        let jumps = ruleset.jumps.iter().filter(|jump| jump.table == table && jump.base == base);
        for jump in jumps {
            let mut out = Marks::new();
            let spot = Spot { table, chain: base, depth: 0 };
            live = self.line(spot, &jump.line, live, &mut out)?;
            live.extend(out);
        }
        Ok(())
    }

    /// Follows a chain; returns the marks with which the packet may come back.
    fn chain(&mut self, table: Table, name: &str, marks: Marks, depth: usize) -> Result<Marks, TraceError> {
        if depth > DEPTH_MAX {
            return Err(unknown(format!("chains loop at {name}")));
        }
        let ruleset = self.ruleset;
        let Some(lines) = ruleset.chains.get(&ChainKey::new(table, name)) else {
            return Err(unknown(format!("chain {name} of {} is not netd's", table.name())));
        };
        let mut live = marks;
        let mut out = Marks::new();
        for line in lines {
            if live.is_empty() {
                break;
            }
            live = self.line(Spot { table, chain: name, depth }, line, live, &mut out)?;
        }
        out.extend(live);
        Ok(out)
    }

    /// Takes one rule. Returns the marks that go on to the next; those that leave the chain go to `out`.
    fn line(
        &mut self,
        spot: Spot<'_>,
        line: &Line,
        live: Marks,
        out: &mut Marks,
    ) -> Result<Marks, TraceError> {
        let Spot { table, chain, depth } = spot;
        let rule = match line {
            Line::Rule(rule) => rule,
            Line::Foreign(text) => {
                return Err(unknown(format!("rule of {chain} in {}: {text}", table.name())));
            }
        };
        let applies = self.applies(rule);
        if applies == Applies::No {
            return Ok(live);
        }
        self.steps.push(format!("{} {chain}: {rule}", table.name()));
        let mut next = if applies == Applies::Maybe { live.clone() } else { Marks::new() };
        match &rule.target {
            // Marking a client that is the endpoint itself is what `Masquerade::Hairpin` means.
            Target::Jump(name) if name == names::MARK_MASQ && chain.starts_with("NETD-SEP-") => {
                next.extend(live);
            }
            Target::Jump(name) => next.extend(self.chain(table, name, live, depth + 1)?),
            Target::Goto(name) => out.extend(self.chain(table, name, live, depth + 1)?),
            Target::Return => out.extend(live),
            Target::Accept | Target::Masquerade { .. } => self.end(End::Accept),
            Target::Drop => self.end(End::Drop),
            Target::Reject(_) => self.end(End::Reject),
            Target::Dnat(to) => {
                for marked in live {
                    self.end(End::Dnat { to: *to, marked });
                }
            }
            Target::SetMark { value, .. } => {
                next.insert(*value != 0);
            }
        }
        Ok(next)
    }

    fn end(&mut self, end: End) {
        self.ends.insert(end);
    }

    fn applies(&self, rule: &Rule) -> Applies {
        let flow = self.flow;
        let outside = rule.source.is_some_and(|prefix| prefix.contains(flow.source) == rule.not_source)
            || rule.destination.is_some_and(|prefix| !prefix.contains(flow.destination))
            || rule.protocol.is_some_and(|protocol| protocol != flow.protocol)
            || rule.input.as_deref().is_some_and(|name| !self.arrives_on(name))
            || rule.output.is_some();
        if outside {
            return Applies::No;
        }
        let mut all = Applies::Yes;
        for condition in &rule.matches {
            match self.holds(condition) {
                Applies::No => return Applies::No,
                Applies::Maybe => all = Applies::Maybe,
                Applies::Yes => {}
            }
        }
        all
    }

    /// Where the interface is not known, the origin decides, as in the oracle.
    fn arrives_on(&self, name: &str) -> bool {
        match (&self.flow.in_interface, name.strip_suffix('+')) {
            (None, _) => self.flow.origin == Origin::LocalPod,
            (Some(interface), Some(prefix)) => interface.starts_with(prefix),
            (Some(interface), None) => interface == name,
        }
    }

    fn holds(&self, condition: &Match) -> Applies {
        let flow = self.flow;
        let holds = match condition {
            Match::Comment(_) | Match::RecentSet { .. } => true,
            Match::Port(port) => *port == flow.port,
            Match::SourceLocal => flow.origin == Origin::Host,
            Match::DestinationLocal => flow.destination_is_local,
            Match::State(states) => states.contains(&State::New),
            Match::SameAddress(_) => flow.source == flow.destination,
            Match::Mark { invert, .. } => *invert,
            Match::RecentCheck { .. } | Match::Random(_) => return Applies::Maybe,
        };
        if holds { Applies::Yes } else { Applies::No }
    }
}

#[cfg(test)]
mod tests;

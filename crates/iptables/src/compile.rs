//! A plan as chains. Pure; O(n) in frontends and endpoints.
//!
//! nat: `NETD-SERVICES` has one rule a frontend address and ends in `NETD-NODEPORTS`. A frontend leads to
//! `NETD-FW-*` (source ranges), then `NETD-INT-*` or `NETD-EXT-*` (verdict by source), then `NETD-SVC-*` or
//! `NETD-SVL-*` (the choice and the rewrite; with session affinity the rewrite is in `NETD-SEP-*`); links that say
//! nothing are left out.
//!
//! filter: nat can neither reject nor drop, so what a frontend refuses is said again in `NETD-FIREWALL` and
//! its `NETD-NODEPORTS`, which see new flows only and leave alone every flow that nat has rewritten.

mod frontend;
mod program;
mod skeleton;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use netd_dataplane::Refusal;
use netd_model::{
    Affinity, Family, FamilyPlan, Frontend, FrontendAddress, FrontendKey, LocalPods, ObjectName,
    PoolEndpoint, PoolId, Verdict, VerdictBySource,
};

use crate::names;
use crate::rule::{Chance, Match, Rule, Table, Target};
use crate::ruleset::{ChainKey, Line};

pub(crate) use program::Program;

/// What compiling needs to know besides the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The masquerade mark; one bit.
    pub(crate) mark: u32,
    /// Whether masquerade can choose ports fully at random (iptables 1.6.2).
    pub(crate) random_fully: bool,
    /// Whether the kernel has `xt_recent`, which session affinity needs.
    pub(crate) affinity: bool,
    /// Whether the kernel has `xt_bpf`, by which one rule finds the clients that were given to themselves.
    /// Without it each endpoint has a chain that looks for its own address.
    pub(crate) same_address: bool,
}

/// Chains with their rules.
pub(crate) type Chains = BTreeMap<ChainKey, Vec<Line>>;

/// A frontend's own rules: those that lead its traffic away.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    nat: Option<Rule>,
    filter: Option<Rule>,
}

/// What one Service is rendered to.
#[derive(Clone, Debug, Default)]
struct Part {
    /// Its own chains.
    chains: Vec<ChainKey>,
    /// Its frontends, in ascending order.
    frontends: Vec<FrontendKey>,
    /// The rules of those that can be rendered.
    entries: BTreeMap<FrontendKey, Entry>,
    /// Endpoints, counted once a pool.
    endpoints: usize,
    /// What cannot be rendered.
    refused: Vec<Refusal>,
    /// Whether it uses a pool that is named after another Service.
    borrows: bool,
}

/// Renders a whole plan: what is to be remembered of it, and the chains.
pub(crate) fn compile(plan: &FamilyPlan, settings: Settings) -> (Program, Chains) {
    let mut services: BTreeMap<&ObjectName, Vec<_>> = BTreeMap::new();
    for (key, frontend) in &plan.frontends {
        services.entry(&frontend.port.service).or_default().push((key, frontend));
    }
    let mut program = Program::new(plan, settings);
    let mut chains = skeleton::fixed(plan, settings);
    for (service, frontends) in services {
        let (part, own) = Compiler::new(plan, settings).service(&frontends);
        chains.extend(own);
        program.insert(service.clone(), part);
    }
    chains.extend(skeleton::lists(plan, program.entries()));
    (program, chains)
}

/// Renders one Service.
struct Compiler<'a> {
    plan: &'a FamilyPlan,
    settings: Settings,
    chains: Chains,
    part: Part,
    /// Pools that have their chains.
    pools: BTreeSet<PoolId>,
    /// Rules that come before the choice in the chains of pools: marks of sources.
    heads: BTreeMap<String, Vec<Rule>>,
    /// Verdicts of the chains that tell sources apart.
    by_source: BTreeMap<ChainKey, &'a VerdictBySource>,
}

impl<'a> Compiler<'a> {
    fn new(plan: &'a FamilyPlan, settings: Settings) -> Self {
        Self {
            plan,
            settings,
            chains: Chains::new(),
            part: Part::default(),
            pools: BTreeSet::new(),
            heads: BTreeMap::new(),
            by_source: BTreeMap::new(),
        }
    }

    /// Renders the frontends of a Service.
    fn service(mut self, frontends: &[(&'a FrontendKey, &'a Frontend)]) -> (Part, Chains) {
        for (key, frontend) in frontends {
            match self.obstacle(frontend) {
                None => {
                    let entry = self.frontend(key, frontend);
                    self.part.entries.insert(**key, entry);
                }
                Some(reason) => self.part.refused.push(Refusal {
                    frontend: key.to_string(),
                    service: frontend.port.to_string(),
                    reason,
                }),
            }
        }
        for (chain, head) in std::mem::take(&mut self.heads) {
            if let Some(lines) = self.chains.get_mut(&ChainKey::new(Table::Nat, chain)) {
                lines.splice(..0, head.into_iter().map(Line::Rule));
            }
        }
        self.part.frontends = frontends.iter().map(|(key, _)| **key).collect();
        self.part.chains = self.chains.keys().cloned().collect();
        (self.part, self.chains)
    }

    /// Why a frontend cannot be rendered.
    fn obstacle(&self, frontend: &Frontend) -> Option<String> {
        let verdicts = &frontend.verdicts;
        for verdict in [&verdicts.pod, &verdicts.host, &verdicts.other] {
            let Verdict::Balance { pool, affinity, .. } = verdict else { continue };
            if affinity.is_some() && !self.settings.affinity {
                return Some(
                    "session affinity needs the kernel's xt_recent, which this host lacks: load or build it"
                        .to_owned(),
                );
            }
            match self.plan.pools.get(pool) {
                Some(found) if !found.endpoints.is_empty() => {
                    let family = self.plan.family;
                    if found.endpoints.iter().any(|e| Family::of(e.address) != family) {
                        return Some(format!("an endpoint is not {family}"));
                    }
                }
                _ => return Some("the plan has no endpoints for it".to_owned()),
            }
        }
        None
    }

    fn put(&mut self, table: Table, name: impl Into<String>, rules: Vec<Rule>) {
        put(&mut self.chains, table, name, rules);
    }

    /// Makes the chains of a pool and returns the name of the first.
    fn pool(&mut self, owner: &ObjectName, id: &PoolId, affinity: Option<Affinity>) -> String {
        let chain = names::pool_chain(owner, id, affinity);
        if self.chains.contains_key(&ChainKey::new(Table::Nat, chain.as_str())) {
            return chain;
        }
        let endpoints = self.plan.pools.get(id).map_or(&[][..], |pool| &pool.endpoints);
        if self.pools.insert(id.clone()) {
            self.part.endpoints += endpoints.len();
            self.part.borrows |= id.port.service != *owner;
        }
        let rules = if affinity.is_none() && self.settings.same_address {
            rewrites(id, endpoints)
        } else {
            self.by_endpoint(id, endpoints, affinity)
        };
        self.put(Table::Nat, chain.clone(), rules);
        chain
    }

    /// The choice among chains of endpoints, which this makes: where more is to be done than to rewrite.
    fn by_endpoint(
        &mut self,
        id: &PoolId,
        endpoints: &[PoolEndpoint],
        affinity: Option<Affinity>,
    ) -> Vec<Rule> {
        let mut rules = Vec::with_capacity(endpoints.len() * 2);
        let target = |endpoint: &PoolEndpoint| names::endpoint_chain(&id.port, *endpoint, affinity);
        if let Some(affinity) = affinity {
            rules.extend(endpoints.iter().map(|endpoint| {
                let list = target(endpoint);
                Rule::jump(list.clone())
                    .note(&id.port.to_string())
                    .when(Match::RecentCheck { list, seconds: affinity.timeout.as_secs().max(1) })
            }));
        }
        for (i, endpoint) in endpoints.iter().enumerate() {
            let note = format!("{} -> {}", id.port, socket(endpoint));
            rules.push(by_chance(Rule::jump(target(endpoint)).note(&note), endpoints.len() - i));
            self.endpoint(&target(endpoint), id, endpoint, affinity);
        }
        rules
    }

    fn endpoint(&mut self, chain: &str, id: &PoolId, endpoint: &PoolEndpoint, affinity: Option<Affinity>) {
        let name = id.port.to_string();
        let mut rules = Vec::with_capacity(2);
        if !self.settings.same_address {
            rules.push(Rule::jump(names::MARK_MASQ).source_ip(endpoint.address).note(&name));
        }
        let mut rewrite = rewrite(id, endpoint).note(&name);
        if affinity.is_some() {
            rewrite = rewrite.when(Match::RecentSet { list: chain.to_owned() });
        }
        rules.push(rewrite);
        self.put(Table::Nat, chain, rules);
    }
}

fn socket(endpoint: &PoolEndpoint) -> SocketAddr {
    SocketAddr::new(endpoint.address, endpoint.port.get())
}

fn rewrite(id: &PoolId, endpoint: &PoolEndpoint) -> Rule {
    Rule::new(Target::Dnat(socket(endpoint))).protocol(id.port.protocol)
}

/// Restricted to one in `left`, so that as many rules share evenly what comes to the first of them.
fn by_chance(rule: Rule, left: usize) -> Rule {
    if left > 1 { rule.when(Match::Random(Chance::one_in(left))) } else { rule }
}

/// The choice among endpoints, each a rule. The first one has the Service's name: a comment takes 256 bytes in the
/// kernel and as long to write as the rest of the rule.
fn rewrites(id: &PoolId, endpoints: &[PoolEndpoint]) -> Vec<Rule> {
    let mut rules: Vec<_> = endpoints
        .iter()
        .enumerate()
        .map(|(i, endpoint)| by_chance(rewrite(id, endpoint), endpoints.len() - i))
        .collect();
    if let Some(first) = rules.first_mut() {
        *first = first.clone().note(&id.port.to_string());
    }
    rules
}

fn put(chains: &mut Chains, table: Table, name: impl Into<String>, rules: Vec<Rule>) {
    let lines = rules.into_iter().map(Line::Rule).collect();
    chains.insert(ChainKey::new(table, name), lines);
}

/// Conditions under which a source is a local pod; each is a rule of its own. Prefixes of the other family
/// match nothing.
fn pod_conditions(plan: &FamilyPlan) -> Vec<Condition> {
    match &plan.local_pods {
        LocalPods::None => Vec::new(),
        LocalPods::Prefixes(prefixes) => prefixes
            .iter()
            .filter(|prefix| Family::of_prefix(prefix) == plan.family)
            .map(|prefix| Condition::Source(*prefix))
            .collect(),
        LocalPods::BridgeInterface(name) => vec![Condition::Input(name.clone())],
        LocalPods::InterfaceNamePrefix(prefix) => vec![Condition::Input(format!("{prefix}+"))],
    }
}

/// What tells a class of sources apart.
#[derive(Clone, Debug)]
enum Condition {
    Any,
    Host,
    Source(IpNetwork),
    Input(String),
}

impl Condition {
    fn restrict(&self, rule: Rule) -> Rule {
        match self {
            Self::Any => rule,
            Self::Host => rule.when(Match::SourceLocal),
            Self::Source(prefix) => rule.source(*prefix),
            Self::Input(interface) => Rule { input: Some(interface.clone()), ..rule },
        }
    }
}

/// The part of a rule that finds a frontend's traffic.
fn destination(rule: Rule, key: &FrontendKey, note: &str) -> Rule {
    let rule = match key.address {
        FrontendAddress::Ip(address) => rule.destination_ip(address),
        FrontendAddress::NodePort => rule,
    };
    rule.protocol(key.protocol).note(note).when(Match::Port(key.port))
}

#[cfg(test)]
mod tests;

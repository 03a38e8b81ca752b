//! A plan as chains. Pure; O(n) in frontends and endpoints.
//!
//! nat: `NETD-SERVICES` has one rule a frontend address and ends in `NETD-NODEPORTS`. A frontend leads to
//! `NETD-FW-*` (source ranges), then `NETD-INT-*` or `NETD-EXT-*` (verdict by source), then `NETD-SVC-*` or
//! `NETD-SVL-*` (the choice), then `NETD-SEP-*` (the rewrite); links that say nothing are left out.
//!
//! filter: nat can neither reject nor drop, so what a frontend refuses is said again in `NETD-FIREWALL` and
//! its `NETD-NODEPORTS`, which see new flows only and leave alone every flow that nat has rewritten.

mod frontend;
mod skeleton;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;

use ipnetwork::IpNetwork;
use netd_dataplane::Refusal;
use netd_model::{
    Affinity, Family, FamilyPlan, Frontend, FrontendAddress, FrontendKey, LocalPods, PoolEndpoint, PoolId,
    Protocol, Verdict, VerdictBySource,
};

use crate::names;
use crate::rule::{Chance, Match, Rule, Table, Target};
use crate::ruleset::{ChainKey, Line};

/// What compiling needs to know besides the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The masquerade mark; one bit.
    pub(crate) mark: u32,
    /// Whether masquerade can choose ports fully at random (iptables 1.6.2).
    pub(crate) random_fully: bool,
    /// Whether the kernel has `xt_recent`, which session affinity needs.
    pub(crate) affinity: bool,
}

/// The chains of a family.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    /// All chains, the empty ones included.
    pub(crate) chains: BTreeMap<ChainKey, Vec<Line>>,
    /// Frontends programmed.
    pub(crate) frontends: usize,
    /// Endpoints programmed, counted once a pool.
    pub(crate) endpoints: usize,
    /// What cannot be rendered.
    pub(crate) refused: Vec<Refusal>,
}

/// Renders a plan.
pub(crate) fn compile(plan: &FamilyPlan, settings: Settings) -> Compiled {
    let mut compiler = Compiler::new(plan, settings);
    for (key, frontend) in &plan.frontends {
        match compiler.obstacle(frontend) {
            None => {
                compiler.frontend(key, frontend);
                compiler.out.frontends += 1;
            }
            Some(reason) => compiler.out.refused.push(Refusal {
                frontend: key.to_string(),
                service: frontend.port.to_string(),
                reason,
            }),
        }
    }
    compiler.finish()
}

struct Compiler<'a> {
    plan: &'a FamilyPlan,
    settings: Settings,
    out: Compiled,
    /// Rules of nat `NETD-SERVICES` and `NETD-NODEPORTS`.
    services: Vec<Rule>,
    node_ports: Vec<Rule>,
    /// Rules of filter `NETD-FIREWALL` and `NETD-NODEPORTS`.
    firewall: Vec<Rule>,
    firewall_node_ports: Vec<Rule>,
    /// Ports that node port frontends use: an address frontend without nat rule must not fall through to
    /// them.
    taken_node_ports: BTreeSet<(Protocol, NonZeroU16)>,
    /// Pools that have their chains.
    pools: BTreeSet<PoolId>,
    /// Verdicts of the chains that tell sources apart.
    by_source: BTreeMap<ChainKey, &'a VerdictBySource>,
}

impl<'a> Compiler<'a> {
    fn new(plan: &'a FamilyPlan, settings: Settings) -> Self {
        let taken_node_ports = plan
            .frontends
            .keys()
            .filter(|key| key.address == FrontendAddress::NodePort)
            .map(|key| (key.protocol, key.port))
            .collect();
        Self {
            plan,
            settings,
            out: Compiled::default(),
            services: Vec::new(),
            node_ports: Vec::new(),
            firewall: Vec::new(),
            firewall_node_ports: Vec::new(),
            taken_node_ports,
            pools: BTreeSet::new(),
            by_source: BTreeMap::new(),
        }
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
        let lines = rules.into_iter().map(Line::Rule).collect();
        self.out.chains.insert(ChainKey::new(table, name), lines);
    }

    /// Makes the chains of a pool and returns the name of the first.
    fn pool(&mut self, id: &PoolId, affinity: Option<Affinity>) -> String {
        let chain = names::pool_chain(id, affinity);
        if self.out.chains.contains_key(&ChainKey::new(Table::Nat, chain.as_str())) {
            return chain;
        }
        let endpoints = self.plan.pools.get(id).map_or(&[][..], |pool| &pool.endpoints);
        if self.pools.insert(id.clone()) {
            self.out.endpoints += endpoints.len();
        }
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
            let address = std::net::SocketAddr::new(endpoint.address, endpoint.port.get());
            let mut rule = Rule::jump(target(endpoint)).note(&format!("{} -> {address}", id.port));
            let left = endpoints.len() - i;
            if left > 1 {
                rule = rule.when(Match::Random(Chance::one_in(left)));
            }
            rules.push(rule);
            self.endpoint(&target(endpoint), id, endpoint, affinity);
        }
        self.put(Table::Nat, chain.clone(), rules);
        chain
    }

    fn endpoint(&mut self, chain: &str, id: &PoolId, endpoint: &PoolEndpoint, affinity: Option<Affinity>) {
        let name = id.port.to_string();
        let hairpin = Rule::jump(names::MARK_MASQ).source_ip(endpoint.address).note(&name);
        let to = std::net::SocketAddr::new(endpoint.address, endpoint.port.get());
        let mut rewrite = Rule::new(Target::Dnat(to)).protocol(id.port.protocol).note(&name);
        if affinity.is_some() {
            rewrite = rewrite.when(Match::RecentSet { list: chain.to_owned() });
        }
        self.put(Table::Nat, chain, vec![hairpin, rewrite]);
    }

    /// Conditions under which a source is a local pod; each is a rule of its own. Prefixes of the other
    /// family match nothing.
    fn pod_conditions(&self) -> Vec<Condition> {
        match &self.plan.local_pods {
            LocalPods::None => Vec::new(),
            LocalPods::Prefixes(prefixes) => prefixes
                .iter()
                .filter(|prefix| Family::of_prefix(prefix) == self.plan.family)
                .map(|prefix| Condition::Source(*prefix))
                .collect(),
            LocalPods::BridgeInterface(name) => vec![Condition::Input(name.clone())],
            LocalPods::InterfaceNamePrefix(prefix) => vec![Condition::Input(format!("{prefix}+"))],
        }
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

//! An in-memory dataplane: for tests of whoever drives a [`Dataplane`], and the suite's first backend.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnetwork::IpNetwork;
use netd_model::{
    Family, FamilyPlan, Flow, Frontend, FrontendAddress, FrontendKey, FrontendKind, LocalPods,
    NodePortAddresses, ObjectName, OrderedMap, Origin, Pool, PoolId, Protocol, Scope, ServicePlan, Shared,
    Verdict,
};

use crate::{Applied, ApplyError, Dataplane, Delta, Outcome, Refusal, Trace, TraceError};

/// A kind of failure that a [`Fake`] can be told to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// [`ApplyError::Refused`], once.
    Refused,
    /// [`ApplyError::Torn`], with each apply until a resync.
    Torn,
    /// [`ApplyError::Config`], once.
    Config,
}

/// What a [`Fake`] was asked to do so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Calls of `resync`.
    pub resyncs: usize,
    /// Calls of `apply`, failed ones included.
    pub applies: usize,
    /// Calls of `apply` that took effect.
    pub applied: usize,
    /// Calls of `cleanup`.
    pub cleanups: usize,
}

/// A dataplane that keeps its rules in memory; clones share them, so a test can look on.
///
/// It honours the [`Scope`] to the letter: of Services outside it, it keeps what it has. A planner whose
/// scope is too narrow therefore leaves it visibly wrong.
#[derive(Clone, Debug, Default)]
pub struct Fake {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    v4: Rules,
    v6: Rules,
    generation: u64,
    calls: Calls,
    failures: VecDeque<Failure>,
    is_torn: bool,
    refused_kinds: BTreeSet<FrontendKind>,
}

/// What is installed for one family.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rules {
    frontends: OrderedMap<FrontendKey, Frontend>,
    pools: OrderedMap<PoolId, Pool>,
    sources: Option<LocalPods>,
    node_ports: Option<NodePortAddresses>,
}

impl Fake {
    /// A fake with nothing installed.
    pub fn new() -> Self {
        Self::default()
    }

    /// A fake that cannot render frontends of these kinds and refuses them by name.
    pub fn refusing(kinds: impl IntoIterator<Item = FrontendKind>) -> Self {
        let fake = Self::new();
        fake.lock().refused_kinds = kinds.into_iter().collect();
        fake
    }

    /// Makes a coming call fail; several queue up.
    pub fn fail(&self, failure: Failure) {
        self.lock().failures.push_back(failure);
    }

    /// Loses all that is installed behind the owner's back, as `nft flush ruleset` would.
    pub fn tamper(&self) {
        let mut state = self.lock();
        state.v4 = Rules::default();
        state.v6 = Rules::default();
        state.is_torn = true;
    }

    /// What was asked so far.
    pub fn calls(&self) -> Calls {
        self.lock().calls
    }

    /// The plan that is installed, without notices.
    pub fn installed(&self) -> ServicePlan {
        let state = self.lock();
        ServicePlan {
            generation: state.generation,
            v4: state.v4.to_plan(Family::V4),
            v6: state.v6.to_plan(Family::V6),
            notices: Shared::default(),
        }
    }

    /// State stays usable when a test panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dataplane for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn resync(&mut self) -> Result<(), ApplyError> {
        let mut state = self.lock();
        state.calls.resyncs += 1;
        state.is_torn = false;
        Ok(())
    }

    fn apply(&mut self, plan: &ServicePlan, scope: &Scope) -> Result<Applied, ApplyError> {
        let mut state = self.lock();
        state.calls.applies += 1;
        match state.failures.pop_front() {
            Some(Failure::Refused) => {
                return Err(ApplyError::refused("apply to the fake", "told to refuse"));
            }
            Some(Failure::Config) => {
                return Err(ApplyError::Config("the fake is told not to run here".to_owned()));
            }
            Some(Failure::Torn) => state.is_torn = true,
            None => {}
        }
        if state.is_torn {
            let detail = "told to be torn, or tampered with".to_owned();
            return Err(ApplyError::Torn { action: "apply to the fake".to_owned(), detail });
        }
        let mut applied = Applied { generation: plan.generation, ..Applied::default() };
        for family in Family::ALL {
            let kinds = state.refused_kinds.clone();
            let wanted = plan.family(family);
            let refused = wanted.frontends.iter().filter(|(_, frontend)| kinds.contains(&frontend.kind));
            applied.refused.extend(refused.map(|(key, frontend)| Refusal {
                frontend: key.to_string(),
                service: frontend.port.to_string(),
                reason: format!("the fake is told to refuse {:?}", frontend.kind),
            }));
            let rules = state.rules_mut(family);
            applied.changed += rules.apply(wanted, scope, &kinds);
            applied.frontends += rules.frontends.len();
            applied.endpoints += rules.pools.values().map(|pool| pool.endpoints.len()).sum::<usize>();
        }
        state.generation = plan.generation;
        state.calls.applied += 1;
        Ok(applied)
    }

    fn intact(&mut self) -> Result<bool, ApplyError> {
        Ok(!self.lock().is_torn)
    }

    fn cleanup(&mut self) -> Result<(), ApplyError> {
        let mut state = self.lock();
        state.calls.cleanups += 1;
        state.v4 = Rules::default();
        state.v6 = Rules::default();
        Ok(())
    }

    fn trace(&self, flow: &Flow) -> Result<Trace, TraceError> {
        let state = self.lock();
        let rules = match Family::of(flow.destination) {
            Family::V4 => &state.v4,
            Family::V6 => &state.v6,
        };
        rules.trace(flow)
    }
}

impl State {
    fn rules_mut(&mut self, family: Family) -> &mut Rules {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

impl Rules {
    /// Makes the part in scope equal `wanted`; returns how many frontends and pools changed.
    fn apply(&mut self, wanted: &FamilyPlan, scope: &Scope, refused: &BTreeSet<FrontendKind>) -> usize {
        let in_scope = |service: &ObjectName| match scope {
            Scope::Full => true,
            Scope::Services(names) => names.contains(service),
        };
        let mut next = self.clone();
        next.frontends.retain(|_, frontend| !in_scope(&frontend.port.service));
        next.pools.retain(|id, _| !in_scope(&id.port.service));
        for (key, frontend) in &wanted.frontends {
            if in_scope(&frontend.port.service) && !refused.contains(&frontend.kind) {
                next.frontends.insert(*key, frontend.clone());
            }
        }
        for (id, pool) in wanted.pools.iter().filter(|(id, _)| in_scope(&id.port.service)) {
            next.pools.insert(id.clone(), pool.clone());
        }
        next.sources = Some(wanted.local_pods.clone());
        next.node_ports = Some(wanted.node_port_addresses.clone());
        let changed = Delta::between(&self.frontends, &next.frontends).len()
            + Delta::between(&self.pools, &next.pools).len();
        *self = next;
        changed
    }

    fn to_plan(&self, family: Family) -> FamilyPlan {
        FamilyPlan {
            family,
            frontends: self.frontends.clone(),
            pools: self.pools.clone(),
            local_pods: self.sources.clone().unwrap_or(LocalPods::None),
            node_port_addresses: self.node_ports.clone().unwrap_or(NodePortAddresses::AllLocal),
        }
    }

    /// Walks a flat list of rules from first to last, the way a chain is walked.
    fn trace(&self, flow: &Flow) -> Result<Trace, TraceError> {
        let mut steps = Vec::new();
        for rule in self.chain() {
            if !rule.matches(flow) {
                continue;
            }
            steps.push(rule.to_string());
            let outcome = match rule.target {
                Target::DropUnless(ranges) if ranges.iter().any(|range| range.contains(flow.source)) => {
                    continue;
                }
                Target::DropUnless(_) | Target::Verdict(Verdict::Drop) => Outcome::Drop,
                Target::Verdict(Verdict::Reject) => Outcome::Reject,
                Target::Verdict(Verdict::Balance { pool, masquerade, .. }) => {
                    let Some(members) = self.pools.get(pool) else {
                        let detail = format!("{rule} names a pool that is not installed");
                        return Err(TraceError::Unknown { backend: "fake", detail });
                    };
                    Outcome::Balance {
                        endpoints: members.endpoints.iter().copied().collect(),
                        masquerade: *masquerade,
                    }
                }
            };
            return Ok(Trace { steps, outcome });
        }
        steps.push("no rule matches".to_owned());
        Ok(Trace { steps, outcome: Outcome::Pass })
    }

    /// Rules of all addresses, then those of node ports (as kube-proxy keeps node ports last).
    fn chain(&self) -> impl Iterator<Item = Rule<'_>> {
        let is_node_port = |key: &FrontendKey| key.address == FrontendAddress::NodePort;
        let addresses = self.frontends.iter().filter(move |(key, _)| !is_node_port(key));
        let node_ports = self.frontends.iter().filter(move |(key, _)| is_node_port(key));
        addresses.chain(node_ports).flat_map(|(key, frontend)| {
            let rule = |source, target| Rule {
                destination: match key.address {
                    FrontendAddress::Ip(address) => Destination::Address(address),
                    FrontendAddress::NodePort => Destination::Node(self.node_ports.as_ref()),
                },
                protocol: key.protocol,
                port: key.port,
                source,
                target,
            };
            let firewall = frontend.allowed_sources.as_deref();
            let firewall = firewall.map(|ranges| rule(Source::Any, Target::DropUnless(ranges)));
            let verdicts = [
                rule(Source::Pod(self.sources.as_ref()), Target::Verdict(&frontend.verdicts.pod)),
                rule(Source::Host, Target::Verdict(&frontend.verdicts.host)),
                rule(Source::Any, Target::Verdict(&frontend.verdicts.other)),
            ];
            firewall.into_iter().chain(verdicts)
        })
    }
}

/// One rule of the flat list.
struct Rule<'a> {
    destination: Destination<'a>,
    protocol: Protocol,
    port: NonZeroU16,
    source: Source<'a>,
    target: Target<'a>,
}

enum Destination<'a> {
    Address(IpAddr),
    Node(Option<&'a NodePortAddresses>),
}

enum Source<'a> {
    Any,
    Pod(Option<&'a LocalPods>),
    Host,
}

enum Target<'a> {
    DropUnless(&'a [IpNetwork]),
    Verdict(&'a Verdict),
}

impl Rule<'_> {
    fn matches(&self, flow: &Flow) -> bool {
        let to_here = match &self.destination {
            Destination::Address(address) => *address == flow.destination,
            Destination::Node(addresses) => {
                flow.destination_is_local
                    && !flow.destination.is_loopback()
                    && match addresses {
                        None | Some(NodePortAddresses::AllLocal) => true,
                        Some(NodePortAddresses::Prefixes(prefixes)) => {
                            prefixes.iter().any(|prefix| prefix.contains(flow.destination))
                        }
                    }
            }
        };
        let from_there = match &self.source {
            Source::Any => true,
            Source::Host => flow.origin == Origin::Host,
            Source::Pod(None | Some(LocalPods::None)) => false,
            Source::Pod(Some(LocalPods::Prefixes(prefixes))) => {
                prefixes.iter().any(|prefix| prefix.contains(flow.source))
            }
            Source::Pod(Some(LocalPods::BridgeInterface(bridge))) => match &flow.in_interface {
                Some(interface) => interface == bridge,
                None => flow.origin == Origin::LocalPod,
            },
            Source::Pod(Some(LocalPods::InterfaceNamePrefix(prefix))) => match &flow.in_interface {
                Some(interface) => interface.starts_with(prefix),
                None => flow.origin == Origin::LocalPod,
            },
        };
        to_here && from_there && (self.protocol, self.port) == (flow.protocol, flow.port)
    }
}

impl std::fmt::Display for Rule<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let source = match self.source {
            Source::Any => "from anywhere",
            Source::Pod(_) => "from a local pod",
            Source::Host => "from the host",
        };
        match self.destination {
            Destination::Address(address) => {
                write!(f, "to {address} {}/{} {source}: ", self.port, self.protocol)?
            }
            Destination::Node(_) => write!(f, "to the node {}/{} {source}: ", self.port, self.protocol)?,
        }
        match self.target {
            Target::DropUnless(ranges) => write!(f, "drop unless in one of {} ranges", ranges.len()),
            Target::Verdict(Verdict::Reject) => f.write_str("reject"),
            Target::Verdict(Verdict::Drop) => f.write_str("drop"),
            Target::Verdict(Verdict::Balance { pool, masquerade, .. }) => {
                write!(f, "balance over {} ({:?}), masquerade {masquerade:?}", pool.port, pool.scope)
            }
        }
    }
}

#[cfg(test)]
mod tests;

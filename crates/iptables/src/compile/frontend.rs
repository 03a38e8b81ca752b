//! One frontend: its rules in nat and in filter.

use ipnetwork::IpNetwork;
use netd_model::{
    Family, Frontend, FrontendAddress, FrontendKey, FrontendKind, Masquerade, Protocol, ServicePortName,
    Verdict,
};

use super::{Compiler, Condition, Entry, destination, pod_conditions};
use crate::names;
use crate::rule::{Match, RejectWith, Rule, Table, Target};
use crate::ruleset::ChainKey;

const fn kind_note(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIP => "cluster address",
        FrontendKind::NodePort => "node port",
        FrontendKind::LoadBalancer => "load balancer",
        FrontendKind::ExternalIP => "external address",
    }
}

const fn balances(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Balance { .. })
}

impl<'a> Compiler<'a> {
    /// Renders a frontend that has no obstacle.
    pub(super) fn frontend(&mut self, key: &FrontendKey, frontend: &'a Frontend) -> Entry {
        let note = format!("{} {}", frontend.port, kind_note(frontend.kind));
        let of = |target| destination(Rule::new(target), key, &note);
        let nat = self.nat_target(key, frontend).map(of);
        let filter = self.filter_target(key, frontend).map(of);
        Entry { nat, filter }
    }

    /// The verdict when every source that can be told apart has the same.
    fn uniform<'f>(&self, frontend: &'f Frontend) -> Option<&'f Verdict> {
        let verdicts = &frontend.verdicts;
        let pods_agree = verdicts.pod == verdicts.other || pod_conditions(self.plan).is_empty();
        (pods_agree && verdicts.host == verdicts.other).then_some(&verdicts.other)
    }

    /// A name for a chain that holds `frontend`'s verdicts: shared by the frontends of a port that agree.
    /// The flag is true when the chain is yet to be filled.
    fn shared_chain(
        &mut self,
        table: Table,
        key: &FrontendKey,
        frontend: &'a Frontend,
        name: fn(&ServicePortName, FrontendKind, &str) -> String,
    ) -> (String, bool) {
        let shared = ChainKey::new(table, name(&frontend.port, frontend.kind, ""));
        match self.by_source.get(&shared) {
            Some(verdicts) if **verdicts == frontend.verdicts => return (shared.name, false),
            Some(_) => {}
            None => {
                self.by_source.insert(shared.clone(), &frontend.verdicts);
                return (shared.name, true);
            }
        }
        (name(&frontend.port, frontend.kind, &key.to_string()), true)
    }

    /// Source ranges that restrict anything.
    fn ranges(frontend: &Frontend) -> Option<&[IpNetwork]> {
        frontend.allowed_sources.as_deref().filter(|ranges| ranges.iter().all(|range| range.prefix() > 0))
    }

    fn own_family<'r>(&self, ranges: &'r [IpNetwork]) -> impl Iterator<Item = IpNetwork> + use<'r> {
        let family = self.plan.family;
        ranges.iter().copied().filter(move |range| Family::of_prefix(range) == family)
    }

    fn nat_target(&mut self, key: &FrontendKey, frontend: &'a Frontend) -> Option<Target> {
        let verdicts = &frontend.verdicts;
        if ![&verdicts.pod, &verdicts.host, &verdicts.other].into_iter().any(balances) {
            // An address without nat rule must not fall through to a node port.
            let node_port = FrontendKey { address: FrontendAddress::NodePort, ..*key };
            let shadowed =
                matches!(key.address, FrontendAddress::Ip(_)) && self.plan.frontends.contains_key(&node_port);
            return shadowed.then_some(Target::Accept);
        }
        let inner = match self.uniform(frontend) {
            Some(Verdict::Balance { pool, masquerade: Masquerade::Hairpin, affinity }) => {
                self.pool(&frontend.port.service, pool, *affinity)
            }
            _ => match self.marked_in_pool(key, frontend) {
                Some(chain) => chain,
                None => self.source_chain(key, frontend),
            },
        };
        let Some(ranges) = Self::ranges(frontend) else { return Some(Target::Jump(inner)) };
        let chain = names::ranges_chain(&frontend.port, key);
        let mut rules: Vec<_> =
            self.own_family(ranges).map(|range| Rule::jump(inner.clone()).source(range)).collect();
        // Not balanced: filter drops it.
        rules.push(Rule::new(Target::Accept));
        self.put(Table::Nat, chain.clone(), rules);
        Some(Target::Jump(chain))
    }

    /// The pool's chain, where all sources of a cluster address go to one pool and one rule before the choice can
    /// say which of them are masqueraded.
    fn marked_in_pool(&mut self, key: &FrontendKey, frontend: &Frontend) -> Option<String> {
        let FrontendAddress::Ip(address) = key.address else { return None };
        let verdicts = &frontend.verdicts;
        let Verdict::Balance { pool, masquerade: Masquerade::Always, affinity } = &verdicts.other else {
            return None;
        };
        if frontend.kind != FrontendKind::ClusterIP || verdicts.host != verdicts.other {
            return None;
        }
        let mark = Rule::jump(names::MARK_MASQ);
        let mark = if self.uniform(frontend).is_some() {
            mark
        } else {
            let plain =
                Verdict::Balance { pool: pool.clone(), masquerade: Masquerade::Hairpin, affinity: *affinity };
            let conditions = pod_conditions(self.plan);
            // Kernels before 5.0 take `! -i` for false where there is no interface: on what the node itself sends.
            let ([Condition::Source(pods)], true) = (conditions.as_slice(), verdicts.pod == plain) else {
                return None;
            };
            if pods.prefix() == 0 {
                return None;
            }
            mark.not_source(*pods)
        };
        let rule = mark.destination_ip(address).protocol(key.protocol).when(Match::Port(key.port));
        let chain = self.pool(&frontend.port.service, pool, *affinity);
        self.heads.entry(chain.clone()).or_default().push(rule);
        Some(chain)
    }

    /// The chain that gives each class of sources its verdict; every packet finds an end in it.
    fn source_chain(&mut self, key: &FrontendKey, frontend: &'a Frontend) -> String {
        let (chain, fresh) = self.shared_chain(Table::Nat, key, frontend, names::source_chain);
        if !fresh {
            return chain;
        }
        let note = frontend.port.to_string();
        let mut rules = Vec::new();
        for (condition, verdict) in self.classes(frontend) {
            match verdict {
                Verdict::Balance { pool, masquerade, affinity } => {
                    if masquerade == Masquerade::Always {
                        rules.push(condition.restrict(Rule::jump(names::MARK_MASQ)).note(&note));
                    }
                    let target = self.pool(&frontend.port.service, &pool, affinity);
                    rules.push(condition.restrict(Rule::jump(target)).note(&note));
                }
                // Left as it is: filter refuses it.
                Verdict::Reject | Verdict::Drop => {
                    rules.push(condition.restrict(Rule::new(Target::Accept)).note(&note));
                }
            }
        }
        self.put(Table::Nat, chain.clone(), rules);
        chain
    }

    /// Conditions and verdicts, first match decides; the last matches all. As in the oracle, an address
    /// among the pods' counts as a pod's, also when the node itself uses it (its bridge's).
    fn classes(&self, frontend: &Frontend) -> Vec<(Condition, Verdict)> {
        let verdicts = &frontend.verdicts;
        let mut classes = Vec::new();
        if self.uniform(frontend).is_none() {
            let pods = pod_conditions(self.plan).into_iter();
            classes.extend(pods.map(|condition| (condition, verdicts.pod.clone())));
            if verdicts.host != verdicts.other {
                classes.push((Condition::Host, verdicts.host.clone()));
            }
        }
        classes.push((Condition::Any, verdicts.other.clone()));
        classes
    }

    /// What filter does with the frontend's traffic; nothing when all of it is balanced.
    fn filter_target(&mut self, key: &FrontendKey, frontend: &'a Frontend) -> Option<Target> {
        let ranges = Self::ranges(frontend);
        let verdicts = &frontend.verdicts;
        let inner = if [&verdicts.pod, &verdicts.host, &verdicts.other].into_iter().all(balances) {
            None
        } else if let Some(verdict) = self.uniform(frontend) {
            Some(self.refusal(key.protocol, verdict)).filter(|target| *target != Target::Return)
        } else {
            let chain = self.refuse_chain(key, frontend);
            // From the chain of ranges nothing may come back to its last rule, which drops.
            Some(if ranges.is_some() { Target::Goto(chain) } else { Target::Jump(chain) })
        };
        let Some(ranges) = ranges else { return inner };
        let chain = names::ranges_chain(&frontend.port, key);
        let inner = inner.unwrap_or(Target::Return);
        let mut rules: Vec<_> = self
            .own_family(ranges)
            .map(|range| Rule::new(inner.clone()).source(range).protocol(key.protocol))
            .collect();
        rules.push(Rule::new(Target::Drop));
        self.put(Table::Filter, chain.clone(), rules);
        Some(Target::Jump(chain))
    }

    fn refuse_chain(&mut self, key: &FrontendKey, frontend: &'a Frontend) -> String {
        let (chain, fresh) = self.shared_chain(Table::Filter, key, frontend, names::refuse_chain);
        if !fresh {
            return chain;
        }
        let note = frontend.port.to_string();
        let mut rules = Vec::new();
        for (condition, verdict) in self.classes(frontend) {
            let rule = Rule::new(self.refusal(key.protocol, &verdict)).protocol(key.protocol);
            rules.push(condition.restrict(rule).note(&note));
        }
        self.put(Table::Filter, chain.clone(), rules);
        chain
    }

    fn refusal(&self, protocol: Protocol, verdict: &Verdict) -> Target {
        match (verdict, protocol, self.plan.family) {
            // nat has rewritten it; should it not have, no rule of ours refuses it.
            (Verdict::Balance { .. }, _, _) => Target::Return,
            (Verdict::Drop, _, _) => Target::Drop,
            (Verdict::Reject, Protocol::Tcp, _) => Target::Reject(RejectWith::TcpReset),
            (Verdict::Reject, Protocol::Udp | Protocol::Sctp, Family::V4) => Target::Reject(RejectWith::Icmp),
            (Verdict::Reject, Protocol::Udp | Protocol::Sctp, Family::V6) => {
                Target::Reject(RejectWith::Icmp6)
            }
        }
    }
}

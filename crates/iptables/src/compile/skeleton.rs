//! The chains that are there whatever the Services, and those that list frontends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netd_model::{Family, FamilyPlan, FrontendAddress, FrontendKey, NodePortAddresses};

use super::{Chains, Condition, Entry, Settings, pod_conditions, put};
use crate::names;
use crate::rule::{Match, Rule, State, Table, Target};

/// The chains that list frontends: address frontends first, then those of node ports.
pub(super) fn lists(plan: &FamilyPlan, entries: &BTreeMap<FrontendKey, Entry>) -> Chains {
    let mut services = Vec::new();
    let mut firewall = vec![
        Rule::new(Target::Return)
            .when(Match::State(BTreeSet::from([State::Dnat])))
            .note("netd: balanced already"),
    ];
    let mut node_ports = not_on_loopback(plan.family);
    let mut refused_ports = not_on_loopback(plan.family);
    for (key, entry) in entries {
        let (nat, filter) = match key.address {
            FrontendAddress::Ip(_) => (&mut services, &mut firewall),
            FrontendAddress::NodePort => (&mut node_ports, &mut refused_ports),
        };
        nat.extend(entry.nat.iter().cloned());
        filter.extend(entry.filter.iter().cloned());
    }
    let to_node_ports = to_node_ports(plan);
    services.extend(to_node_ports.iter().cloned());
    firewall.extend(to_node_ports);
    let mut chains = Chains::new();
    put(&mut chains, Table::Nat, names::SERVICES, services);
    put(&mut chains, Table::Nat, names::NODE_PORTS, node_ports);
    put(&mut chains, Table::Filter, names::FIREWALL, firewall);
    put(&mut chains, Table::Filter, names::NODE_PORTS, refused_ports);
    chains
}

/// The chains that no Service changes.
pub(super) fn fixed(plan: &FamilyPlan, settings: Settings) -> Chains {
    let mut chains = Chains::new();
    masquerade(&mut chains, plan.family, settings);
    forward(&mut chains, plan, settings);
    chains
}

/// Rules that lead what is addressed to the node itself to the node ports: always the last ones, so that
/// an address of the node that is also a Service's keeps its meaning.
fn to_node_ports(plan: &FamilyPlan) -> Vec<Rule> {
    let rule =
        || Rule::jump(names::NODE_PORTS).note("netd: node ports, always last").when(Match::DestinationLocal);
    match &plan.node_port_addresses {
        NodePortAddresses::AllLocal => vec![rule()],
        NodePortAddresses::Prefixes(prefixes) => prefixes
            .iter()
            .filter(|prefix| Family::of_prefix(prefix) == plan.family)
            .map(|prefix| rule().destination(*prefix))
            .collect(),
    }
}

fn loopback(family: Family) -> Option<IpNetwork> {
    let prefix = match family {
        Family::V4 => Ipv4Network::new(Ipv4Addr::new(127, 0, 0, 0), 8).map(IpNetwork::V4),
        Family::V6 => Ipv6Network::new(Ipv6Addr::LOCALHOST, 128).map(IpNetwork::V6),
    };
    prefix.ok()
}

fn not_on_loopback(family: Family) -> Vec<Rule> {
    let rule = |prefix| Rule::new(Target::Return).destination(prefix).note("netd: no node ports on loopback");
    loopback(family).into_iter().map(rule).collect()
}

/// Restricted to balanced flows of clients that were given to themselves.
fn to_itself(rule: Rule, family: Family) -> Rule {
    rule.when(Match::State(BTreeSet::from([State::Dnat])))
        .when(Match::SameAddress(family))
        .note("netd: a client that is its own endpoint")
}

/// Masquerades clients that were given to themselves, or they would get answers from nobody they know. No
/// endpoint is on a loopback address: what others redirect there stays as it is. Marked packets go the other way.
fn hairpin(family: Family, settings: Settings) -> Option<Rule> {
    let loopback = loopback(family).filter(|_| settings.same_address)?;
    let unmarked = Match::Mark { value: settings.mark, mask: settings.mark, invert: true };
    let rule = Rule::new(Target::Masquerade { fully_random: settings.random_fully });
    Some(to_itself(rule.not_source(loopback).when(unmarked), family))
}

fn masquerade(chains: &mut Chains, family: Family, settings: Settings) {
    let mark = settings.mark;
    let set = Rule::new(Target::SetMark { value: mark, mask: mark });
    put(chains, Table::Nat, names::MARK_MASQ, vec![set]);
    let others = Rule::new(Target::Return).when(Match::Mark { value: mark, mask: mark, invert: true });
    // Cleared, so that the packet is not masqueraded again should it pass once more, as kube-proxy does.
    let clear = Rule::new(Target::SetMark { value: mark, mask: 0 });
    let rewrite = Rule::new(Target::Masquerade { fully_random: settings.random_fully });
    let rules = hairpin(family, settings).into_iter().chain([others, clear, rewrite]).collect();
    put(chains, Table::Nat, names::POSTROUTING, rules);
}

fn forward(chains: &mut Chains, plan: &FamilyPlan, settings: Settings) {
    let mark = settings.mark;
    let marked = Match::Mark { value: mark, mask: mark, invert: false };
    let known = Match::State(BTreeSet::from([State::Related, State::Established]));
    let mut rules = vec![
        Rule::new(Target::Accept).note("netd: masqueraded service traffic").when(marked),
        Rule::new(Target::Accept).note("netd: replies and open connections").when(known),
    ];
    if settings.same_address {
        rules.push(to_itself(Rule::new(Target::Accept), plan.family));
    }
    put(chains, Table::Filter, names::FORWARD, rules);

    let mut rules = Vec::new();
    for condition in pod_conditions(plan) {
        let rule = || Rule::new(Target::Accept);
        rules.push(condition.restrict(rule()));
        match condition {
            Condition::Source(prefix) => rules.push(rule().destination(prefix)),
            Condition::Input(output) => rules.push(Rule { output: Some(output), ..rule() }),
            Condition::Any | Condition::Host => {}
        }
    }
    put(chains, Table::Filter, names::PODS, rules);
}

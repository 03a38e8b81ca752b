//! The chains that are there whatever the Services.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netd_model::{Family, NodePortAddresses};

use super::{Compiled, Compiler, Condition};
use crate::names;
use crate::rule::{Match, Rule, State, Table, Target};

impl Compiler<'_> {
    /// Adds the fixed chains to those of the frontends.
    pub(super) fn finish(mut self) -> Compiled {
        let to_node_ports = self.to_node_ports();
        let mut services = std::mem::take(&mut self.services);
        services.extend(to_node_ports.iter().cloned());
        self.put(Table::Nat, names::SERVICES, services);

        let mut firewall = vec![
            Rule::new(Target::Return)
                .when(Match::State(BTreeSet::from([State::Dnat])))
                .note("netd: balanced already"),
        ];
        firewall.append(&mut self.firewall);
        firewall.extend(to_node_ports);
        self.put(Table::Filter, names::FIREWALL, firewall);

        let node_ports = std::mem::take(&mut self.node_ports);
        self.put_node_ports(Table::Nat, node_ports);
        let node_ports = std::mem::take(&mut self.firewall_node_ports);
        self.put_node_ports(Table::Filter, node_ports);
        self.put_masquerade();
        self.put_forward();
        self.out
    }

    /// Rules that lead what is addressed to the node itself to the node ports: always the last ones, so
    /// that an address of the node that is also a Service's keeps its meaning.
    fn to_node_ports(&self) -> Vec<Rule> {
        let rule = || {
            Rule::jump(names::NODE_PORTS).note("netd: node ports, always last").when(Match::DestinationLocal)
        };
        match &self.plan.node_port_addresses {
            NodePortAddresses::AllLocal => vec![rule()],
            NodePortAddresses::Prefixes(prefixes) => prefixes
                .iter()
                .filter(|prefix| Family::of_prefix(prefix) == self.plan.family)
                .map(|prefix| rule().destination(*prefix))
                .collect(),
        }
    }

    fn put_node_ports(&mut self, table: Table, ports: Vec<Rule>) {
        let loopback = match self.plan.family {
            Family::V4 => Ipv4Network::new(Ipv4Addr::new(127, 0, 0, 0), 8).map(IpNetwork::V4),
            Family::V6 => Ipv6Network::new(Ipv6Addr::LOCALHOST, 128).map(IpNetwork::V6),
        };
        let mut rules: Vec<_> = loopback
            .into_iter()
            .map(|prefix| {
                Rule::new(Target::Return).destination(prefix).note("netd: no node ports on loopback")
            })
            .collect();
        rules.extend(ports);
        self.put(table, names::NODE_PORTS, rules);
    }

    fn put_masquerade(&mut self) {
        let mark = self.settings.mark;
        let set = Rule::new(Target::SetMark { value: mark, mask: mark });
        self.put(Table::Nat, names::MARK_MASQ, vec![set]);
        let others = Rule::new(Target::Return).when(Match::Mark { value: mark, mask: mark, invert: true });
        // Cleared, so that the packet is not masqueraded again should it pass once more (kube-proxy #78547).
        let clear = Rule::new(Target::SetMark { value: mark, mask: 0 });
        let masquerade = Rule::new(Target::Masquerade { fully_random: self.settings.random_fully });
        self.put(Table::Nat, names::POSTROUTING, vec![others, clear, masquerade]);
    }

    fn put_forward(&mut self) {
        let mark = self.settings.mark;
        let marked = Match::Mark { value: mark, mask: mark, invert: false };
        let known = Match::State(BTreeSet::from([State::Related, State::Established]));
        let rules = vec![
            Rule::new(Target::Accept).note("netd: masqueraded service traffic").when(marked),
            Rule::new(Target::Accept).note("netd: replies and open connections").when(known),
        ];
        self.put(Table::Filter, names::FORWARD, rules);

        let mut rules = Vec::new();
        for condition in self.pod_conditions() {
            let rule = || Rule::new(Target::Accept);
            rules.push(condition.restrict(rule()));
            match condition {
                Condition::Source(prefix) => rules.push(rule().destination(prefix)),
                Condition::Input(output) => rules.push(Rule { output: Some(output), ..rule() }),
                Condition::Any | Condition::Host => {}
            }
        }
        self.put(Table::Filter, names::PODS, rules);
    }
}

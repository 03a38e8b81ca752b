//! Which routes a cluster's nodes ask for. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use netd_kernel::Ifindex;
use netd_model::{Family, Node, Problem};

/// A network that this node is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The link.
    pub link: Ifindex,
    /// Name of the link.
    pub name: String,
    /// This node's address there, with the network's prefix length.
    pub address: IpNetwork,
    /// Whether the link is up.
    pub up: bool,
}

/// A route to another node's pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteSpec {
    /// The pods' prefix.
    pub destination: IpNetwork,
    /// The node's address.
    pub gateway: IpAddr,
    /// The link it is reached by.
    pub link: Ifindex,
}

impl fmt::Display for RouteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} via {} dev {}", self.destination, self.gateway, self.link)
    }
}

/// What the nodes ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Routes by destination, at most one each.
    pub routes: BTreeMap<IpNetwork, RouteSpec>,
    /// Nodes, or prefixes of nodes, that cannot be routed; everything else is.
    pub problems: Vec<Problem>,
}

/// Says which routes `self_name` needs to reach the pods of all other `nodes`.
///
/// The next hop is the node's first InternalIP of the prefix' family, and must be on a network that this
/// node is `attached` to. Of two nodes with overlapping prefixes the first by name is served, this node before
/// all. O(n log n) in prefixes.
pub fn desired(nodes: &BTreeMap<Arc<str>, Arc<Node>>, self_name: &str, attached: &[Attached]) -> Desired {
    let mut plan = Planner { attached, taken: BTreeMap::new(), out: Desired::default() };
    if let Some(own) = nodes.get(self_name) {
        for prefix in &own.pod_cidrs {
            if let Some(prefix) = plan.usable(own, *prefix) {
                plan.take(prefix, &own.name);
            }
        }
    }
    for node in nodes.values().filter(|node| &*node.name != self_name) {
        plan.node(node);
    }
    plan.out.problems.sort();
    plan.out
}

struct Planner<'a> {
    attached: &'a [Attached],
    /// Prefixes that have an owner, by their first address; they do not overlap.
    taken: BTreeMap<IpAddr, (IpNetwork, Arc<str>)>,
    out: Desired,
}

impl Planner<'_> {
    fn problem(&mut self, node: &Node, message: String) {
        let object = node.name.to_string();
        self.out.problems.push(Problem { kind: "Node".to_owned(), object, message });
    }

    fn node(&mut self, node: &Node) {
        if node.pod_cidrs.is_empty() {
            let message = format!(
                "node {} has no podCIDR: its pods are not reachable; let kube-controller-manager allocate \
                 node CIDRs, or set spec.podCIDRs",
                node.name
            );
            self.problem(node, message);
        }
        for prefix in &node.pod_cidrs {
            let Some(prefix) = self.usable(node, *prefix) else { continue };
            let Some(route) = self.route(node, prefix) else { continue };
            self.take(prefix, &node.name);
            self.out.routes.insert(prefix, route);
        }
    }

    /// The prefix in its plain form, if pods can have it and nobody else does.
    fn usable(&mut self, node: &Node, prefix: IpNetwork) -> Option<IpNetwork> {
        let plain = IpNetwork::new(prefix.network(), prefix.prefix()).ok()?;
        let address = plain.ip();
        let special = address.is_loopback()
            || address.is_multicast()
            || address.is_unspecified()
            || match address {
                IpAddr::V4(v4) => v4.is_link_local(),
                IpAddr::V6(v6) => v6.is_unicast_link_local(),
            };
        let shortest = match plain {
            IpNetwork::V4(_) => 8,
            IpNetwork::V6(_) => 16,
        };
        if special || plain.prefix() < shortest {
            self.problem(
                node,
                format!(
                    "podCIDR {prefix} of node {} is no prefix for pods: correct spec.podCIDRs",
                    node.name
                ),
            );
            return None;
        }
        if let Some((other, owner)) = self.overlapping(plain) {
            self.problem(
                node,
                format!(
                    "podCIDR {prefix} of node {} overlaps {other} of node {owner}, which keeps its route: \
                     give each node a prefix of its own",
                    node.name
                ),
            );
            return None;
        }
        if let Some(own) = self.attached.iter().find(|own| plain.contains(own.address.ip()) && own.up)
            && node.internal_addresses.iter().any(|address| own.address.contains(*address))
        {
            self.problem(
                node,
                format!(
                    "podCIDR {prefix} of node {} contains {}, this node's address on {}: a route would cut \
                     off the LAN",
                    node.name,
                    own.address.ip(),
                    own.name
                ),
            );
            return None;
        }
        Some(plain)
    }

    fn overlapping(&self, prefix: IpNetwork) -> Option<(IpNetwork, Arc<str>)> {
        let overlaps = |other: &IpNetwork| {
            Family::of_prefix(other) == Family::of_prefix(&prefix)
                && (other.contains(prefix.ip()) || prefix.contains(other.ip()))
        };
        // Taken prefixes are apart, so only the neighbours in order can overlap.
        let before = self.taken.range(..=prefix.ip()).next_back();
        let after = self.taken.range(prefix.ip()..).next();
        before.into_iter().chain(after).map(|(_, taken)| taken).find(|(other, _)| overlaps(other)).cloned()
    }

    fn take(&mut self, prefix: IpNetwork, owner: &Arc<str>) {
        self.taken.insert(prefix.ip(), (prefix, Arc::clone(owner)));
    }

    fn route(&mut self, node: &Node, prefix: IpNetwork) -> Option<RouteSpec> {
        let family = Family::of_prefix(&prefix);
        let Some(gateway) =
            node.internal_addresses.iter().copied().find(|address| Family::of(*address) == family)
        else {
            self.problem(
                node,
                format!("node {} has no {family} InternalIP: no route to its podCIDR {prefix}", node.name),
            );
            return None;
        };
        if let Some(own) = self.attached.iter().find(|own| own.address.ip() == gateway) {
            self.problem(
                node,
                format!("node {} claims {gateway}, this node's own address on {}", node.name, own.name),
            );
            return None;
        }
        let near = self
            .attached
            .iter()
            .filter(|own| own.address.contains(gateway))
            .max_by_key(|own| (own.up, own.address.prefix()));
        match near {
            Some(own) if own.up => Some(RouteSpec { destination: prefix, gateway, link: own.link }),
            Some(own) => {
                let message = format!("node {} ({gateway}) is behind {}, which is down", node.name, own.name);
                self.problem(node, message);
                None
            }
            None => {
                self.problem(
                    node,
                    format!("node {} ({gateway}) is not on a shared LAN: needs vxlan", node.name),
                );
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;

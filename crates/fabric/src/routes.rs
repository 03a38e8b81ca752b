//! Which routes a cluster's nodes ask for. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use netd_kernel::Ifindex;
use netd_model::{Family, Node, Problem};

use crate::overlay::{Mode, Overlay, Vtep, underlay};

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
    /// Largest packet of the link in bytes.
    pub mtu: u32,
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
    /// Whether the gateway is taken to be on the link although no address says so.
    pub onlink: bool,
}

impl fmt::Display for RouteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} via {} dev {}", self.destination, self.gateway, self.link)
    }
}

/// What the nodes ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Direct routes by destination, at most one each.
    pub routes: BTreeMap<IpNetwork, RouteSpec>,
    /// The way to all other prefixes.
    pub overlay: Overlay,
    /// Nodes, or prefixes of nodes, that cannot be routed; everything else is.
    pub problems: Vec<Problem>,
}

/// Says which routes `self_name` needs to reach the pods of all other `nodes`.
///
/// The next hop of a direct route is the node's first InternalIP of the prefix' family, and must be on a network that
/// this node is `attached` to. Whether a node is reached directly or by VXLAN is decided once for all its prefixes, by
/// its first IPv4 InternalIP, so that both sides decide alike. Of two nodes with overlapping prefixes the first by name is served, this node before
/// all. O(n log n) in prefixes.
pub fn desired(
    nodes: &BTreeMap<Arc<str>, Arc<Node>>,
    self_name: &str,
    attached: &[Attached],
    mode: Mode,
) -> Desired {
    let (taken, peers) = (BTreeMap::new(), BTreeMap::new());
    let mut plan = Planner { attached, mode, taken, peers, out: Desired::default() };
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
    plan.overlay(nodes.get(self_name).map(Arc::as_ref), self_name);
    plan.out.problems.sort();
    plan.out
}

struct Planner<'a> {
    attached: &'a [Attached],
    mode: Mode,
    /// Prefixes that have an owner, by their first address; they do not overlap.
    taken: BTreeMap<IpAddr, (IpNetwork, Arc<str>)>,
    /// Prefixes that are reached by VXLAN, by the node's address.
    peers: BTreeMap<Ipv4Addr, Vec<IpNetwork>>,
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
        let peer = self.tunnelled(node);
        for prefix in &node.pod_cidrs {
            let Some(prefix) = self.usable(node, *prefix) else { continue };
            if let Some(peer) = peer {
                if self.may_tunnel(node, prefix, peer) {
                    self.take(prefix, &node.name);
                    self.peers.entry(peer).or_default().push(prefix);
                }
                continue;
            }
            let Some(route) = self.route(node, prefix) else { continue };
            self.take(prefix, &node.name);
            self.out.routes.insert(prefix, route);
        }
    }

    /// The node's address, if it is reached by VXLAN.
    fn tunnelled(&self, node: &Node) -> Option<Ipv4Addr> {
        let peer = underlay(node)?;
        let near = || self.attached.iter().any(|own| own.address.contains(IpAddr::V4(peer)));
        match self.mode {
            Mode::HostGw => None,
            Mode::Vxlan => Some(peer),
            Mode::Auto => (!near()).then_some(peer),
        }
    }

    /// Whether a prefix can be reached through a tunnel to `peer`.
    fn may_tunnel(&mut self, node: &Node, prefix: IpNetwork, peer: Ipv4Addr) -> bool {
        let (peer, attached) = (IpAddr::V4(peer), self.attached);
        if let Some(own) = attached.iter().find(|own| own.address.ip() == peer) {
            self.claims_ours(node, peer, own);
            return false;
        }
        let ours = attached.iter().map(|own| own.address.ip()).find(|address| prefix.contains(*address));
        let inside = prefix.contains(peer).then_some(peer).or(ours);
        if let Some(address) = inside {
            let message = format!(
                "podCIDR {prefix} of node {} contains {address}, an end of its tunnel: the route would lead the \
                 tunnel into itself",
                node.name
            );
            self.problem(node, message);
        }
        inside.is_none()
    }

    fn claims_ours(&mut self, node: &Node, address: IpAddr, own: &Attached) {
        let message = format!("node {} claims {address}, this node's own address on {}", node.name, own.name);
        self.problem(node, message);
    }

    /// This node's end of the VXLAN, when any node is reached by it or all are to be.
    fn overlay(&mut self, own: Option<&Node>, self_name: &str) {
        if self.peers.is_empty() && self.mode != Mode::Vxlan {
            return;
        }
        self.out.overlay = match Vtep::new(own, self.attached, std::mem::take(&mut self.peers)) {
            Ok(vtep) => Overlay::Used(vtep),
            Err(message) => {
                let object = self_name.to_owned();
                self.out.problems.push(Problem { kind: "Node".to_owned(), object, message });
                Overlay::Unknown
            }
        };
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
        let attached = self.attached;
        if let Some(own) = attached.iter().find(|own| own.address.ip() == gateway) {
            self.claims_ours(node, gateway, own);
            return None;
        }
        let near = self
            .attached
            .iter()
            .filter(|own| own.address.contains(gateway))
            .max_by_key(|own| (own.up, own.address.prefix()));
        match near {
            Some(own) if own.up => {
                Some(RouteSpec { destination: prefix, gateway, link: own.link, onlink: false })
            }
            Some(own) => {
                let message = format!("node {} ({gateway}) is behind {}, which is down", node.name, own.name);
                self.problem(node, message);
                None
            }
            None => {
                let needs = match self.mode {
                    Mode::HostGw => "needs vxlan (fabric.mode: auto)",
                    Mode::Vxlan | Mode::Auto => "needs vxlan, and that an IPv4 InternalIP",
                };
                let message = format!("node {} ({gateway}) is not on a shared LAN: {needs}", node.name);
                self.problem(node, message);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! From objects to claims: what each Service means on this node (kube-proxy's contract, Kubernetes 1.36).

mod decision;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::endpoints::{self, Policies, Selector};
use crate::object::{Family, ObjectName, Service, ServicePort};
use crate::plan::{
    Dirty, FamilyPlan, Frontend, FrontendAddress, FrontendKey, FrontendKind, LocalPods, NodePortAddresses,
    NodeView, Notice, Planner, PoolEndpoint, PoolId, PoolScope, ServicePlan, ServicePortName, Verdict,
    VerdictBySource,
};
use crate::snapshot::Snapshot;

use decision::Decision;

/// Decides what this node programs for the Services of `snapshot`.
///
/// Pure: equal input gives an equal plan, whatever the order of slices. Makes all of it anew, O(Services +
/// endpoints); a [`Planner`] that follows the snapshots does only what changed.
///
/// Where two Services claim one destination, a cluster address beats any other kind (it is the API server's
/// to give, an external address is anybody's to write), then the older Service wins, then the lower name;
/// the loser gets a notice.
pub fn plan(snapshot: &Snapshot, node: &NodeView) -> ServicePlan {
    Planner::new(node.clone()).update(snapshot, node, &Dirty::All).0
}

/// What one Service asks for: destinations with what is done there, and the endpoints these may name.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    /// IPv4.
    pub(super) v4: FamilyClaims,
    /// IPv6.
    pub(super) v6: FamilyClaims,
    /// What its owner may not expect.
    pub(super) notices: BTreeSet<Notice>,
}

/// One family's claims of a Service.
#[derive(Clone, Debug, Default)]
pub(super) struct FamilyClaims {
    /// Destinations, those that win within the Service first.
    pub(super) frontends: Vec<(FrontendKey, Frontend)>,
    /// Every set of endpoints of its ports.
    pub(super) pools: Vec<(PoolId, Vec<PoolEndpoint>)>,
}

impl Claims {
    /// The part of a family.
    pub(super) const fn family(&self, family: Family) -> &FamilyClaims {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// What the Service of that name claims; nothing where there is none that dataplanes program.
pub(super) fn claims(snapshot: &Snapshot, node: &NodeView, name: &ObjectName) -> Claims {
    let Some(service) = snapshot.services.get(name).filter(|service| service.is_programmed()) else {
        return Claims::default();
    };
    let mut claimant = Claimant { snapshot, node, service, claims: Claims::default() };
    claimant.add_service();
    for claims in [&mut claimant.claims.v4, &mut claimant.claims.v6] {
        // Stable: within a kind the order of the ports decides.
        claims.frontends.sort_by_key(|(_, frontend)| frontend.kind != FrontendKind::ClusterIP);
    }
    claimant.claims
}

/// A plan without Services for this node: what all of them share.
pub(super) fn ground(family: Family, node: &NodeView) -> FamilyPlan {
    let local_pods = match &node.local_pods {
        LocalPods::Prefixes(prefixes) => match prefixes_of(family, prefixes) {
            // A family without prefixes cannot tell its pods.
            prefixes if prefixes.is_empty() => LocalPods::None,
            prefixes => LocalPods::Prefixes(prefixes),
        },
        other @ (LocalPods::None | LocalPods::BridgeInterface(_) | LocalPods::InterfaceNamePrefix(_)) => {
            other.clone()
        }
    };
    let node_port_addresses = match &node.node_port_addresses {
        NodePortAddresses::AllLocal => NodePortAddresses::AllLocal,
        NodePortAddresses::Prefixes(prefixes) => NodePortAddresses::Prefixes(prefixes_of(family, prefixes)),
    };
    FamilyPlan { local_pods, node_port_addresses, ..FamilyPlan::empty(family) }
}

/// Whether any source of the family can be told to be a local pod.
fn detects_pods(family: Family, node: &NodeView) -> bool {
    match &node.local_pods {
        LocalPods::None => false,
        LocalPods::Prefixes(prefixes) => prefixes.iter().any(|prefix| Family::of_prefix(prefix) == family),
        LocalPods::BridgeInterface(_) | LocalPods::InterfaceNamePrefix(_) => true,
    }
}

/// Gathers the claims of one Service.
struct Claimant<'a> {
    snapshot: &'a Snapshot,
    node: &'a NodeView,
    service: &'a Service,
    claims: Claims,
}

impl Claimant<'_> {
    fn add_service(&mut self) {
        let service = self.service;
        self.notice_refused_endpoints();
        for family in Family::ALL {
            if !service.cluster_ips.iter().any(|address| Family::of(*address) == family) {
                continue;
            }
            let external_addresses = self.external_addresses(family);
            for port in &service.ports {
                self.add_port(port, family, &external_addresses);
            }
        }
    }

    fn add_port(&mut self, port: &ServicePort, family: Family, external_addresses: &[ExternalAddress]) {
        let (service, node) = (self.service, self.node);
        let sets = endpoints::categorize(
            &Selector {
                family,
                port: &port.name,
                protocol: port.protocol,
                policies: Policies::of(service, port, family),
                node: &node.name,
                zone: node.zone.as_deref(),
            },
            self.snapshot.slices_of(&service.name),
        );
        let decision = Decision {
            id: port_name(service, port),
            service,
            sets: &sets,
            detects_pods: detects_pods(family, node),
            masquerade_all: node.masquerade_all,
        };
        let claims = match family {
            Family::V4 => &mut self.claims.v4,
            Family::V6 => &mut self.claims.v6,
        };
        let mut claim = |address, number, kind, allowed_sources, verdicts| {
            let key = FrontendKey { address, protocol: port.protocol, port: number };
            if !node.answered_here.contains(&key) {
                let frontend = Frontend { port: decision.id.clone(), kind, allowed_sources, verdicts };
                claims.frontends.push((key, frontend));
            }
        };
        for address in service.cluster_ips.iter().filter(|address| Family::of(**address) == family) {
            let address = FrontendAddress::Ip(*address);
            claim(address, port.port, FrontendKind::ClusterIP, None, decision.internal());
        }
        if let Some(number) = port.node_port {
            claim(FrontendAddress::NodePort, number, FrontendKind::NodePort, None, decision.external());
        }
        for external in external_addresses {
            let address = FrontendAddress::Ip(external.address);
            let sources = external.allowed_sources.clone();
            claim(address, port.port, external.kind, sources, decision.external());
        }
        let id = decision.id;
        for (scope, endpoints) in [(PoolScope::Cluster, sets.cluster), (PoolScope::Local, sets.local)] {
            claims.pools.push((PoolId { port: id.clone(), scope }, endpoints));
        }
    }

    /// Load balancer and external addresses of one family that this node serves.
    ///
    /// Load balancer addresses come first: where an address is both, its source ranges hold.
    fn external_addresses(&mut self, family: Family) -> Vec<ExternalAddress> {
        let service = self.service;
        let mut addresses = Vec::new();
        for address in
            service.load_balancer.iter().filter(|ingress| ingress.vip).map(|ingress| ingress.address)
        {
            if Family::of(address) == family && self.is_fit_for_frontend(address) {
                let allowed_sources = self.allowed_sources(family, address);
                addresses.push(ExternalAddress {
                    address,
                    kind: FrontendKind::LoadBalancer,
                    allowed_sources,
                });
            }
        }
        for address in service.external_ips.iter().copied().filter(|address| Family::of(*address) == family) {
            if !self.node.allowed_external_ips.iter().any(|prefix| prefix.contains(address)) {
                let message = format!(
                    "external IP {address} of Service {} is outside the prefixes that this node allows and is \
                     ignored; allow a prefix that has it, or remove it from spec.externalIPs",
                    service.name
                );
                self.notice("ExternalIPIgnored", message);
            } else if self.is_fit_for_frontend(address) {
                addresses.push(ExternalAddress {
                    address,
                    kind: FrontendKind::ExternalIP,
                    allowed_sources: None,
                });
            }
        }
        addresses
    }

    /// Refuses addresses that would take away the node's own traffic.
    fn is_fit_for_frontend(&mut self, address: IpAddr) -> bool {
        let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        if !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || is_broadcast) {
            return true;
        }
        let message = format!(
            "address {address} of Service {} is a loopback, unspecified, multicast or broadcast address and is \
             ignored; remove it from the Service",
            self.service.name
        );
        self.notice("AddressRefused", message);
        false
    }

    /// Sources that may use a load balancer address; `None` is all.
    ///
    /// A prefix of length 0 in either family allows all, as in kube-proxy. Unlike kube-proxy, ranges of one
    /// family close the addresses of the other: somebody who restricts a Service does not mean to leave half
    /// of it open. A range that has this node also admits the address itself, the source of a local client
    /// when the load balancer binds its address on the node.
    fn allowed_sources(&mut self, family: Family, vip: IpAddr) -> Option<Vec<IpNetwork>> {
        let service = self.service;
        let ranges = &service.source_ranges;
        if ranges.is_empty() || ranges.iter().any(|range| range.prefix() == 0) {
            return None;
        }
        let mut allowed = prefixes_of(family, ranges);
        if allowed.is_empty() {
            let message = format!(
                "loadBalancerSourceRanges of Service {} have no {family} range, so its {family} address {vip} \
                 admits no source; add one ({} is all)",
                service.name,
                match family {
                    Family::V4 => "0.0.0.0/0",
                    Family::V6 => "::/0",
                }
            );
            self.notice("SourceRangesIncomplete", message);
        }
        let here = self.snapshot.nodes.get(&self.node.name);
        let has_node = |range: &IpNetwork| {
            here.is_some_and(|node| node.addresses.iter().any(|address| range.contains(*address)))
        };
        if allowed.iter().any(has_node) {
            allowed.push(IpNetwork::from(vip));
            allowed = prefixes_of(family, &allowed);
        }
        Some(allowed)
    }

    fn notice_refused_endpoints(&mut self) {
        let service = self.service;
        for refused in endpoints::refused(self.snapshot.slices_of(&service.name)) {
            let message = format!(
                "endpoint {} of EndpointSlice {} is {} and gets no traffic; remove it from the slice",
                refused.address, refused.slice, refused.what
            );
            self.notice("EndpointRefused", message);
        }
    }

    fn notice(&mut self, reason: &str, message: String) {
        let service = self.service.name.clone();
        self.claims.notices.insert(Notice { service, reason: reason.to_owned(), message });
    }
}

/// A load balancer or external address that this node serves.
struct ExternalAddress {
    address: IpAddr,
    kind: FrontendKind,
    allowed_sources: Option<Vec<IpNetwork>>,
}

fn port_name(service: &Service, port: &ServicePort) -> ServicePortName {
    ServicePortName { service: service.name.clone(), port: Arc::clone(&port.name), protocol: port.protocol }
}

pub(super) fn named_pools(frontend: &Frontend) -> impl Iterator<Item = &PoolId> {
    let VerdictBySource { pod, host, other } = &frontend.verdicts;
    [pod, host, other].into_iter().filter_map(|verdict| match verdict {
        Verdict::Balance { pool, .. } => Some(pool),
        Verdict::Reject | Verdict::Drop => None,
    })
}

/// Prefixes of one family without host bits, ascending, each once.
fn prefixes_of(family: Family, prefixes: &[IpNetwork]) -> Vec<IpNetwork> {
    let of_family = prefixes.iter().filter(|prefix| Family::of_prefix(prefix) == family);
    let networks: BTreeSet<IpNetwork> =
        of_family.filter_map(|prefix| IpNetwork::new(prefix.network(), prefix.prefix()).ok()).collect();
    networks.into_iter().collect()
}

#[cfg(test)]
mod tests;

//! From a snapshot to a plan: what each Service means on this node (kube-proxy's contract, Kubernetes 1.36).

mod decision;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::endpoints::{self, Policies, Selector};
use crate::object::{Family, ObjectName, Service, ServicePort};
use crate::plan::{
    Dirty, FamilyPlan, Frontend, FrontendAddress, FrontendKey, FrontendKind, LocalPods, NodePortAddresses,
    NodeView, Notice, Pool, PoolEndpoint, PoolId, PoolScope, Scope, ServicePlan, ServicePortName, Verdict,
    VerdictBySource,
};
use crate::snapshot::Snapshot;

use decision::Decision;

/// The notice of a Service that another one kept from a destination.
const FRONTEND_CONFLICT: &str = "FrontendConflict";

/// Decides what this node programs for the Services of `snapshot`.
///
/// Pure: equal input gives an equal plan, whatever the order of slices. `dirty` bounds what may have changed
/// since the plan before and becomes the [`Scope`] of the apply. Cost: O(Services + endpoints).
///
/// Where two Services claim one destination, a cluster address beats any other kind (it is the API server's
/// to give, an external address is anybody's to write), then the older Service wins, then the lower name;
/// the loser gets a notice. Because a Service may inherit an address that another one gave up, the scope
/// also has every Service with external or load balancer addresses, and those that lose one now. Cluster
/// addresses and node ports are unique in an API server; for a source that does not guarantee it the caller
/// passes `dirty` through [`Dirty::with_losers_of`].
pub fn plan(snapshot: &Snapshot, node: &NodeView, dirty: &Dirty) -> (ServicePlan, Scope) {
    let mut planner = Planner::new(snapshot, node);
    let services = services_by_age(snapshot);
    for service in &services {
        planner.add_service(service);
    }
    let plan = planner.finish();
    let scope = match dirty {
        Dirty::All => Scope::Full,
        Dirty::Services(names) => {
            let movable = services.iter().filter(|service| has_movable_addresses(service));
            let movable = movable.map(|service| &service.name);
            Scope::Services(names.iter().chain(movable).chain(losers(&plan)).cloned().collect())
        }
    };
    (plan, scope)
}

impl Dirty {
    /// Adds the Services that went without a destination in the plan before, as they may have it now.
    #[must_use]
    pub fn with_losers_of(self, before: &ServicePlan) -> Self {
        match self {
            Self::All => Self::All,
            Self::Services(mut names) => {
                names.extend(losers(before).cloned());
                Self::Services(names)
            }
        }
    }
}

/// Services that another one kept from a destination.
fn losers(plan: &ServicePlan) -> impl Iterator<Item = &ObjectName> {
    plan.notices.iter().filter(|notice| notice.reason == FRONTEND_CONFLICT).map(|notice| &notice.service)
}

/// Services that dataplanes program: the oldest first, those of unknown age last, ties by name.
fn services_by_age(snapshot: &Snapshot) -> Vec<&Service> {
    let mut services: Vec<&Service> =
        snapshot.services.values().map(Arc::as_ref).filter(|service| service.is_programmed()).collect();
    services.sort_by_key(|service| (service.created.is_none(), service.created, &service.name));
    services
}

fn has_movable_addresses(service: &Service) -> bool {
    !service.external_ips.is_empty() || !service.load_balancer.is_empty()
}

/// Gathers claims to destinations, then settles them.
struct Planner<'a> {
    snapshot: &'a Snapshot,
    node: &'a NodeView,
    v4: FamilyPlanner,
    v6: FamilyPlanner,
    notices: BTreeSet<Notice>,
}

/// One family's claims in order of precedence within their kind, and the pools they may name.
struct FamilyPlanner {
    plan: FamilyPlan,
    /// Whether any source of the family can be told to be a local pod.
    detects_pods: bool,
    cluster_claims: Vec<(FrontendKey, Frontend)>,
    other_claims: Vec<(FrontendKey, Frontend)>,
    pools: BTreeMap<PoolId, Vec<PoolEndpoint>>,
}

impl FamilyPlanner {
    fn new(family: Family, node: &NodeView) -> Self {
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
            NodePortAddresses::Prefixes(prefixes) => {
                NodePortAddresses::Prefixes(prefixes_of(family, prefixes))
            }
        };
        Self {
            detects_pods: local_pods != LocalPods::None,
            plan: FamilyPlan { local_pods, node_port_addresses, ..FamilyPlan::empty(family) },
            cluster_claims: Vec::new(),
            other_claims: Vec::new(),
            pools: BTreeMap::new(),
        }
    }

    /// Gives each destination to its first claim and keeps the pools that are named.
    fn finish(mut self, notices: &mut BTreeSet<Notice>) -> FamilyPlan {
        for (key, frontend) in self.cluster_claims.into_iter().chain(self.other_claims) {
            match self.plan.frontends.entry(key) {
                Entry::Vacant(free) => {
                    free.insert(frontend);
                }
                Entry::Occupied(taken) if taken.get().port == frontend.port => {}
                Entry::Occupied(taken) => {
                    notices.insert(conflict(&key, &frontend, taken.get()));
                }
            }
        }
        let named: BTreeSet<&PoolId> = self.plan.frontends.values().flat_map(named_pools).collect();
        self.plan.pools = named
            .into_iter()
            .filter_map(|id| Some((id.clone(), Pool { endpoints: self.pools.get(id)?.clone() })))
            .collect();
        self.plan
    }
}

impl<'a> Planner<'a> {
    fn new(snapshot: &'a Snapshot, node: &'a NodeView) -> Self {
        Self {
            snapshot,
            node,
            v4: FamilyPlanner::new(Family::V4, node),
            v6: FamilyPlanner::new(Family::V6, node),
            notices: BTreeSet::new(),
        }
    }

    fn finish(mut self) -> ServicePlan {
        let v4 = self.v4.finish(&mut self.notices);
        let v6 = self.v6.finish(&mut self.notices);
        let notices = self.notices.into_iter().collect();
        ServicePlan { generation: self.snapshot.generation, v4, v6, notices }
    }

    fn add_service(&mut self, service: &Service) {
        self.notice_refused_endpoints(service);
        for family in Family::ALL {
            if !service.cluster_ips.iter().any(|address| Family::of(*address) == family) {
                continue;
            }
            let external_addresses = self.external_addresses(service, family);
            for port in &service.ports {
                self.add_port(service, port, family, &external_addresses);
            }
        }
    }

    fn add_port(
        &mut self,
        service: &Service,
        port: &ServicePort,
        family: Family,
        external_addresses: &[ExternalAddress],
    ) {
        let sets = endpoints::categorize(
            &Selector {
                family,
                port: &port.name,
                protocol: port.protocol,
                policies: Policies::of(service, port, family),
                node: &self.node.name,
                zone: self.node.zone.as_deref(),
            },
            self.snapshot.slices_of(&service.name),
        );
        let planner = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        let decision = Decision {
            id: port_name(service, port),
            service,
            sets: &sets,
            detects_pods: planner.detects_pods,
            masquerade_all: self.node.masquerade_all,
        };
        let frontend = |kind, allowed_sources, verdicts| Frontend {
            port: decision.id.clone(),
            kind,
            allowed_sources,
            verdicts,
        };
        let key = |address, number| FrontendKey { address, protocol: port.protocol, port: number };
        let is_free = |key: &FrontendKey| !self.node.answered_here.contains(key);

        for address in service.cluster_ips.iter().filter(|address| Family::of(**address) == family) {
            let key = key(FrontendAddress::Ip(*address), port.port);
            if is_free(&key) {
                planner
                    .cluster_claims
                    .push((key, frontend(FrontendKind::ClusterIP, None, decision.internal())));
            }
        }
        let node_port = port.node_port.map(|number| {
            (
                key(FrontendAddress::NodePort, number),
                frontend(FrontendKind::NodePort, None, decision.external()),
            )
        });
        let others = external_addresses.iter().map(|external| {
            (
                key(FrontendAddress::Ip(external.address), port.port),
                frontend(external.kind, external.allowed_sources.clone(), decision.external()),
            )
        });
        planner.other_claims.extend(node_port.into_iter().chain(others).filter(|(key, _)| is_free(key)));
        for (scope, endpoints) in [(PoolScope::Cluster, sets.cluster), (PoolScope::Local, sets.local)] {
            planner.pools.insert(PoolId { port: port_name(service, port), scope }, endpoints);
        }
    }

    /// Load balancer and external addresses of one family that this node serves.
    ///
    /// Load balancer addresses come first: where an address is both, its source ranges hold.
    fn external_addresses(&mut self, service: &Service, family: Family) -> Vec<ExternalAddress> {
        let mut addresses = Vec::new();
        for address in
            service.load_balancer.iter().filter(|ingress| ingress.vip).map(|ingress| ingress.address)
        {
            if Family::of(address) == family && self.is_fit_for_frontend(service, address) {
                let allowed_sources = self.allowed_sources(service, family, address);
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
                self.notice(service, "ExternalIPIgnored", message);
            } else if self.is_fit_for_frontend(service, address) {
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
    fn is_fit_for_frontend(&mut self, service: &Service, address: IpAddr) -> bool {
        let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        if !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || is_broadcast) {
            return true;
        }
        let message = format!(
            "address {address} of Service {} is a loopback, unspecified, multicast or broadcast address and is \
             ignored; remove it from the Service",
            service.name
        );
        self.notice(service, "AddressRefused", message);
        false
    }

    /// Sources that may use a load balancer address; `None` is all.
    ///
    /// A prefix of length 0 in either family allows all, as in kube-proxy. Unlike kube-proxy, ranges of one
    /// family close the addresses of the other: somebody who restricts a Service does not mean to leave half
    /// of it open. A range that has this node also admits the address itself, the source of a local client
    /// when the load balancer binds its address on the node.
    fn allowed_sources(&mut self, service: &Service, family: Family, vip: IpAddr) -> Option<Vec<IpNetwork>> {
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
            self.notice(service, "SourceRangesIncomplete", message);
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

    fn notice_refused_endpoints(&mut self, service: &Service) {
        for refused in endpoints::refused(self.snapshot.slices_of(&service.name)) {
            let message = format!(
                "endpoint {} of EndpointSlice {} is {} and gets no traffic; remove it from the slice",
                refused.address, refused.slice, refused.what
            );
            self.notice(service, "EndpointRefused", message);
        }
    }

    fn notice(&mut self, service: &Service, reason: &str, message: String) {
        self.notices.insert(Notice { service: service.name.clone(), reason: reason.to_owned(), message });
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

fn named_pools(frontend: &Frontend) -> impl Iterator<Item = &PoolId> {
    let VerdictBySource { pod, host, other } = &frontend.verdicts;
    [pod, host, other].into_iter().filter_map(|verdict| match verdict {
        Verdict::Balance { pool, .. } => Some(pool),
        Verdict::Reject | Verdict::Drop => None,
    })
}

fn conflict(key: &FrontendKey, loser: &Frontend, winner: &Frontend) -> Notice {
    let message = format!(
        "{key} of Service port {} is not programmed: Service port {} has the same destination and comes first; \
         change one of them",
        loser.port, winner.port
    );
    Notice { service: loser.port.service.clone(), reason: FRONTEND_CONFLICT.to_owned(), message }
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

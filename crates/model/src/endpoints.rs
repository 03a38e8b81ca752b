//! Which endpoints of a Service port this node uses: kube-proxy's `CategorizeEndpoints`
//! (Kubernetes 1.36, `pkg/proxy/topology.go`) with its inputs taken from slices.
//!
//! All selection happens here, once, for every dataplane: duplicates across slices, readiness, the fall-back
//! to endpoints that still serve while they terminate, topology hints (KEP-2433, KEP-3015) and locality.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::object::{Endpoint, EndpointSlice, Family, Protocol, Service, ServicePort, TrafficPolicy};
use crate::plan::PoolEndpoint;

/// The traffic policies of a Service port, as far as they decide which endpoint sets are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policies {
    /// `internalTrafficPolicy`.
    pub internal: TrafficPolicy,
    /// `externalTrafficPolicy`.
    pub external: TrafficPolicy,
    /// True when the port has a node port, a load balancer address or an external address.
    pub externally_accessible: bool,
}

impl Policies {
    /// The policies of `port` of `service` in one family.
    pub fn of(service: &Service, port: &ServicePort, family: Family) -> Self {
        let load_balancer = service.load_balancer.iter().filter(|ingress| ingress.vip);
        let mut addresses =
            service.external_ips.iter().copied().chain(load_balancer.map(|ingress| ingress.address));
        Self {
            internal: service.internal_traffic_policy,
            external: service.external_traffic_policy,
            externally_accessible: port.node_port.is_some()
                || addresses.any(|address| Family::of(address) == family),
        }
    }

    /// True when some traffic may go to any endpoint of the cluster.
    pub fn uses_cluster(self) -> bool {
        self.internal != TrafficPolicy::Local || self.externally_accessible
    }

    /// True when some traffic may go to endpoints of this node only.
    pub fn uses_local(self) -> bool {
        self.internal == TrafficPolicy::Local
            || (self.external == TrafficPolicy::Local && self.externally_accessible)
    }
}

/// The Service port and the node that endpoints are selected for.
#[derive(Clone, Copy, Debug)]
pub struct Selector<'a> {
    /// Address family.
    pub family: Family,
    /// Name of the Service port.
    pub port: &'a str,
    /// Protocol of the Service port.
    pub protocol: Protocol,
    /// Its traffic policies.
    pub policies: Policies,
    /// Name of this node.
    pub node: &'a str,
    /// Zone of this node, where known.
    pub zone: Option<&'a str>,
}

/// The endpoints of a Service port as this node sees them, each list ascending by address and port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSets {
    /// For traffic that may go anywhere; empty when the policies never use it.
    pub cluster: Vec<PoolEndpoint>,
    /// For traffic that stays on this node; empty when the policies never use it.
    pub local: Vec<PoolEndpoint>,
    /// All endpoints that some traffic may reach: the union of both.
    pub all: Vec<PoolEndpoint>,
    /// True when an endpoint that could serve exists anywhere. False means refuse, not drop.
    pub any: bool,
}

/// An endpoint address that is never used, whatever its conditions say.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RefusedEndpoint {
    /// The slice's namespace and name, printed.
    pub slice: String,
    /// The address.
    pub address: IpAddr,
    /// What kind of address it is: completes "is …".
    pub what: &'static str,
}

/// How topology hints narrow the cluster set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    Anywhere,
    SameZone,
    SameNode,
}

/// Selects the endpoints of one Service port out of the slices of its Service.
///
/// Pure and independent of the order of slices and endpoints. O(n log n) in the endpoints of the slices.
pub fn categorize(selector: &Selector<'_>, slices: &[Arc<EndpointSlice>]) -> EndpointSets {
    let endpoints = candidates(selector, slices);
    let is_draining = |endpoint: &Endpoint| endpoint.serving && endpoint.terminating;
    let is_here = |endpoint: &Endpoint| endpoint.node.as_deref() == Some(selector.node);
    let select = |keep: &dyn Fn(&Endpoint) -> bool| -> Vec<PoolEndpoint> {
        let kept = endpoints.iter().filter(|(_, endpoint)| keep(endpoint));
        kept.map(|(&(address, port), endpoint)| PoolEndpoint { address, port, local: is_here(endpoint) })
            .collect()
    };
    let select_or = |first: &dyn Fn(&Endpoint) -> bool, second: &dyn Fn(&Endpoint) -> bool| {
        let preferred = select(first);
        if preferred.is_empty() { select(second) } else { preferred }
    };

    let mut sets = EndpointSets {
        any: endpoints.values().any(|endpoint| endpoint.ready || is_draining(endpoint)),
        ..EndpointSets::default()
    };
    if selector.policies.uses_cluster() {
        let topology = topology(selector, endpoints.values().copied().filter(|endpoint| endpoint.ready));
        sets.cluster =
            select_or(&|endpoint| endpoint.ready && is_available(endpoint, topology, selector), &is_draining);
    }
    if selector.policies.uses_local() {
        sets.local = select_or(&|endpoint| is_here(endpoint) && endpoint.ready, &|endpoint| {
            is_here(endpoint) && is_draining(endpoint)
        });
    }
    let all: BTreeSet<PoolEndpoint> = sets.cluster.iter().chain(&sets.local).copied().collect();
    sets.all = all.into_iter().collect();
    sets
}

/// Addresses in the proxied slices of a Service that no node may send Service traffic to.
///
/// A slice is user input: an address of the node itself (loopback, link-local, unspecified) or of many hosts
/// (multicast, broadcast) would turn the Service into a way around the node's isolation. Ascending.
pub fn refused(slices: &[Arc<EndpointSlice>]) -> BTreeSet<RefusedEndpoint> {
    let proxied = slices.iter().filter(|slice| slice.proxied);
    let endpoints =
        proxied.flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (slice, endpoint.address)));
    endpoints
        .filter_map(|(slice, address)| {
            let what = unusable(slice.family, address)?;
            Some(RefusedEndpoint { slice: slice.name.to_string(), address, what })
        })
        .collect()
}

/// Endpoints that back the port, one for each address and port.
///
/// An address may be in two slices while a pod's address is used again: the one that is not terminating
/// wins, then the more useful one; the rest of the order only makes the choice independent of slice order.
fn candidates<'s>(
    selector: &Selector<'_>,
    slices: &'s [Arc<EndpointSlice>],
) -> BTreeMap<(IpAddr, NonZeroU16), &'s Endpoint> {
    let mut found: BTreeMap<(IpAddr, NonZeroU16), &'s Endpoint> = BTreeMap::new();
    let preference = |endpoint: &'s Endpoint| {
        let here = endpoint.node.as_deref() == Some(selector.node);
        let hints = (&endpoint.for_nodes, &endpoint.for_zones);
        (!endpoint.terminating, endpoint.ready, endpoint.serving, here, hints)
    };
    for slice in slices.iter().filter(|slice| slice.proxied && slice.family == selector.family) {
        let is_wanted = |name: &str, protocol| name == selector.port && protocol == selector.protocol;
        for port in slice.ports.iter().filter(|port| is_wanted(&port.name, port.protocol)) {
            for endpoint in &slice.endpoints {
                if unusable(slice.family, endpoint.address).is_some() {
                    continue;
                }
                let best = found.entry((endpoint.address, port.port)).or_insert(endpoint);
                if preference(endpoint) > preference(best) {
                    *best = endpoint;
                }
            }
        }
    }
    found
}

/// Chooses how hints are used; they count only when every ready endpoint has them and one names this place.
fn topology<'a>(selector: &Selector<'_>, ready: impl Iterator<Item = &'a Endpoint> + Clone) -> Topology {
    let all_and_one = |hints: fn(&Endpoint) -> &Vec<Arc<str>>, here: &str| {
        ready.clone().all(|endpoint| !hints(endpoint).is_empty())
            && ready.clone().any(|endpoint| hints(endpoint).iter().any(|hint| **hint == *here))
    };
    if all_and_one(|endpoint| &endpoint.for_nodes, selector.node) {
        return Topology::SameNode;
    }
    match selector.zone.filter(|zone| !zone.is_empty()) {
        Some(zone) if all_and_one(|endpoint| &endpoint.for_zones, zone) => Topology::SameZone,
        Some(_) | None => Topology::Anywhere,
    }
}

fn is_available(endpoint: &Endpoint, topology: Topology, selector: &Selector<'_>) -> bool {
    match topology {
        Topology::Anywhere => true,
        Topology::SameZone => endpoint.for_zones.iter().any(|zone| Some(&**zone) == selector.zone),
        Topology::SameNode => endpoint.for_nodes.iter().any(|node| **node == *selector.node),
    }
}

/// Says whether an address may be an endpoint of a slice of this family; see [`refused`].
pub(crate) fn is_usable(family: Family, address: IpAddr) -> bool {
    unusable(family, address).is_none()
}

/// Says why an address must not be an endpoint, if it must not.
fn unusable(family: Family, address: IpAddr) -> Option<&'static str> {
    if Family::of(address) != family {
        return Some("not of the slice's address family");
    }
    if address.is_loopback() {
        return Some("a loopback address");
    }
    if address.is_unspecified() {
        return Some("the unspecified address");
    }
    if address.is_multicast() {
        return Some("a multicast address");
    }
    match address {
        IpAddr::V4(v4) if v4.is_link_local() => Some("a link-local address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4-mapped address"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests;

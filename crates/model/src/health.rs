//! What a load balancer's health checks are told about a Service (`spec.healthCheckNodePort`).
//!
//! A Service of type LoadBalancer with `externalTrafficPolicy: Local` is served by the nodes that have
//! endpoints of it; the load balancer learns which these are by asking each node's port. Only ready endpoints
//! count: while a node has none but terminating ones it still serves, but asks for no new traffic.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::endpoints;
use crate::object::{EndpointSlice, Family, Service, ServiceType, TrafficPolicy};

/// One family's answer to the health checks of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Family of the addresses it is asked on.
    pub family: Family,
    /// Port it is asked on.
    pub port: NonZeroU16,
    /// Distinct addresses of ready endpoints on this node; 0 asks for no traffic.
    pub local_endpoints: usize,
}

/// The health checks of a Service on the node `node`: one for each family it has a cluster address of, none
/// where its type or policy has none.
pub fn health_checks(
    service: &Service,
    slices: &[Arc<EndpointSlice>],
    node: &str,
) -> impl Iterator<Item = HealthCheck> {
    let port = service.health_check_node_port.filter(|_| {
        service.is_programmed()
            && service.service_type == ServiceType::LoadBalancer
            && service.external_traffic_policy == TrafficPolicy::Local
    });
    let has =
        move |family: &Family| service.cluster_ips.iter().any(|address| Family::of(*address) == *family);
    port.into_iter().flat_map(move |port| {
        Family::ALL.into_iter().filter(has).map(move |family| HealthCheck {
            family,
            port,
            local_endpoints: local_ready(slices, family, node),
        })
    })
}

/// Distinct addresses of ready endpoints on the node, whatever their ports.
fn local_ready(slices: &[Arc<EndpointSlice>], family: Family, node: &str) -> usize {
    let slices =
        slices.iter().filter(|slice| slice.proxied && slice.family == family && !slice.ports.is_empty());
    let ready = slices.flat_map(|slice| &slice.endpoints).filter(|endpoint| {
        endpoint.ready
            && endpoint.node.as_deref() == Some(node)
            && endpoints::is_usable(family, endpoint.address)
    });
    ready.map(|endpoint| endpoint.address).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::{port, service, slice};
    use crate::object::Endpoint;

    fn balanced() -> crate::build::ServiceBuilder {
        service("web").cluster_ip("10.96.0.10").cluster_ip("fd00::10").tcp(80).vip("203.0.113.10")
    }

    fn asked(
        change: impl FnOnce(&mut Service),
        endpoints: &[(&str, &str, [bool; 3])],
    ) -> Vec<(Family, usize)> {
        let mut web = balanced().build();
        web.external_traffic_policy = TrafficPolicy::Local;
        web.health_check_node_port = Some(port(32_000));
        change(&mut web);
        let mut slices = slice("web").tcp(8080);
        for (address, node, _) in endpoints {
            slices = slices.on(node, address);
        }
        let mut slices = slices.build();
        let conditions = |endpoint: &mut Endpoint, [ready, serving, terminating]: [bool; 3]| {
            (endpoint.ready, endpoint.serving, endpoint.terminating) = (ready, serving, terminating);
        };
        for (endpoint, (.., given)) in slices.endpoints.iter_mut().zip(endpoints) {
            conditions(endpoint, *given);
        }
        let twice = EndpointSlice { name: crate::build::name("web-again"), ..slices.clone() };
        let slices = [Arc::new(slices), Arc::new(twice)];
        health_checks(&web, &slices, "n1").map(|check| (check.family, check.local_endpoints)).collect()
    }

    const READY: [bool; 3] = [true, true, false];
    const DRAINING: [bool; 3] = [false, true, true];

    #[test]
    fn distinct_ready_endpoints_of_this_node_count() {
        let endpoints =
            [("172.16.1.1", "n1", READY), ("172.16.1.2", "n1", READY), ("172.16.2.1", "n2", READY)];
        assert_eq!(asked(|_| {}, &endpoints), [(Family::V4, 2), (Family::V6, 0)]);
    }

    #[test]
    fn a_node_with_only_terminating_endpoints_asks_for_no_traffic() {
        let endpoints = [("172.16.1.1", "n1", DRAINING), ("172.16.2.1", "n2", READY)];
        assert_eq!(asked(|_| {}, &endpoints), [(Family::V4, 0), (Family::V6, 0)]);
    }

    #[test]
    fn an_endpoint_that_gets_no_traffic_does_not_count() {
        assert_eq!(asked(|_| {}, &[("169.254.1.1", "n1", READY)]), [(Family::V4, 0), (Family::V6, 0)]);
    }

    #[test]
    fn only_local_load_balancers_that_this_proxy_programs_are_asked() {
        let changes: [fn(&mut Service); 4] = [
            |service| service.external_traffic_policy = TrafficPolicy::Cluster,
            |service| service.service_type = ServiceType::NodePort,
            |service| service.health_check_node_port = None,
            |service| service.proxied = false,
        ];
        for change in changes {
            assert_eq!(asked(change, &[("172.16.1.1", "n1", READY)]), []);
        }
        let single = asked(|service| service.cluster_ips.truncate(1), &[]);
        assert_eq!(single, [(Family::V4, 0)]);
    }
}

//! Short ways to write Services, slices and snapshots in tests and scenarios.
//!
//! Everything takes literals: a malformed one is a mistake of the test and panics. Production code has no
//! use for this module.
//!
//! # Examples
//! ```
//! use netd_model::build::{service, slice, snapshot};
//!
//! let snapshot = snapshot()
//!     .service(service("web").cluster_ip("10.96.0.10").tcp(80).node_port(30080))
//!     .slice(slice("web").tcp(8080).on("node-1", "172.16.1.5").on("node-2", "172.16.2.5"))
//!     .build();
//! assert_eq!(snapshot.services.len(), 1);
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::object::{
    Endpoint, EndpointPort, EndpointSlice, Family, LoadBalancerIngress, Node, ObjectName, Protocol, Service,
    ServicePort, ServiceType, TrafficPolicy,
};
use crate::plan::{FrontendAddress, FrontendKey, LocalPods, NodePortAddresses, NodeView};
use crate::snapshot::Snapshot;

/// Parses an address literal.
///
/// # Panics
/// When it is not an address.
pub fn ip(literal: &str) -> IpAddr {
    literal.parse().expect("an IP address literal")
}

/// Parses a prefix literal.
///
/// # Panics
/// When it is not a prefix.
pub fn net(literal: &str) -> IpNetwork {
    literal.parse().expect("a prefix literal")
}

/// Makes a port number.
///
/// # Panics
/// When it is 0.
pub fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("a port other than 0")
}

/// Makes a name from `namespace/name`, or from `name` in the namespace `default`.
pub fn name(literal: &str) -> ObjectName {
    let (namespace, name) = literal.split_once('/').unwrap_or(("default", literal));
    ObjectName::new(namespace, name)
}

/// Makes the key of a frontend on an address.
pub fn key(address: &str, protocol: Protocol, number: u16) -> FrontendKey {
    FrontendKey { address: FrontendAddress::Ip(ip(address)), protocol, port: port(number) }
}

/// Makes the key of a node port.
pub fn node_port_key(protocol: Protocol, number: u16) -> FrontendKey {
    FrontendKey { address: FrontendAddress::NodePort, protocol, port: port(number) }
}

/// A node view without pod detection, zone or external addresses.
pub fn node_view(node: &str) -> NodeView {
    NodeView {
        name: node.into(),
        zone: None,
        local_pods: LocalPods::None,
        node_port_addresses: NodePortAddresses::AllLocal,
        masquerade_all: false,
        allowed_external_ips: Vec::new(),
        answered_here: BTreeSet::new(),
    }
}

/// Starts a Service of type ClusterIP without addresses or ports.
pub fn service(literal: &str) -> ServiceBuilder {
    ServiceBuilder(Service {
        name: name(literal),
        uid: "".into(),
        created: None,
        service_type: ServiceType::ClusterIP,
        headless: false,
        cluster_ips: Vec::new(),
        external_name: None,
        ports: Vec::new(),
        external_ips: Vec::new(),
        load_balancer: Vec::new(),
        source_ranges: Vec::new(),
        internal_traffic_policy: TrafficPolicy::Cluster,
        external_traffic_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        session_affinity: None,
        publish_not_ready: false,
        proxied: true,
    })
}

/// A Service in the making.
#[derive(Clone, Debug)]
pub struct ServiceBuilder(Service);

impl ServiceBuilder {
    /// Adds a cluster address.
    pub fn cluster_ip(mut self, address: &str) -> Self {
        self.0.cluster_ips.push(ip(address));
        self
    }

    /// Adds a named port.
    pub fn port(mut self, name: &str, protocol: Protocol, number: u16) -> Self {
        self.0.ports.push(ServicePort { name: name.into(), protocol, port: port(number), node_port: None });
        self
    }

    /// Adds an unnamed TCP port.
    pub fn tcp(self, number: u16) -> Self {
        self.port("", Protocol::Tcp, number)
    }

    /// Adds an unnamed UDP port.
    pub fn udp(self, number: u16) -> Self {
        self.port("", Protocol::Udp, number)
    }

    /// Gives the port added last a node port.
    ///
    /// # Panics
    /// When there is no port yet.
    pub fn node_port(mut self, number: u16) -> Self {
        self.0.ports.last_mut().expect("a port before its node port").node_port = Some(port(number));
        if self.0.service_type == ServiceType::ClusterIP {
            self.0.service_type = ServiceType::NodePort;
        }
        self
    }

    /// Adds an external address.
    pub fn external_ip(mut self, address: &str) -> Self {
        self.0.external_ips.push(ip(address));
        self
    }

    /// Adds a load balancer address that nodes may short-circuit.
    pub fn vip(self, address: &str) -> Self {
        self.ingress(address, true)
    }

    /// Adds a load balancer address with `ipMode: Proxy`.
    pub fn proxy_ingress(self, address: &str) -> Self {
        self.ingress(address, false)
    }

    fn ingress(mut self, address: &str, vip: bool) -> Self {
        self.0.service_type = ServiceType::LoadBalancer;
        self.0.load_balancer.push(LoadBalancerIngress { address: ip(address), vip });
        self
    }

    /// Adds a load balancer source range.
    pub fn source_range(mut self, prefix: &str) -> Self {
        self.0.source_ranges.push(net(prefix));
        self
    }

    /// Sets `internalTrafficPolicy: Local`.
    pub fn internal_local(mut self) -> Self {
        self.0.internal_traffic_policy = TrafficPolicy::Local;
        self
    }

    /// Sets `externalTrafficPolicy: Local`.
    pub fn external_local(mut self) -> Self {
        self.0.external_traffic_policy = TrafficPolicy::Local;
        self
    }

    /// Sets ClientIP affinity.
    pub fn affinity(mut self, timeout: Duration) -> Self {
        self.0.session_affinity = Some(timeout);
        self
    }

    /// Sets the time of creation, in seconds since the epoch.
    pub fn created(mut self, seconds: i64) -> Self {
        self.0.created = Some(seconds);
        self
    }

    /// Makes it headless.
    pub fn headless(mut self) -> Self {
        self.0.headless = true;
        self
    }

    /// Makes it an ExternalName Service.
    pub fn external_name(mut self, target: &str) -> Self {
        self.0.service_type = ServiceType::ExternalName;
        self.0.external_name = Some(target.into());
        self
    }

    /// Hands it to another proxy by label.
    pub fn not_proxied(mut self) -> Self {
        self.0.proxied = false;
        self
    }

    /// Sets `publishNotReadyAddresses`.
    pub fn publish_not_ready(mut self) -> Self {
        self.0.publish_not_ready = true;
        self
    }

    /// The Service.
    pub fn build(self) -> Service {
        self.0
    }
}

/// Starts an endpoint that is ready, in no zone and on no node.
pub fn endpoint(address: &str) -> EndpointBuilder {
    EndpointBuilder(Endpoint {
        address: ip(address),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        hostname: None,
        zone: None,
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
        pod: None,
    })
}

/// An endpoint in the making.
#[derive(Clone, Debug)]
pub struct EndpointBuilder(Endpoint);

impl EndpointBuilder {
    /// Sets the node.
    pub fn node(mut self, node: &str) -> Self {
        self.0.node = Some(node.into());
        self
    }

    /// Sets the conditions `ready` and `serving` to false.
    pub fn not_ready(mut self) -> Self {
        self.0.ready = false;
        self.0.serving = false;
        self
    }

    /// Makes it terminating, but still serving.
    pub fn draining(mut self) -> Self {
        self.0.ready = false;
        self.0.serving = true;
        self.0.terminating = true;
        self
    }

    /// Makes it terminating and no longer serving.
    pub fn gone(mut self) -> Self {
        self.0.ready = false;
        self.0.serving = false;
        self.0.terminating = true;
        self
    }

    /// Sets the three conditions one by one.
    pub fn conditions(mut self, ready: bool, serving: bool, terminating: bool) -> Self {
        self.0.ready = ready;
        self.0.serving = serving;
        self.0.terminating = terminating;
        self
    }

    /// Adds a zone hint.
    pub fn for_zone(mut self, zone: &str) -> Self {
        self.0.for_zones.push(zone.into());
        self
    }

    /// Adds a node hint.
    pub fn for_node(mut self, node: &str) -> Self {
        self.0.for_nodes.push(node.into());
        self
    }

    /// Sets the host name.
    pub fn hostname(mut self, hostname: &str) -> Self {
        self.0.hostname = Some(hostname.into());
        self
    }

    /// Sets the pod, as `namespace/name` or `name`.
    pub fn pod(mut self, pod: &str) -> Self {
        self.0.pod = Some(name(pod));
        self
    }

    /// The endpoint.
    pub fn build(self) -> Endpoint {
        self.0
    }
}

/// Starts a slice named `<service>-1` of a Service; its family is that of its first endpoint (IPv4 if none).
pub fn slice(service: &str) -> SliceBuilder {
    let service = name(service);
    SliceBuilder(EndpointSlice {
        name: ObjectName::new(Arc::clone(&service.namespace), format!("{}-1", service.name)),
        service,
        family: Family::V4,
        ports: Vec::new(),
        endpoints: Vec::new(),
        proxied: true,
    })
}

/// A slice in the making.
#[derive(Clone, Debug)]
pub struct SliceBuilder(EndpointSlice);

impl SliceBuilder {
    /// Sets the slice's own name.
    pub fn named(mut self, slice: &str) -> Self {
        self.0.name = ObjectName::new(Arc::clone(&self.0.service.namespace), slice);
        self
    }

    /// Adds a named port.
    pub fn port(mut self, name: &str, protocol: Protocol, number: u16) -> Self {
        self.0.ports.push(EndpointPort { name: name.into(), protocol, port: port(number) });
        self
    }

    /// Adds an unnamed TCP port.
    pub fn tcp(self, number: u16) -> Self {
        self.port("", Protocol::Tcp, number)
    }

    /// Adds an unnamed UDP port.
    pub fn udp(self, number: u16) -> Self {
        self.port("", Protocol::Udp, number)
    }

    /// Adds a ready endpoint on a node.
    pub fn on(self, node: &str, address: &str) -> Self {
        self.endpoint(endpoint(address).node(node))
    }

    /// Adds an endpoint.
    pub fn endpoint(mut self, endpoint: EndpointBuilder) -> Self {
        let endpoint = endpoint.build();
        if self.0.endpoints.is_empty() {
            self.0.family = Family::of(endpoint.address);
        }
        self.0.endpoints.push(endpoint);
        self
    }

    /// Sets the label that keeps it from the proxy.
    pub fn not_proxied(mut self) -> Self {
        self.0.proxied = false;
        self
    }

    /// The slice.
    pub fn build(self) -> EndpointSlice {
        self.0
    }
}

/// Starts an empty snapshot of generation 1.
pub fn snapshot() -> SnapshotBuilder {
    SnapshotBuilder(Snapshot { generation: 1, ..Snapshot::default() })
}

/// A snapshot in the making.
#[derive(Clone, Debug)]
pub struct SnapshotBuilder(Snapshot);

impl SnapshotBuilder {
    /// Sets the generation.
    pub fn generation(mut self, generation: u64) -> Self {
        self.0.generation = generation;
        self
    }

    /// Adds a Service.
    pub fn service(mut self, service: ServiceBuilder) -> Self {
        let service = service.build();
        self.0.namespaces.insert(Arc::clone(&service.name.namespace));
        self.0.services.insert(service.name.clone(), Arc::new(service));
        self
    }

    /// Adds a slice.
    pub fn slice(mut self, slice: SliceBuilder) -> Self {
        let slice = slice.build();
        let service = slice.service.clone();
        let mut slices = self.0.slices.remove(&service).unwrap_or_default();
        slices.push(Arc::new(slice));
        slices.sort_by(|a, b| a.name.cmp(&b.name));
        self.0.slices.insert(service, slices);
        self
    }

    /// Adds a node with its internal addresses.
    pub fn node(mut self, node: &str, addresses: &[&str]) -> Self {
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| ip(address)).collect();
        let node = Node {
            name: node.into(),
            internal_addresses: addresses.clone(),
            addresses,
            pod_cidrs: Vec::new(),
            zone: None,
            leaving: false,
        };
        self.0.nodes.insert(Arc::clone(&node.name), Arc::new(node));
        self
    }

    /// The snapshot.
    pub fn build(self) -> Snapshot {
        self.0
    }
}

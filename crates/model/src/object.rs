//! The slim objects of the model: only what a node needs to know, parsed and validated at the edge.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// The namespace and name of a Kubernetes object; orders by namespace, then name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// Namespace, never empty for namespaced kinds.
    pub namespace: Arc<str>,
    /// Name within the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// Makes a name from its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Transport protocol of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
    /// SCTP, IP protocol 132.
    Sctp,
}

impl Protocol {
    /// The lower-case name as iptables, CNI and DNS SRV names use it.
    pub const fn lower(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// An address family; v4 and v6 are planned apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, v4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family of a prefix.
    pub const fn of_prefix(prefix: &IpNetwork) -> Self {
        match prefix {
            IpNetwork::V4(_) => Self::V4,
            IpNetwork::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ServiceType {
    /// A virtual address inside the cluster (or none, when headless).
    ClusterIP,
    /// Also a port on every node.
    NodePort,
    /// Also addresses of an external load balancer.
    LoadBalancer,
    /// A DNS alias; never programmed in a dataplane.
    ExternalName,
}

/// `internalTrafficPolicy` or `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Any endpoint of the cluster.
    #[default]
    Cluster,
    /// Only endpoints on the node where the traffic is.
    Local,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Port name; empty when the Service has a single unnamed port.
    pub name: Arc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the Service's addresses.
    pub port: NonZeroU16,
    /// Port on the nodes, where one is allocated.
    pub node_port: Option<NonZeroU16>,
}

/// One entry of `status.loadBalancer.ingress` that carries an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadBalancerIngress {
    /// The load balancer's address.
    pub address: IpAddr,
    /// True when `ipMode` is absent or `VIP`: traffic arrives with this destination address and the node
    /// may short-circuit it. False for `Proxy` (KEP-1860).
    pub vip: bool,
}

/// A validated Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.uid`, empty where the source has none.
    pub uid: Arc<str>,
    /// `metadata.creationTimestamp` in seconds since the epoch; the older Service wins a conflict.
    pub created: Option<i64>,
    /// Service type.
    pub service_type: ServiceType,
    /// `spec.clusterIP` is `None`: DNS only.
    pub headless: bool,
    /// Cluster addresses, at most one a family; empty when headless or ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    /// Target of an ExternalName Service, without trailing dot.
    pub external_name: Option<Arc<str>>,
    /// Ports; their names are unique.
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Load balancer addresses.
    pub load_balancer: Vec<LoadBalancerIngress>,
    /// `spec.loadBalancerSourceRanges`; empty means all sources.
    pub source_ranges: Vec<IpNetwork>,
    /// For traffic to the cluster addresses.
    pub internal_traffic_policy: TrafficPolicy,
    /// For traffic to node ports, load balancer and external addresses.
    pub external_traffic_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`.
    pub health_check_node_port: Option<NonZeroU16>,
    /// ClientIP affinity and its timeout; `None` is no affinity.
    pub session_affinity: Option<Duration>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// False when the label `service.kubernetes.io/service-proxy-name` hands the Service to another proxy:
    /// DNS still answers for it, dataplanes do not program it.
    pub proxied: bool,
}

impl Service {
    /// True when dataplanes program it: it has cluster addresses and is this proxy's.
    pub fn is_programmed(&self) -> bool {
        self.proxied
            && !self.headless
            && self.service_type != ServiceType::ExternalName
            && !self.cluster_ips.is_empty()
    }
}

/// One endpoint of a slice: the first address of `endpoints[].addresses`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The endpoint's address.
    pub address: IpAddr,
    /// `conditions.ready`; nil is true.
    pub ready: bool,
    /// `conditions.serving`; nil is true.
    pub serving: bool,
    /// `conditions.terminating`; nil is false.
    pub terminating: bool,
    /// Node the endpoint runs on.
    pub node: Option<Arc<str>>,
    /// `hostname`, for DNS.
    pub hostname: Option<Arc<str>>,
    /// Zone the endpoint runs in.
    pub zone: Option<Arc<str>>,
    /// `hints.forZones[].name`.
    pub for_zones: Vec<Arc<str>>,
    /// `hints.forNodes[].name`.
    pub for_nodes: Vec<Arc<str>>,
    /// `targetRef` when it names a Pod.
    pub pod: Option<ObjectName>,
}

/// One entry of a slice's `ports` with a port number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPort {
    /// Name of the Service port it belongs to; empty when unnamed.
    pub name: Arc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the endpoint, already resolved by the controller.
    pub port: NonZeroU16,
}

/// A validated EndpointSlice (or one subset of a core/v1 Endpoints object).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Namespace and name of the slice itself.
    pub name: ObjectName,
    /// The Service it belongs to (label `kubernetes.io/service-name`).
    pub service: ObjectName,
    /// Address family of all its endpoints.
    pub family: Family,
    /// Ports that every endpoint of the slice serves.
    pub ports: Vec<EndpointPort>,
    /// Endpoints in the order of the object.
    pub endpoints: Vec<Endpoint>,
    /// False when the label `service.kubernetes.io/headless` is set: for DNS only.
    pub proxied: bool,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Node name.
    pub name: Arc<str>,
    /// InternalIP addresses, then ExternalIP addresses, in the order of the object.
    pub addresses: Vec<IpAddr>,
    /// The leading part of `addresses` that is InternalIP.
    pub internal_addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`, at most one a family.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// True when the node is being deleted or the cluster autoscaler is about to (taint
    /// `ToBeDeletedByClusterAutoscaler`): load balancers should send it nothing new (KEP-3836).
    #[serde(default)]
    pub leaving: bool,
}

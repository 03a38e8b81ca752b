//! The decisions a dataplane renders: which destination goes to which endpoints, and how.
//!
//! Backends see these types only, never a Service. Everything is ordered, so equal snapshots give equal
//! plans whatever the order of the events that led to them.

mod build;
mod planner;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::object::{Family, ObjectName, Protocol};
use crate::ordered::OrderedMap;
use crate::shared::Shared;

pub use build::plan;
pub use planner::Planner;

/// A Service port: the unit that has frontends and pools.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectName,
    /// Port name; empty when unnamed.
    pub port: Arc<str>,
    /// Transport protocol (two ports of a Service may share a number, not name and protocol).
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// Which of a Service port's endpoint sets a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PoolScope {
    /// Endpoints anywhere in the cluster (topology hints applied).
    Cluster,
    /// Endpoints on this node.
    Local,
}

/// Names a pool; stable while the Service port exists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PoolId {
    /// The Service port.
    pub port: ServicePortName,
    /// Which set.
    pub scope: PoolScope,
}

/// An address and port that traffic is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PoolEndpoint {
    /// Endpoint address.
    pub address: IpAddr,
    /// Endpoint port.
    pub port: NonZeroU16,
    /// True when the endpoint runs on this node.
    pub local: bool,
}

/// A non-empty set of endpoints that new connections are spread over evenly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Endpoints in ascending order, without duplicates.
    pub endpoints: Vec<PoolEndpoint>,
}

/// Where a frontend listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FrontendAddress {
    /// One destination address.
    Ip(IpAddr),
    /// Every address of the node that [`FamilyPlan::node_port_addresses`] selects.
    NodePort,
}

/// The destination that a frontend matches; at most one frontend has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FrontendKey {
    /// Destination address.
    pub address: FrontendAddress,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: NonZeroU16,
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            FrontendAddress::Ip(IpAddr::V4(a)) => write!(f, "{a}:{}/{}", self.port, self.protocol),
            FrontendAddress::Ip(IpAddr::V6(a)) => write!(f, "[{a}]:{}/{}", self.port, self.protocol),
            FrontendAddress::NodePort => write!(f, "node:{}/{}", self.port, self.protocol),
        }
    }
}

/// What a frontend is in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FrontendKind {
    /// A cluster address.
    ClusterIP,
    /// A node port.
    NodePort,
    /// A load balancer address.
    LoadBalancer,
    /// An external address.
    ExternalIP,
}

/// When the source of a balanced flow is rewritten to the node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Masquerade {
    /// Only when the chosen endpoint is the client itself.
    Hairpin,
    /// Always (which covers hairpin).
    Always,
}

/// ClientIP session affinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Affinity {
    /// A client returns to its endpoint for this long after its last new connection.
    pub timeout: Duration,
}

/// What happens to a new flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Goes to one of the pool's endpoints.
    Balance {
        /// The pool; present in [`FamilyPlan::pools`].
        pool: PoolId,
        /// Source rewriting.
        masquerade: Masquerade,
        /// Session affinity.
        affinity: Option<Affinity>,
    },
    /// Refused at once: a reset for TCP, ICMP port unreachable otherwise. No endpoint exists anywhere.
    Reject,
    /// Discarded without a word: endpoints exist, but none that the traffic policy allows.
    Drop,
}

/// A frontend's verdict for each class of source. Classes are told apart by [`FamilyPlan::local_pods`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictBySource {
    /// The source is a pod's own address on this node or, as kube-proxy has it with a cluster CIDR, in the
    /// cluster (`LocalPods`).
    pub pod: Verdict,
    /// The source is the node itself.
    pub host: Verdict,
    /// Any other source.
    pub other: Verdict,
}

impl VerdictBySource {
    /// The same verdict whatever the source.
    pub fn same(verdict: Verdict) -> Self {
        Self { pod: verdict.clone(), host: verdict.clone(), other: verdict }
    }

    /// The verdict, if all three are equal.
    pub fn uniform(&self) -> Option<&Verdict> {
        (self.pod == self.host && self.host == self.other).then_some(&self.pod)
    }
}

/// One destination and what is done with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontend {
    /// The Service port it belongs to.
    pub port: ServicePortName,
    /// What it is.
    pub kind: FrontendKind,
    /// Sources that may use it; `None` is all. Others are dropped before balancing.
    pub allowed_sources: Option<Vec<IpNetwork>>,
    /// Verdicts.
    pub verdicts: VerdictBySource,
}

/// How a source is recognised as a local pod (kube-proxy's `detectLocalMode`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LocalPods {
    /// No detection: no source is a local pod, and ClusterIP traffic is masqueraded only for hairpin.
    None,
    /// Sources within these prefixes of the family.
    Prefixes(Vec<IpNetwork>),
    /// Sources that arrive on this bridge.
    BridgeInterface(String),
    /// Sources that arrive on an interface with this name prefix.
    InterfaceNamePrefix(String),
}

/// Addresses of the node on which node ports are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodePortAddresses {
    /// Every address that is local to the node (iptables' `--dst-type LOCAL`), loopback excluded.
    AllLocal,
    /// Local addresses within these prefixes.
    Prefixes(Vec<IpNetwork>),
}

/// Everything a dataplane programs for one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyPlan {
    /// The family of every address in here.
    pub family: Family,
    /// Frontends by destination.
    pub frontends: OrderedMap<FrontendKey, Frontend>,
    /// Pools that the frontends name, and no others.
    pub pools: OrderedMap<PoolId, Pool>,
    /// How local pods are recognised.
    pub local_pods: LocalPods,
    /// Where node ports are served.
    pub node_port_addresses: NodePortAddresses,
}

impl FamilyPlan {
    /// A plan that programs nothing.
    pub fn empty(family: Family) -> Self {
        Self {
            family,
            frontends: OrderedMap::new(),
            pools: OrderedMap::new(),
            local_pods: LocalPods::None,
            node_port_addresses: NodePortAddresses::AllLocal,
        }
    }
}

/// A decision that a user may not expect: a refused external address, a conflict between two Services.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Notice {
    /// The Service.
    pub service: ObjectName,
    /// A stable word: `ExternalIPIgnored`, `FrontendConflict`, `EndpointRefused`.
    pub reason: String,
    /// A sentence that names the object and the next step.
    pub message: String,
}

/// Everything that must be in the kernel for Services on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlan {
    /// Generation of the snapshot it was made from.
    pub generation: u64,
    /// IPv4.
    pub v4: FamilyPlan,
    /// IPv6.
    pub v6: FamilyPlan,
    /// Decisions worth telling, ordered.
    pub notices: Shared<Vec<Notice>>,
}

impl ServicePlan {
    /// A plan without Services.
    pub fn empty() -> Self {
        Self {
            generation: 0,
            v4: FamilyPlan::empty(Family::V4),
            v6: FamilyPlan::empty(Family::V6),
            notices: Shared::default(),
        }
    }

    /// The part for a family.
    pub const fn family(&self, family: Family) -> &FamilyPlan {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// What the planner knows of the node it plans for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Name of this node, as in `Endpoint::node`.
    pub name: Arc<str>,
    /// Zone of this node.
    pub zone: Option<Arc<str>>,
    /// How local pods are recognised (prefixes of both families together).
    pub local_pods: LocalPods,
    /// Where node ports are served (prefixes of both families together).
    pub node_port_addresses: NodePortAddresses,
    /// Masquerade all traffic to Services (`masqueradeAll`).
    pub masquerade_all: bool,
    /// Prefixes within which `externalIPs` are honoured; empty ignores them all (CVE-2020-8554).
    pub allowed_external_ips: Vec<IpNetwork>,
    /// Destinations that a process of netd answers on this node (cluster DNS): planned for no Service, so
    /// that no dataplane takes their traffic away.
    pub answered_here: BTreeSet<FrontendKey>,
}

/// What changed in the snapshot since the last plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dirty {
    /// Anything may have.
    All,
    /// Only these Services or their slices.
    Services(BTreeSet<ObjectName>),
}

/// What of a plan may differ from the last one that was applied; bounds the work, never the meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it.
    Full,
    /// Frontends and pools of these Services only.
    Services(BTreeSet<ObjectName>),
}

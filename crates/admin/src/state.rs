//! The document that `GET /v1/state` and `netd status -o json` give.
//!
//! Within `v1alpha1` fields are only added. Readers take documents of older and newer daemons: every field
//! has a default and unknown ones are passed over.

mod timestamp;

use std::collections::BTreeMap;
use std::time::SystemTime;

use netd_model::{Notice, Problem};
use serde::{Deserialize, Serialize};

pub use timestamp::Timestamp;

use crate::API_VERSION;

/// The state of netd on one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StateDoc {
    /// `netd.io/v1alpha1`.
    pub api_version: String,
    /// `NodeState`.
    pub kind: String,
    /// Version of the daemon.
    pub version: String,
    /// Name of the node.
    pub node: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// When the daemon started.
    pub started_at: Timestamp,
    /// How long it runs, in seconds.
    pub uptime_seconds: u64,
    /// The parts by name: `cni`, `proxy`, `fabric`, `dns`, `watch`.
    pub parts: BTreeMap<String, PartState>,
    /// Where objects come from and how fresh they are.
    pub source: SourceState,
    /// The Service dataplane; absent while none is chosen or the part is off.
    pub dataplane: Option<DataplaneState>,
    /// Services as they are programmed, ordered by namespace and name.
    pub services: Vec<ServiceState>,
    /// The other nodes and the way to their pods.
    pub nodes: Vec<NodeRouteState>,
    /// Pod addresses; absent when the part is off.
    pub ipam: Option<IpamState>,
    /// What pods left behind that are gone.
    pub garbage: GarbageState,
    /// Cluster DNS; absent when the part is off.
    pub dns: Option<DnsState>,
    /// Objects that were refused, and anything else that needs a human.
    pub problems: Vec<ProblemState>,
    /// Decisions that may surprise, such as an external address that is ignored.
    pub notices: Vec<NoticeState>,
}

impl StateDoc {
    /// A document with its head filled in; `started` and `now` are wall clock times.
    pub fn new(node: &str, version: &str, pid: u32, (started, now): (SystemTime, SystemTime)) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: "NodeState".to_owned(),
            version: version.to_owned(),
            node: node.to_owned(),
            pid,
            started_at: started.into(),
            uptime_seconds: now.duration_since(started).map_or(0, |d| d.as_secs()),
            ..Self::default()
        }
    }
}

/// One part of netd.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PartState {
    /// Switched on in the configuration.
    pub enabled: bool,
    /// Does its work.
    pub ready: bool,
    /// Why not, or what it does; one line.
    pub message: String,
    /// Since when `ready` has its value.
    pub since: Option<Timestamp>,
}

/// The source of objects.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceState {
    /// `kubernetes` or `manifests`.
    pub kind: String,
    /// URL of the API server, or the directory.
    pub location: String,
    /// Every kind was listed completely once.
    pub synced: bool,
    /// The source cannot be reached; what is programmed is the last known state.
    pub stale: bool,
    /// Generation of the last snapshot.
    pub generation: u64,
    /// When the last snapshot was made.
    pub last_change: Option<Timestamp>,
    /// Each kind of object.
    pub kinds: Vec<KindState>,
}

/// One watched kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KindState {
    /// `Service`, `EndpointSlice`, `Node`, ...
    pub kind: String,
    /// How many objects are known.
    pub objects: u64,
    /// The first list is complete.
    pub synced: bool,
    /// What is wrong; empty when nothing is.
    pub message: String,
}

/// The Service dataplane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DataplaneState {
    /// The one in use: `iptables`, `nftables`, `ebpf`.
    pub name: String,
    /// The one that was asked for, such as `auto`.
    pub requested: String,
    /// Why this one was chosen.
    pub reason: String,
    /// Generation of the snapshot that is in the kernel.
    pub generation: u64,
    /// Destinations that are programmed.
    pub frontends: u64,
    /// Endpoints that are programmed.
    pub endpoints: u64,
    /// Rules or map entries in the kernel, where the backend counts them.
    pub rules: Option<u64>,
    /// When the last change was applied.
    pub last_apply: Option<Timestamp>,
    /// How long that took, in milliseconds.
    pub last_apply_ms: Option<f64>,
    /// Why the last change could not be applied; absent after a success.
    pub last_error: Option<String>,
    /// What no dataplane of the node can do: it is not programmed.
    pub refused: Vec<Refusal>,
    /// What this dataplane leaves to the one beside it.
    pub delegated: Vec<Refusal>,
    /// The dataplane that does the rest beside this one.
    pub companion: Option<String>,
}

/// Something a dataplane did not program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Refusal {
    /// The Service, frontend or feature.
    pub subject: String,
    /// Why.
    pub reason: String,
}

/// A Service as it is programmed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceState {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalName`, or `Headless`.
    #[serde(rename = "type")]
    pub service_type: String,
    /// Destinations; empty for Services that only DNS knows.
    pub frontends: Vec<FrontendState>,
}

/// A destination of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FrontendState {
    /// Address, port and protocol, such as `10.96.0.1:443/TCP` or `node:30080/TCP`.
    pub key: String,
    /// Name of the Service port; empty when unnamed.
    pub port: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalIP`.
    pub kind: String,
    /// `Balance`, `Reject` or `Drop` for sources outside the node, and the classes of source that differ, such as
    /// `Drop (host: Balance)`.
    pub verdict: String,
    /// Source rewriting of balanced flows from outside the node: `Hairpin`, `Always`, or empty where none are balanced;
    /// followed by the classes of source that differ, such as `Always (pod: Hairpin)`.
    pub masquerade: String,
    /// Timeout of ClientIP affinity in seconds; absent without affinity.
    pub affinity_seconds: Option<u64>,
    /// Sources that may use it; empty is all.
    pub allowed_sources: Vec<String>,
    /// Endpoints that new flows go to, such as `172.16.1.5:8080`.
    pub endpoints: Vec<String>,
}

/// Another node and the way to its pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeRouteState {
    /// Node name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Its pod prefixes.
    pub pod_cidrs: Vec<String>,
    /// Gateway of the routes; absent for this node.
    pub via: Option<String>,
    /// The routes are in the kernel.
    pub ready: bool,
    /// Why not.
    pub message: String,
}

/// Pod addresses of this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpamState {
    /// Address ranges.
    pub pools: Vec<PoolState>,
    /// Addresses in use.
    pub leases: Vec<LeaseState>,
}

/// What pods left behind that are gone, since the daemon's start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GarbageState {
    /// How many objects were taken away, by kind: `lease`, `link`, `ifb`, `host-ports`, `neighbour`, `route`,
    /// `masquerade`, `put-aside`.
    pub collected: BTreeMap<String, u64>,
    /// What may be garbage and is still observed.
    pub waiting: u64,
    /// What was taken away last.
    pub last: Option<String>,
    /// When that was.
    pub last_at: Option<Timestamp>,
}

/// A range of pod addresses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolState {
    /// Name of the CNI network.
    pub network: String,
    /// The range, such as `172.16.1.0/24`.
    pub range: String,
    /// Addresses in use.
    pub used: u64,
    /// Addresses that can be given to pods.
    pub total: u64,
    /// The node has another range by now; no new pod gets an address of this one.
    pub former: bool,
}

/// A pod's address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseState {
    /// The address.
    pub address: String,
    /// `namespace/name` of the pod, where the runtime told.
    pub pod: String,
    /// Interface in the pod.
    pub interface: String,
    /// Container id.
    pub container_id: String,
}

/// Cluster DNS.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DnsState {
    /// Cluster domain.
    pub domain: String,
    /// Addresses that are served.
    pub listen: Vec<String>,
    /// Cluster names are answered.
    pub synced: bool,
    /// Servers for other names.
    pub upstreams: Vec<UpstreamState>,
    /// Requests since the start.
    pub queries: u64,
    /// Of these, answered SERVFAIL.
    pub failures: u64,
    /// Handed to upstreams.
    pub forwards: u64,
    /// Of these, not answered by any.
    pub forward_errors: u64,
}

/// An upstream DNS server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UpstreamState {
    /// Address and port.
    pub address: String,
    /// It answered when last asked.
    pub healthy: bool,
}

/// An object that was refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProblemState {
    /// Kind of the object.
    pub kind: String,
    /// The object.
    pub object: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl From<&Problem> for ProblemState {
    fn from(problem: &Problem) -> Self {
        Self { kind: problem.kind.clone(), object: problem.object.clone(), message: problem.message.clone() }
    }
}

/// A decision worth telling.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NoticeState {
    /// The Service, `namespace/name`.
    pub service: String,
    /// A stable word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

impl From<&Notice> for NoticeState {
    fn from(notice: &Notice) -> Self {
        Self {
            service: notice.service.to_string(),
            reason: notice.reason.clone(),
            message: notice.message.clone(),
        }
    }
}

/// The document of `GET /v1/services`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceList {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) items: Vec<ServiceState>,
}

/// The document of `GET /version`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct VersionDoc {
    pub(crate) api_version: String,
    pub(crate) version: String,
}

#[cfg(test)]
mod tests;

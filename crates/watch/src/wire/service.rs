//! core/v1 Service.

use serde::Deserialize;

use super::{Body, Meta, null_as_default};

/// A Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    pub(crate) metadata: Meta,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) spec: Spec,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) status: Status,
}

/// `spec`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Spec {
    #[serde(rename = "type")]
    pub(crate) service_type: Option<String>,
    #[serde(rename = "clusterIP")]
    pub(crate) cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "null_as_default")]
    pub(crate) cluster_ips: Vec<String>,
    pub(crate) external_name: Option<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) ports: Vec<Port>,
    #[serde(rename = "externalIPs", deserialize_with = "null_as_default")]
    pub(crate) external_ips: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) load_balancer_source_ranges: Vec<String>,
    pub(crate) internal_traffic_policy: Option<String>,
    pub(crate) external_traffic_policy: Option<String>,
    pub(crate) health_check_node_port: Option<i64>,
    pub(crate) session_affinity: Option<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) session_affinity_config: SessionAffinityConfig,
    pub(crate) publish_not_ready_addresses: Option<bool>,
}

/// `spec.ports[]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Port {
    pub(crate) name: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) port: Option<i64>,
    pub(crate) node_port: Option<i64>,
}

/// `spec.sessionAffinityConfig`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SessionAffinityConfig {
    #[serde(rename = "clientIP", deserialize_with = "null_as_default")]
    pub(crate) client_ip: ClientIp,
}

/// `spec.sessionAffinityConfig.clientIP`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ClientIp {
    pub(crate) timeout_seconds: Option<i64>,
}

/// `status`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) load_balancer: LoadBalancer,
}

/// `status.loadBalancer`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LoadBalancer {
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) ingress: Vec<Ingress>,
}

/// `status.loadBalancer.ingress[]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Ingress {
    pub(crate) ip: Option<String>,
    pub(crate) ip_mode: Option<String>,
}

impl Body for Service {
    const KIND: &'static str = "Service";
    const GROUP: &'static str = "";
    const PLURAL: &'static str = "services";

    fn metadata(&self) -> &Meta {
        &self.metadata
    }
}

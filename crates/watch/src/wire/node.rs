//! core/v1 Node and Namespace.

use serde::Deserialize;

use super::{Body, Meta, OnlyMeta, null_as_default};

/// A Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    pub(crate) metadata: Meta,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) spec: NodeSpec,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) status: NodeStatus,
}

/// `spec`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs", deserialize_with = "null_as_default")]
    pub(crate) pod_cidrs: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) taints: Vec<Taint>,
}

/// `spec.taints[]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Taint {
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) key: String,
}

/// `status`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeStatus {
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) addresses: Vec<NodeAddress>,
}

/// `status.addresses[]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeAddress {
    #[serde(rename = "type")]
    pub(crate) address_type: String,
    pub(crate) address: String,
}

/// A Namespace: its name is all that netd needs.
pub(crate) type Namespace = OnlyMeta;

impl Body for Node {
    const KIND: &'static str = "Node";
    const GROUP: &'static str = "";
    const PLURAL: &'static str = "nodes";

    fn metadata(&self) -> &Meta {
        &self.metadata
    }
}

impl Body for Namespace {
    const KIND: &'static str = "Namespace";
    const GROUP: &'static str = "";
    const PLURAL: &'static str = "namespaces";

    fn metadata(&self) -> &Meta {
        &self.metadata
    }
}

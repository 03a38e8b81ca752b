//! discovery.k8s.io/v1 EndpointSlice and core/v1 Endpoints.

use serde::Deserialize;

use super::{Body, Meta, null_as_default};

/// An EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct EndpointSlice {
    pub(crate) metadata: Meta,
    pub(crate) address_type: Option<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) ports: Vec<Port>,
}

/// `endpoints[]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Endpoint {
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) addresses: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) conditions: Conditions,
    pub(crate) hostname: Option<String>,
    pub(crate) node_name: Option<String>,
    pub(crate) zone: Option<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) hints: Hints,
    pub(crate) target_ref: Option<ObjectReference>,
}

/// `endpoints[].conditions`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Conditions {
    pub(crate) ready: Option<bool>,
    pub(crate) serving: Option<bool>,
    pub(crate) terminating: Option<bool>,
}

/// `endpoints[].hints`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Hints {
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) for_zones: Vec<Named>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) for_nodes: Vec<Named>,
}

/// An object with nothing but a name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Named {
    pub(crate) name: String,
}

/// The object behind an endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ObjectReference {
    pub(crate) kind: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
}

/// `ports[]` of a slice or of a subset.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Port {
    pub(crate) name: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) port: Option<i64>,
}

/// A core/v1 Endpoints object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Endpoints {
    pub(crate) metadata: Meta,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) subsets: Vec<Subset>,
}

/// `subsets[]`: every address serves every port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Subset {
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) addresses: Vec<Address>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) not_ready_addresses: Vec<Address>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) ports: Vec<Port>,
}

/// `subsets[].addresses[]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Address {
    pub(crate) ip: String,
    pub(crate) hostname: Option<String>,
    pub(crate) node_name: Option<String>,
    pub(crate) target_ref: Option<ObjectReference>,
}

impl Body for EndpointSlice {
    const KIND: &'static str = "EndpointSlice";
    const GROUP: &'static str = "discovery.k8s.io";
    const PLURAL: &'static str = "endpointslices";

    fn metadata(&self) -> &Meta {
        &self.metadata
    }
}

impl Body for Endpoints {
    const KIND: &'static str = "Endpoints";
    const GROUP: &'static str = "";
    const PLURAL: &'static str = "endpoints";

    fn metadata(&self) -> &Meta {
        &self.metadata
    }
}

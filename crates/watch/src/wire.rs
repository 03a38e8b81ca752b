//! Slim serde types: only the fields that netd reads, everything else is skipped while parsing.
//!
//! [`Wire`] makes them usable with kube's `Api`. It never fails to deserialize: an object whose fields have the
//! wrong shape keeps its name and the error, so that one bad object cannot spoil a list.

pub(crate) mod endpoints;
pub(crate) mod node;
pub(crate) mod service;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::SystemTime;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, jiff};
use kube::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// The label that gives a slice to a Service.
pub(crate) const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that gives a Service to another proxy.
pub(crate) const LABEL_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The label that marks headless Services, their Endpoints and slices.
pub(crate) const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";

/// The part of `metadata` that netd reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Meta {
    pub(crate) name: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) creation_timestamp: Option<String>,
    pub(crate) deletion_timestamp: Option<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) annotations: Annotations,
}

/// The annotations that netd reads; all others are skipped, which may be long.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Annotations {
    /// When what led to this version of Endpoints or a slice happened (RFC 3339); by the controller.
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    pub(crate) triggered: Option<String>,
}

impl Meta {
    /// When what led to this version happened; `None` where nobody says so, or not legibly.
    pub(crate) fn triggered(&self) -> Option<SystemTime> {
        let text = self.annotations.triggered.as_deref()?;
        text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
    }

    /// The value of a label, if it is set.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }
}

/// A kind of object that netd watches.
pub(crate) trait Body: DeserializeOwned + Clone + Debug + Send + Sync + 'static {
    /// `kind`.
    const KIND: &'static str;
    /// API group, empty for the core group.
    const GROUP: &'static str;
    /// Plural in the URL.
    const PLURAL: &'static str;

    /// The object's metadata.
    fn metadata(&self) -> &Meta;
}

/// An object as it came: parsed, or its metadata and why it could not be.
#[derive(Clone, Debug)]
pub(crate) struct Wire<B> {
    /// What kube's watcher needs.
    meta: ObjectMeta,
    /// The object.
    pub(crate) body: Result<B, Unreadable>,
}

/// An object whose JSON does not have the kind's shape.
#[derive(Clone, Debug)]
pub(crate) struct Unreadable {
    pub(crate) meta: Meta,
    pub(crate) error: String,
}

/// Nothing but metadata.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct OnlyMeta {
    pub(crate) metadata: Meta,
}

// === impl Wire ===

impl<'de, B: Body> Deserialize<'de> for Wire<B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let mut json = serde_json::Deserializer::from_str(raw.get());
        let body = serde_path_to_error::deserialize::<_, B>(&mut json).map_err(|error| Unreadable {
            meta: serde_json::from_str::<OnlyMeta>(raw.get()).unwrap_or_default().metadata,
            error: error.to_string(),
        });
        let meta = match &body {
            Ok(body) => body.metadata(),
            Err(unreadable) => &unreadable.meta,
        };
        let meta = ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            resource_version: meta.resource_version.clone(),
            ..ObjectMeta::default()
        };
        Ok(Self { meta, body })
    }
}

impl<B: Body> Resource for Wire<B> {
    type DynamicType = ();
    // netd lists across namespaces only, for which kube wants no namespaced scope.
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        B::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        B::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        B::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// Reads `null` as the type's default, as the API's JSON means it.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

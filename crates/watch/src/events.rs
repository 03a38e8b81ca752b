//! Kubernetes Events: what a person should know about an object, at the object.
//!
//! Every node sees the same objects. So that a cluster of many nodes does not tell the same as often, an Event has a
//! name that follows from what it says: the first node creates it, the others are told that it is there.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use crate::api::Connection;
use crate::error::Error;
use crate::source::ApiConfig;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest `note` that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;
/// Longest object name in an Event's own, so that the whole is a valid one.
const MAX_NAME: usize = 200;

/// Something worth telling about an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Occurrence {
    /// Kind of the object: `Service`, `EndpointSlice`, `Endpoints` or `Node`.
    pub kind: String,
    /// Its namespace; empty for a Node.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, where it is known.
    pub uid: Option<String>,
    /// A stable word in CamelCase.
    pub reason: String,
    /// A sentence; cut at 1024 bytes.
    pub message: String,
    /// The node it is about; `None` for what every node sees.
    pub node: Option<String>,
}

/// How the API server took an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// It is new.
    Created,
    /// It is there, by this node or another one.
    Known,
    /// netd may not write Events, or not in this namespace.
    Forbidden,
}

/// Writes Events.
#[derive(Clone)]
pub struct EventWriter {
    client: Client,
    node: String,
}

impl std::fmt::Debug for EventWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventWriter").field("node", &self.node).finish_non_exhaustive()
    }
}

impl EventWriter {
    /// A writer in the name of a node. Asks nobody yet.
    ///
    /// # Errors
    /// When the configuration makes no client.
    pub async fn new(config: ApiConfig, node: impl Into<String>) -> Result<Self, Error> {
        let client = Connection::prepare(config).await?.client()?;
        Ok(Self { client, node: node.into() })
    }

    /// Writes one Event; ends after ten seconds at the latest.
    ///
    /// # Errors
    /// When the API server is away or does not take it.
    pub async fn post(&self, occurrence: &Occurrence) -> Result<Posted, Error> {
        let event = self.event(occurrence);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let post = PostParams::default();
        match tokio::time::timeout(PATIENCE, api.create(&post, &event)).await {
            Ok(Ok(_)) => Ok(Posted::Created),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(Posted::Known),
            // 404: the namespace went.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => Ok(Posted::Forbidden),
            Ok(Err(error)) => Err(Error::Event(Box::new(error))),
            Err(_elapsed) => Err(Error::EventTimeout),
        }
    }

    fn event(&self, occurrence: &Occurrence) -> Event {
        let Occurrence { kind, namespace, name, uid, reason, message, .. } = occurrence;
        let group = if kind == "EndpointSlice" { "discovery.k8s.io/v1" } else { "v1" };
        // Events about what is in no namespace are in this one.
        let own = if namespace.is_empty() { "default" } else { namespace };
        let regarding = ObjectReference {
            api_version: Some(group.to_owned()),
            kind: Some(kind.clone()),
            namespace: Some(namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(name.clone()),
            uid: uid.clone(),
            ..ObjectReference::default()
        };
        Event {
            metadata: ObjectMeta {
                name: Some(event_name(occurrence)),
                namespace: Some(own.to_owned()),
                ..ObjectMeta::default()
            },
            action: Some("Program".to_owned()),
            event_time: Some(MicroTime(jiff::Timestamp::now())),
            note: Some(cut(message, MAX_NOTE).to_owned()),
            reason: Some(reason.clone()),
            regarding: Some(regarding),
            reporting_controller: Some("netd".to_owned()),
            reporting_instance: Some(self.node.clone()),
            type_: Some("Warning".to_owned()),
            ..Event::default()
        }
    }
}

/// The same on every node for the same occurrence, as long as they run the same netd; another netd at worst tells
/// it once more.
fn event_name(occurrence: &Occurrence) -> String {
    let mut hasher = DefaultHasher::new();
    occurrence.hash(&mut hasher);
    let name = cut(&occurrence.name, MAX_NAME).trim_end_matches(['.', '-']);
    format!("{name}.{:016x}", hasher.finish())
}

/// The beginning of a text, whole characters only.
fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests;

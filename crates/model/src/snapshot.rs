//! All objects of interest at one generation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::object::{EndpointSlice, Node, ObjectName, Service};
use crate::ordered::OrderedMap;
use crate::shared::Shared;

/// An object that was refused, and why; everything else is in the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Kind of the object: `Service`, `EndpointSlice`, `Endpoints`, `Node` or `Manifest`.
    pub kind: String,
    /// `namespace/name`, or the file and document number of a manifest.
    pub object: String,
    /// What is wrong and what to do about it.
    pub message: String,
}

/// An immutable picture of the cluster, complete for every kind. A clone costs nothing and shares what does not
/// change afterwards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Grows by one with each published snapshot of a process.
    pub generation: u64,
    /// True when the source is not reachable and this is the last known (or stored) state.
    pub stale: bool,
    /// Services by name, headless and ExternalName included.
    pub services: OrderedMap<ObjectName, Arc<Service>>,
    /// Endpoint slices by the Service they belong to, each list ordered by slice name.
    pub slices: OrderedMap<ObjectName, Vec<Arc<EndpointSlice>>>,
    /// Nodes by name.
    pub nodes: Shared<BTreeMap<Arc<str>, Arc<Node>>>,
    /// Namespaces known to exist, where the source lists them; otherwise those that Services live in.
    pub namespaces: Shared<BTreeSet<Arc<str>>>,
    /// Refused objects.
    pub problems: Shared<Vec<Problem>>,
}

impl Snapshot {
    /// Slices of a Service; empty when it has none.
    pub fn slices_of(&self, service: &ObjectName) -> &[Arc<EndpointSlice>] {
        self.slices.get(service).map_or(&[], Vec::as_slice)
    }
}

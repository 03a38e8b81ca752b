//! How a source is doing, for `netd status`, readiness and metrics.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The state of a source as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Where objects come from: `api URL` or `manifests DIR`.
    pub source: String,
    /// True when every required kind has contact with the source.
    pub connected: bool,
    /// When `connected` last changed.
    pub since: SystemTime,
    /// True when every kind has been listed completely at least once.
    pub synced: bool,
    /// The newest error of any kind, cleared when contact is back.
    pub last_error: Option<String>,
    /// Each kind of object.
    pub kinds: Vec<KindStatus>,
}

/// The state of one kind of object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindStatus {
    /// `Service`, `EndpointSlice`, `Endpoints`, `Node` or `Namespace`.
    pub kind: String,
    /// True when listed completely at least once.
    pub synced: bool,
    /// True when the last exchange with the source succeeded.
    pub connected: bool,
    /// Objects known and valid.
    pub objects: usize,
    /// Objects refused in whole or in part.
    pub problems: usize,
    /// The newest error, cleared when contact is back.
    pub last_error: Option<String>,
}

impl SourceStatus {
    pub(crate) fn new(source: String) -> Self {
        Self {
            source,
            connected: false,
            since: SystemTime::now(),
            synced: false,
            last_error: None,
            kinds: Vec::new(),
        }
    }
}

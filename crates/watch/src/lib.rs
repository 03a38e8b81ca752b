//! Kubernetes objects into the model's [`Snapshot`](netd_model::Snapshot), from an API server or a directory.
//!
//! - `wire`: slim serde types, only the fields that netd reads
//! - `decode`: wire types to validated model objects; pure
//! - `index`: the one owner of the current objects; coalesces changes and publishes snapshots
//! - `api`: list and watch of a Kubernetes API server
//! - `manifests`: a directory of ordinary YAML, re-read on change
//! - `store`: the last snapshot on disk, for a start while the API server is down
//! - `events`: Events about objects, the one thing that is written
//! - [`update`]: what subscribers receive
//!
//! A publish clones the snapshot's maps, not its objects: its cost is proportional to the number of Services
//! and Nodes, and objects that did not change are shared with the snapshot before.

#![forbid(unsafe_code)]

mod api;
mod decode;
mod error;
mod events;
mod index;
mod manifests;
mod source;
mod status;
mod store;
pub mod update;
mod wire;

pub use error::Error;
pub use events::{EventWriter, Occurrence, Posted};
pub use source::{ApiConfig, ManifestsConfig, Options, Source, run};
pub use status::{KindStatus, SourceStatus};
pub use update::{Arrivals, MAX_TRIGGERED, Publisher, Subscriber, Update, channel};

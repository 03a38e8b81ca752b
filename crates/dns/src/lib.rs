//! Cluster DNS on the node: names of Services out of the snapshot, everything else from an upstream.
//!
//! - [`zone`]: what a name means, over one immutable snapshot. Pure.
//! - [`mod@answer`]: one request packet into one reply packet. Pure, and safe on any bytes.
//! - [`forward`]: names of other zones, from upstream servers.
//! - [`server`]: UDP and TCP sockets around the two.
//! - [`metrics`]: counters, without a metrics library.
//! - [`wire`]: the message format (RFC 1035, RFC 6891).
//!
//! The rules and the decisions behind them are in `docs/dns.md`.
#![forbid(unsafe_code)]

pub mod answer;
mod entropy;
mod error;
pub mod forward;
pub mod metrics;
pub mod server;
pub mod wire;
pub mod zone;

use std::sync::Arc;

pub use answer::{Disposition, Outcome, Query, Transport, answer};
pub use error::Error;
pub use forward::{ForwardLimits, Forwarder, UpstreamStatus, Upstreams};
pub use metrics::{Counters, Metrics, Origin, RequestCount, ResponseCount};
pub use server::{Server, ServerConfig};
pub use zone::{View, Zone, ZoneConfig};

/// The view that the servers answer from; replaced as a whole after each snapshot.
pub type SharedView = Arc<arc_swap::ArcSwap<View>>;

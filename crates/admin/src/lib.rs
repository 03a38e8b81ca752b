//! The state of a node, read-only, over a unix socket.
//!
//! - [`state`]: the versioned document; the contract with scripts and with later versions
//! - [`programmed`]: the plan as the list of Services in that document
//! - [`health`]: what the document means for an exit code
//! - [`server`] and [`client`]: HTTP over the socket
//! - [`render`]: the document as tables for people
#![forbid(unsafe_code)]

pub mod client;
mod error;
pub mod health;
pub mod programmed;
pub mod render;
pub mod server;
pub mod state;

pub use client::Client;
pub use error::Error;
pub use health::{Health, exit_code};
pub use programmed::services;
pub use server::{AdminServer, StateSource};
pub use state::{
    DataplaneState, DnsState, FrontendState, GarbageState, IpamState, KindState, LeaseState, NodeRouteState,
    NoticeState, PartState, PoolState, ProblemState, Refusal, ServiceState, SourceState, StateDoc, Timestamp,
    UpstreamState,
};

/// Where the daemon listens unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/netd/netd.sock";
/// Version of the documents.
pub const API_VERSION: &str = "netd.io/v1alpha1";

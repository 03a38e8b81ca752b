//! A cluster's network in one machine: a LAN, nodes and pods as network namespaces, for `netd demo` and the tests.
//!
//! Nothing here starts another program but those the caller names (the CNI plugin, the agent), and nothing outside of
//! the lab's own namespaces, cgroups and state directory is touched. All that is made is first written to a record in
//! the state directory, so that [`Lab::remove`] can take away what a killed run left.
//!
//! | module | what it is |
//! |---|---|
//! | [`lab`](Lab) | the LAN and the machines on it |
//! | [`Node`], [`Pod`] | machines and what runs on them; [`Place`] is what both can do |
//! | [`traffic`] | servers and clients, in threads |
//! | [`agent`] | the same as child processes in a pod's cgroup, where socket hooks see them |
//! | [`dns`] | DNS questions, written by hand so that they do not share code with the server under test |
#![forbid(unsafe_code)]

pub mod agent;
mod cni;
pub mod dns;
mod error;
mod lab;
mod node;
mod place;
mod pod;
mod record;
mod spec;
pub mod traffic;

pub use cni::CniRuntime;
pub use error::Error;
pub use lab::Lab;
pub use node::{Node, PLAIN_BRIDGE};
pub use place::Place;
pub use pod::Pod;
pub use record::Removed;
pub use spec::{LabSpec, NodeSpec, PlainPodSpec, PodSpec};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

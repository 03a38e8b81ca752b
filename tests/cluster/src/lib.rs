//! A real Kubernetes cluster in network namespaces, on which netd alone is the network.
//!
//! - [`prerequisites()`]: what the machine must have, and how to get it.
//! - [`binaries`]: the Kubernetes programs (built once, cached), the probe and kit programs, netd and netd-cni.
//! - [`run`]: names, directories and cgroups of one run, removal of them, and of what killed runs left.
//! - [`lan`]: the network `192.168.1.0/24` the machines are on.
//! - [`machine`]: one machine as a set of namespaces; [`inside`] is its first process.
//! - [`control_plane`], [`worker`], [`netd`]: what runs on the machines.
//! - [`kubectl`], [`probe`]: how a test speaks to the cluster, and to programs in pods.
//! - [`course`]: netd beside kube-proxy with thousands of Services, for `cargo xtask bench services`.
//! - [`cluster`]: all of it together; [`scenario`]: the tests.

#![expect(
    clippy::disallowed_methods,
    reason = "a test harness starts processes and reads the clock itself; the rule is for the product"
)]

pub mod binaries;
pub mod cluster;
pub mod control_plane;
pub mod course;
pub mod inside;
pub mod kubectl;
pub mod lan;
pub mod machine;
pub mod netd;
mod prerequisites;
pub mod probe;
pub mod run;
pub mod scenario;
mod tool;
pub mod worker;

pub use cluster::Cluster;
pub use prerequisites::{PACKAGES, packages, prerequisites};
pub use tool::{eventually, tail};

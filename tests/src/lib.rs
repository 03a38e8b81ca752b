//! What the integration tests stand on.
//!
//! - [`bed`]: the site of the conformance suite, built from namespaces
//! - [`backend`]: the kernel backends of this host and what each can do
//! - [`packets`]: rows of the suite tried with real connections
//! - [`worker`]: a process of its own that applies plans and can be killed
//!
//! The tests themselves are in `tests/integration.rs`: one binary that is also the agent and the worker,
//! which it starts by running itself.

#![forbid(unsafe_code)]

pub mod backend;
pub mod bed;
pub mod packets;
pub mod worker;

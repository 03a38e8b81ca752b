//! What the CNI plugin made for the pods of this node, as the daemon looks after it.
//!
//! - [`inventory`]: ledgers, links, neighbours, routes, ports and masquerade rules, read at one moment
//! - [`garbage`]: which of it nothing live owns, pure; [`collector`]: what becomes of that
//! - [`upkeep`], [`bridge`]: what somebody else took away from running pods is put back
//! - [`routes`]: the node's routes to pods that hang on no bridge
//! - [`ranges`]: podCIDRs that the node had before and pods still have addresses of

mod bridge;
pub(super) mod collector;
mod garbage;
mod inventory;
pub(super) mod ranges;
pub(crate) mod routes;
pub(super) mod upkeep;

#[cfg(test)]
mod tests;

/// The text that says that a bridge is netd's (docs/cni.md).
const BRIDGE_ALIAS: &str = "netd bridge";

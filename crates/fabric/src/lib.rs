//! How pods of different nodes reach each other, and what a node needs before it may have pods.
//!
//! - `routes`: which routes a cluster's nodes ask for, pure
//! - `overlay`: the VXLAN to nodes on other LANs, pure
//! - `reconcile`: [`Fabric`], which makes the kernel have exactly those; `vtep`: the VXLAN device
//! - `node`: forwarding, masquerade and the file the CNI plugin reads ([`ensure_node`])
//! - `conflist`: the CNI network configuration list, which tells the container runtime that the node is ready
//!
//! Nodes on one shared LAN route pod prefixes to each other directly ("host-gw"). A node behind a router is
//! reached by VXLAN, or, where that is not wanted, named as a problem, not routed wrongly.

#![forbid(unsafe_code)]

mod conflist;
mod error;
mod node;
mod overlay;
mod reconcile;
mod routes;
mod vtep;

pub use conflist::{CniConfig, conflist, remove_conflist, write_conflist};
pub use error::Error;
pub use node::{NodeNet, ensure_node, remove_node};
pub use overlay::{DEVICE, Mode, Overlay, Settings, Vtep, vtep_mac};
pub use reconcile::{Fabric, Report};
pub use routes::{Attached, Desired, RouteSpec, desired};

//! The only crate of netd that makes system calls and speaks netlink.
//!
//! Everything here blocks and needs no runtime; only the feature `monitor` adds tokio. What belongs to a network
//! namespace (a netlink conversation, a sysctl) belongs to the namespace of the *calling thread*: wrap the call in
//! [`Namespace::run`] to act elsewhere. The process as a whole never changes its namespace.
//!
//! | module | what it talks to |
//! |---|---|
//! | [`clock`] | time, as a trait so that tests own it |
//! | [`exec`] | other programs: short commands ([`Exec`]) and long-lived children ([`exec::Spawn`]) |
//! | [`heap`] | memory for programs that live for a millisecond |
//! | [`netns`] | network namespaces |
//! | [`link`], [`netlink`] | links, addresses, routes, neighbours over rtnetlink |
//! | [`classic`] | programs for the kernel's packet filter |
//! | [`conntrack`] | the connection tracking table |
//! | [`sysctl`] | `/proc/sys` |
//! | [`masquerade`] | the nftables rules that give packets of pods the node's address |
//! | [`hostport`] | the nftables maps that lead ports of the node to pods |
//! | [`lock`], [`mod@file`] | file locks, atomic writes, the boot id |
//! | [`reap`] | links that the daemon deletes later |
//! | [`nftables`] | the generation of the nf_tables rules |
//! | [`mount`], [`cgroup`] | bpffs and cgroup v2 |
//! | `monitor` | what changed in the kernel (feature `monitor`) |

pub mod cgroup;
pub mod classic;
pub mod clock;
pub mod conntrack;
mod error;
pub mod exec;
pub mod file;
pub mod heap;
pub mod hostport;
pub mod link;
pub mod lock;
pub mod masquerade;
#[cfg(feature = "monitor")]
pub mod monitor;
pub mod mount;
pub mod netlink;
pub mod netns;
mod nft;
pub mod nftables;
pub mod process;
pub mod reap;
pub mod sysctl;

pub use clock::{Clock, SystemClock};
pub use error::Error;
pub use exec::{Exec, Output, SystemExec};
pub use link::{Ifindex, Link, Mac};
pub use netlink::{Netlink, ROUTE_PROTOCOL};
pub use netns::Namespace;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

//! The iptables service dataplane: decisions of a [`netd_model::ServicePlan`] as chains that an operator of
//! kube-proxy recognises.
//!
//! - `config`: what can be chosen, and the mark bit
//! - `rule`: a rule of ours as a value, rendered as `iptables-save` prints it and parsed from it
//! - `ruleset`: chains and jumps of one family, installed or wanted; reading `iptables-save`
//! - `names`: chain names and comments
//! - `compile`: plan to chains, pure
//! - `restore`: the text for `iptables-restore` that turns one ruleset into another, pure
//! - `tool`: the iptables programs of one variant and family
//! - `detect`: which variant (nft or legacy) this host uses
//! - `backend`: [`Iptables`], the dataplane
//! - `trace`: steps a flow through installed rules
//!
//! Known limit of the kernel's `xt_recent`: session affinity remembers 100 clients an endpoint (module
//! parameter `ip_list_tot`).

#![forbid(unsafe_code)]

mod backend;
mod compile;
mod config;
mod detect;
mod names;
mod restore;
mod rule;
mod ruleset;
mod tool;
mod trace;

#[cfg(test)]
mod testing;

pub use backend::Iptables;
pub use config::{DEFAULT_MASQUERADE_BIT, IptablesConfig, Variant};
pub use detect::Implementation;

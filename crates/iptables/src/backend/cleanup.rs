//! Removing all that is ours, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use iptables::IPTables;
use netd_dataplane::ApplyError;
use netd_model::Family;
use tracing::warn;

use crate::detect::Implementation;
use crate::restore::batched;
use crate::ruleset::Ruleset;
use crate::tool::Tool;

/// Removes every chain and jump of ours and returns how many. Nothing there is success.
pub(super) fn remove_all(tool: &Tool) -> Result<usize, ApplyError> {
    let found = tool.installed()?;
    if found.is_empty() {
        return Ok(0);
    }
    let change = batched(&found, &BTreeMap::new(), &[], tool.batch());
    let Err(error) = tool.restore(&change.text) else { return Ok(change.changed) };
    // All or nothing was refused: take away one by one what can be.
    warn!(variant = %tool.variant, family = %tool.family, %error, "removing rules one by one");
    one_by_one(tool, &found);
    let left = tool.installed()?;
    if left.is_empty() { Ok(change.changed) } else { Err(error) }
}

/// Jumps first, then the rules of all chains, then the chains. Goes on after a failure.
pub(super) fn one_by_one(tool: &Tool, found: &Ruleset) {
    let program = IPTables {
        cmd: match (tool.variant, tool.family) {
            (Implementation::Nft, Family::V4) => "iptables-nft",
            (Implementation::Nft, Family::V6) => "ip6tables-nft",
            (Implementation::Legacy, Family::V4) => "iptables-legacy",
            (Implementation::Legacy, Family::V6) => "ip6tables-legacy",
        },
        has_check: true,
        has_wait: true,
        is_numeric: true,
    };
    let tell = |what: &str, name: &str, result: Result<(), Box<dyn std::error::Error>>| {
        if let Err(error) = result {
            warn!(what, name, %error, "cannot remove");
        }
    };
    for jump in &found.jumps {
        tell("jump", &jump.base, program.delete(jump.table.name(), &jump.base, &jump.text));
    }
    let keys: BTreeSet<_> = found.chains.keys().collect();
    for key in &keys {
        tell("rules of chain", &key.name, program.flush_chain(key.table.name(), &key.name));
    }
    for key in &keys {
        tell("chain", &key.name, program.delete_chain(key.table.name(), &key.name));
    }
}

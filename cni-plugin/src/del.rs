//! DEL: removes what an ADD made, however far it came, however often it is called.

use std::net::IpAddr;

use netd_ipam::Owner;
use netd_kernel::Netlink;
use netd_kernel::reap::Reaper;

use crate::attachment;
use crate::call::{Call, own_namespace};
use crate::config::Config;
use crate::error::{CniError, Code};
use crate::import;
use crate::leases;
use crate::naming;
use crate::node;
use crate::ports;

/// Does a DEL.
///
/// The container's namespace is never entered: its link goes with the host's end, and a path that is stale or gone
/// changes nothing. Where a daemon deletes links, the link is left to it, switched off, unless `strictDelete` is set.
///
/// # Errors
/// Code 104 when something is left; code 7 when the IPAM plugin that has the addresses is not
/// installed; code 8, after everything is removed, when the namespace named is the host's.
pub fn del(call: &Call, config: &Config) -> Result<(), CniError> {
    let mut netlink = Netlink::open().map_err(|e| {
        CniError::new(Code::Wiring, "the kernel's netlink cannot be used").because(e).and("is this root?")
    })?;
    let reaper = if config.strict_delete { None } else { Reaper::find() };
    let mut failures = remove(&mut netlink, config, &call.owner, reaper.as_ref());
    failures.extend(give_back(call, config, &call.owner));
    if reaper.is_none() {
        // What was left to a daemon that has ended meanwhile.
        failures.extend(attachment::delete_aside(&mut netlink).err().map(|error| error.to_string()));
    }
    if let Some(delegate) = &config.delegate {
        delegate.locate(call)?;
    }
    let error = CniError::new(Code::Teardown, format!("{} is not removed completely", call.owner));
    report(error, failures)?;
    match call.netns.as_deref() {
        Some(path) if call.names_own_namespace() => Err(own_namespace(path)),
        Some(_) | None => Ok(()),
    }
}

/// Removes an attachment at once, and gives its addresses back to the plugin that gave them; returns all that failed.
pub fn remove_with_grant(netlink: &mut Netlink, call: &Call, config: &Config, owner: &Owner) -> Vec<String> {
    let mut failures = remove(netlink, config, owner, None);
    failures.extend(give_back(call, config, owner));
    failures
}

fn give_back(call: &Call, config: &Config, owner: &Owner) -> Option<String> {
    config.delegate.as_ref()?.del(call, owner).err().map(|error| error.to_string())
}

/// Removes an attachment: link and neighbour entries first, then host ports, which a daemon puts back for a pod whose
/// link is there, the lease last, so that an address that is still wired is never given to another. Returns all that
/// failed.
fn remove(netlink: &mut Netlink, config: &Config, owner: &Owner, reaper: Option<&Reaper>) -> Vec<String> {
    let (known, mut failures) = match leases::look_up(config, owner) {
        Ok(known) => (known, Vec::new()),
        // The link is removed all the same.
        Err(error) => (None, vec![error.to_string()]),
    };
    let addresses = known
        .as_ref()
        .map_or_else(|| addresses_of_link(netlink, owner), |(lease, _)| lease.addresses.clone());
    let mut unwired = attachment::unwire(netlink, &node::gateway_link(config), owner, &addresses, reaper);
    unwired.extend(ports::remove(&config.network, owner).err());
    failures.extend(unwired.iter().map(ToString::to_string));
    if let Some((lease, ledger)) = known.filter(|_| unwired.is_empty()) {
        // First the copy: after a kill in between, the next call finds the lease again.
        if let Some(directory) = &config.import {
            failures.extend(import::forget(directory, &lease).err().map(|error| error.to_string()));
        }
        failures.extend(leases::end(config, ledger, owner).err().map(|error| error.to_string()));
    }
    failures
}

/// The addresses that the attachment's link tells, for an owner that the ledger does not know.
fn addresses_of_link(netlink: &mut Netlink, owner: &Owner) -> Vec<IpAddr> {
    let alias = attachment::host_link(netlink, owner).ok().flatten().and_then(|link| link.alias);
    alias.as_deref().and_then(naming::addresses_from_alias).unwrap_or_default()
}

/// Turns what failed into one error.
pub fn report(error: CniError, failures: Vec<String>) -> Result<(), CniError> {
    if failures.is_empty() { Ok(()) } else { Err(failures.into_iter().fold(error, |error, f| error.and(f))) }
}

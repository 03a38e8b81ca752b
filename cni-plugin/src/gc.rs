//! GC: removes every attachment of the network that the runtime does not know.

use std::collections::BTreeSet;

use netd_ipam::Owner;
use netd_kernel::Netlink;

use crate::attachment;
use crate::call::Call;
use crate::config::Config;
use crate::del;
use crate::error::{CniError, Code};
use crate::leases;
use crate::naming;
use crate::ports;

/// Does a GC; goes on past errors and tells them at the end.
///
/// Without a list of valid attachments, as libcni calls for `cnitool gc`, only what has lost its link is garbage: an
/// absent list must not remove every pod's network.
///
/// # Errors
/// Code 104 when something is left.
pub fn gc(call: &Call, config: &Config) -> Result<(), CniError> {
    let mut netlink = Netlink::open().map_err(|e| {
        CniError::new(Code::Wiring, "the kernel's netlink cannot be used").because(e).and("is this root?")
    })?;
    let Some(valid) = &config.valid else { return gc_dead(call, config, &mut netlink) };
    let valid: BTreeSet<&Owner> = valid.iter().collect();
    let (owners, mut failures) = owners(&mut netlink, config);
    // By name as well: an alias that was cut short does not tell its owner.
    let valid_links: BTreeSet<String> = valid.iter().map(|owner| naming::host_link(owner)).collect();
    for owner in owners.iter().filter(|owner| !valid.contains(owner)) {
        failures.extend(del::remove_with_grant(&mut netlink, call, config, owner));
    }
    let shapers = valid.iter().map(|owner| naming::shaper(owner));
    let valid_names: BTreeSet<String> = shapers.chain(valid_links.iter().cloned()).collect();
    failures.extend(remove_strays(&mut netlink, config, &valid_names));
    failures.extend(attachment::delete_aside(&mut netlink).err().map(|error| error.to_string()));
    failures.extend(ports::collect(&config.network, &valid_links).iter().map(ToString::to_string));
    if let Some(delegate) = &config.delegate {
        failures.extend(delegate.pass(call, "GC").err().map(|error| error.to_string()));
    }
    report(config, failures)
}

/// Removes what is left of attachments whose link is gone.
fn gc_dead(call: &Call, config: &Config, netlink: &mut Netlink) -> Result<(), CniError> {
    let (owners, mut failures) = owners(netlink, config);
    for owner in &owners {
        match attachment::host_link(netlink, owner) {
            Ok(Some(_)) => {}
            Ok(None) => failures.extend(del::remove_with_grant(netlink, call, config, owner)),
            Err(error) => failures.push(error.to_string()),
        }
    }
    failures.extend(attachment::delete_aside(netlink).err().map(|error| error.to_string()));
    if let Some(delegate) = &config.delegate {
        failures.extend(delegate.pass(call, "GC").err().map(|error| error.to_string()));
    }
    report(config, failures)
}

fn report(config: &Config, failures: Vec<String>) -> Result<(), CniError> {
    let network = &config.network;
    let error =
        CniError::new(Code::Teardown, format!("garbage of network {network} is not removed completely"));
    del::report(error, failures)
}

/// Everyone who has a lease or a link of the network.
fn owners(netlink: &mut Netlink, config: &Config) -> (BTreeSet<Owner>, Vec<String>) {
    let mut failures = Vec::new();
    let mut owners = BTreeSet::new();
    match leases::open_existing(config) {
        Ok(Some(mut ledger)) => match ledger.leases() {
            Ok(leases) => owners.extend(leases.iter().map(|lease| lease.owner.clone())),
            Err(error) => failures.push(leases::failed(&error).to_string()),
        },
        Ok(None) => {}
        Err(error) => failures.push(error.to_string()),
    }
    match netlink.links() {
        Ok(links) => {
            let aliases = links.iter().filter_map(|link| link.alias.as_deref());
            let network = &config.network;
            owners.extend(aliases.filter_map(|alias| {
                let lease = naming::lease_from_alias(network, alias).map(|lease| lease.owner);
                lease.or_else(|| naming::shaper_owner(network, alias))
            }));
        }
        Err(error) => failures.push(error.to_string()),
    }
    (owners, failures)
}

/// Removes links of the network whose alias did not lead to their name.
fn remove_strays(netlink: &mut Netlink, config: &Config, valid: &BTreeSet<String>) -> Vec<String> {
    let links = match netlink.links() {
        Ok(links) => links,
        Err(error) => return vec![error.to_string()],
    };
    let stray = |alias: &str| {
        naming::lease_from_alias(&config.network, alias).is_some()
            || naming::is_shaper_of(&config.network, alias)
    };
    let strays = links.iter().filter(|l| l.alias.as_deref().is_some_and(stray) && !valid.contains(&l.name));
    let outcomes: Vec<_> = strays.map(|link| netlink.delete_link(link.index)).collect();
    outcomes
        .into_iter()
        .filter_map(Result::err)
        .filter(|e| !e.is_not_found())
        .map(|e| e.to_string())
        .collect()
}

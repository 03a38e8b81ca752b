//! The ledger of a network, with the links of the host as its second memory.

use std::path::PathBuf;

use netd_ipam::{Lease, Ledger, Moment, Options, Owner, PortMapping, Request, Suspended, UnderWay};
use netd_kernel::Netlink;

use crate::call::Call;
use crate::config::{Config, Mode};
use crate::error::{CniError, Code};
use crate::import;
use crate::naming;
use crate::ranges::NodeRanges;

/// Opens and locks the ledger; what was damaged is told on standard error.
///
/// # Errors
/// Code 102, or 11 when another call holds the ledger for too long.
pub fn open(config: &Config) -> Result<Ledger<'_>, CniError> {
    let options = Options {
        directory: &config.directory,
        network: &config.network,
        cool_down: config.cool_down,
        now: Moment::now().map_err(|e| failed(&e))?,
    };
    let ledger = Ledger::open(options, || live(config)).map_err(|e| failed(&e))?;
    tell_damage(config, &ledger, None);
    Ok(ledger)
}

/// Says that an ADD is under way, until dropped: whoever collects garbage waits, since a pod that has taken its addresses
/// and has no link yet looks like a leak.
///
/// # Errors
/// Code 102, or 11 when the collection takes too long.
pub fn announce(config: &Config) -> Result<UnderWay, CniError> {
    UnderWay::announce(&config.directory, &config.network).map_err(|e| failed(&e))
}

/// Takes the pod's addresses, and remembers its host ports and bridge with them.
///
/// # Errors
/// What the ledger refuses.
pub fn take(
    call: &Call,
    config: &Config,
    ranges: &NodeRanges,
    ledger: &mut Ledger<'_>,
) -> netd_ipam::Result<Lease> {
    let wishes = &config.wishes;
    let ports: Vec<PortMapping> = wishes
        .ports
        .iter()
        .map(|wish| PortMapping {
            transport: wish.transport,
            host_port: wish.host_port,
            container_port: wish.container_port,
            host_ip: wish.host_ip,
        })
        .collect();
    let request = Request {
        owner: &call.owner,
        pod: call.pod.as_ref(),
        wanted: &wishes.addresses,
        ports: &ports,
        bridge: (config.wiring.mode == Mode::Bridge).then_some(config.bridge.as_str()),
    };
    watched(config, ledger, |ledger| ledger.allocate_for(&request, &ranges.pools))
}

/// The lease of an owner, and the ledger for the time when it is to end; nothing where there is no lease.
///
/// # Errors
/// Code 102, or 11 when another call holds the ledger for too long.
pub fn look_up<'a>(config: &'a Config, owner: &Owner) -> Result<Option<(Lease, Suspended<'a>)>, CniError> {
    let Some(mut ledger) = open_existing(config)? else { return Ok(None) };
    let lease = watched(config, &mut ledger, |ledger| ledger.lease_of(owner)).map_err(|e| failed(&e))?;
    match lease {
        Some(lease) => Ok(Some((lease, ledger.suspend().map_err(|e| failed(&e))?))),
        None => Ok(None),
    }
}

/// Ends the lease of an owner.
///
/// # Errors
/// Code 102, or 11 when another call holds the ledger for too long.
pub fn end(config: &Config, suspended: Suspended<'_>, owner: &Owner) -> Result<(), CniError> {
    let resumed = suspended.resume();
    let ended = resumed.and_then(|mut ledger| watched(config, &mut ledger, |ledger| ledger.release(owner)));
    ended.map(drop).map_err(|e| failed(&e))
}

/// Does something with the ledger, and tells of damage that is only found then.
fn watched<'a, T>(
    config: &Config,
    ledger: &mut Ledger<'a>,
    work: impl FnOnce(&mut Ledger<'a>) -> netd_ipam::Result<T>,
) -> netd_ipam::Result<T> {
    let before = ledger.opened().damaged.clone();
    let done = work(ledger);
    tell_damage(config, ledger, before);
    done
}

/// Tells of damage, unless it is what was known before.
fn tell_damage(config: &Config, ledger: &Ledger<'_>, before: Option<(PathBuf, String)>) {
    let opened = ledger.opened();
    if opened.damaged == before {
        return;
    }
    if let Some((kept, reason)) = &opened.damaged {
        eprintln!(
            "netd-cni: the ledger of network {} was damaged ({reason}): kept as {}, {} leases found in the kernel",
            config.network,
            kept.display(),
            opened.rebuilt
        );
    }
}

/// Opens the ledger if there is one, or leases to begin one with: where nothing was ever added, nothing is to be made.
pub fn open_existing(config: &Config) -> Result<Option<Ledger<'_>>, CniError> {
    let path = Ledger::path_of(&config.directory, &config.network);
    let import = config.import.as_deref().is_some_and(std::path::Path::is_dir);
    if path.symlink_metadata().is_err() && !import { Ok(None) } else { open(config).map(Some) }
}

/// The leases that the host's links show, by their aliases, and behind them those that host-local gave in this boot.
fn live(config: &Config) -> netd_kernel::Result<Vec<Lease>> {
    let links = Netlink::open()?.links()?;
    let aliases = links.iter().filter_map(|link| link.alias.as_deref());
    let mut all: Vec<Lease> =
        aliases.filter_map(|alias| naming::lease_from_alias(&config.network, alias)).collect();
    all.retain(|lease| !lease.addresses.is_empty());
    if let Some(directory) = &config.import {
        all.extend(import::leases(directory)?);
    }
    Ok(all)
}

/// The error of a ledger that does not work.
pub fn failed(cause: &netd_ipam::Error) -> CniError {
    let busy = matches!(cause, netd_ipam::Error::Kernel(error) if error.is_timeout());
    let code = if busy { Code::TryAgainLater } else { Code::Ledger };
    CniError::new(code, "the ledger of pod addresses cannot be used").because(cause)
}

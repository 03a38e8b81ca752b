//! The ledger of a network, with the links of the host as its second memory.

use netd_ipam::{Lease, Ledger, Moment, Options};
use netd_kernel::Netlink;

use crate::config::Config;
use crate::error::{CniError, Code};
use crate::import;
use crate::naming;

/// Opens and locks the ledger; what was damaged is told on standard error.
///
/// # Errors
/// Code 102, or 11 when another call holds the ledger for too long.
pub fn open(config: &Config) -> Result<Ledger, CniError> {
    let options = Options {
        directory: &config.directory,
        network: &config.network,
        cool_down: config.cool_down,
        now: Moment::now().map_err(|e| failed(&e))?,
    };
    let (ledger, opened) = Ledger::open(options, || live(config)).map_err(|e| failed(&e))?;
    if let Some((kept, reason)) = opened.damaged {
        eprintln!(
            "netd-cni: the ledger of network {} was damaged ({reason}): kept as {}, {} leases found in the kernel",
            config.network,
            kept.display(),
            opened.rebuilt
        );
    }
    Ok(ledger)
}

/// Opens the ledger if there is one, or leases to begin one with: where nothing was ever added, nothing is to be made.
pub fn open_existing(config: &Config) -> Result<Option<Ledger>, CniError> {
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

//! The ledger of a network, with the links of the host as its second memory.

use netd_ipam::{Lease, Ledger, Moment, Options};
use netd_kernel::Netlink;

use crate::config::Config;
use crate::error::{CniError, Code};
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
    let (ledger, opened) = Ledger::open(options, || live(&config.network)).map_err(|e| failed(&e))?;
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

/// Opens the ledger if there is one: where nothing was ever added, nothing is to be made.
pub fn open_existing(config: &Config) -> Result<Option<Ledger>, CniError> {
    let path = Ledger::path_of(&config.directory, &config.network);
    if path.symlink_metadata().is_err() { Ok(None) } else { open(config).map(Some) }
}

/// The leases that the host's links show, by their aliases.
fn live(network: &str) -> netd_kernel::Result<Vec<Lease>> {
    let links = Netlink::open()?.links()?;
    let aliases = links.iter().filter_map(|link| link.alias.as_deref());
    Ok(aliases.filter_map(|alias| naming::lease_from_alias(network, alias)).collect())
}

/// The error of a ledger that does not work.
pub fn failed(cause: &netd_ipam::Error) -> CniError {
    let busy = matches!(cause, netd_ipam::Error::Kernel(error) if error.is_timeout());
    let code = if busy { Code::TryAgainLater } else { Code::Ledger };
    CniError::new(code, "the ledger of pod addresses cannot be used").because(cause)
}

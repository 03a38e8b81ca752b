//! STATUS: says whether an ADD could succeed; runtimes ask every few seconds, so it only reads.

use netd_ipam::{Ledger, Usage};
use netd_kernel::Netlink;

use crate::call::Call;
use crate::config::{Config, Mode};
use crate::error::{CniError, Code};
use crate::leases;
use crate::ranges::NodeRanges;

/// Does a STATUS.
///
/// # Errors
/// Code 50 when the ranges are unknown or exhausted, 51 when the bridge that pods hang on is down.
pub fn status(call: &Call, config: &Config) -> Result<(), CniError> {
    if let Some(delegate) = &config.delegate {
        let passed = delegate.pass(call, "STATUS");
        let known = |code| matches!(code, Code::NotAvailable | Code::LimitedConnectivity);
        return passed
            .map_err(|e| if known(e.code) { e } else { CniError { code: Code::NotAvailable, ..e } });
    }
    if !config.wiring.addressed {
        return Ok(());
    }
    let ranges = NodeRanges::of(config).map_err(|error| CniError { code: Code::NotAvailable, ..error })?;
    let path = Ledger::path_of(&config.directory, &config.network);
    let usage = match Ledger::usage(&path, &ranges.pools) {
        Ok(usage) => usage,
        // The next ADD puts a damaged ledger aside and goes on.
        Err(netd_ipam::Error::Corrupt { .. }) => Usage::default(),
        Err(error) => return Err(CniError { code: Code::NotAvailable, ..leases::failed(&error) }),
    };
    let mut fills = ranges.pools.iter().zip(&usage.used);
    if let Some((pool, _)) = fills.find(|(pool, used)| **used >= pool.capacity()) {
        return Err(CniError::new(
            Code::NotAvailable,
            format!("network {} has no free address", config.network),
        )
        .because(format!("all {} of {pool} are in use", pool.capacity()))
        .and("remove pods from this node or give it a larger podCIDR"));
    }
    if config.wiring.mode == Mode::Routed {
        return Ok(());
    }
    let bridge = Netlink::open()
        .and_then(|mut netlink| netlink.link(&config.bridge))
        .map_err(|e| CniError::new(Code::NotAvailable, "the kernel's netlink cannot be used").because(e))?;
    if usage.leases > 0 && bridge.is_none_or(|link| !link.up) {
        return Err(CniError::new(
            Code::LimitedConnectivity,
            format!("bridge {} is missing or down", config.bridge),
        )
        .and("the next ADD makes it again; pods that were on it need to be made again"));
    }
    Ok(())
}

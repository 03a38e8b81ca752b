//! What can fail when handing out addresses.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::lease::Owner;

/// A failed operation on a network's addresses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The owner has addresses already; a second set would be lost on release.
    #[error("{owner} already has {}", join(addresses))]
    Exists {
        /// Who asked.
        owner: Owner,
        /// What it has.
        addresses: Vec<IpAddr>,
    },
    /// No address is left in a pool.
    #[error("no free address in {pool}: {leased} in use, {cooling} released moments ago{}", retry(*retry_in))]
    Exhausted {
        /// The pool's subnets.
        pool: String,
        /// Addresses in use.
        leased: u128,
        /// Addresses released too recently to be handed out again.
        cooling: u128,
        /// When the first of the cooling addresses may be handed out.
        retry_in: Option<Duration>,
    },
    /// An address was asked for that no pool can give, or a second one of the same pool.
    #[error("address {address} is not one that the network's ranges can give")]
    Outside {
        /// The address.
        address: IpAddr,
    },
    /// An address was asked for that somebody has.
    #[error("address {address} is in use by {owner}")]
    InUse {
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: Owner,
    },
    /// A range cannot be meant.
    #[error("address range {range}: {reason}")]
    BadRange {
        /// The range as written.
        range: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The ledger was written by a later netd.
    #[error("ledger {} has format {found}, this netd knows {known}: install the netd that wrote it", path.display())]
    Newer {
        /// The ledger.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The latest format known here.
        known: u32,
    },
    /// The ledger is damaged (only where it is not to be rebuilt: when reading).
    #[error("ledger {} is damaged: {reason}", path.display())]
    Corrupt {
        /// The ledger.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Something is longer than a ledger has room for.
    #[error("{what} is {length} long, a ledger has room for {limit}")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// How long it is.
        length: u64,
        /// How long it may be.
        limit: u64,
    },
    /// A file operation failed.
    #[error("{action} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The kernel layer failed: the lock, the atomic write, the boot id.
    #[error(transparent)]
    Kernel(#[from] netd_kernel::Error),
    /// The caller could not tell which addresses are live in the kernel.
    #[error("find the addresses in use to rebuild ledger {}: {cause}", path.display())]
    Scan {
        /// The ledger.
        path: PathBuf,
        /// What failed.
        cause: String,
    },
}

fn join(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

fn retry(after: Option<Duration>) -> String {
    after.map(|d| format!(", the next is free in {} s", d.as_secs() + 1)).unwrap_or_default()
}

//! Pod addresses: which are free, who has which, and a ledger that survives a kill at any instruction.
//!
//! | module | what it holds |
//! |---|---|
//! | [`range`](Range) | the addresses a network may hand out: [`Range`], [`Pool`] |
//! | [`lease`](Lease) | who has which address: [`Owner`], [`Pod`], [`Lease`] |
//! | [`book`](crate) | the pure allocator: least recently used first, with a cool-down |
//! | [`ledger`](Ledger) | the file behind it, its lock, and what happens when the file is torn |
//!
//! The CNI plugin writes through [`Ledger::open`]; the daemon and the operator's tool read with [`Ledger::read`].

#![forbid(unsafe_code)]

mod book;
mod error;
mod lease;
mod ledger;
mod range;

pub use book::Occupancy;
pub use error::Error;
pub use lease::{Lease, Leases, Owner, Pod};
pub use ledger::{EXTENSION, Ledger, Moment, Opened, Options};
pub use range::{Pool, Range};

/// Where ledgers live unless a configuration says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/netd/ipam";

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

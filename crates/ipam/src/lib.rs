//! Pod addresses: which are free, who has which, and a ledger that survives a kill at any instruction.
//!
//! | module | what it holds |
//! |---|---|
//! | [`range`](Range) | the addresses a network may hand out: [`Range`], [`Pool`] |
//! | [`lease`](Lease) | who has which address: [`Owner`], [`Pod`], [`Lease`] |
//! | [`book`](crate) | the pure allocator: least recently used first, with a cool-down |
//! | [`record`](crate) | one line of the ledger, read in place |
//! | [`alias`](Alias) | what the kernel's link says of a lease |
//! | [`ledger`](Ledger) | the file behind it, its lock, and what happens when the file is torn |
//!
//! The CNI plugin writes through [`Ledger::open`]; the daemon and the operator's tool read with [`Ledger::read`] and [`Ledger::inspect`].

#![forbid(unsafe_code)]

use std::time::Duration;

mod alias;
mod book;
mod error;
mod lease;
mod ledger;
mod range;
mod record;
mod underway;

pub use alias::Alias;
pub use book::Occupancy;
pub use error::Error;
pub use lease::{Lease, Leases, Owner, Pod};
pub use ledger::{Contents, EXTENSION, Ledger, Moment, Opened, Options};
pub use range::{Pool, Range};
pub use underway::UnderWay;

/// Where ledgers live unless a configuration says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/netd/ipam";

/// How long a released address rests unless a configuration says otherwise.
pub const DEFAULT_COOL_DOWN: Duration = Duration::from_secs(30);

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

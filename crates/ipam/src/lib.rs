//! Pod addresses: which are free, who has which, and a ledger that survives a kill at any instruction.
//!
//! | module | what it holds |
//! |---|---|
//! | [`range`](Range) | the addresses a network may hand out: [`Range`], [`Pool`] |
//! | [`lease`](Lease) | who has which address: [`Owner`], [`Pod`], [`Lease`] |
//! | [`alias`](Alias) | what the kernel's link says of a lease |
//! | [`ledger`](Ledger) | the file behind it, its lock, and what happens when the file is damaged |
//! | [`contents`](Contents) | what a ledger says, for who only reads it |
//! | `book` | the allocator: least recently used first, with a cool-down |
//! | `index`, `address`, `record`, `segment` | what the blocks of a file say |
//! | `store`, `storage` | the blocks, and changes that are done or not done |
//! | `text` | the earlier format |
//!
//! The CNI plugin writes through [`Ledger::open`]; the daemon and the operator's tool read with [`Ledger::read`] and [`Ledger::inspect`].

#![forbid(unsafe_code)]

use std::time::Duration;

mod address;
mod alias;
mod book;
mod contents;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod index;
mod lease;
mod ledger;
mod range;
mod record;
mod segment;
mod storage;
mod store;
mod text;
mod underway;

pub use alias::Alias;
pub use book::Occupancy;
pub use contents::{Contents, Usage};
pub use error::Error;
pub use lease::{Lease, Leases, Owner, Pod, PortMapping, Request};
pub use ledger::{EXTENSION, Ledger, Moment, Opened, Options, Suspended};
pub use range::{Pool, Range};
pub use underway::UnderWay;

/// Where ledgers live unless a configuration says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/netd/ipam";

/// How long a released address rests unless a configuration says otherwise.
pub const DEFAULT_COOL_DOWN: Duration = Duration::from_secs(30);

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

//! Entries for fuzzing: whatever the bytes are, nothing here panics, hangs, or gives an address twice.

use std::path::Path;
use std::time::Duration;

use crate::book::{Book, When};
use crate::lease::{Owner, Request};
use crate::range::{Pool, Range};
use crate::storage::Memory;
use crate::store::{Mode, Store, reseal};
use crate::text;

/// The network of the files that [`open`] believes.
pub const NETWORK: &str = "fuzz";
/// The boot id of the files that [`open`] believes.
pub const BOOT: &str = "boot";

/// Reads bytes as a ledger of either format, and where they are one, changes it. With `sealed` all checksums are made
/// right first, so that what lies behind them is reached.
pub fn open(bytes: &[u8], sealed: bool) {
    let mut bytes = bytes.to_vec();
    if sealed {
        reseal(&mut bytes);
    }
    let _ = text::replay(&bytes, NETWORK, BOOT);
    let path = Path::new("fuzz.ledger");
    let Ok(store) = Store::open(Box::new(Memory(bytes)), path, (NETWORK, BOOT), Mode::Journaled) else {
        return;
    };
    let Ok(mut book) = Book::of(store) else { return };
    let _ = (book.verify(), book.snapshot());
    let range = "10.0.0.0/24".parse().ok().and_then(|subnet| Range::new(subnet, None, None, None).ok());
    let pools: Vec<Pool> = range.and_then(|range| Pool::new(vec![range]).ok()).into_iter().collect();
    let when = When { now: Duration::from_secs(1000), cool_down: Duration::from_secs(30) };
    for name in ["a", "b"] {
        let owner = Owner { container: name.to_owned(), interface: "eth0".to_owned() };
        if matches!(book.misfit(&pools), Ok(None)) {
            let _ = book.allocate(&Request::of(&owner, None), &pools, when);
        }
        let _ = (book.lease_of(&owner), book.release(&owner, when.now));
    }
}

/// A whole ledger to begin with, for the corpus.
pub fn seed() -> Vec<u8> {
    let path = Path::new("fuzz.ledger");
    let built = crate::book::build(&crate::book::Snapshot::default(), &[], path, (NETWORK, BOOT));
    built.map(|(bytes, _)| bytes).unwrap_or_default()
}

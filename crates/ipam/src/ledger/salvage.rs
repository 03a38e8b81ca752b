//! What is still readable of a damaged ledger: more than the kernel's links tell.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use crate::book::Kept;
use crate::lease::Lease;
use crate::record;
use crate::store::{Kind, Store};

/// A pod takes its lease before it has a link; a runtime gives an ADD less time than this.
const STARTING: Duration = Duration::from_secs(60);

/// Every lease whose blocks are whole, where the file is known to be of this network and this boot.
pub(super) fn read(path: &Path, whose: (&str, &str)) -> Vec<Kept> {
    let store = File::open(path).ok().and_then(|file| Store::salvage(Box::new(file), path, whose));
    let Some(mut store) = store else { return Vec::new() };
    let mut found = Vec::new();
    for id in 1..store.root.blocks {
        if matches!(store.kind(id), Ok(Kind::Lease))
            && let Ok(record) = record::read(&mut store, id)
        {
            found.push(Kept { lease: record.lease, taken: record.taken });
        }
    }
    found
}

/// The leases to go on with: those that are live, with what was known of them, and behind them those of pods that may
/// have no link yet.
pub(super) fn merge(live: Vec<Lease>, mut salvaged: Vec<Kept>, now: Duration) -> Vec<Kept> {
    let known = |lease: Lease| {
        let same = |kept: &Kept| {
            // An alias has no room for a long container id.
            kept.lease.addresses == lease.addresses
                && kept.lease.owner.interface == lease.owner.interface
                && kept.lease.owner.container.starts_with(&lease.owner.container)
        };
        match salvaged.iter().position(same) {
            Some(place) => salvaged.swap_remove(place),
            None => Kept { lease, taken: Duration::ZERO },
        }
    };
    let mut leases: Vec<Kept> = live.into_iter().map(known).collect();
    let young = |kept: &Kept| !kept.taken.is_zero() && now.saturating_sub(kept.taken) < STARTING;
    leases.extend(salvaged.into_iter().filter(young));
    leases
}

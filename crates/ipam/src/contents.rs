//! What a ledger says, for who only reads it.

use std::net::IpAddr;
use std::time::Duration;

use crate::book::{Kept, Occupancy, Released, Snapshot, When};
use crate::lease::{Lease, Leases};
use crate::range::Pool;

/// What a ledger says, read without its lock.
#[derive(Debug, Default)]
pub struct Contents {
    snapshot: Snapshot,
}

/// How much of some pools is in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many leases the network has.
    pub leases: usize,
    /// How many addresses of each pool are in use, in the order of the pools.
    pub used: Vec<u128>,
}

// === impl Contents ===

impl Contents {
    pub(crate) fn of(snapshot: Snapshot) -> Self {
        Self { snapshot }
    }

    /// Every lease in the order they were taken, and for how long at the uptime `now`, where that is known.
    pub fn leases(&self, now: Duration) -> impl Iterator<Item = (&Lease, Option<Duration>)> {
        self.snapshot.leases.iter().map(move |Kept { lease, taken }| (lease, age(*taken, now)))
    }

    /// Every released address that is remembered in the order of the releases, and for how long it is free at the
    /// uptime `now`.
    pub fn released(&self, now: Duration) -> impl Iterator<Item = (IpAddr, Duration)> {
        self.snapshot.released.iter().map(move |released| (released.address, now.saturating_sub(released.at)))
    }

    /// How full a pool is at the uptime `now`.
    pub fn occupancy(&self, pool: &Pool, now: Duration, cool_down: Duration) -> Occupancy {
        let (when, inside) = (When { now, cool_down }, |address: &IpAddr| pool.range_of(*address).is_some());
        let rests = |released: &&Released| inside(&released.address) && when.left(released.at).is_some();
        Occupancy {
            capacity: pool.capacity(),
            leased: self.used(pool),
            cooling: self.snapshot.released.iter().filter(rests).count() as u128,
        }
    }

    pub(crate) fn used(&self, pool: &Pool) -> u128 {
        let addresses = self.snapshot.leases.iter().flat_map(|kept| &kept.lease.addresses);
        addresses.filter(|address| pool.range_of(**address).is_some()).count() as u128
    }
}

impl From<Contents> for Leases {
    fn from(contents: Contents) -> Self {
        contents.snapshot.leases.into_iter().map(|kept| kept.lease).collect()
    }
}

/// How long ago it was, at the uptime `now`; zero stands for not known.
pub(crate) fn age(taken: Duration, now: Duration) -> Option<Duration> {
    if taken.is_zero() { None } else { now.checked_sub(taken) }
}

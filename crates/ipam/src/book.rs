//! The allocator: pure state, no file and no clock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::lease::{Lease, Owner};
use crate::range::{Pool, Range, to_number};
use crate::{Error, Result};

/// How many released addresses are remembered: more than a /16, so that only a wide IPv6 range forgets any.
const REMEMBERED: usize = 1 << 16;

/// When an address was last let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Freed {
    /// Place in the order of releases.
    pub(crate) order: u64,
    /// Uptime of the machine at the release.
    pub(crate) at: Duration,
}

/// How full a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// Addresses the pool can hand out in all.
    pub capacity: u128,
    /// Addresses in use.
    pub leased: u128,
    /// Addresses released too recently to be handed out.
    pub cooling: u128,
}

impl Occupancy {
    /// How many addresses can be handed out now.
    pub fn free(&self) -> u128 {
        self.capacity.saturating_sub(self.leased).saturating_sub(self.cooling)
    }
}

/// Who has which address, and when the others were released.
///
/// A lookup by address is O(1); an allocation or a lookup by owner passes over the leases once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Book {
    slots: Vec<Option<Lease>>,
    by_address: HashMap<IpAddr, usize>,
    freed: HashMap<IpAddr, Freed>,
    releases: u64,
    live: usize,
}

impl Book {
    pub(crate) fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.slots.iter().flatten()
    }

    pub(crate) fn freed(&self) -> Vec<(IpAddr, Freed)> {
        let mut all: Vec<_> = self.freed.iter().map(|(address, freed)| (*address, *freed)).collect();
        all.sort_unstable_by_key(|(_, freed)| freed.order);
        all
    }

    /// How many records are needed to write the book down.
    pub(crate) fn size(&self) -> usize {
        self.live + self.freed.len()
    }

    pub(crate) fn lease_of(&self, owner: &Owner) -> Option<&Lease> {
        self.leases().find(|lease| lease.owner == *owner)
    }

    /// Chooses one address of each pool without taking them: all or none.
    pub(crate) fn choose(
        &self,
        pools: &[Pool],
        wanted: &[IpAddr],
        now: Duration,
        cool_down: Duration,
    ) -> Result<Vec<IpAddr>> {
        let mut wanted = wanted.to_vec();
        let mut chosen = Vec::with_capacity(pools.len());
        for pool in pools {
            let wish = wanted.iter().position(|address| pool.range_of(*address).is_some());
            chosen.push(match wish.map(|place| wanted.swap_remove(place)) {
                Some(address) => self.grant(address)?,
                None => self.choose_from(pool, now, cool_down)?,
            });
        }
        match wanted.first() {
            Some(address) => Err(Error::Outside { address: *address }),
            None => Ok(chosen),
        }
    }

    /// Gives an address that somebody asked for.
    fn grant(&self, address: IpAddr) -> Result<IpAddr> {
        let holder = self.by_address.get(&address).and_then(|slot| self.slots.get(*slot)?.as_ref());
        match holder {
            Some(lease) => Err(Error::InUse { address, owner: lease.owner.clone() }),
            None => Ok(address),
        }
    }

    /// Writes a lease down.
    ///
    /// Returns `false`, and changes nothing, when another lease has one of the addresses: a damaged history.
    pub(crate) fn take(&mut self, lease: Lease) -> bool {
        if lease.addresses.iter().any(|address| self.by_address.contains_key(address)) {
            return false;
        }
        for address in &lease.addresses {
            self.freed.remove(address);
            self.by_address.insert(*address, self.slots.len());
        }
        self.slots.push(Some(lease));
        self.live += 1;
        true
    }

    /// Ends the lease that holds `address` and remembers when its addresses became free.
    pub(crate) fn free(&mut self, address: IpAddr, at: Duration) -> Option<Lease> {
        let slot = *self.by_address.get(&address)?;
        let lease = self.slots.get_mut(slot)?.take()?;
        self.live -= 1;
        for address in &lease.addresses {
            self.by_address.remove(address);
            self.remember(*address, at);
        }
        Some(lease)
    }

    /// Remembers a release without a lease, as a compacted history tells it.
    pub(crate) fn remember(&mut self, address: IpAddr, at: Duration) {
        self.releases += 1;
        self.freed.insert(address, Freed { order: self.releases, at });
    }

    pub(crate) fn is_freed(&self, address: IpAddr) -> bool {
        self.freed.contains_key(&address)
    }

    /// Forgets the oldest releases beyond what is worth keeping.
    pub(crate) fn forget_old_releases(&mut self) {
        if self.freed.len() > REMEMBERED {
            let oldest = self.freed();
            for (address, _) in oldest.iter().take(self.freed.len() - REMEMBERED) {
                self.freed.remove(address);
            }
        }
    }

    pub(crate) fn occupancy(&self, pool: &Pool, now: Duration, cool_down: Duration) -> Occupancy {
        let inside = |address: &IpAddr| pool.range_of(*address).is_some();
        let leased = self.by_address.keys().filter(|a| inside(a)).count() as u128;
        let cooling =
            self.freed.iter().filter(|(a, freed)| inside(a) && left(freed, now, cool_down).is_some()).count();
        Occupancy { capacity: pool.capacity(), leased, cooling: cooling as u128 }
    }

    fn choose_from(&self, pool: &Pool, now: Duration, cool_down: Duration) -> Result<IpAddr> {
        if let Some(address) = pool.ranges().iter().find_map(|range| self.fresh(range)) {
            return Ok(address);
        }
        let candidates = || self.freed.iter().filter(|(address, _)| pool.range_of(**address).is_some());
        let oldest = candidates().min_by_key(|(_, freed)| freed.order);
        if let Some((address, freed)) = oldest
            && left(freed, now, cool_down).is_none()
        {
            return Ok(*address);
        }
        let occupancy = self.occupancy(pool, now, cool_down);
        Err(Error::Exhausted {
            pool: pool.to_string(),
            leased: occupancy.leased,
            cooling: occupancy.cooling,
            retry_in: candidates().filter_map(|(_, freed)| left(freed, now, cool_down)).min(),
        })
    }

    /// Finds an address that nobody has had: behind the highest known one, else the first gap.
    fn fresh(&self, range: &Range) -> Option<IpAddr> {
        let mut known: u128 = 0;
        let mut highest = None;
        for address in self.by_address.keys().chain(self.freed.keys()).filter(|a| range.contains(**a)) {
            known += 1;
            highest = highest.max(Some(to_number(*address)));
        }
        if known >= range.capacity() {
            return None;
        }
        let unknown =
            |address: &IpAddr| !self.by_address.contains_key(address) && !self.freed.contains_key(address);
        range.addresses_after(highest).next().or_else(|| range.addresses_after(None).find(unknown))
    }
}

/// How long the address still cools; an uptime that ran backwards cannot be, so it counts as cooled.
fn left(freed: &Freed, now: Duration, cool_down: Duration) -> Option<Duration> {
    let age = now.checked_sub(freed.at)?;
    cool_down.checked_sub(age).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOL: Duration = Duration::from_secs(30);

    fn pools(subnets: &[&str]) -> Vec<Pool> {
        let range = |subnet: &&str| Range::new(subnet.parse().unwrap(), None, None, None).unwrap();
        subnets.iter().map(|subnet| Pool::new(vec![range(subnet)]).unwrap()).collect()
    }

    fn lease(name: &str, addresses: Vec<IpAddr>) -> Lease {
        Lease {
            owner: Owner { container: name.to_owned(), interface: "eth0".to_owned() },
            pod: None,
            addresses,
        }
    }

    fn take(book: &mut Book, name: &str, pools: &[Pool], now: u64) -> Result<Vec<IpAddr>> {
        let chosen = book.choose(pools, &[], Duration::from_secs(now), COOL)?;
        assert!(book.take(lease(name, chosen.clone())));
        Ok(chosen)
    }

    #[test]
    fn fresh_addresses_come_before_used_ones() {
        let pools = pools(&["10.0.0.0/29"]);
        let mut book = Book::default();
        let first = take(&mut book, "a", &pools, 0).unwrap()[0];
        book.free(first, Duration::ZERO).unwrap();
        for name in ["b", "c", "d", "e"] {
            assert_ne!(take(&mut book, name, &pools, 1000).unwrap()[0], first);
        }
        assert_eq!(take(&mut book, "f", &pools, 1000).unwrap()[0], first);
        assert!(matches!(
            take(&mut book, "g", &pools, 1000),
            Err(Error::Exhausted { leased: 5, cooling: 0, .. })
        ));
    }

    #[test]
    fn the_least_recently_released_address_is_next_and_only_after_the_cool_down() {
        let pools = pools(&["10.0.0.0/29"]);
        let mut book = Book::default();
        let all: Vec<_> =
            "abcde".chars().map(|c| take(&mut book, &c.to_string(), &pools, 0).unwrap()[0]).collect();
        book.free(all[3], Duration::from_secs(100)).unwrap();
        book.free(all[1], Duration::from_secs(110)).unwrap();
        let refused = take(&mut book, "x", &pools, 120).unwrap_err();
        assert!(
            matches!(refused, Error::Exhausted { cooling: 2, retry_in: Some(d), .. } if d.as_secs() == 10)
        );
        assert_eq!(take(&mut book, "x", &pools, 130).unwrap()[0], all[3]);
        assert!(take(&mut book, "y", &pools, 139).is_err());
        assert_eq!(take(&mut book, "y", &pools, 140).unwrap()[0], all[1]);
    }

    #[test]
    fn dual_stack_takes_both_or_none() {
        let both = pools(&["10.0.0.0/29", "fd00::/126"]);
        let mut book = Book::default();
        assert_eq!(take(&mut book, "a", &both, 0).unwrap().len(), 2);
        assert_eq!(take(&mut book, "b", &both, 0).unwrap().len(), 2);
        assert!(take(&mut book, "c", &both, 0).is_err());
        assert_eq!(book.occupancy(&both[0], Duration::ZERO, COOL).leased, 2);
    }

    #[test]
    fn several_ranges_are_used_in_order() {
        let range = |subnet: &str| Range::new(subnet.parse().unwrap(), None, None, None).unwrap();
        let pools = [Pool::new(vec![range("10.0.0.0/30"), range("10.9.0.0/30")]).unwrap()];
        let mut book = Book::default();
        assert_eq!(take(&mut book, "a", &pools, 0).unwrap()[0].to_string(), "10.0.0.2");
        assert_eq!(take(&mut book, "b", &pools, 0).unwrap()[0].to_string(), "10.9.0.2");
        assert!(take(&mut book, "c", &pools, 0).is_err());
    }

    #[test]
    fn a_wanted_address_is_given_unless_it_is_in_use_or_of_no_pool() {
        let pools = pools(&["10.0.0.0/29", "fd00::/125"]);
        let mut book = Book::default();
        let want = |book: &Book, texts: &[&str]| {
            let wanted: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
            book.choose(&pools, &wanted, Duration::ZERO, COOL)
        };
        let got = want(&book, &["fd00::5"]).unwrap();
        assert_eq!(got, ["10.0.0.2".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
        assert!(book.take(lease("a", got)));
        assert!(matches!(want(&book, &["fd00::5"]), Err(Error::InUse { .. })));
        for outside in ["10.0.0.1", "10.0.0.7", "10.9.9.9"] {
            assert!(matches!(want(&book, &[outside]), Err(Error::Outside { .. })), "{outside}");
        }
        assert!(
            matches!(want(&book, &["10.0.0.3", "10.0.0.4"]), Err(Error::Outside { .. })),
            "two of one pool"
        );
        book.free("fd00::5".parse().unwrap(), Duration::ZERO).unwrap();
        assert!(want(&book, &["fd00::5"]).is_ok(), "no cool-down for a wish");
    }

    #[test]
    fn a_taken_address_is_not_taken_again() {
        let mut book = Book::default();
        let address: IpAddr = "10.0.0.2".parse().unwrap();
        assert!(book.take(lease("a", vec![address])));
        assert!(!book.take(lease("b", vec!["10.0.0.3".parse().unwrap(), address])));
        assert!(book.lease_of(&lease("b", vec![]).owner).is_none());
    }
}

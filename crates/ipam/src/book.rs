//! The allocator: pure state, no file and no clock.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;
use std::ops::Range as Span;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::lease::{Lease, Owner};
use crate::range::{Pool, Range, to_number};
use crate::record;
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
/// A lookup by address is O(1); an allocation or a lookup by owner passes over the leases once, a few nanoseconds each.
/// A lease that was read from a file stays text until somebody wants it.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// The file that [`Slot::text`] points into.
    source: Arc<Vec<u8>>,
    slots: Vec<Slot>,
    by_address: HashMap<IpAddr, u32, BuildHasherDefault<AddressHasher>>,
    freed: HashMap<IpAddr, Freed, BuildHasherDefault<AddressHasher>>,
    releases: u64,
    live: usize,
}

/// A lease of now or before.
#[derive(Debug)]
struct Slot {
    live: bool,
    /// Uptime of the machine when the lease began; zero where that is not known.
    taken: Duration,
    /// The record in the file, unless `lease` was given.
    text: Span<u32>,
    lease: OnceLock<Box<Lease>>,
}

/// A quick hash of addresses. They are those of the node's own ranges, so nobody can choose them to collide.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let word = chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.write_u64(word);
        }
    }

    fn write_u64(&mut self, word: u64) {
        // An odd constant with its bits spread (2^64 over the golden ratio).
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word.cast_unsigned() as u64);
    }

    fn finish(&self) -> u64 {
        // The low bits of a product depend on few bits; the table uses them first.
        self.0 ^ self.0.rotate_right(32)
    }
}

impl Book {
    /// An empty book for the records of `source`, about `expected` of them.
    pub(crate) fn reading(source: Arc<Vec<u8>>, expected: usize) -> Self {
        let mut book = Self { source, ..Self::default() };
        book.slots.reserve(expected);
        book.by_address.reserve(expected);
        book.freed.reserve(expected);
        book
    }

    pub(crate) fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases_since().map(|(lease, _)| lease)
    }

    /// Every lease, and the uptime of the machine when it began; zero where that is not known.
    pub(crate) fn leases_since(&self) -> impl Iterator<Item = (&Lease, Duration)> {
        self.slots.iter().filter(|slot| slot.live).map(|slot| (self.lease(slot), slot.taken))
    }

    fn lease<'a>(&'a self, slot: &'a Slot) -> &'a Lease {
        slot.lease.get_or_init(|| {
            let lease = self.record(slot).map(|record| record.lease());
            Box::new(lease.expect("the record was read when it was entered"))
        })
    }

    fn record<'a>(&'a self, slot: &Slot) -> Option<record::Record<'a>> {
        record::parse(std::str::from_utf8(self.text(slot)).ok()?)
    }

    fn text(&self, slot: &Slot) -> &[u8] {
        self.source.get(slot.text.start as usize..slot.text.end as usize).unwrap_or_default()
    }

    fn slot_at(&self, address: IpAddr) -> Option<&Slot> {
        self.slots.get(*self.by_address.get(&address)? as usize)
    }

    /// The lease that holds `address`, and the uptime of the machine when it began.
    pub(crate) fn holder(&self, address: IpAddr) -> Option<(&Lease, Duration)> {
        self.slot_at(address).map(|slot| (self.lease(slot), slot.taken))
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
        let beginning = record::beginning(owner);
        let is_owners = |slot: &&Slot| match slot.lease.get() {
            _ if !slot.live => false,
            Some(lease) => lease.owner == *owner,
            None => self.text(slot).starts_with(beginning.as_bytes()),
        };
        self.slots.iter().find(is_owners).map(|slot| self.lease(slot))
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
        match self.holder(address) {
            Some((lease, _)) => Err(Error::InUse { address, owner: lease.owner.clone() }),
            None => Ok(address),
        }
    }

    /// Writes a lease down that began at `taken`, or nobody knows when (zero).
    ///
    /// Returns `false`, and changes nothing, when another lease has one of the addresses: a damaged history.
    pub(crate) fn take_at(&mut self, lease: Lease, taken: Duration) -> bool {
        let entered = self.enter(&lease.addresses, taken, 0..0);
        if let Some(slot) = self.slots.last().filter(|_| entered) {
            // The slot is new, so nothing is in it.
            let _ = slot.lease.set(Box::new(lease));
        }
        entered
    }

    /// Writes a lease down of which nobody knows when it began; see [`Book::take_at`].
    pub(crate) fn take(&mut self, lease: Lease) -> bool {
        self.take_at(lease, Duration::ZERO)
    }

    /// Writes a lease down that stands at `text` of the source, where [`record::parse`] can read it.
    pub(crate) fn take_text(&mut self, text: Span<u32>, addresses: &[IpAddr], taken: Duration) -> bool {
        self.enter(addresses, taken, text)
    }

    fn enter(&mut self, addresses: &[IpAddr], taken: Duration, text: Span<u32>) -> bool {
        let Ok(place) = u32::try_from(self.slots.len()) else { return false };
        for (entered, address) in addresses.iter().enumerate() {
            if let Entry::Vacant(vacant) = self.by_address.entry(*address) {
                vacant.insert(place);
            } else {
                for address in addresses.iter().take(entered) {
                    self.by_address.remove(address);
                }
                return false;
            }
        }
        for address in addresses {
            self.freed.remove(address);
        }
        self.slots.push(Slot { live: true, taken, text, lease: OnceLock::new() });
        self.live += 1;
        true
    }

    /// Ends the lease that holds `address` and remembers when its addresses became free.
    pub(crate) fn free(&mut self, address: IpAddr, at: Duration) -> Option<Lease> {
        let lease = self.holder(address)?.0.clone();
        self.end(address, at).then_some(lease)
    }

    /// Like [`Book::free`], for who does not want the lease; `false` when nobody had the address.
    pub(crate) fn end(&mut self, address: IpAddr, at: Duration) -> bool {
        let Some(slot) = self.slot_at(address) else { return false };
        let mut addresses = Vec::new();
        match slot.lease.get() {
            Some(lease) => addresses.clone_from(&lease.addresses),
            None => {
                let record = self.record(slot);
                let _ = record.and_then(|record| record::read_addresses(record.addresses, &mut addresses));
            }
        }
        if let Some(slot) =
            self.by_address.get(&address).and_then(|place| self.slots.get_mut(*place as usize))
        {
            slot.live = false;
        }
        self.live -= 1;
        for address in addresses {
            self.by_address.remove(&address);
            self.remember(address, at);
        }
        true
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
        assert!(book.holder("10.0.0.3".parse().unwrap()).is_none(), "nothing is left of what was refused");
    }
}

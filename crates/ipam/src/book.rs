//! The allocator, on the blocks of a file: who has which address, and when the others were released.
//!
//! Every operation reads and writes a few blocks, however many leases there are, and is one change of the [`Store`].

use std::net::IpAddr;
use std::time::Duration;

use crate::address::{self, Known, Number, State};
use crate::index::Key;
use crate::lease::{Lease, Owner, Request};
use crate::range::{Pool, Range, Span, cut, to_address};
use crate::record::{self, Record};
use crate::segment::{self, REMEMBERED, Segment};
use crate::store::{Id, Store};
use crate::{Error, Result};

mod snapshot;
#[cfg(test)]
pub(crate) mod tests;
mod verify;

pub(crate) use snapshot::{Kept, Released, Snapshot, build};

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

/// The present, and how long an address rests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct When {
    /// Uptime of the machine.
    pub(crate) now: Duration,
    pub(crate) cool_down: Duration,
}

impl When {
    /// How long an address released `at` still rests; an uptime that ran backwards cannot be, so it counts as rested.
    pub(crate) fn left(&self, at: Duration) -> Option<Duration> {
        let age = self.now.checked_sub(at)?;
        self.cool_down.checked_sub(age).filter(|left| !left.is_zero())
    }
}

/// An open ledger's content.
#[derive(Debug)]
pub(crate) struct Book {
    store: Store,
}

// === impl Book ===

impl Book {
    /// Takes over a file, verified where it may not be whole.
    pub(crate) fn of(store: Store) -> Result<Self> {
        let mut book = Self { store };
        if book.store.is_doubtful() {
            book.verify()?;
            book.store.settle()?;
        }
        Ok(book)
    }

    /// Whether somebody changed the file since it was opened.
    pub(crate) fn is_stale(&self) -> bool {
        self.store.is_stale()
    }

    /// How many leases there are.
    pub(crate) fn len(&self) -> u32 {
        self.store.root.leases
    }

    /// The owner's lease.
    pub(crate) fn lease_of(&mut self, owner: &Owner) -> Result<Option<Record>> {
        match Key::Owner(owner).find(&mut self.store)? {
            Some(id) => record::read(&mut self.store, id).map(Some),
            None => Ok(None),
        }
    }

    /// The lease that holds an address.
    pub(crate) fn holder(&mut self, address: IpAddr) -> Result<Option<Record>> {
        match lookup(&mut self.store, address)? {
            Some((_, Known { state: State::Leased { lease }, .. })) => {
                record::read(&mut self.store, lease).map(Some)
            }
            Some(_) | None => Ok(None),
        }
    }

    /// How many addresses of a pool are in use; `None` when they have to be counted.
    pub(crate) fn used(&mut self, pool: &Pool) -> Result<Option<u128>> {
        if self.store.root.homeless > 0 {
            return Ok(None);
        }
        let spans: Vec<Span> = pool.ranges().iter().flat_map(Range::spans).collect();
        let mut used = 0;
        for segment in segment::all(&mut self.store)? {
            if spans.iter().any(|span| segment.span.lies_in(span)) {
                used += u128::from(segment.leased);
            } else if spans.iter().any(|span| segment.span.overlaps(span)) {
                return Ok(None);
            }
        }
        Ok(Some(used))
    }

    /// The segments that the file has to have before it can serve these pools, where they cannot just be added.
    pub(crate) fn misfit(&mut self, pools: &[Pool]) -> Result<Option<Vec<Span>>> {
        let segments = segment::all(&mut self.store)?;
        let known: Vec<Span> = segments.iter().map(|segment| segment.span).collect();
        let mut spans = pools.iter().flat_map(Pool::ranges).flat_map(Range::spans);
        let homeless = self.store.root.homeless > 0;
        let fits = spans.all(|span| {
            let reaches_out = |other: &Span| other.overlaps(&span) && !other.lies_in(&span);
            !known.iter().any(reaches_out) && (!homeless || span.without(&known).is_empty())
        });
        if fits {
            return Ok(None);
        }
        // Segments of ranges of before are kept while there is something to remember of them.
        let kept = segments.iter().filter(|segment| segment.leased > 0 || segment.released > 0);
        let mut all: Vec<Span> = kept.map(|segment| segment.span).collect();
        all.extend(pools.iter().flat_map(Pool::ranges).flat_map(Range::spans));
        Ok(Some(cut(&all)))
    }

    /// Takes one address of each pool: all or none.
    pub(crate) fn allocate(&mut self, request: &Request<'_>, pools: &[Pool], when: When) -> Result<Lease> {
        self.store.change(|store| {
            if let Some(id) = Key::Owner(request.owner).find(store)? {
                let addresses = record::read(store, id)?.lease.addresses;
                return Err(Error::Exists { owner: request.owner.clone(), addresses });
            }
            add_segments(store, pools)?;
            let mut wanted = request.wanted.to_vec();
            let mut addresses = Vec::with_capacity(pools.len());
            for pool in pools {
                let wish = wanted.iter().position(|address| pool.range_of(*address).is_some());
                let address = match wish.map(|place| wanted.swap_remove(place)) {
                    Some(address) => grant(store, address)?,
                    None => choose(store, pool, when)?,
                };
                // Pools that overlap are a mistake, but not one that gives an address twice.
                if addresses.contains(&address) {
                    return Err(Error::InUse { address, owner: request.owner.clone() });
                }
                addresses.push(address);
            }
            if let Some(address) = wanted.first() {
                return Err(Error::Outside { address: *address });
            }
            let lease = request.lease(addresses);
            enter(store, lease.clone(), when.now)?;
            Ok(lease)
        })
    }

    /// Ends the owner's lease; `None` when there is none.
    pub(crate) fn release(&mut self, owner: &Owner, at: Duration) -> Result<Option<Lease>> {
        self.store.change(|store| {
            let Some(id) = Key::Owner(owner).remove(store)? else { return Ok(None) };
            let record = record::read(store, id)?;
            for number in &record.numbers {
                store.root.order = store.root.order.saturating_add(1);
                let order = store.root.order;
                let known = address::read(store, *number)?;
                if known.state != (State::Leased { lease: id }) {
                    return Err(store.damaged(format!("{} is not its lease's", known.address)));
                }
                leave(store, *number, &known, at, order)?;
            }
            record::free(store, id)?;
            store.root.leases = store.root.leases.saturating_sub(1);
            Ok(Some(record.lease))
        })
    }
}

fn lookup(store: &mut Store, address: IpAddr) -> Result<Option<(Number, Known)>> {
    match Key::Address(address).find(store)? {
        Some(number) => Ok(Some((number, address::read(store, number)?))),
        None => Ok(None),
    }
}

/// Adds the segments that the pools lack; see [`Book::misfit`].
fn add_segments(store: &mut Store, pools: &[Pool]) -> Result<()> {
    for span in pools.iter().flat_map(Pool::ranges).flat_map(Range::spans) {
        let known: Vec<Span> = segment::all(store)?.iter().map(|segment| segment.span).collect();
        for missing in span.without(&known) {
            segment::add(store, missing)?;
        }
    }
    Ok(())
}

/// Gives an address that somebody asked for.
fn grant(store: &mut Store, address: IpAddr) -> Result<IpAddr> {
    match lookup(store, address)? {
        Some((_, Known { state: State::Leased { lease }, .. })) => {
            Err(Error::InUse { address, owner: record::read(store, lease)?.lease.owner })
        }
        Some(_) | None => Ok(address),
    }
}

/// Chooses an address: one that nobody has had, else the one that was released first.
fn choose(store: &mut Store, pool: &Pool, when: When) -> Result<IpAddr> {
    let all = segment::all(store)?;
    let of = |range: &Range| -> Vec<Segment> {
        let spans = range.spans();
        all.iter().filter(|segment| spans.iter().any(|span| segment.span.lies_in(span))).cloned().collect()
    };
    let segments: Vec<Segment> = pool.ranges().iter().flat_map(of).collect();
    if let Some(segment) = segments.iter().find(|segment| segment.has_fresh()) {
        return fresh(store, segment.clone());
    }
    let mut oldest: Option<(u64, IpAddr, Duration)> = None;
    for segment in segments.iter().filter(|segment| segment.oldest != 0) {
        let known = address::read(store, segment.oldest)?;
        if let State::Released { at, order, .. } = known.state
            && oldest.is_none_or(|(first, ..)| order < first)
        {
            oldest = Some((order, known.address, at));
        }
    }
    let sum = |count: fn(&Segment) -> u32| segments.iter().map(|segment| u128::from(count(segment))).sum();
    match oldest {
        Some((_, address, at)) if when.left(at).is_none() => Ok(address),
        // The others were released later, so they rest still.
        _ => Err(Error::Exhausted {
            pool: pool.to_string(),
            leased: sum(|segment| segment.leased),
            cooling: sum(|segment| segment.released),
            retry_in: oldest.and_then(|(_, _, at)| when.left(at)),
        }),
    }
}

/// Finds an address of the segment that nobody has had, from where the last one was found.
fn fresh(store: &mut Store, mut segment: Segment) -> Result<IpAddr> {
    let Span { v4, first, last } = segment.span;
    let known = u64::from(segment.leased) + u64::from(segment.released);
    for _ in 0..=known {
        if !(first..=last).contains(&segment.cursor) {
            segment.cursor = first;
        }
        let address = to_address(segment.cursor, v4);
        segment.cursor = segment.cursor.wrapping_add(1);
        if Key::Address(address).find(store)?.is_none() {
            segment::write(store, &segment)?;
            return Ok(address);
        }
    }
    Err(store.damaged(format!("segment {} knows more addresses than it has", segment.id)))
}

/// Writes a lease down whose addresses and owner have none.
fn enter(store: &mut Store, lease: Lease, taken: Duration) -> Result<()> {
    record::check(&lease)?;
    store.root.order = store.root.order.saturating_add(1);
    let order = store.root.order;
    let numbers = lease.addresses.iter().map(|address| settle(store, *address)).collect::<Result<_>>()?;
    let record = Record { lease, taken, order, numbers };
    let id = record::write(store, &record)?;
    for number in &record.numbers {
        let known = address::read(store, *number)?;
        address::write(store, *number, &Known { state: State::Leased { lease: id }, ..known })?;
    }
    store.root.leases = store.root.leases.saturating_add(1);
    Key::Owner(&record.lease.owner).insert(store, id)
}

/// Finds or makes the place of an address that nobody has; the caller says whose it is.
fn settle(store: &mut Store, address: IpAddr) -> Result<Number> {
    let (number, segment) = match lookup(store, address)? {
        Some((number, known)) => {
            segment::unlink(store, &known)?;
            (number, known.segment)
        }
        None => {
            let segments = segment::all(store)?;
            let home = segments.iter().find(|segment| segment.span.contains(address));
            let number = address::allocate(store)?;
            let segment = home.map_or(0, |segment| segment.id);
            store.root.homeless = store.root.homeless.saturating_add(u32::from(segment == 0));
            address::write(store, number, &Known { address, segment, state: State::Leased { lease: 0 } })?;
            Key::Address(address).insert(store, number)?;
            (number, segment)
        }
    };
    if segment != 0 {
        let mut home = segment::read(store, segment)?;
        home.leased = home.leased.saturating_add(1);
        segment::write(store, &home)?;
    }
    address::write(store, number, &Known { address, segment, state: State::Leased { lease: 0 } })?;
    Ok(number)
}

/// Remembers when an address that is in use was released.
fn leave(store: &mut Store, number: Number, known: &Known, at: Duration, order: u64) -> Result<()> {
    segment::append(store, (number, known), at, order)?;
    if known.segment == 0 {
        return Ok(());
    }
    let mut home = segment::read(store, known.segment)?;
    home.leased = home.leased.saturating_sub(1);
    segment::write(store, &home)?;
    if home.released > REMEMBERED {
        forget(store, home.oldest)?;
    }
    Ok(())
}

/// Forgets a released address.
fn forget(store: &mut Store, number: Number) -> Result<()> {
    let known = address::read(store, number)?;
    segment::unlink(store, &known)?;
    Key::Address(known.address).remove(store)?;
    address::free(store, number)
}

/// Whether an address lies in this block's segment list; used by the verifier.
fn home_of(segments: &[Segment], address: IpAddr) -> Id {
    segments.iter().find(|segment| segment.span.contains(address)).map_or(0, |segment| segment.id)
}

//! Whether all parts of a ledger say the same.

use super::{Book, home_of, segment};
use crate::Result;
use crate::address::{self, Known, Number, State};
use crate::index::{self, Key};
use crate::record;
use crate::segment::Segment;
use crate::store::{Id, Kind, Store};

/// What was counted.
#[derive(Debug, Default)]
struct Count {
    leases: u32,
    homeless: u32,
    /// Addresses in use, as the leases have them and as the addresses say.
    held: (u64, u64),
    /// Addresses known.
    known: u32,
    /// Blocks in use.
    blocks: u32,
}

impl Book {
    /// Reads everything and compares it.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) names the first thing that does not fit.
    pub(crate) fn verify(&mut self) -> Result<()> {
        let store = &mut self.store;
        let (root, segments) = (store.root, segment::all(store)?);
        let mut count = Count { blocks: 1 + segments.len() as u32, ..Count::default() };
        let overlap = segments.windows(2).any(|two| match two {
            [one, other] => one.span.overlaps(&other.span),
            _ => false,
        });
        check(store, !overlap, || "two segments overlap".to_owned())?;
        count.blocks +=
            index::visit(store, root.owners, &mut |store, id| verify_lease(store, id, &mut count))?;
        let mut tally = vec![(0, 0); segments.len()];
        let nodes = index::visit(store, root.addresses, &mut |store, number| {
            verify_address(store, number, &segments, (&mut count, &mut tally))
        })?;
        count.blocks += nodes;
        check(store, count.leases == root.leases, || "the count of leases is wrong".to_owned())?;
        check(store, count.homeless == root.homeless, || "the count of addresses is wrong".to_owned())?;
        check(store, count.held.0 == count.held.1, || "an address is nobody's".to_owned())?;
        for (segment, (leased, released)) in segments.iter().zip(tally) {
            let right = segment.leased == leased && segment.released == released;
            check(store, right, || format!("the counts of segment {} are wrong", segment.id))?;
            verify_released(store, segment)?;
        }
        verify_unused(store, &count)
    }
}

fn check(store: &Store, right: bool, what: impl FnOnce() -> String) -> Result<()> {
    if right { Ok(()) } else { Err(store.damaged(what())) }
}

fn verify_lease(store: &mut Store, id: Id, count: &mut Count) -> Result<()> {
    let record = record::read(store, id)?;
    count.leases += 1;
    count.blocks += record::blocks(store, id)?;
    let found = Key::Owner(&record.lease.owner).find(store)?;
    check(store, found == Some(id), || format!("the lease at block {id} is not where its owner leads"))?;
    for (number, address) in record.numbers.iter().zip(&record.lease.addresses) {
        count.held.0 += 1;
        let known = address::read(store, *number)?;
        let right = known.address == *address && known.state == State::Leased { lease: id };
        check(store, right, || format!("{address} is not its lease's"))?;
    }
    Ok(())
}

fn verify_address(
    store: &mut Store,
    number: Number,
    segments: &[Segment],
    (count, tally): (&mut Count, &mut [(u32, u32)]),
) -> Result<()> {
    let Known { address, state, segment } = address::read(store, number)?;
    let found = Key::Address(address).find(store)?;
    check(store, found == Some(number), || format!("{address} is not where it is looked for"))?;
    check(store, home_of(segments, address) == segment, || format!("{address} is in another segment"))?;
    count.known += 1;
    count.homeless += u32::from(segment == 0);
    let place = segments.iter().position(|known| known.id == segment);
    let home = place.and_then(|place| tally.get_mut(place));
    let leased = matches!(state, State::Leased { .. });
    count.held.1 += u64::from(leased);
    if let Some((in_use, released)) = home {
        *if leased { in_use } else { released } += 1;
    }
    Ok(())
}

/// The released addresses of a segment are one list, oldest first.
fn verify_released(store: &mut Store, segment: &Segment) -> Result<()> {
    let (mut number, mut last, mut count, mut latest) = (segment.oldest, 0, 0, 0);
    while number != 0 {
        let known = address::read(store, number)?;
        let State::Released { order, before, after, .. } = known.state else {
            return Err(store.damaged(format!("{} is among the released addresses", known.address)));
        };
        let right =
            known.segment == segment.id && before == last && order > latest && count < segment.released;
        check(store, right, || format!("{} is not in the order of releases", known.address))?;
        (last, number, latest) = (number, after, order);
        count += 1;
    }
    let right = count == segment.released && segment.youngest == last;
    check(store, right, || format!("the released addresses of segment {} are cut off", segment.id))
}

/// Every block is used once, or is in the list of unused ones; and so is every place of an address.
fn verify_unused(store: &mut Store, count: &Count) -> Result<()> {
    let blocks = store.root.blocks;
    let (mut unused, mut id) = (0, store.root.free_block);
    while id != 0 && unused <= blocks {
        id = store.block(id, Kind::Free)?.u32(0);
        unused += 1;
    }
    let (mut with_addresses, mut used) = (0, 0);
    for id in 1..blocks {
        if store.kind(id)? == Kind::Addresses {
            with_addresses += 1;
            for number in address::numbers_of(id) {
                used += u32::from(address::is_used(store, number)?);
            }
        }
    }
    check(store, used == count.known, || "an address is known that nothing leads to".to_owned())?;
    check(store, count.blocks + with_addresses + unused == blocks, || "blocks are lost".to_owned())?;
    let (mut places, mut number) = (0, store.root.free_address);
    while number != 0 && places <= 4 * with_addresses {
        number = address::next_free(store, number)?;
        places += 1;
    }
    check(store, places + used == 4 * with_addresses, || "places of addresses are lost".to_owned())
}

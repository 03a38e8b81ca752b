//! Everything that a ledger says, and a new file that says it: after a change of ranges, of the format, or damage.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::{Book, enter, home_of, lookup, segment};
use crate::Result;
use crate::address::{self, Known, State};
use crate::index::{self, Key};
use crate::lease::Lease;
use crate::range::{Span, to_number};
use crate::record;
use crate::storage::Memory;
use crate::store::Store;

/// Records entered between two writes while a file is built.
const STEP: usize = 256;

/// A lease and since when it is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) lease: Lease,
    /// Uptime of the machine when it began; zero where that is not known.
    pub(crate) taken: Duration,
}

/// A released address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Released {
    pub(crate) address: IpAddr,
    /// Uptime of the machine at the release.
    pub(crate) at: Duration,
}

/// Everything that a ledger says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// In the order they were taken.
    pub(crate) leases: Vec<Kept>,
    /// In the order they were released.
    pub(crate) released: Vec<Released>,
}

impl Book {
    /// Reads everything.
    pub(crate) fn snapshot(&mut self) -> Result<Snapshot> {
        let (mut leases, mut released) = (Vec::new(), Vec::new());
        let root = self.store.root;
        index::visit(&mut self.store, root.owners, &mut |store, id| {
            let record = record::read(store, id)?;
            leases.push((record.order, Kept { lease: record.lease, taken: record.taken }));
            Ok(())
        })?;
        index::visit(&mut self.store, root.addresses, &mut |store, number| {
            let known = address::read(store, number)?;
            if let State::Released { at, order, .. } = known.state {
                released.push((order, Released { address: known.address, at }));
            }
            Ok(())
        })?;
        leases.sort_by_key(|(order, _)| *order);
        released.sort_by_key(|(order, _)| *order);
        Ok(Snapshot {
            leases: leases.into_iter().map(|(_, kept)| kept).collect(),
            released: released.into_iter().map(|(_, released)| released).collect(),
        })
    }
}

/// Makes the bytes of a file that says what `snapshot` says and has these segments; returns how many leases are in
/// it. Of two leases of one owner or of one address the first counts.
pub(crate) fn build(
    snapshot: &Snapshot,
    segments: &[Span],
    path: &Path,
    (network, boot): (&str, &str),
) -> Result<(Vec<u8>, usize)> {
    let mut store = Store::create(Box::<Memory>::default(), path, network, boot)?;
    store.change(|store| segments.iter().try_for_each(|span| segment::add(store, *span).map(drop)))?;
    for some in snapshot.released.chunks(STEP) {
        store.change(|store| some.iter().try_for_each(|released| remember(store, released)))?;
    }
    let (mut owners, mut count) = (HashSet::new(), 0);
    for some in snapshot.leases.chunks(STEP) {
        store.change(|store| {
            for Kept { lease, taken } in some {
                let mut new = owners.insert(&lease.owner) && !lease.addresses.is_empty();
                for address in &lease.addresses {
                    let state = lookup(store, *address)?.map(|(_, known)| known.state);
                    new &= !matches!(state, Some(State::Leased { .. }));
                }
                if new {
                    enter(store, lease.clone(), *taken)?;
                    count += 1;
                }
            }
            Ok(())
        })?;
    }
    store.change(|store| point_cursors(store, snapshot))?;
    // The journal is that of the last change, as with every other file.
    store.settle()?;
    Ok((store.into_bytes(), count))
}

/// Enters a released address.
fn remember(store: &mut Store, released: &Released) -> Result<()> {
    let Released { address, at } = *released;
    let segments = segment::all(store)?;
    let home = home_of(&segments, address);
    // Of an address outside of all ranges nothing needs to be known, unless the ranges are not known yet.
    if (home == 0 && !segments.is_empty()) || lookup(store, address)?.is_some() {
        return Ok(());
    }
    let number = address::allocate(store)?;
    store.root.homeless += u32::from(home == 0);
    store.root.order += 1;
    let order = store.root.order;
    let known = Known { address, segment: home, state: State::Leased { lease: 0 } };
    address::write(store, number, &known)?;
    Key::Address(address).insert(store, number)?;
    segment::append(store, (number, &known), at, order)
}

/// Lets every segment look for new addresses behind the highest that is known: after a rebuild the lower ones may have
/// been released a moment ago.
fn point_cursors(store: &mut Store, snapshot: &Snapshot) -> Result<()> {
    let leased = snapshot.leases.iter().flat_map(|kept| kept.lease.addresses.iter().copied());
    let known: Vec<IpAddr> =
        leased.chain(snapshot.released.iter().map(|released| released.address)).collect();
    for mut segment in segment::all(store)? {
        let inside = known.iter().filter(|address| segment.span.contains(**address));
        if let Some(highest) = inside.map(|address| to_number(*address)).max() {
            segment.cursor = highest.wrapping_add(1);
            segment::write(store, &segment)?;
        }
    }
    Ok(())
}

//! Stretches of addresses: how many are in use, which were released and when, and where nobody has been.
//!
//! A range is one stretch or several, none of which reaches out of it; ranges of one network may overlap over time, or
//! from call to call, and then they are cut at each other's ends. So an address lies in one segment at most, and what
//! is to be known of a range is a sum over few numbers.

use std::time::Duration;

use crate::Result;
use crate::address::{self, Known, Number, State};
use crate::range::Span;
use crate::store::{Id, Kind, Store};

/// How many released addresses of a segment are remembered: more than a /16, so that only a wide range forgets any.
pub(crate) const REMEMBERED: u32 = 1 << 16;
/// Segments are a few; a list that is longer has no end.
const MOST: usize = 1 << 16;

/// A stretch of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) id: Id,
    pub(crate) span: Span,
    /// Where to look for an address that nobody has had.
    pub(crate) cursor: u128,
    /// Addresses in use.
    pub(crate) leased: u32,
    /// Addresses that were released.
    pub(crate) released: u32,
    /// The one of them that was released first.
    pub(crate) oldest: Number,
    /// The one of them that was released last.
    pub(crate) youngest: Number,
}

impl Segment {
    /// Whether there is an address that nobody has had.
    pub(crate) fn has_fresh(&self) -> bool {
        u128::from(self.leased) + u128::from(self.released) < self.span.size()
    }
}

/// Reads all segments, in the order of their addresses.
pub(crate) fn all(store: &mut Store) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut id = store.root.segments;
    while id != 0 {
        segments.push(read(store, id)?);
        id = store.block(id, Kind::Segment)?.u32(0);
        if segments.len() > MOST {
            return Err(store.damaged("the list of segments has no end"));
        }
    }
    segments.sort_by_key(|segment| segment.span);
    Ok(segments)
}

/// Reads a segment.
pub(crate) fn read(store: &mut Store, id: Id) -> Result<Segment> {
    let block = store.block(id, Kind::Segment)?;
    let span = Span { v4: block.u8(4) == 4, first: block.u128(8), last: block.u128(24) };
    let segment = Segment {
        id,
        span,
        cursor: block.u128(40),
        leased: block.u32(56),
        released: block.u32(60),
        oldest: block.u32(64),
        youngest: block.u32(68),
    };
    if span.first > span.last || (span.v4 && span.last > u128::from(u32::MAX)) {
        return Err(store.damaged(format!("segment {id} is none")));
    }
    Ok(segment)
}

/// Writes what can change of a segment.
pub(crate) fn write(store: &mut Store, segment: &Segment) -> Result<()> {
    let block = store.block_mut(segment.id, Kind::Segment)?;
    block.put_u128(40, segment.cursor);
    block.put_u32(56, segment.leased);
    block.put_u32(60, segment.released);
    block.put_u32(64, segment.oldest);
    block.put_u32(68, segment.youngest);
    Ok(())
}

/// Begins a segment, which overlaps no other.
pub(crate) fn add(store: &mut Store, span: Span) -> Result<Id> {
    let id = store.allocate(Kind::Segment)?;
    let next = store.root.segments;
    let block = store.block_mut(id, Kind::Segment)?;
    block.put_u32(0, next);
    block.put(4, &[if span.v4 { 4 } else { 6 }]);
    block.put_u128(8, span.first);
    block.put_u128(24, span.last);
    block.put_u128(40, span.first);
    store.root.segments = id;
    Ok(id)
}

/// Puts an address that is in use at the end of the released ones.
pub(crate) fn append(
    store: &mut Store,
    (number, known): (Number, &Known),
    at: Duration,
    order: u64,
) -> Result<()> {
    let mut before = 0;
    if known.segment != 0 {
        let mut segment = read(store, known.segment)?;
        before = segment.youngest;
        segment.youngest = number;
        if before == 0 {
            segment.oldest = number;
        } else {
            relink(store, before, |_, after| *after = number)?;
        }
        segment.released = segment.released.saturating_add(1);
        write(store, &segment)?;
    }
    let state = State::Released { at, order, before, after: 0 };
    address::write(store, number, &Known { state, ..*known })
}

/// Takes an address out of the released ones.
pub(crate) fn unlink(store: &mut Store, known: &Known) -> Result<()> {
    let State::Released { before, after, .. } = known.state else {
        return Err(store.damaged(format!("{} is not a released address", known.address)));
    };
    if known.segment == 0 {
        return Ok(());
    }
    let mut segment = read(store, known.segment)?;
    match before {
        0 => segment.oldest = after,
        number => relink(store, number, |_, next| *next = after)?,
    }
    match after {
        0 => segment.youngest = before,
        number => relink(store, number, |previous, _| *previous = before)?,
    }
    segment.released = segment.released.saturating_sub(1);
    write(store, &segment)
}

fn relink(store: &mut Store, number: Number, change: impl FnOnce(&mut Number, &mut Number)) -> Result<()> {
    let mut known = address::read(store, number)?;
    let State::Released { before, after, .. } = &mut known.state else {
        return Err(store.damaged(format!("{} is among the released addresses", known.address)));
    };
    change(before, after);
    address::write(store, number, &known)
}

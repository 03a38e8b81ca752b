//! Two indexes over the blocks: of owners, and of addresses.
//!
//! Each is a tree over the hash of the key, 64 branches a block: a lookup in 65,536 reads three or four blocks. A leaf
//! stands as high as it can, so the tree's form depends on its content only and does not wear out. Nothing is ever
//! hashed anew: growing costs as much as any other insertion.

use std::net::IpAddr;

use crate::Result;
use crate::address;
use crate::lease::Owner;
use crate::record;
use crate::store::{Id, Kind, Store};

/// Set in a cell that points to a block of cells; the others are leaves, or empty.
const NODE: u32 = 1 << 31;
/// Cells of a block.
const CELLS: usize = 64;
/// Bits of the hash that choose a cell.
const BITS: u32 = 6;
/// Levels that one hash is enough for; then comes another one.
const LEVELS_A_HASH: u32 = 64 / BITS;
/// Two keys that are equal so far down do not occur.
const DEEPEST: u32 = 4 * LEVELS_A_HASH;

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key<'a> {
    Owner(&'a Owner),
    Address(IpAddr),
}

/// Where a cell is.
#[derive(Debug, Clone, Copy)]
enum Place {
    Top,
    Cell(Id, usize),
}

impl Key<'_> {
    /// The hash for a stretch of levels: FNV-1a, its bits spread by the finalizer of MurmurHash3. Files last no longer
    /// than a boot, but longer than a program: the hash is not the standard library's, which may change.
    fn hash(&self, round: u32) -> u64 {
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let seed = 0xcbf2_9ce4_8422_2325 ^ u64::from(round).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let over =
            |hash, bytes: &[u8]| bytes.iter().fold(hash, |h: u64, b| (h ^ u64::from(*b)).wrapping_mul(PRIME));
        let mut hash = match self {
            Self::Owner(owner) => {
                let hash = over(seed, owner.container.as_bytes());
                over(over(hash, &[0]), owner.interface.as_bytes())
            }
            Self::Address(IpAddr::V4(address)) => over(seed, &address.octets()),
            Self::Address(IpAddr::V6(address)) => over(seed, &address.octets()),
        };
        for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
            hash = (hash ^ hash >> 33).wrapping_mul(factor);
        }
        hash ^ hash >> 33
    }

    fn cell(&self, level: u32) -> usize {
        (self.hash(level / LEVELS_A_HASH) >> (level % LEVELS_A_HASH * BITS)) as usize % CELLS
    }

    /// The leaf of this key; `None` where there is none.
    pub(crate) fn find(&self, store: &mut Store) -> Result<Option<u32>> {
        let leaf = self.descend(store)?.1;
        Ok(if leaf != 0 && self.is_of(store, leaf)? { Some(leaf) } else { None })
    }

    /// Enters a leaf; the key must not be there yet.
    pub(crate) fn insert(&self, store: &mut Store, leaf: u32) -> Result<()> {
        let (path, other) = self.descend(store)?;
        let mut level = path.len() as u32 - 1;
        let mut place = path.last().copied().unwrap_or(Place::Top);
        if other == 0 {
            return self.set(store, place, leaf);
        }
        loop {
            let (mine, theirs) = (self.cell(level), self.cell_of(store, other, level)?);
            let node = store.allocate(Kind::Node)?;
            self.set(store, place, NODE | node)?;
            if mine != theirs {
                self.set(store, Place::Cell(node, theirs), other)?;
                return self.set(store, Place::Cell(node, mine), leaf);
            }
            (place, level) = (Place::Cell(node, mine), level + 1);
            if level > DEEPEST {
                return Err(store.damaged("an index has a key twice"));
            }
        }
    }

    /// Takes the key's leaf out; `None` where there is none.
    pub(crate) fn remove(&self, store: &mut Store) -> Result<Option<u32>> {
        let (path, leaf) = self.descend(store)?;
        if leaf == 0 || !self.is_of(store, leaf)? {
            return Ok(None);
        }
        let mut last = 0;
        for place in path.iter().rev() {
            self.set(store, *place, last)?;
            let Place::Cell(node, _) = place else { break };
            // A block with one leaf is given up for the leaf.
            let cells = cells(store, *node)?;
            let mut left = cells.iter().filter(|cell| **cell != 0);
            last = match (left.next(), left.next()) {
                (None, _) => 0,
                (Some(one), None) if one & NODE == 0 => *one,
                (Some(_), _) => break,
            };
            store.free(*node)?;
        }
        Ok(Some(leaf))
    }

    /// The cells from the top to where the key's leaf is, or would be, and what is there.
    fn descend(&self, store: &mut Store) -> Result<(Vec<Place>, u32)> {
        let mut path = vec![Place::Top];
        let mut cell = *self.top(store);
        let mut level = 0;
        while cell & NODE != 0 {
            let (node, place) = (cell & !NODE, self.cell(level));
            cell = store.block(node, Kind::Node)?.u32(4 * place);
            path.push(Place::Cell(node, place));
            level += 1;
            if level > DEEPEST {
                return Err(store.damaged("an index has no end"));
            }
        }
        Ok((path, cell))
    }

    fn top<'s>(&self, store: &'s mut Store) -> &'s mut u32 {
        match self {
            Self::Owner(_) => &mut store.root.owners,
            Self::Address(_) => &mut store.root.addresses,
        }
    }

    fn set(&self, store: &mut Store, place: Place, value: u32) -> Result<()> {
        match place {
            Place::Top => *self.top(store) = value,
            Place::Cell(node, cell) => store.block_mut(node, Kind::Node)?.put_u32(4 * cell, value),
        }
        Ok(())
    }

    fn is_of(&self, store: &mut Store, leaf: u32) -> Result<bool> {
        Ok(match self {
            Self::Owner(owner) => record::read(store, leaf)?.lease.owner == **owner,
            Self::Address(address) => address::read(store, leaf)?.address == *address,
        })
    }

    fn cell_of(&self, store: &mut Store, leaf: u32, level: u32) -> Result<usize> {
        Ok(match self {
            Self::Owner(_) => Key::Owner(&record::read(store, leaf)?.lease.owner).cell(level),
            Self::Address(_) => Key::Address(address::read(store, leaf)?.address).cell(level),
        })
    }
}

fn cells(store: &mut Store, node: Id) -> Result<Vec<u32>> {
    let block = store.block(node, Kind::Node)?;
    Ok((0..CELLS).map(|place| block.u32(4 * place)).collect())
}

/// Calls `visit` for every leaf under a top cell, with the number of blocks of cells passed.
pub(crate) fn visit(
    store: &mut Store,
    top: u32,
    visit: &mut dyn FnMut(&mut Store, u32) -> Result<()>,
) -> Result<u32> {
    let mut nodes = 0;
    let mut open = vec![(top, 0)];
    while let Some((cell, depth)) = open.pop() {
        if cell & NODE == 0 {
            if cell != 0 {
                visit(store, cell)?;
            }
            continue;
        }
        nodes += 1;
        if nodes > store.root.blocks || depth > DEEPEST {
            return Err(store.damaged("an index has no end"));
        }
        open.extend(
            cells(store, cell & !NODE)?.into_iter().filter(|cell| *cell != 0).map(|c| (c, depth + 1)),
        );
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn hashes_differ_by_key_and_round() {
        let owner = |container: &str, interface: &str| Owner {
            container: container.to_owned(),
            interface: interface.to_owned(),
        };
        let owners = [owner("a", "bc"), owner("ab", "c"), owner("a", "b")];
        let mut keys: Vec<Key<'_>> = owners.iter().map(Key::Owner).collect();
        keys.extend(["10.0.0.1", "10.0.0.2", "::a00:1"].map(|text| Key::Address(text.parse().unwrap())));
        let all: HashSet<u64> = keys.iter().flat_map(|key| (0..3).map(|round| key.hash(round))).collect();
        assert_eq!(all.len(), 3 * keys.len());
        // It stands in files: it must stay.
        assert_eq!(Key::Address("10.0.0.1".parse().unwrap()).hash(0), 2_674_265_721_150_626_473);
    }
}

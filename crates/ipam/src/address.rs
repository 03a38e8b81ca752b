//! What is known of an address: whose it is, or when it was released.
//!
//! Four addresses share a block. An address that was ever handed out stays known, so that one that nobody has had comes
//! first; only a wide range forgets the oldest (`segment`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::Result;
use crate::store::{Id, Kind, Store};

/// Bytes of an address in its block.
const SIZE: usize = 64;
/// Addresses of a block.
const A_BLOCK: u32 = 4;

const LEASED: u8 = 1;
const RELEASED: u8 = 2;
const V4: u8 = 0x80;

/// Which address of the file: block and place in it; 0 is none.
pub(crate) type Number = u32;

/// Whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Somebody has it.
    Leased {
        /// The block of the lease.
        lease: Id,
    },
    /// It was let go.
    Released {
        /// Uptime of the machine at the release.
        at: Duration,
        /// Place in the order of releases.
        order: u64,
        /// The one released before it in the same segment.
        before: Number,
        /// The one released after it in the same segment.
        after: Number,
    },
}

/// An address that was handed out at least once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) address: IpAddr,
    pub(crate) state: State,
    /// The block of the segment it lies in; 0 where it lies in none.
    pub(crate) segment: Id,
}

fn place(number: Number) -> (Id, usize) {
    (number / A_BLOCK, SIZE * (number % A_BLOCK) as usize)
}

/// Reads an address.
pub(crate) fn read(store: &mut Store, number: Number) -> Result<Known> {
    let (id, at) = place(number);
    let block = store.block(id, Kind::Addresses)?;
    let flags = block.u8(at + 16);
    let bits = block.u128(at);
    let state = match flags & !V4 {
        LEASED => State::Leased { lease: block.u32(at + 24) },
        RELEASED => State::Released {
            at: Duration::from_millis(block.u64(at + 40)),
            order: block.u64(at + 48),
            before: block.u32(at + 28),
            after: block.u32(at + 32),
        },
        _ => return Err(store.damaged(format!("address {number} is none"))),
    };
    let segment = block.u32(at + 20);
    let address = if flags & V4 == 0 {
        IpAddr::V6(Ipv6Addr::from_bits(bits))
    } else {
        match u32::try_from(bits) {
            Ok(bits) => IpAddr::V4(Ipv4Addr::from_bits(bits)),
            Err(_) => return Err(store.damaged(format!("address {number} is none of IPv4"))),
        }
    };
    Ok(Known { address, state, segment })
}

/// Whether something is known at this place of a block.
pub(crate) fn is_used(store: &mut Store, number: Number) -> Result<bool> {
    let (id, at) = place(number);
    Ok(store.block(id, Kind::Addresses)?.u8(at + 16) != 0)
}

/// The numbers of the addresses of a block.
pub(crate) fn numbers_of(id: Id) -> impl Iterator<Item = Number> {
    (0..A_BLOCK).map(move |place| id * A_BLOCK + place)
}

/// Writes an address.
pub(crate) fn write(store: &mut Store, number: Number, known: &Known) -> Result<()> {
    let (id, at) = place(number);
    let mut bytes = [0; SIZE];
    let mut put = |at: usize, content: &[u8]| {
        if let Some(place) = bytes.get_mut(at..at + content.len()) {
            place.copy_from_slice(content);
        }
    };
    let (family, bits) = match known.address {
        IpAddr::V4(address) => (V4, u128::from(address.to_bits())),
        IpAddr::V6(address) => (0, address.to_bits()),
    };
    put(0, &bits.to_le_bytes());
    put(20, &known.segment.to_le_bytes());
    match known.state {
        State::Leased { lease } => {
            put(16, &[family | LEASED]);
            put(24, &lease.to_le_bytes());
        }
        State::Released { at, order, before, after } => {
            put(16, &[family | RELEASED]);
            put(28, &before.to_le_bytes());
            put(32, &after.to_le_bytes());
            put(40, &u64::try_from(at.as_millis()).unwrap_or(u64::MAX).to_le_bytes());
            put(48, &order.to_le_bytes());
        }
    }
    store.block_mut(id, Kind::Addresses)?.put(at, &bytes);
    Ok(())
}

/// A place for an address that was not known.
pub(crate) fn allocate(store: &mut Store) -> Result<Number> {
    let number = store.root.free_address;
    if number != 0 {
        let (id, at) = place(number);
        store.root.free_address = store.block(id, Kind::Addresses)?.u32(at + 32);
        return Ok(number);
    }
    let id = store.allocate(Kind::Addresses)?;
    let mut numbers = numbers_of(id);
    let first = numbers.next().unwrap_or_default();
    numbers.try_for_each(|number| free(store, number))?;
    Ok(first)
}

/// Forgets an address; its index has to have forgotten it before.
pub(crate) fn free(store: &mut Store, number: Number) -> Result<()> {
    let (id, at) = place(number);
    let next = store.root.free_address;
    let block = store.block_mut(id, Kind::Addresses)?;
    block.put(at, &[0; SIZE]);
    block.put_u32(at + 32, next);
    store.root.free_address = number;
    Ok(())
}

/// The place behind this one in the list of unused places.
pub(crate) fn next_free(store: &mut Store, number: Number) -> Result<Number> {
    let (id, at) = place(number);
    Ok(store.block(id, Kind::Addresses)?.u32(at + 32))
}

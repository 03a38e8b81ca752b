//! Unpredictable numbers for query ids and answer order.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

/// A stream of numbers that an outsider cannot predict.
///
/// SipHash under a key from the operating system, over a counter: a pseudo-random function, which is all
/// that RFC 5452 section 4.3 asks of query ids. Not for long-lived keys.
#[derive(Debug, Default)]
pub(crate) struct Entropy {
    key: RandomState,
    counter: AtomicU64,
}

impl Entropy {
    /// The next 64 bits.
    pub(crate) fn next(&self) -> u64 {
        let mut hasher = self.key.build_hasher();
        hasher.write_u64(self.counter.fetch_add(1, Ordering::Relaxed));
        hasher.finish()
    }
}

/// Puts `items` in an order that depends on `seed` only, each order about equally likely.
pub(crate) fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed | 1;
    for last in (1..items.len()).rev() {
        // xorshift64* (Marsaglia): cheap, and order is no secret.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let draw = state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        let other = draw % (last as u64 + 1);
        items.swap(last, usize::try_from(other).unwrap_or(last));
    }
}

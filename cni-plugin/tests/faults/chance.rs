//! Chance that can be had again.

use std::sync::atomic::{AtomicU64, Ordering};

/// The seed of a run: `NETD_TEST_SEED`, else one that differs from run to run.
pub(crate) fn seed() -> u64 {
    let chosen = std::env::var("NETD_TEST_SEED").ok().map(|text| text.parse().expect("a number"));
    chosen.unwrap_or_else(|| {
        let fresh = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
        u64::from_str_radix(&fresh[..8], 16).unwrap()
    })
}

/// Numbers that follow from a seed (Steele, Lea, Flood: splitmix64).
pub(crate) struct Chance(AtomicU64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// Whether something happens that happens in `percent` of a hundred cases.
    pub(crate) fn percent(&self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

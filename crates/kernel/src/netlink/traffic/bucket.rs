//! Token buckets (tc-tbf(8)): a link sends at a rate, and a burst at once after a rest.

use std::time::Duration;

use super::attribute;

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: a packet costs its length.
const ETHERNET: u8 = 1;
/// Nanoseconds in the unit of times that the kernel tells (`include/net/pkt_sched.h:PSCHED_SHIFT`).
const TICK: u64 = 64;

/// How fast a link may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes a second, at least 1.
    pub rate: u64,
    /// Bytes that may be sent at once after a rest; a packet that is longer is never sent.
    pub burst: u32,
    /// Bytes that wait at most; what comes more is dropped.
    pub limit: u32,
}

/// A token bucket as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that wait at most.
    pub limit: u32,
    /// The time that a burst takes at the rate, in units of 64 ns; what does not fit in 32 bits is cut off.
    pub ticks: u32,
}

impl TokenBucket {
    /// Returns the bucket whose queue holds what may be sent in `latency` besides a burst.
    pub fn new(rate: u64, burst: u32, latency: Duration) -> Self {
        let waiting = u128::from(rate) * latency.as_nanos() / 1_000_000_000;
        let limit = u32::try_from(waiting).unwrap_or(u32::MAX).saturating_add(burst);
        Self { rate, burst, limit }
    }

    /// Whether the kernel has this one, but for rounding.
    pub fn is(&self, found: &Bucket) -> bool {
        let ticks = self.ticks();
        let tolerance = ticks / 1000 + 2;
        // The kernel cuts off what does not fit.
        let distance = (ticks as u32).wrapping_sub(found.ticks) as i32;
        self.rate == found.rate
            && self.limit == found.limit
            && u64::from(distance.unsigned_abs()) <= tolerance
    }

    /// The time that a burst takes, in units of 64 ns.
    fn ticks(&self) -> u64 {
        let nanoseconds = u128::from(self.burst) * 1_000_000_000 / u128::from(self.rate.max(1));
        u64::try_from(nanoseconds).unwrap_or(u64::MAX) / TICK
    }

    /// Writes the options as `net/sched/sch_tbf.c:tbf_change` reads them.
    pub(super) fn options(&self) -> Vec<u8> {
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        // struct tc_tbf_qopt: rate, peak rate (none), limit, the burst's time, the peak's burst (none).
        let mut parameters = vec![0, ETHERNET];
        parameters.resize(8, 0);
        parameters.extend(rate.to_ne_bytes());
        parameters.resize(24, 0);
        parameters.extend(self.limit.to_ne_bytes());
        parameters.extend(u32::try_from(self.ticks()).unwrap_or(u32::MAX).to_ne_bytes());
        parameters.resize(36, 0);
        let mut options = Vec::new();
        attribute(&mut options, TCA_TBF_PARMS, &parameters);
        // In bytes and not as a time, which has no 32 bits for a long burst at a low rate.
        attribute(&mut options, TCA_TBF_BURST, &self.burst.to_ne_bytes());
        if self.rate > u64::from(u32::MAX) {
            attribute(&mut options, TCA_TBF_RATE64, &self.rate.to_ne_bytes());
        }
        options
    }
}

impl Bucket {
    /// Bytes that may be sent at once; less where the time was cut off.
    pub fn burst(&self) -> u64 {
        let bytes = u128::from(self.ticks) * u128::from(TICK) * u128::from(self.rate) / 1_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Reads the options of a token bucket.
    pub(super) fn read(options: &[u8]) -> Option<Self> {
        let mut found: Option<Self> = None;
        let mut wide = None;
        let mut rest = options;
        while let [l0, l1, k0, k1, tail @ ..] = rest {
            let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
            let value = tail.get(..length.checked_sub(4)?)?;
            match u16::from_ne_bytes([*k0, *k1]) {
                TCA_TBF_PARMS => {
                    let word = |at: usize| Some(u32::from_ne_bytes(value.get(at..at + 4)?.try_into().ok()?));
                    found = Some(Self { rate: word(8)?.into(), limit: word(24)?, ticks: word(28)? });
                }
                TCA_TBF_RATE64 => wide = Some(u64::from_ne_bytes(value.try_into().ok()?)),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        found.map(|bucket| Self { rate: wide.unwrap_or(bucket.rate), ..bucket })
    }
}

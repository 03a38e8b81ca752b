//! Time, as a trait so that tests own it.

use std::time::{Duration, Instant, SystemTime};

/// Where the time comes from.
pub trait Clock: Send + Sync {
    /// Returns the monotonic time: for deadlines and durations.
    fn now(&self) -> Instant;
    /// Returns the time of day: for what people and files read.
    fn wall(&self) -> SystemTime;
}

/// The kernel's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the monotonic clock")]
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// The time since this machine's start, suspended time included (`CLOCK_BOOTTIME`); no system call.
pub fn uptime() -> Duration {
    // The kernel has this clock since 2.6.39, so it is never refused.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// A point in the monotonic time after which something is given up.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    /// Returns the deadline `limit` from now.
    pub fn after(limit: Duration) -> Self {
        Self { at: SystemClock.now() + limit, limit }
    }

    /// The span this deadline was made with.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// The time that is left, zero when it has passed.
    pub fn left(&self) -> Duration {
        self.at.saturating_duration_since(SystemClock.now())
    }

    /// Whether the time has passed.
    pub fn passed(&self) -> bool {
        self.left().is_zero()
    }
}

/// Calls `check` until it gives a value or `limit` has passed: waiting without a guess at how long.
///
/// Polls often at first and ever 50 ms later. Returns `None` after the limit, having called `check` at least once.
pub fn eventually<T>(limit: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Deadline::after(limit);
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = check() {
            return Some(value);
        }
        if deadline.passed() {
            return None;
        }
        std::thread::sleep(pause.min(deadline.left()));
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

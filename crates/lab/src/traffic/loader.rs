//! An open-loop client: probes begin at their times, whether or not earlier ones have ended.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use netd_kernel::clock::{Clock, SystemClock, eventually};
use serde::{Deserialize, Serialize};

use super::{Counts, Protocol, probe_once};

/// What to load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Load {
    /// How to talk.
    pub protocol: Protocol,
    /// Whom to.
    pub target: SocketAddr,
    /// Probes begun in a second.
    pub per_second: u32,
    /// How long each may take.
    pub timeout: Duration,
    /// The most probes in flight; those due beyond that are skipped and counted.
    pub outstanding: u32,
}

impl Load {
    /// Returns a load of TCP connections with two seconds for each.
    pub fn tcp(target: SocketAddr, per_second: u32) -> Self {
        let timeout = Duration::from_secs(2);
        Self { protocol: Protocol::Tcp, target, per_second, timeout, outstanding: 512 }
    }

    /// Returns a load of UDP questions with two seconds for each.
    pub fn udp(target: SocketAddr, per_second: u32) -> Self {
        Self { protocol: Protocol::Udp, ..Self::tcp(target, per_second) }
    }
}

/// A running load; it ends when dropped.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    ticker: Option<JoinHandle<()>>,
    timeout: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    counts: Mutex<Counts>,
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut Counts) -> T) -> T {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Loader {
    /// Starts loading, in the calling thread's network namespace.
    pub fn start(load: &Load) -> Self {
        let shared = Arc::new(Shared::default());
        let (ticking, load_copy) = (Arc::clone(&shared), load.clone());
        let ticker = Some(std::thread::spawn(move || tick(&ticking, &load_copy)));
        Self { shared, ticker, timeout: load.timeout }
    }

    /// What has been counted so far.
    pub fn counts(&self) -> Counts {
        self.shared.change(|counts| counts.clone())
    }

    /// Ends the load, waits for the probes in flight, and returns the counts.
    pub fn stop(mut self) -> Counts {
        self.end();
        // Connecting and reading may each take the timeout.
        eventually(self.timeout * 2 + Duration::from_secs(1), || {
            (self.counts().in_flight == 0).then_some(())
        });
        self.counts()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(ticker) = self.ticker.take() {
            let _ = ticker.join();
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.end();
    }
}

/// Begins a probe at each multiple of the period, counted from the start so that delays do not add up.
fn tick(shared: &Arc<Shared>, load: &Load) {
    let begin = SystemClock.now();
    let period = Duration::from_secs(1) / load.per_second.max(1);
    let mut due = Duration::ZERO;
    while !shared.stop.load(Ordering::Relaxed) {
        let passed = SystemClock.now().saturating_duration_since(begin);
        if let Some(early) = due.checked_sub(passed).filter(|early| !early.is_zero()) {
            std::thread::sleep(early.min(Duration::from_millis(50)));
            continue;
        }
        due += period;
        start_probe(shared, load);
    }
}

fn start_probe(shared: &Arc<Shared>, load: &Load) {
    let room = shared.change(|counts| {
        let room = counts.in_flight < u64::from(load.outstanding);
        if room {
            counts.begin()
        } else {
            counts.skipped += 1
        }
        room
    });
    if !room {
        return;
    }
    let (own, protocol, target, timeout) = (Arc::clone(shared), load.protocol, load.target, load.timeout);
    let probe = move || {
        let begin = SystemClock.now();
        let outcome = probe_once(protocol, target, timeout);
        let took = SystemClock.now().saturating_duration_since(begin);
        own.change(|counts| counts.end(&outcome, took));
    };
    if let Err(error) = std::thread::Builder::new().stack_size(128 * 1024).spawn(probe) {
        let outcome = super::Outcome::Other(format!("no thread for a probe: {error}"));
        shared.change(|counts| counts.end(&outcome, Duration::ZERO));
    }
}

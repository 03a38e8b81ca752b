//! Which servers are asked, and how they did lately.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where other names are resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Upstreams {
    /// Nowhere: other names are refused.
    #[default]
    None,
    /// At these servers, in this order.
    List(Vec<SocketAddr>),
    /// At the `nameserver`s of a resolv.conf, which is read again when it changes.
    ResolvConf(PathBuf),
}

/// How long an upstream that did not answer is asked last, in milliseconds.
const DOWN_MILLIS: u64 = 10_000;
/// How many upstreams are used (as CoreDNS).
const MAX_UPSTREAMS: usize = 15;

/// An upstream for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamStatus {
    /// Where it is.
    pub address: SocketAddr,
    /// False for a while after it did not answer.
    pub healthy: bool,
    /// How often it did not answer.
    pub failures: u64,
}

/// One upstream and how it did.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    failures: AtomicU64,
    down_until: AtomicU64,
}

impl Upstream {
    fn new(address: SocketAddr) -> Self {
        Self { address, failures: AtomicU64::new(0), down_until: AtomicU64::new(0) }
    }

    pub(super) fn answered(&self) {
        self.down_until.store(0, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, now: u64) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.down_until.store(now.saturating_add(DOWN_MILLIS), Ordering::Relaxed);
    }

    pub(super) fn is_down(&self, now: u64) -> bool {
        self.down_until.load(Ordering::Relaxed) > now
    }

    pub(super) fn status(&self, now: u64) -> UpstreamStatus {
        UpstreamStatus {
            address: self.address,
            healthy: !self.is_down(now),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}

/// The upstreams in use and what was said about the others.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) upstreams: Vec<Arc<Upstream>>,
    pub(super) notes: Vec<String>,
}

impl PartialEq for Loaded {
    fn eq(&self, other: &Self) -> bool {
        let addresses = |l: &Self| l.upstreams.iter().map(|u| u.address).collect::<Vec<_>>();
        addresses(self) == addresses(other) && self.notes == other.notes
    }
}

/// Upstreams that must not be asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Excluded<'e> {
    /// Addresses of this server.
    pub(super) own: &'e [SocketAddr],
    /// Upstreams that were seen to send queries back.
    pub(super) looping: &'e BTreeSet<SocketAddr>,
}

/// Reads the upstreams; those of `old` keep their record, all of them when the file cannot be read.
pub(super) fn load(source: &Upstreams, excluded: Excluded<'_>, old: &Loaded) -> Loaded {
    let mut notes = Vec::new();
    let addresses = match source {
        Upstreams::None => Vec::new(),
        Upstreams::List(list) => list.clone(),
        Upstreams::ResolvConf(path) => match std::fs::read_to_string(path) {
            Ok(text) => parse_resolv_conf(&text, &mut notes),
            Err(error) => {
                notes.push(format!(
                    "{} cannot be read ({error}): upstreams stay as they were",
                    path.display()
                ));
                let kept = old.upstreams.iter().filter(|u| !excluded.looping.contains(&u.address));
                return Loaded { upstreams: kept.cloned().collect(), notes };
            }
        },
    };
    let mut upstreams: Vec<Arc<Upstream>> = Vec::new();
    for address in addresses {
        if excluded.own.contains(&address) {
            notes.push(format!("upstream {address} is this server itself and would loop: not used"));
        } else if excluded.looping.contains(&address) {
            notes.push(format!("upstream {address} sends queries back to this server (a loop): not used"));
        } else if upstreams.len() >= MAX_UPSTREAMS {
            notes.push(format!("upstream {address} is beyond the {MAX_UPSTREAMS} that are used"));
        } else if upstreams.iter().all(|u| u.address != address) {
            let known = old.upstreams.iter().find(|u| u.address == address);
            upstreams.push(known.map_or_else(|| Arc::new(Upstream::new(address)), Arc::clone));
        }
    }
    if upstreams.is_empty() && *source != Upstreams::None {
        notes.push("no usable upstream: names outside the cluster are refused".to_owned());
    }
    Loaded { upstreams, notes }
}

/// The addresses of `nameserver` lines (resolv.conf(5)), on port 53.
fn parse_resolv_conf(text: &str, notes: &mut Vec<String>) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(word) = words.next() else { continue };
        match word.parse::<IpAddr>() {
            Ok(address) => addresses.push(SocketAddr::new(address, 53)),
            Err(_not_an_address) => notes.push(format!("nameserver {word} is not an address netd can use")),
        }
    }
    addresses
}

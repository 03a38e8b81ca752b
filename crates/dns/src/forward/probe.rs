//! Finds upstreams that send queries back to this server, which would loop.
//!
//! An upstream such as a local stub resolver may itself use the cluster DNS. So each is asked for a random
//! name once in a while; if that question arrives here, the upstream is left out. Unlike CoreDNS, which
//! ends itself, everything else goes on.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

use super::{Forwarder, TRY_TIMEOUT, message};
use crate::wire::{Name, Request, rtype};

/// After how many rounds upstreams that passed are asked again: about every ten minutes.
const PERIOD: u32 = 120;

/// The random name that is asked for at the moment, if any.
#[derive(Debug, Default)]
pub(super) struct Probe {
    current: ArcSwapOption<Asked>,
}

#[derive(Debug)]
struct Asked {
    name: Name,
    came_back: AtomicBool,
}

/// What is known of the upstreams, kept by the task that follows them.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    passed: BTreeSet<SocketAddr>,
    pub(super) looping: BTreeSet<SocketAddr>,
    rounds: u32,
}

impl Forwarder {
    /// True for this server's own probe, which must not be forwarded again.
    pub(crate) fn is_own_probe(&self, packet: &[u8]) -> bool {
        let asked = self.probe.current.load();
        let Some(asked) = asked.as_ref() else { return false };
        let is_own = Request::parse(packet).is_ok_and(|request| request.question.name == asked.name);
        if is_own {
            asked.came_back.store(true, Ordering::Relaxed);
        }
        is_own
    }

    /// Probes the upstreams that were not yet; those that do not answer stay in use and are asked again.
    pub(super) async fn probe_upstreams(&self, verdicts: &mut Verdicts) {
        verdicts.rounds += 1;
        if verdicts.rounds >= PERIOD {
            verdicts.rounds = 0;
            verdicts.passed.clear();
        }
        let loaded = self.loaded.load_full();
        let used = loaded.upstreams.iter().map(|u| u.address);
        let candidates: BTreeSet<SocketAddr> = used.chain(verdicts.looping.iter().copied()).collect();
        let open: Vec<SocketAddr> = candidates.difference(&verdicts.passed).copied().collect();
        for upstream in open {
            match self.loops(upstream).await {
                Some(true) => {
                    verdicts.looping.insert(upstream);
                }
                Some(false) => {
                    verdicts.looping.remove(&upstream);
                    verdicts.passed.insert(upstream);
                }
                None => {}
            }
        }
    }

    /// Whether a question to `upstream` comes back here; `None` when it does not answer either.
    async fn loops(&self, upstream: SocketAddr) -> Option<bool> {
        let labels = [self.entropy.next(), self.entropy.next()].map(|number| format!("{number:016x}"));
        let name = Name::from_labels(labels.iter().map(String::as_bytes)).ok()?;
        let packet = message::query(&name, rtype::HINFO);
        let request = Request::parse(&packet).ok()?;
        let asked = Arc::new(Asked { name, came_back: AtomicBool::new(false) });
        self.probe.current.store(Some(Arc::clone(&asked)));
        let answered = self.ask(upstream, &request, Instant::now() + TRY_TIMEOUT).await.is_ok();
        self.probe.current.store(None);
        if asked.came_back.load(Ordering::Relaxed) {
            return Some(true);
        }
        answered.then_some(false)
    }
}

//! Names of other zones, from upstream servers.
//!
//! Each query has its own connected socket, so the kernel picks a random source port and hands over only
//! datagrams of that upstream (RFC 5452); id and question are checked as well.

mod cache;
mod exchange;
mod message;
mod probe;
mod upstreams;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::{debug, warn};

pub use upstreams::{UpstreamStatus, Upstreams};

use crate::answer::Completion;
use crate::entropy::Entropy;
use crate::metrics::{Metrics, count};
use crate::wire::{Name, Request, header_rcode, is_truncated, rcode};
use cache::Cache;
use probe::{Probe, Verdicts};
use upstreams::{Excluded, Loaded, Upstream, load};

/// How long one upstream has for an answer.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a query may take in all; stub resolvers give up after 5 s.
const BUDGET: Duration = Duration::from_millis(4400);
/// How often each upstream is tried for one query.
const ROUNDS: usize = 2;
/// How often a resolv.conf is read again.
const RELOAD_PERIOD: Duration = Duration::from_secs(5);

/// Why a query has no answer from upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// No upstream is configured or usable.
    #[error("no upstream")]
    Disabled,
    /// The packet is no request that could be forwarded.
    #[error("no request")]
    NoRequest,
    /// No upstream gave a usable answer in time.
    #[error("no upstream answered")]
    Unanswered,
}

/// Asks upstream servers, each in turn until one answers.
#[derive(Debug)]
pub struct Forwarder {
    source: Upstreams,
    own: Vec<SocketAddr>,
    loaded: ArcSwap<Loaded>,
    permits: Arc<Semaphore>,
    entropy: Entropy,
    metrics: Arc<Metrics>,
    started: Instant,
    probe: Probe,
    cache: Cache,
}

/// How much a forwarder may have at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardLimits {
    /// Queries on their way to upstreams.
    pub in_flight: usize,
    /// Bytes of answers that are kept; 0 keeps none.
    pub cache_bytes: usize,
}

impl Forwarder {
    /// Makes a forwarder that leaves out `own`, the addresses this server listens on.
    ///
    /// Reads the resolv.conf, if the upstreams come from one; a failure disables forwarding until it can
    /// be read. Call within a tokio runtime.
    pub fn new(
        source: Upstreams,
        own: Vec<SocketAddr>,
        limits: ForwardLimits,
        metrics: Arc<Metrics>,
    ) -> Self {
        let excluded = Excluded { own: &own, looping: &BTreeSet::new() };
        let loaded = load(&source, excluded, &Loaded::default());
        for note in &loaded.notes {
            warn!(note = %note, "dns upstream left out");
        }
        Self {
            source,
            own,
            loaded: ArcSwap::from_pointee(loaded),
            permits: Arc::new(Semaphore::new(limits.in_flight.min(Semaphore::MAX_PERMITS))),
            entropy: Entropy::default(),
            metrics,
            started: Instant::now(),
            probe: Probe::default(),
            cache: Cache::new(limits.cache_bytes),
        }
    }

    /// True when there is an upstream to ask.
    pub fn enabled(&self) -> bool {
        !self.loaded.load().upstreams.is_empty()
    }

    /// The upstreams and how they do.
    pub fn upstreams(&self) -> Vec<UpstreamStatus> {
        let now = self.now();
        self.loaded.load().upstreams.iter().map(|u| u.status(now)).collect()
    }

    /// What an operator should know about the upstreams, such as one that was left out.
    pub fn notes(&self) -> Vec<String> {
        self.loaded.load().notes.clone()
    }

    /// Room for one more query; `None` when too many are under way.
    pub(crate) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok();
        if permit.is_none() {
            count(&self.metrics.forward_rejected);
        }
        permit
    }

    /// Keeps the upstreams current, for ever: reads a resolv.conf again when it has changed, and leaves out
    /// upstreams that send queries back.
    pub(crate) async fn follow(&self) {
        let mut verdicts = Verdicts::default();
        let mut ticks = tokio::time::interval(RELOAD_PERIOD);
        loop {
            ticks.tick().await;
            self.reload(&verdicts);
            self.probe_upstreams(&mut verdicts).await;
            self.reload(&verdicts);
        }
    }

    fn reload(&self, verdicts: &Verdicts) {
        let old = self.loaded.load_full();
        let excluded = Excluded { own: &self.own, looping: &verdicts.looping };
        let new = load(&self.source, excluded, &old);
        if new != *old {
            warn_changes(&old, &new);
            self.loaded.store(Arc::new(new));
            self.cache.clear();
        }
    }

    /// Forwards a request and returns the upstream's reply, whose id is the request's; a fresh one that is
    /// still remembered will do.
    ///
    /// Takes at most 4.4 s in all.
    ///
    /// # Errors
    /// [`ForwardError`].
    pub async fn forward(&self, packet: &[u8]) -> Result<Vec<u8>, ForwardError> {
        let request = Request::parse(packet).map_err(|_reject| ForwardError::NoRequest)?;
        if let Some(reply) = self.cache.get(&request, Instant::now()) {
            count(&self.metrics.forward_cached);
            return Ok(reply);
        }
        count(&self.metrics.forwards);
        let result = self.ask_in_turn(&request).await;
        match &result {
            Ok(reply) => self.cache.put(&request, reply, Instant::now()),
            Err(_) => count(&self.metrics.forward_errors),
        }
        result
    }

    /// Resolves a name of another zone, for the alias that leads to it.
    ///
    /// # Errors
    /// [`ForwardError`].
    pub async fn resolve(&self, name: &Name, qtype: u16) -> Result<Completion, ForwardError> {
        let reply = self.forward(&message::query(name, qtype)).await?;
        let code = header_rcode(&reply);
        if !matches!(code, rcode::NOERROR | rcode::NXDOMAIN) {
            return Err(ForwardError::Unanswered);
        }
        message::completion(&reply, qtype).ok_or(ForwardError::Unanswered)
    }

    async fn ask_in_turn(&self, request: &Request<'_>) -> Result<Vec<u8>, ForwardError> {
        let loaded = self.loaded.load_full();
        let mut order: Vec<&Upstream> = loaded.upstreams.iter().map(AsRef::as_ref).collect();
        if order.is_empty() {
            return Err(ForwardError::Disabled);
        }
        let now = self.now();
        // Stable: those that answered last time come first, in the configured order.
        order.sort_by_key(|upstream| upstream.is_down(now));
        let deadline = Instant::now() + BUDGET;
        let mut failure = None;
        for upstream in order.iter().cycle().take(order.len() * ROUNDS) {
            let until = deadline.min(Instant::now() + TRY_TIMEOUT);
            if until >= deadline && Instant::now() >= deadline {
                break;
            }
            match self.ask(upstream.address, request, until).await {
                Ok(reply) if should_try_next(&reply) => failure = Some(reply),
                Ok(reply) => {
                    upstream.answered();
                    return Ok(reply);
                }
                Err(error) => {
                    debug!(upstream = %upstream.address, %error, "dns upstream did not answer");
                    upstream.failed(self.now());
                }
            }
            if failure.is_some() && order.len() == 1 {
                break;
            }
        }
        failure.ok_or(ForwardError::Unanswered)
    }

    /// Asks one upstream: over UDP, then over TCP when the answer is cut.
    async fn ask(
        &self,
        upstream: SocketAddr,
        request: &Request<'_>,
        until: Instant,
    ) -> std::io::Result<Vec<u8>> {
        let id = u16::try_from(self.entropy.next() & 0xffff).unwrap_or(0);
        let outgoing = message::outgoing(request, id);
        let question = request.question.bytes;
        let mut reply = exchange::udp(upstream, &outgoing, question, until).await?;
        if is_truncated(&reply) {
            count(&self.metrics.forward_tcp);
            // Without TCP the cut answer is still better than none.
            if let Ok(whole) = exchange::tcp(upstream, &outgoing, question, until).await {
                reply = whole;
            }
        }
        message::set_id(&mut reply, request.id);
        Ok(reply)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Codes with which a resolver tries the next server (as glibc does).
fn should_try_next(reply: &[u8]) -> bool {
    matches!(header_rcode(reply), rcode::SERVFAIL | rcode::NOTIMP | rcode::REFUSED)
}

fn warn_changes(old: &Loaded, new: &Loaded) {
    for note in new.notes.iter().filter(|note| !old.notes.contains(note)) {
        warn!(note = %note, "dns upstream left out");
    }
    let addresses: Vec<SocketAddr> = new.upstreams.iter().map(|u| u.address).collect();
    tracing::info!(upstreams = ?addresses, "dns upstreams changed");
}

#[cfg(test)]
mod tests;

//! Counters of the DNS part, without a metrics library: whoever exports them gives them names.

use std::array;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use netd_model::Family;

use crate::answer::Transport;
use crate::wire::{rcode, rtype};

/// Types that are counted by name; all others count as `other`.
const TYPES: [(u16, &str); 13] = [
    (rtype::A, "A"),
    (rtype::AAAA, "AAAA"),
    (rtype::SRV, "SRV"),
    (rtype::PTR, "PTR"),
    (rtype::CNAME, "CNAME"),
    (rtype::TXT, "TXT"),
    (rtype::SOA, "SOA"),
    (rtype::NS, "NS"),
    (rtype::MX, "MX"),
    (rtype::NAPTR, "NAPTR"),
    (rtype::DS, "DS"),
    (rtype::HTTPS, "HTTPS"),
    (rtype::ANY, "ANY"),
];
/// Codes that are counted by name; all others count as `OTHER`.
const CODES: [u16; 7] = [
    rcode::NOERROR,
    rcode::FORMERR,
    rcode::SERVFAIL,
    rcode::NXDOMAIN,
    rcode::NOTIMP,
    rcode::REFUSED,
    rcode::BADVERS,
];
const SLOTS: usize = TYPES.len() + 1;
const CODE_SLOTS: usize = CODES.len() + 1;
/// Buckets of the duration histogram: 0.25 ms doubled 15 times (as CoreDNS), and the rest.
const BUCKETS: usize = 17;
const FIRST_BUCKET: f64 = 0.000_25;

/// Who made a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The zone, out of the snapshot.
    Zone,
    /// An upstream, or the lack of one.
    Forward,
}

/// The live counters.
#[derive(Debug)]
pub struct Metrics {
    requests: [[[AtomicU64; SLOTS]; 2]; 2],
    responses: [[AtomicU64; CODE_SLOTS]; 2],
    buckets: [AtomicU64; BUCKETS],
    duration_micros: AtomicU64,
    pub(crate) forwards: AtomicU64,
    pub(crate) forward_cached: AtomicU64,
    pub(crate) forward_errors: AtomicU64,
    pub(crate) forward_rejected: AtomicU64,
    pub(crate) forward_tcp: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) refused_by_acl: AtomicU64,
    pub(crate) tcp_connections: AtomicU64,
    pub(crate) tcp_rejected: AtomicU64,
    pub(crate) truncated: AtomicU64,
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestCount {
    /// How they came.
    pub transport: Transport,
    /// Family of the client's address.
    pub family: Family,
    /// Type that was asked for, such as `A`, or `other`.
    pub record_type: &'static str,
    /// How many.
    pub count: u64,
}

/// Replies of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseCount {
    /// Response code as CoreDNS writes it, or `OTHER`.
    pub rcode: &'static str,
    /// Who made them.
    pub origin: Origin,
    /// How many.
    pub count: u64,
}

/// All counters at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters {
    /// Requests, kinds without any left out.
    pub requests: Vec<RequestCount>,
    /// Replies, kinds without any left out.
    pub responses: Vec<ResponseCount>,
    /// Upper bound in seconds and count of each bucket of request durations; not cumulative.
    pub duration_buckets: Vec<(f64, u64)>,
    /// Sum of request durations in seconds.
    pub duration_sum_seconds: f64,
    /// Queries handed to upstreams.
    pub forwards: u64,
    /// Queries for other names that were answered from the cache.
    pub forward_cached: u64,
    /// Of the forwarded ones, those that no upstream answered.
    pub forward_errors: u64,
    /// Queries refused because too many were under way.
    pub forward_rejected: u64,
    /// Queries repeated over TCP because the UDP answer was truncated.
    pub forward_tcp: u64,
    /// Packets without a reply: no requests.
    pub dropped: u64,
    /// Requests that the access list refused.
    pub refused_by_acl: u64,
    /// TCP connections accepted.
    pub tcp_connections: u64,
    /// TCP connections closed at once because too many were open.
    pub tcp_rejected: u64,
    /// Replies sent with TC.
    pub truncated: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        fn zeros<const N: usize>() -> [AtomicU64; N] {
            array::from_fn(|_| AtomicU64::new(0))
        }
        let zero = || AtomicU64::new(0);
        Self {
            requests: array::from_fn(|_| array::from_fn(|_| zeros())),
            responses: array::from_fn(|_| zeros()),
            buckets: zeros(),
            duration_micros: zero(),
            forwards: zero(),
            forward_cached: zero(),
            forward_errors: zero(),
            forward_rejected: zero(),
            forward_tcp: zero(),
            dropped: zero(),
            refused_by_acl: zero(),
            tcp_connections: zero(),
            tcp_rejected: zero(),
            truncated: zero(),
        }
    }
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Metrics {
    /// Counts a request; `qtype` is absent when the question could not be read.
    pub(crate) fn request(&self, transport: Transport, client: SocketAddr, qtype: Option<u16>) {
        let slot = qtype.and_then(|t| TYPES.iter().position(|(n, _)| *n == t)).unwrap_or(TYPES.len());
        let family = usize::from(client.ip().to_canonical().is_ipv6());
        let counter =
            self.requests.get(transport as usize).and_then(|t| t.get(family)).and_then(|f| f.get(slot));
        counter.inspect(|c| count(c));
    }

    /// Counts a reply and the time it took.
    pub(crate) fn response(&self, origin: Origin, code: u16, took: Duration) {
        let slot = CODES.iter().position(|c| *c == code).unwrap_or(CODES.len());
        self.responses.get(origin as usize).and_then(|o| o.get(slot)).inspect(|c| count(c));
        let seconds = took.as_secs_f64();
        let bucket = bounds().position(|bound| seconds <= bound).unwrap_or(BUCKETS - 1);
        self.buckets.get(bucket).inspect(|c| count(c));
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.duration_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Reads all counters; each is exact, but not all at the very same moment.
    pub fn snapshot(&self) -> Counters {
        Counters {
            requests: self.request_counts(),
            responses: self.response_counts(),
            duration_buckets: bounds().zip(self.buckets.iter().map(read)).collect(),
            duration_sum_seconds: Duration::from_micros(read(&self.duration_micros)).as_secs_f64(),
            forwards: read(&self.forwards),
            forward_cached: read(&self.forward_cached),
            forward_errors: read(&self.forward_errors),
            forward_rejected: read(&self.forward_rejected),
            forward_tcp: read(&self.forward_tcp),
            dropped: read(&self.dropped),
            refused_by_acl: read(&self.refused_by_acl),
            tcp_connections: read(&self.tcp_connections),
            tcp_rejected: read(&self.tcp_rejected),
            truncated: read(&self.truncated),
        }
    }

    fn request_counts(&self) -> Vec<RequestCount> {
        let mut counts = Vec::new();
        for (transport, families) in [Transport::Udp, Transport::Tcp].into_iter().zip(&self.requests) {
            for (family, slots) in Family::ALL.into_iter().zip(families) {
                let names = TYPES.iter().map(|(_, name)| *name).chain(["other"]);
                for (record_type, counter) in names.zip(slots) {
                    counts.push(RequestCount { transport, family, record_type, count: read(counter) });
                }
            }
        }
        counts.retain(|c| c.count > 0);
        counts
    }

    fn response_counts(&self) -> Vec<ResponseCount> {
        let mut counts = Vec::new();
        for (origin, slots) in [Origin::Zone, Origin::Forward].into_iter().zip(&self.responses) {
            let names = CODES.iter().map(|code| rcode::name(*code)).chain(["OTHER"]);
            for (rcode, counter) in names.zip(slots) {
                counts.push(ResponseCount { rcode, origin, count: read(counter) });
            }
        }
        counts.retain(|c| c.count > 0);
        counts
    }
}

impl Counters {
    /// All requests.
    pub fn total_requests(&self) -> u64 {
        self.requests.iter().map(|r| r.count).sum()
    }

    /// Replies with this code, such as `SERVFAIL`.
    pub fn total_responses(&self, rcode: &str) -> u64 {
        self.responses.iter().filter(|r| r.rcode == rcode).map(|r| r.count).sum()
    }
}

/// Upper bounds of the histogram's buckets in seconds, the last without bound.
fn bounds() -> impl Iterator<Item = f64> {
    let doubled = std::iter::successors(Some(FIRST_BUCKET), |bound| Some(bound * 2.0));
    doubled.take(BUCKETS - 1).chain([f64::INFINITY])
}

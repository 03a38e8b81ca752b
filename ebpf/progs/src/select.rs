//! From a destination to an endpoint.
//!
//! netd changes a Service while these programs run: it writes the new endpoints under a new generation, flips
//! the Service by one map write, and frees the old generation later. An element that is freed may be given to
//! another key at once, so every value carries its key and is compared with it after it has been copied; on a
//! mismatch or a missing slot the whole selection starts again from the Service.

use core::ptr;

use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::programs::SockAddrContext;
use netd_ebpf_abi::{
    AffinityKey, AffinityValue, HOST, MemberKey, POD, Peer, ServiceKey, ServiceValue, Side, SlotKey,
    SlotValue, action,
};

use crate::maps::{AFFINITY, MEMBERS, NODE, SERVICES, SLOTS};

/// How often a selection that met a change starts again before the flow is refused.
const ATTEMPTS: u32 = 4;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// What happens to a flow.
pub enum Selection {
    /// Not a Service, or left to the packet filter.
    Pass,
    /// No endpoint.
    Reject,
    /// Goes here.
    To(Peer),
}

/// Chooses where a flow to `key` goes. `kept` is the endpoint that an earlier datagram of the flow went to,
/// used again while it is still in the pool.
#[inline(always)]
pub fn select(ctx: &SockAddrContext, key: &ServiceKey, kept: Option<Peer>) -> Selection {
    let netns_cookie = netns_cookie(ctx);
    let class = if is_host(netns_cookie) { HOST } else { POD };
    for _ in 0..ATTEMPTS {
        let side = match read_side(key, class) {
            Read::Absent => return Selection::Pass,
            Read::Changed => continue,
            Read::Value(side) => side,
        };
        match side.action {
            action::BALANCE => {}
            action::REJECT => return Selection::Reject,
            _ => return Selection::Pass,
        }
        if let Some(endpoint) = kept
            && is_member(side.pool, &endpoint)
        {
            return Selection::To(endpoint);
        }
        if let Some(endpoint) = balance(netns_cookie, &side) {
            return Selection::To(endpoint);
        }
    }
    Selection::Reject
}

/// Picks an endpoint; `None` when the generation is no longer there.
#[inline(always)]
fn balance(netns_cookie: u64, side: &Side) -> Option<Peer> {
    if side.affinity_seconds == 0 {
        return pick(side);
    }
    let key = AffinityKey { netns_cookie, pool: side.pool, reserved: 0 };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let endpoint = match returning(&key, side, now) {
        Some(endpoint) => endpoint,
        None => pick(side)?,
    };
    let value = AffinityValue { used_ns: now, endpoint, reserved: 0 };
    // A full LRU makes room by itself; a failure costs the client its affinity once, not its connection.
    let _ = AFFINITY.insert(key, value, 0);
    Some(endpoint)
}

/// The endpoint this client used within the timeout, if it is still in the pool.
#[inline(always)]
fn returning(key: &AffinityKey, side: &Side, now: u64) -> Option<Peer> {
    // SAFETY: the value is copied at once, and an endpoint of another client that an eviction may have put
    // there passes the membership test only if it is one of this pool's.
    let value = unsafe { AFFINITY.get(key) }.copied()?;
    let timeout = u64::from(side.affinity_seconds) * NANOS_PER_SECOND;
    (now.wrapping_sub(value.used_ns) < timeout && is_member(side.pool, &value.endpoint))
        .then_some(value.endpoint)
}

/// Picks at random, evenly.
#[inline(always)]
fn pick(side: &Side) -> Option<Peer> {
    if side.count == 0 {
        return None;
    }
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    // Scaling instead of a remainder: as even, and no division.
    let index = ((u64::from(random) * u64::from(side.count)) >> 32) as u32;
    let key = SlotKey { pool: side.pool, generation: side.generation, index };
    let value: *const SlotValue = SLOTS.get_ptr(key)?;
    // SAFETY: the kernel returned a pointer to a value of this type.
    let endpoint = unsafe { ptr::addr_of!((*value).endpoint) };
    let endpoint = copy_peer(endpoint);
    // SAFETY: as above.
    let owner = unsafe { ptr::addr_of!((*value).key) };
    // SAFETY: the pointer is into the value; volatile so that the key is read after the endpoint.
    let owner = unsafe { owner.read_volatile() };
    (owner == key).then_some(endpoint)
}

enum Read {
    Absent,
    Changed,
    Value(Side),
}

#[inline(always)]
fn read_side(key: &ServiceKey, class: usize) -> Read {
    let Some(value) = SERVICES.get_ptr(key) else {
        return Read::Absent;
    };
    let value: *const ServiceValue = value;
    let side = if class == HOST {
        // SAFETY: the kernel returned a pointer to a value of this type.
        unsafe { ptr::addr_of!((*value).sides[HOST]) }
    } else {
        // SAFETY: as above.
        unsafe { ptr::addr_of!((*value).sides[POD]) }
    };
    // SAFETY: the pointer is into the value; volatile so that the key is read after the side.
    let side = unsafe { side.read_volatile() };
    // SAFETY: as above.
    let owner = unsafe { ptr::addr_of!((*value).key) };
    // SAFETY: as above.
    let owner = unsafe { owner.read_volatile() };
    if owner == *key { Read::Value(side) } else { Read::Changed }
}

#[inline(always)]
fn copy_peer(peer: *const Peer) -> Peer {
    // SAFETY: callers pass a pointer into a map value of this type.
    unsafe { peer.read_volatile() }
}

#[inline(always)]
fn is_member(pool: u32, endpoint: &Peer) -> bool {
    let key = MemberKey { pool, endpoint: *endpoint };
    MEMBERS.get_ptr(key).is_some()
}

#[inline(always)]
fn is_host(netns_cookie: u64) -> bool {
    NODE.get(0).is_some_and(|node| node.host_netns_cookie == netns_cookie)
}

#[inline(always)]
fn netns_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the context it was called with.
    unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) }
}

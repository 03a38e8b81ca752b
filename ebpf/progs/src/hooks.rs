//! What each hook does.

use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use netd_ebpf_abi::{FlowKey, Peer, ServiceKey, SocketValue};

use crate::context::{Family, protocol};
use crate::maps::{REVERSE, SOCKETS, STICKY};
use crate::select::{Selection, select};

/// The call goes on.
pub const PROCEED: i32 = 1;
/// The call fails with the value given to `bpf_set_retval`.
const FAIL: i32 = 0;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
/// A multipath TCP socket connects like a TCP socket.
const IPPROTO_MPTCP: u32 = 262;
const ECONNREFUSED: i32 = 111;

/// Replaces the destination of a `connect`.
#[inline(always)]
pub fn connect<F: Family>(ctx: &SockAddrContext) -> i32 {
    let service = F::peer(ctx);
    let Some(key) = service_key(ctx, &service) else {
        return PROCEED;
    };
    match select(ctx, &key, None) {
        Selection::Pass => {
            forget_socket(ctx);
            PROCEED
        }
        Selection::Reject => refuse(),
        Selection::To(endpoint) => {
            remember_socket(ctx, service, endpoint);
            F::set_peer(ctx, &endpoint);
            PROCEED
        }
    }
}

/// Replaces the destination of a datagram on an unconnected socket, the same for each while it is there.
#[inline(always)]
pub fn sendmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    let service = F::peer(ctx);
    let Some(key) = service_key(ctx, &service) else {
        return PROCEED;
    };
    let flow = flow_key(ctx, service);
    // SAFETY: the value is copied at once; what an eviction may have put there must pass the membership test.
    let kept = unsafe { STICKY.get(flow) }.copied();
    match select(ctx, &key, kept) {
        Selection::Pass => PROCEED,
        Selection::Reject => refuse(),
        Selection::To(endpoint) => {
            if kept != Some(endpoint) {
                // A full LRU makes room by itself; without the entry the next datagram chooses again.
                let _ = STICKY.insert(flow, endpoint, 0);
            }
            remember_reverse(flow_key(ctx, endpoint), service);
            F::set_peer(ctx, &endpoint);
            PROCEED
        }
    }
}

/// Puts the Service back where the kernel reports an endpoint of it as the peer.
#[inline(always)]
pub fn restore<F: Family>(ctx: &SockAddrContext) {
    let endpoint = F::peer(ctx);
    // SAFETY: the context carries the socket of the call.
    let value = unsafe { SOCKETS.get_ptr_mut(ctx) };
    if !value.is_null() {
        // SAFETY: the kernel returned a pointer to a value of this type that lives as long as the socket.
        let value = unsafe { *value };
        if value.endpoint == endpoint {
            F::set_peer(ctx, &value.service);
            return;
        }
    }
    // SAFETY: the value is copied at once.
    if let Some(service) = unsafe { REVERSE.get(flow_key(ctx, endpoint)) }.copied() {
        F::set_peer(ctx, &service);
    }
}

#[inline(always)]
fn refuse() -> i32 {
    // SAFETY: the helper takes any error number.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    FAIL
}

#[inline(always)]
fn service_key(ctx: &SockAddrContext, peer: &Peer) -> Option<ServiceKey> {
    let protocol = match protocol(ctx) {
        IPPROTO_TCP | IPPROTO_MPTCP => IPPROTO_TCP as u8,
        IPPROTO_UDP => IPPROTO_UDP as u8,
        _ => return None,
    };
    Some(ServiceKey { address: peer.address, port: peer.port, protocol, reserved: 0 })
}

#[inline(always)]
fn flow_key(ctx: &SockAddrContext, peer: Peer) -> FlowKey {
    // SAFETY: the helper takes the context it was called with.
    let socket_cookie = unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) };
    FlowKey { socket_cookie, peer, reserved: 0 }
}

/// Keeps the Service with the socket; in the reverse map when the socket has no room left for storage.
#[inline(always)]
fn remember_socket(ctx: &SockAddrContext, service: Peer, endpoint: Peer) {
    let mut value = SocketValue { service, endpoint };
    // SAFETY: the context carries the socket of the call, and the value outlives the helper's copy.
    let stored = unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, Some(&mut value)) };
    if stored.is_null() {
        remember_reverse(flow_key(ctx, endpoint), service);
        return;
    }
    // The socket may have been connected before, and then has its storage already. Volatile, for a plain copy
    // would become a call of a byte-wise function.
    // SAFETY: the kernel returned a pointer to a value of this type that lives as long as the socket.
    unsafe { stored.write_volatile(value) };
}

/// Drops what an earlier `connect` of the socket left.
#[inline(always)]
fn forget_socket(ctx: &SockAddrContext) {
    // SAFETY: the context carries the socket of the call.
    let stored = unsafe { SOCKETS.get_ptr_mut(ctx) };
    if !stored.is_null() {
        // SAFETY: the kernel returned a pointer to a value of this type that lives as long as the socket.
        unsafe { stored.write_volatile(SocketValue::default()) };
    }
}

#[inline(always)]
fn remember_reverse(flow: FlowKey, service: Peer) {
    // SAFETY: the value is copied at once.
    let known = unsafe { REVERSE.get(flow) }.copied();
    if known != Some(service) {
        // A full LRU makes room by itself; without the entry the reply shows the endpoint's own address.
        let _ = REVERSE.insert(flow, service, 0);
    }
}

//! The address and port in a hook's context.
//!
//! The verifier lets each hook touch only the fields of its family, four bytes at a time; hence volatile
//! accesses, which the compiler neither merges nor moves.

use core::ptr;

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use netd_ebpf_abi::{Address, Peer};

/// How a family's hooks read and write the peer of a call.
pub trait Family {
    /// The address and port in the call.
    fn peer(ctx: &SockAddrContext) -> Peer;

    /// Puts `peer` in their place; its address is of this family (IPv4-mapped counts for both).
    fn set_peer(ctx: &SockAddrContext, peer: &Peer);
}

/// Hooks with an IPv4 address.
pub struct V4;

/// Hooks with an IPv6 address.
pub struct V6;

impl Family for V4 {
    #[inline(always)]
    fn peer(ctx: &SockAddrContext) -> Peer {
        let sock_addr = ctx.sock_addr;
        // SAFETY: the kernel passes a valid context, and the field lies within it.
        let field = unsafe { ptr::addr_of!((*sock_addr).user_ip4) };
        // SAFETY: the field is readable in every IPv4 hook.
        let word = unsafe { field.read_volatile() };
        Peer { address: Address::v4(word), port: port(sock_addr), reserved: 0 }
    }

    #[inline(always)]
    fn set_peer(ctx: &SockAddrContext, peer: &Peer) {
        let sock_addr = ctx.sock_addr;
        // SAFETY: as in `peer`.
        let field = unsafe { ptr::addr_of_mut!((*sock_addr).user_ip4) };
        // SAFETY: the field is writable in every IPv4 hook.
        unsafe { field.write_volatile(peer.address.0[3]) };
        set_port(sock_addr, peer.port);
    }
}

impl Family for V6 {
    #[inline(always)]
    fn peer(ctx: &SockAddrContext) -> Peer {
        let sock_addr = ctx.sock_addr;
        let word = |index: usize| {
            // SAFETY: the kernel passes a valid context, the field lies within it, and `index` is below 4.
            let field = unsafe { ptr::addr_of!((*sock_addr).user_ip6[index]) };
            // SAFETY: the field is readable in every IPv6 hook.
            unsafe { field.read_volatile() }
        };
        let address = Address([word(0), word(1), word(2), word(3)]);
        Peer { address, port: port(sock_addr), reserved: 0 }
    }

    #[inline(always)]
    fn set_peer(ctx: &SockAddrContext, peer: &Peer) {
        let sock_addr = ctx.sock_addr;
        let set_word = |index: usize| {
            // SAFETY: as in `peer`.
            let field = unsafe { ptr::addr_of_mut!((*sock_addr).user_ip6[index]) };
            // SAFETY: the field is writable in every IPv6 hook.
            unsafe { field.write_volatile(peer.address.0[index]) };
        };
        set_word(0);
        set_word(1);
        set_word(2);
        set_word(3);
        set_port(sock_addr, peer.port);
    }
}

/// The protocol of the socket (`IPPROTO_*`, which goes beyond 255).
#[inline(always)]
pub fn protocol(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the kernel passes a valid context, and the field lies within it.
    let field = unsafe { ptr::addr_of!((*ctx.sock_addr).protocol) };
    // SAFETY: the field is readable in every hook.
    unsafe { field.read_volatile() }
}

#[inline(always)]
fn port(sock_addr: *mut bpf_sock_addr) -> u16 {
    // SAFETY: the kernel passes a valid context, and the field lies within it.
    let field = unsafe { ptr::addr_of!((*sock_addr).user_port) };
    // SAFETY: the field is readable in every hook; the kernel fills the low 16 bits with `sin_port`.
    let value = unsafe { field.read_volatile() };
    value as u16
}

#[inline(always)]
fn set_port(sock_addr: *mut bpf_sock_addr, port: u16) {
    // SAFETY: as in `port`.
    let field = unsafe { ptr::addr_of_mut!((*sock_addr).user_port) };
    // SAFETY: the field is writable in every hook.
    unsafe { field.write_volatile(u32::from(port)) };
}

//! Socket load balancing: a Service's address is replaced by an endpoint's when a socket connects or sends,
//! so that an established connection costs nothing per packet.
//!
//! - `maps`: the maps, as `netd_ebpf_abi` describes them
//! - `context`: the address and port in a hook's context
//! - `select`: from a destination to an endpoint
//! - `hooks`: what each hook does with it
//!
//! Attached to a cgroup by `bpf_link`. Kernel 6.1 or newer (`bpf_set_retval` in these hooks).

#![no_std]
#![no_main]

mod context;
mod hooks;
mod maps;
mod select;

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::context::{V4, V6};

/// `connect(2)` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn netd_connect4(ctx: SockAddrContext) -> i32 {
    hooks::connect::<V4>(&ctx)
}

/// `connect(2)` of an IPv6 socket, IPv4-mapped destinations included.
#[cgroup_sock_addr(connect6)]
pub fn netd_connect6(ctx: SockAddrContext) -> i32 {
    hooks::connect::<V6>(&ctx)
}

/// `sendto(2)` and `sendmsg(2)` with an IPv4 destination; the kernel brings IPv4-mapped ones here too.
#[cgroup_sock_addr(sendmsg4)]
pub fn netd_sendmsg4(ctx: SockAddrContext) -> i32 {
    hooks::sendmsg::<V4>(&ctx)
}

/// `sendto(2)` and `sendmsg(2)` with an IPv6 destination.
#[cgroup_sock_addr(sendmsg6)]
pub fn netd_sendmsg6(ctx: SockAddrContext) -> i32 {
    hooks::sendmsg::<V6>(&ctx)
}

/// `recvfrom(2)` and `recvmsg(2)` of an IPv4 socket.
#[cgroup_sock_addr(recvmsg4)]
pub fn netd_recvmsg4(ctx: SockAddrContext) -> i32 {
    hooks::restore::<V4>(&ctx);
    hooks::PROCEED
}

/// `recvfrom(2)` and `recvmsg(2)` of an IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn netd_recvmsg6(ctx: SockAddrContext) -> i32 {
    hooks::restore::<V6>(&ctx);
    hooks::PROCEED
}

/// `getpeername(2)` of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn netd_getpeer4(ctx: SockAddrContext) -> i32 {
    hooks::restore::<V4>(&ctx);
    hooks::PROCEED
}

/// `getpeername(2)` of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn netd_getpeer6(ctx: SockAddrContext) -> i32 {
    hooks::restore::<V6>(&ctx);
    hooks::PROCEED
}

/// Never reached: the programs are compiled to abort-free code, and the verifier would refuse any other.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// The kernel offers some helpers to GPL-compatible programs only; these programs need none of them.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

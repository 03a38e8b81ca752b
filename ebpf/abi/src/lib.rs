//! Keys and values of the maps that the eBPF programs and netd share.
//!
//! - [`Address`], [`Peer`]: how an address and a port look in every map
//! - [`ServiceKey`], [`ServiceValue`], [`Side`]: what a destination is and what is done with it
//! - [`SlotKey`], [`SlotValue`]: the endpoints of a pool, numbered
//! - [`MemberKey`]: the endpoints of a pool, as a set
//! - [`AffinityKey`], [`AffinityValue`], [`FlowKey`], [`SocketValue`]: what the programs remember
//! - [`NodeValue`]: what the programs must know of the node
//!
//! Every type is `repr(C)` without padding that the compiler would add, so that the kernel hashes and compares
//! exactly the bytes that were meant. The hash of this file names the directory in which the maps are pinned:
//! programs of another layout never see these maps.

#![no_std]

use core::mem::{align_of, size_of};

/// Kernel names of the maps.
pub mod map {
    /// Destinations: [`ServiceKey`](crate::ServiceKey) to [`ServiceValue`](crate::ServiceValue), hash.
    pub const SERVICES: &str = "netd_services";
    /// Endpoints by number: [`SlotKey`](crate::SlotKey) to [`SlotValue`](crate::SlotValue), hash.
    pub const SLOTS: &str = "netd_slots";
    /// Endpoints as a set: [`MemberKey`](crate::MemberKey) to `u32` 1, hash.
    pub const MEMBERS: &str = "netd_members";
    /// Session affinity: [`AffinityKey`](crate::AffinityKey) to [`AffinityValue`](crate::AffinityValue), LRU hash.
    pub const AFFINITY: &str = "netd_affinity";
    /// Endpoint that an unconnected UDP socket uses for a destination: [`FlowKey`](crate::FlowKey) (peer is the
    /// Service) to [`Peer`](crate::Peer) (the endpoint), LRU hash.
    pub const STICKY: &str = "netd_sticky";
    /// Service that an endpoint's datagrams stand for: [`FlowKey`](crate::FlowKey) (peer is the endpoint) to
    /// [`Peer`](crate::Peer) (the Service), LRU hash.
    pub const REVERSE: &str = "netd_reverse";
    /// Service of a connected socket: [`SocketValue`](crate::SocketValue), socket storage.
    pub const SOCKETS: &str = "netd_sockets";
    /// The node: element 0 is a [`NodeValue`](crate::NodeValue), array.
    pub const NODE: &str = "netd_node";
}

/// Marks types whose bytes may be copied to and from the kernel as they are.
///
/// # Safety
/// The type is `repr(C)`, has no implicit padding, and every bit pattern is a valid value.
pub unsafe trait Plain: Copy + 'static {}

// SAFETY: an integer has no padding and no invalid bit pattern.
unsafe impl Plain for u32 {}

macro_rules! plain {
    ($($name:ident is $size:literal bytes, aligned to $align:literal;)+) => {$(
        const _: () = assert!(size_of::<$name>() == $size && align_of::<$name>() == $align);
        // SAFETY: repr(C), fields are integers or such types themselves, padding is explicit: the size
        // asserted above is the sum of the sizes of the fields.
        unsafe impl Plain for $name {}
    )+};
}

plain! {
    Address is 16 bytes, aligned to 4;
    Peer is 20 bytes, aligned to 4;
    ServiceKey is 20 bytes, aligned to 4;
    Side is 20 bytes, aligned to 4;
    ServiceValue is 60 bytes, aligned to 4;
    SlotKey is 12 bytes, aligned to 4;
    SlotValue is 32 bytes, aligned to 4;
    MemberKey is 24 bytes, aligned to 4;
    AffinityKey is 16 bytes, aligned to 8;
    AffinityValue is 32 bytes, aligned to 8;
    FlowKey is 32 bytes, aligned to 8;
    SocketValue is 40 bytes, aligned to 4;
    NodeValue is 8 bytes, aligned to 8;
}

/// An IPv6 address, or an IPv4 address as IPv4-mapped IPv6 (RFC 4291 §2.5.5.2).
///
/// Four words; each holds four bytes of the address in network order as they lie in memory, the way
/// `bpf_sock_addr.user_ip6` and `user_ip4` give them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// Third word of an IPv4-mapped address: `0:ffff`.
    pub const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

    /// The IPv4-mapped form of `word`, which is in network order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, Self::MAPPED, word])
    }

    /// From the 16 bytes of an IPv6 address.
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// The 16 bytes of the IPv6 address.
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = self.0;
        let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }
}

/// An address with a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// The address.
    pub address: Address,
    /// The port; its two bytes are in network order in memory.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// A destination that a socket may ask for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Destination address.
    pub address: Address,
    /// Destination port; its two bytes are in network order in memory.
    pub port: u16,
    /// IP protocol number: 6 or 17.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

/// What is done with a flow; values of [`Side::action`].
pub mod action {
    /// Left as it is; also what a zeroed value means.
    pub const PASS: u8 = 0;
    /// Goes to one of the pool's endpoints.
    pub const BALANCE: u8 = 1;
    /// Refused: the call fails with `ECONNREFUSED`.
    pub const REJECT: u8 = 2;
}

/// What is done with the flows of one class of sources.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Side {
    /// One of [`action`].
    pub action: u8,
    /// 1 when the plan wants the node's address as the source; the programs do not read it, for the route
    /// gives such sockets the node's address anyway.
    pub masquerade: u8,
    /// Zero.
    pub reserved: u16,
    /// Number of the pool. Host order, as every field below.
    pub pool: u32,
    /// Generation of the pool's slots.
    pub generation: u32,
    /// Number of slots in that generation.
    pub count: u32,
    /// Session affinity in seconds; 0 is none.
    pub affinity_seconds: u32,
}

/// Index in [`ServiceValue::sides`] for sockets in the node's own network namespace.
pub const HOST: usize = 0;
/// Index in [`ServiceValue::sides`] for sockets in any other network namespace.
pub const POD: usize = 1;

/// What is done with a destination.
///
/// `key` comes first because the kernel may hand an element that a program still reads to another key, and
/// fills it from the front: a reader copies the sides first and compares the key last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceValue {
    /// The key this value belongs to.
    pub key: ServiceKey,
    /// By class of source: [`HOST`], [`POD`].
    pub sides: [Side; 2],
}

/// A numbered place in a generation of a pool. Host order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotKey {
    /// Number of the pool.
    pub pool: u32,
    /// Generation.
    pub generation: u32,
    /// Place, from 0.
    pub index: u32,
}

/// The endpoint in a slot; `key` comes first for the reason given at [`ServiceValue`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotValue {
    /// The key this value belongs to.
    pub key: SlotKey,
    /// The endpoint.
    pub endpoint: Peer,
}

/// An endpoint as a member of a pool: present exactly while new flows may use it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberKey {
    /// Number of the pool. Host order.
    pub pool: u32,
    /// The endpoint.
    pub endpoint: Peer,
}

/// A client of a pool with session affinity.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityKey {
    /// Cookie of the client's network namespace (a pod is one). Host order.
    pub netns_cookie: u64,
    /// Number of the pool. Host order.
    pub pool: u32,
    /// Zero.
    pub reserved: u32,
}

/// The endpoint a client returns to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityValue {
    /// Monotonic time of the client's last new flow, in nanoseconds (`bpf_ktime_get_ns`). Host order.
    pub used_ns: u64,
    /// The endpoint.
    pub endpoint: Peer,
    /// Zero.
    pub reserved: u32,
}

/// A socket and one of the peers it talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The socket's cookie. Host order.
    pub socket_cookie: u64,
    /// The peer.
    pub peer: Peer,
    /// Zero.
    pub reserved: u32,
}

/// What a connected socket asked for and what it got.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketValue {
    /// The Service's address and port.
    pub service: Peer,
    /// The endpoint's.
    pub endpoint: Peer,
}

/// What the programs must know of the node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeValue {
    /// Cookie of the node's own network namespace. Host order.
    pub host_netns_cookie: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_network_order_in_memory() {
        let octets = [0xfd, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];
        let address = Address::from_octets(octets);
        assert_eq!(address.octets(), octets);
        assert_eq!(address.0[0].to_ne_bytes(), [0xfd, 0, 0, 1]);
    }

    #[test]
    fn a_v4_address_is_the_mapped_v6_address() {
        let word = u32::from_ne_bytes([10, 96, 0, 1]);
        let mapped = core::net::Ipv4Addr::new(10, 96, 0, 1).to_ipv6_mapped();
        assert_eq!(Address::v4(word), Address::from_octets(mapped.octets()));
    }

    #[test]
    fn a_zeroed_side_passes() {
        assert_eq!(Side::default().action, action::PASS);
    }

    #[test]
    fn map_names_fit_into_the_kernel() {
        let names = [
            map::SERVICES,
            map::SLOTS,
            map::MEMBERS,
            map::AFFINITY,
            map::STICKY,
            map::REVERSE,
            map::SOCKETS,
            map::NODE,
        ];
        assert!(names.iter().all(|name| name.len() < 16), "BPF_OBJ_NAME_LEN is 16 with the zero");
    }
}

//! The place where the scenarios happen: one node with pods, a second node, and a client on their LAN.
//!
//! ```text
//!   outside ──┬── node-1 ── lab0 ── pod 0, 1, 2, 3
//!             └── node-2 ── (pods 1, 2)
//! ```
//! Every address exists in both families. A test bed builds exactly this; the in-memory run only names it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netd_model::Family;

use super::build::net;

/// Name of the node under test.
pub const NODE: &str = "node-1";
/// Name of the other node.
pub const OTHER_NODE: &str = "node-2";
/// The node's bridge to its pods.
pub const BRIDGE: &str = "lab0";
/// The node's interface on the LAN.
pub const UPLINK: &str = "eth0";
/// Pods on the node under test: number 0 is only a client, the others are also endpoints.
pub const PODS: u8 = 4;
/// Pods on the other node, numbered from 1.
pub const REMOTE_PODS: u8 = 2;

/// Somebody who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Actor {
    /// The pod with this number on the node under test.
    Pod(u8),
    /// A process in the node's own namespace.
    Host,
    /// A machine on the LAN that is no node.
    Outside,
}

impl Actor {
    /// The source address of its flows.
    pub fn address(self, family: Family) -> IpAddr {
        match self {
            Self::Pod(number) => pod(number, family),
            Self::Host => node(family),
            Self::Outside => outside(family),
        }
    }

    /// The interface of the node that its flows arrive on.
    pub const fn in_interface(self) -> Option<&'static str> {
        match self {
            Self::Pod(_) => Some(BRIDGE),
            Self::Host => None,
            Self::Outside => Some(UPLINK),
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(number) => write!(f, "pod {number}"),
            Self::Host => f.write_str("the host"),
            Self::Outside => f.write_str("outside"),
        }
    }
}

const fn address(family: Family, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(v4[0], v4[1], v4[2], v4[3])),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(v6[0], v6[1], v6[2], v6[3], v6[4], v6[5], v6[6], v6[7])),
    }
}

/// The node's address on the LAN.
pub const fn node(family: Family) -> IpAddr {
    address(family, [192, 168, 1, 101], [0xfd00, 0x192, 0x168, 1, 0, 0, 0, 0x101])
}

/// The address of the node's bridge, the gateway of its pods.
pub const fn gateway(family: Family) -> IpAddr {
    address(family, [172, 16, 1, 1], [0xfd00, 0x172, 0x16, 1, 0, 0, 0, 1])
}

/// All addresses of the node that others can reach.
pub const fn node_addresses(family: Family) -> [IpAddr; 2] {
    [node(family), gateway(family)]
}

/// The other node's address on the LAN.
pub const fn other_node(family: Family) -> IpAddr {
    address(family, [192, 168, 1, 102], [0xfd00, 0x192, 0x168, 1, 0, 0, 0, 0x102])
}

/// The outside client's address on the LAN.
pub const fn outside(family: Family) -> IpAddr {
    address(family, [192, 168, 1, 50], [0xfd00, 0x192, 0x168, 1, 0, 0, 0, 0x50])
}

/// A pod on the node under test.
pub const fn pod(number: u8, family: Family) -> IpAddr {
    address(family, [172, 16, 1, 10 + number], [0xfd00, 0x172, 0x16, 1, 0, 0, 0, 0x10 + number as u16])
}

/// A pod on the other node.
pub const fn remote_pod(number: u8, family: Family) -> IpAddr {
    address(family, [172, 16, 2, 10 + number], [0xfd00, 0x172, 0x16, 2, 0, 0, 0, 0x10 + number as u16])
}

/// A cluster address of a Service; routed to the node by everybody on the LAN.
pub const fn cluster_ip(number: u8, family: Family) -> IpAddr {
    address(family, [10, 96, 0, number], [0xfd00, 0x10, 0x96, 0, 0, 0, 0, number as u16])
}

/// A load balancer or external address; routed to the node by everybody on the LAN.
pub const fn vip(number: u8, family: Family) -> IpAddr {
    address(family, [203, 0, 113, number], [0x2001, 0xdb8, 0x113, 0, 0, 0, 0, number as u16])
}

/// The LAN's prefix.
pub fn lan(family: Family) -> IpNetwork {
    match family {
        Family::V4 => net("192.168.1.0/24"),
        Family::V6 => net("fd00:192:168:1::/64"),
    }
}

/// The prefix of all pods of the cluster.
pub fn cluster_cidr(family: Family) -> IpNetwork {
    match family {
        Family::V4 => net("172.16.0.0/16"),
        Family::V6 => net("fd00:172:16::/48"),
    }
}

/// The prefix of the pods of the node under test.
pub fn node_cidr(family: Family) -> IpNetwork {
    match family {
        Family::V4 => net("172.16.1.0/24"),
        Family::V6 => net("fd00:172:16:1::/64"),
    }
}

/// The prefix of the pods of the other node.
pub fn other_node_cidr(family: Family) -> IpNetwork {
    match family {
        Family::V4 => net("172.16.2.0/24"),
        Family::V6 => net("fd00:172:16:2::/64"),
    }
}

/// The prefix of cluster addresses.
pub fn service_cidr(family: Family) -> IpNetwork {
    match family {
        Family::V4 => net("10.96.0.0/16"),
        Family::V6 => net("fd00:10:96::/112"),
    }
}

/// The prefix of load balancer and external addresses.
pub fn vip_cidr(family: Family) -> IpNetwork {
    match family {
        Family::V4 => net("203.0.113.0/24"),
        Family::V6 => net("2001:db8:113::/112"),
    }
}

//! The VXLAN between nodes on different LANs: what it has to be like. Pure.
//!
//! A peer's entries follow from its Node object alone, so nodes tell each other nothing: the Ethernet address of a
//! node's end comes from its first IPv4 InternalIP ([`vtep_mac`]), its addresses are the first ones of its podCIDRs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use netd_kernel::{Ifindex, Mac};
use netd_model::Node;

use crate::routes::{Attached, RouteSpec};

/// Name of the VXLAN device.
pub const DEVICE: &str = "netd-vxlan";
/// Bytes that VXLAN over IPv4 adds to a packet: IP 20, UDP 8, VXLAN 8, Ethernet 14 (RFC 7348 section 5).
pub(crate) const OVERHEAD: u32 = 50;

/// How other nodes are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// By routes through the LAN alone; a node on another LAN is a problem.
    HostGw,
    /// By VXLAN, all of them.
    Vxlan,
    /// By routes on the same LAN, by VXLAN elsewhere.
    #[default]
    Auto,
}

/// How this node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How other nodes are reached.
    pub mode: Mode,
    /// Number of the virtual network, 24 bits; the same on all nodes.
    pub vni: u32,
    /// UDP port; the same on all nodes.
    pub port: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Self { mode: Mode::Auto, vni: 141, port: 8472 }
    }
}

/// Whether there is a VXLAN device, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Overlay {
    /// No node needs it: none.
    #[default]
    Unused,
    /// A node needs it, but what this node's end should be is not known: what there is stays as it is.
    Unknown,
    /// A node needs it.
    Used(Vtep),
}

/// This node's end of the VXLAN and its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// This node's first IPv4 InternalIP.
    pub local: Ipv4Addr,
    /// Largest packet in bytes: the uplink's less the overhead.
    pub mtu: u32,
    /// The device's addresses, the first of each of this node's podCIDRs: source of what the node itself sends.
    pub addresses: Vec<IpNetwork>,
    /// Pod prefixes by the node's address.
    pub peers: BTreeMap<Ipv4Addr, Vec<IpNetwork>>,
}

impl Vtep {
    /// This node's end: from its own Node object and links.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn new(
        own: Option<&Node>,
        attached: &[Attached],
        peers: BTreeMap<Ipv4Addr, Vec<IpNetwork>>,
    ) -> Result<Self, String> {
        let own = own.ok_or("this node has no Node object, which vxlan needs")?;
        let local = underlay(own)
            .ok_or_else(|| format!("this node {} has no IPv4 InternalIP, which vxlan needs", own.name))?;
        let uplink = attached.iter().find(|at| at.address.ip() == IpAddr::V4(local)).ok_or_else(|| {
            format!("{local}, the InternalIP of this node {}, is an address of none of its links", own.name)
        })?;
        let addresses = own.pod_cidrs.iter().map(|prefix| IpNetwork::from(prefix.network())).collect();
        Ok(Self { local, mtu: uplink.mtu.saturating_sub(OVERHEAD), addresses, peers })
    }

    /// The Ethernet address of this node's end.
    pub(crate) fn mac(&self) -> Mac {
        vtep_mac(self.local)
    }

    /// One route a prefix, by the peer's end, on the device with this number.
    pub(crate) fn routes(&self, device: Ifindex) -> impl Iterator<Item = RouteSpec> + '_ {
        self.peers.values().flatten().map(move |prefix| RouteSpec {
            destination: *prefix,
            gateway: prefix.network(),
            link: device,
            onlink: true,
        })
    }

    /// One neighbour a prefix: the peer's end.
    pub(crate) fn neighbours(&self) -> BTreeMap<IpAddr, Mac> {
        let of = |(peer, prefixes): (&Ipv4Addr, &Vec<IpNetwork>)| {
            let mac = vtep_mac(*peer);
            prefixes.iter().map(move |prefix| (prefix.network(), mac)).collect::<Vec<_>>()
        };
        self.peers.iter().flat_map(of).collect()
    }

    /// One forwarding entry a peer.
    pub(crate) fn forwarding(&self) -> BTreeMap<MacBytes, Ipv4Addr> {
        self.peers.keys().map(|peer| (vtep_mac(*peer).0, *peer)).collect()
    }
}

/// The bytes of an Ethernet address, which have an order.
pub(crate) type MacBytes = [u8; 6];

/// The Ethernet address of a node's end of the VXLAN: `0a:8d` (locally administered, unicast; 8d is 141) and the four
/// bytes of the node's first IPv4 InternalIP.
pub fn vtep_mac(node: Ipv4Addr) -> Mac {
    let [a, b, c, d] = node.octets();
    Mac([0x0a, 0x8d, a, b, c, d])
}

/// The address between which and this node's VXLAN packets go.
pub(crate) fn underlay(node: &Node) -> Option<Ipv4Addr> {
    node.internal_addresses.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    })
}

#[cfg(test)]
mod tests;

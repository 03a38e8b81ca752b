//! Ports of bridges: what they let through, their VLANs; and host ends of pods that have no bridge.

use std::ops::RangeInclusive;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::BridgeVlanInfoFlags;
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState as WireState,
};

use super::links::{BRIDGE_PORT_HAIRPIN, IFLA_INFO_SLAVE_DATA, IFLA_INFO_SLAVE_KIND, check_name};
use super::wire::{LinkHeader, Message, ToldLink, text};
use super::{Batch, Netlink};
use crate::Result;
use crate::link::{Ifindex, Mac};
use crate::nft::each_attribute;

/// Among the settings of a bridge port: `IFLA_BRPORT_ISOLATED`.
const BRIDGE_PORT_ISOLATED: u16 = 33;
/// Among the settings of a bridge: `IFLA_BR_VLAN_FILTERING`.
const IFLA_BR_VLAN_FILTERING: u16 = 7;
/// What is meant within `IFLA_AF_SPEC` of a bridge (linux/if_bridge.h): the bridge itself, or what it is a port of.
const IFLA_BRIDGE_FLAGS: u16 = 0;
const BRIDGE_FLAGS_MASTER: u16 = 1;
/// A VLAN, or an end of a range of them.
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
/// `IFLA_BRPORT_LOCKED`.
const BRIDGE_PORT_LOCKED: u16 = 39;
/// The settings of a link within `IFLA_AF_SPEC` for IPv4 (linux/if_link.h: `IFLA_INET_CONF`).
const IFLA_INET_CONF: u16 = 1;
/// Numbers of IPv4 settings of a link (linux/ip.h: `IPV4_DEVCONF_…`).
const DEVCONF_FORWARDING: u16 = 1;
const DEVCONF_SEND_REDIRECTS: u16 = 6;
/// The VLANs that a port may be in.
const EVERY_VLAN: RangeInclusive<u16> = 1..=4094;

/// What a bridge port does besides passing frames on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortFlags {
    /// Frames may leave by the port they came in by.
    pub hairpin: bool,
    /// No frame passes between this port and another isolated one (Linux 4.18).
    pub isolated: bool,
    /// Frames pass only from Ethernet addresses that [`Batch::pin_mac`] named on this port (Linux 5.16).
    pub locked: bool,
}

/// How frames of a VLAN pass a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VlanTagging {
    /// With their tag, both ways.
    Tagged,
    /// Without a tag: frames that come in without one are of this VLAN.
    Native,
}

impl Netlink {
    /// Reads what a bridge port does; `None` when there is no link of that name, or it is no bridge port.
    pub fn port_flags(&mut self, name: &str) -> Result<Option<PortFlags>> {
        check_name(name)?;
        let mut message = Message::link(libc::RTM_GETLINK, LinkHeader::default());
        message.text(libc::IFLA_IFNAME, name);
        let action = format!("look up bridge port {name}");
        match self.socket.ask_raw(&action, &message, |answer| Ok(Some(read_flags(answer)))) {
            Ok(found) => Ok(found),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Batch {
    /// Writes the alias of a bridge port and what the port does, in one change; flags that are off stay as they are,
    /// except hairpin. A kernel that does not know a flag leaves it out silently: read it back.
    pub fn configure_bridge_port(&mut self, name: &str, alias: &str, flags: PortFlags) -> &mut Self {
        self.push(port_message(name, alias, flags), 0, format!("set alias and flags of port {name}"))
    }

    /// Writes the alias of a pod's host end that is no bridge port; IPv4 packets are forwarded from it, and nobody on it
    /// is told of a better way.
    pub fn configure_routed_end(&mut self, name: &str, alias: &str) -> &mut Self {
        self.push(routed_message(name, alias), 0, format!("set alias and forwarding of {name}"))
    }

    /// Names an Ethernet address that is behind a bridge port, for good, in every VLAN that the port is in: no other port
    /// can claim it.
    pub fn pin_mac(&mut self, port: Ifindex, mac: Mac) -> &mut Self {
        let message = Message::of(libc::RTM_NEWNEIGH, &pin_message(port, mac));
        self.push(message, NLM_F_CREATE | NLM_F_REPLACE, format!("pin {mac} to bridge port {port}"))
    }

    /// Makes a bridge tell frames apart by their VLAN; `EOPNOTSUPP` where the kernel has no VLAN filtering.
    pub fn set_vlan_filtering(&mut self, bridge: Ifindex) -> &mut Self {
        let mut message = Message::link(libc::RTM_NEWLINK, LinkHeader::of(bridge));
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "bridge").nest(libc::IFLA_INFO_DATA, |data| {
                data.bytes(IFLA_BR_VLAN_FILTERING, &[1]);
            });
        });
        let action = format!("switch VLAN filtering of bridge {bridge} on");
        self.push(message, 0, action)
    }

    /// Takes a bridge port out of every VLAN, such as the bridge's default one.
    pub fn clear_vlans(&mut self, port: Ifindex) -> &mut Self {
        let message = vlan_message(libc::RTM_DELLINK, port, EVERY_VLAN, BridgeVlanInfoFlags::empty());
        self.push(message, 0, format!("take bridge port {port} out of all VLANs"))
    }

    /// Makes a bridge port a member of VLANs, `vlans` between 1 and 4094; only one VLAN can be native.
    pub fn add_vlans(
        &mut self,
        port: Ifindex,
        vlans: RangeInclusive<u16>,
        tagging: VlanTagging,
    ) -> &mut Self {
        let flags = match tagging {
            VlanTagging::Tagged => BridgeVlanInfoFlags::empty(),
            VlanTagging::Native => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
        };
        let action = match (vlans.start(), vlans.end()) {
            (first, last) if first == last => format!("add bridge port {port} to VLAN {first}"),
            (first, last) => format!("add bridge port {port} to VLANs {first} to {last}"),
        };
        self.push(vlan_message(libc::RTM_SETLINK, port, vlans, flags), 0, action)
    }
}

fn port_message(name: &str, alias: &str, flags: PortFlags) -> Message {
    let mut message = Message::link(libc::RTM_NEWLINK, LinkHeader::default());
    message.text(libc::IFLA_IFNAME, name).nest(libc::IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, |port| {
            port.bytes(BRIDGE_PORT_HAIRPIN, &[u8::from(flags.hairpin)]);
            for (kind, on) in [(BRIDGE_PORT_ISOLATED, flags.isolated), (BRIDGE_PORT_LOCKED, flags.locked)] {
                if on {
                    port.bytes(kind, &[1]);
                }
            }
        });
    });
    message.bytes(libc::IFLA_IFALIAS, alias.as_bytes());
    message
}

fn routed_message(name: &str, alias: &str) -> Message {
    let mut message = Message::link(libc::RTM_NEWLINK, LinkHeader::default());
    message.text(libc::IFLA_IFNAME, name).bytes(libc::IFLA_IFALIAS, alias.as_bytes());
    message.nest(libc::IFLA_AF_SPEC, |families| {
        families.nest(libc::AF_INET as u16, |inet| {
            inet.nest(IFLA_INET_CONF, |settings| {
                settings.number(DEVCONF_FORWARDING, 1).number(DEVCONF_SEND_REDIRECTS, 0);
            });
        });
    });
    message
}

/// To the bridge a permanent entry is an address of its own; "no ARP" says static (`net/bridge/br_fdb.c`).
fn pin_message(port: Ifindex, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port.0;
    message.header.state = WireState::Noarp;
    message.header.flags = NeighbourFlags::Controller | NeighbourFlags::Sticky;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

/// A message about the VLANs of a bridge port (`net/bridge/br_netlink.c:br_afspec`).
fn vlan_message(kind: u16, port: Ifindex, vlans: RangeInclusive<u16>, flags: BridgeVlanInfoFlags) -> Message {
    let (first, last) = vlans.into_inner();
    let info = |spec: &mut Message, vlan: u16, flags: BridgeVlanInfoFlags| {
        let ([a, b], [c, d]) = (flags.bits().to_ne_bytes(), vlan.to_ne_bytes());
        spec.bytes(IFLA_BRIDGE_VLAN_INFO, &[a, b, c, d]);
    };
    let mut message =
        Message::link(kind, LinkHeader { family: libc::AF_BRIDGE as u8, ..LinkHeader::of(port) });
    message.nest(libc::IFLA_AF_SPEC, |spec| {
        spec.bytes(IFLA_BRIDGE_FLAGS, &BRIDGE_FLAGS_MASTER.to_ne_bytes());
        if first == last {
            info(spec, first, flags);
        } else {
            info(spec, first, flags | BridgeVlanInfoFlags::RangeBegin);
            info(spec, last, flags | BridgeVlanInfoFlags::RangeEnd);
        }
    });
    message
}

fn read_flags(message: (u16, &[u8])) -> Option<PortFlags> {
    let told = ToldLink::split(libc::RTM_NEWLINK, message)?;
    let (_, info) = told.attributes().find(|(kind, _)| *kind == libc::IFLA_LINKINFO)?;
    each_attribute(info).find(|(kind, kept)| *kind == IFLA_INFO_SLAVE_KIND && text(kept) == "bridge")?;
    let (_, port) = each_attribute(info).find(|(kind, _)| *kind == IFLA_INFO_SLAVE_DATA)?;
    let mut flags = PortFlags::default();
    for (kind, content) in each_attribute(port) {
        let on = content.first().is_some_and(|on| *on != 0);
        match kind {
            BRIDGE_PORT_HAIRPIN => flags.hairpin = on,
            BRIDGE_PORT_ISOLATED => flags.isolated = on,
            BRIDGE_PORT_LOCKED => flags.locked = on,
            _ => {}
        }
    }
    Some(flags)
}

#[cfg(test)]
mod tests;

//! Ports of bridges: what they let through, their VLANs; and host ends of pods that have no bridge.

use std::ops::RangeInclusive;

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::link::{
    AfSpecBridge, AfSpecInet, AfSpecUnspec, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge,
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState as WireState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::links::check_name;
use super::{Batch, Netlink};
use crate::Result;
use crate::link::{Ifindex, Mac};

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
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let action = format!("look up bridge port {name}");
        let request = RouteNetlinkMessage::GetLink(message);
        match self.socket.ask(&action, request, |answer| Some(read_flags(answer))) {
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
        let message = RouteNetlinkMessage::NewLink(port_message(name, alias, flags));
        self.push(message, 0, format!("set alias and flags of port {name}"))
    }

    /// Writes the alias of a pod's host end that is no bridge port; IPv4 packets are forwarded from it, and nobody on it
    /// is told of a better way.
    pub fn configure_routed_end(&mut self, name: &str, alias: &str) -> &mut Self {
        let message = RouteNetlinkMessage::NewLink(routed_message(name, alias));
        self.push(message, 0, format!("set alias and forwarding of {name}"))
    }

    /// Names an Ethernet address that is behind a bridge port, for good, in every VLAN that the port is in: no other port
    /// can claim it.
    pub fn pin_mac(&mut self, port: Ifindex, mac: Mac) -> &mut Self {
        let message = RouteNetlinkMessage::NewNeighbour(pin_message(port, mac));
        self.push(message, NLM_F_CREATE | NLM_F_REPLACE, format!("pin {mac} to bridge port {port}"))
    }

    /// Makes a bridge tell frames apart by their VLAN; `EOPNOTSUPP` where the kernel has no VLAN filtering.
    pub fn set_vlan_filtering(&mut self, bridge: Ifindex) -> &mut Self {
        let mut message = LinkMessage::default();
        message.header.index = bridge.0;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])),
        ]));
        let action = format!("switch VLAN filtering of bridge {bridge} on");
        self.push(RouteNetlinkMessage::NewLink(message), 0, action)
    }

    /// Takes a bridge port out of every VLAN, such as the bridge's default one.
    pub fn clear_vlans(&mut self, port: Ifindex) -> &mut Self {
        let message = vlan_message(port, EVERY_VLAN, BridgeVlanInfoFlags::empty());
        self.push(
            RouteNetlinkMessage::DelLink(message),
            0,
            format!("take bridge port {port} out of all VLANs"),
        )
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
        self.push(RouteNetlinkMessage::SetLink(vlan_message(port, vlans, flags)), 0, action)
    }
}

fn port_message(name: &str, alias: &str, flags: PortFlags) -> LinkMessage {
    let mut port = vec![InfoBridgePort::HairpinMode(flags.hairpin)];
    port.extend(flags.isolated.then_some(InfoBridgePort::Isolated(true)));
    port.extend(flags.locked.then_some(InfoBridgePort::Locked(true)));
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(port)),
        ]),
        LinkAttribute::IfAlias(alias.to_owned()),
    ];
    message
}

fn routed_message(name: &str, alias: &str) -> LinkMessage {
    let settings = [(DEVCONF_FORWARDING, 1_u32), (DEVCONF_SEND_REDIRECTS, 0)];
    let settings = settings.map(|(number, value)| DefaultNla::new(number, value.to_ne_bytes().to_vec()));
    let mut bytes = vec![0; settings.as_slice().buffer_len()];
    settings.as_slice().emit(&mut bytes);
    let inet = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF, bytes));
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::IfAlias(alias.to_owned()),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![inet])]),
    ];
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
fn vlan_message(port: Ifindex, vlans: RangeInclusive<u16>, flags: BridgeVlanInfoFlags) -> LinkMessage {
    let (first, last) = vlans.into_inner();
    let info = |vid, flags| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
    let mut spec = vec![AfSpecBridge::Flags(BridgeFlag::Controller)];
    if first == last {
        spec.push(info(first, flags));
    } else {
        spec.push(info(first, flags | BridgeVlanInfoFlags::RangeBegin));
        spec.push(info(last, flags | BridgeVlanInfoFlags::RangeEnd));
    }
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = port.0;
    message.attributes.push(LinkAttribute::AfSpecBridge(spec));
    message
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the message and attribute enums are foreign and open")]
fn read_flags(message: RouteNetlinkMessage) -> Option<PortFlags> {
    let RouteNetlinkMessage::NewLink(link) = message else { return None };
    let infos = link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    let port = infos.into_iter().find_map(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(port)) => Some(port),
        _ => None,
    })?;
    let mut flags = PortFlags::default();
    for item in port {
        match item {
            InfoBridgePort::HairpinMode(on) => flags.hairpin = on,
            InfoBridgePort::Isolated(on) => flags.isolated = on,
            InfoBridgePort::Locked(on) => flags.locked = on,
            _ => {}
        }
    }
    Some(flags)
}

#[cfg(test)]
mod tests;

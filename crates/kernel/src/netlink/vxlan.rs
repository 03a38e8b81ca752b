//! VXLAN devices (RFC 7348): Ethernet frames in UDP packets between machines.

use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};

use super::links::{check_name, own_attributes, read_link};
use super::{Batch, Netlink};
use crate::Result;
use crate::link::{Link, Mac};

/// How a VXLAN device sends and receives. The kernel changes none of it later: the device has to be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanTunnel {
    /// Number of the virtual network, 24 bits.
    pub vni: u32,
    /// The UDP port of both sides.
    pub port: u16,
    /// Source address of the packets; the kernel's choice if `None`.
    pub local: Option<Ipv4Addr>,
    /// Whether the source of a received frame is remembered as the way to its sender.
    pub learning: bool,
}

/// A VXLAN device to make.
#[derive(Debug, Clone)]
pub struct VxlanSpec<'a> {
    /// Its name, at most 15 bytes.
    pub name: &'a str,
    /// Its Ethernet address; given when it is made, so that nobody sees another one.
    pub mac: Mac,
    /// The largest packet in bytes.
    pub mtu: u32,
    /// The text that says whose it is.
    pub alias: Option<&'a str>,
    /// How it sends and receives.
    pub tunnel: VxlanTunnel,
}

/// A VXLAN device as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// What every link has.
    pub link: Link,
    /// How it sends and receives.
    pub tunnel: VxlanTunnel,
}

impl Netlink {
    /// Looks a VXLAN device up by its name; `None` when no link has it, or one of another kind.
    pub fn vxlan(&mut self, name: &str) -> Result<Option<Vxlan>> {
        check_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let action = format!("look up VXLAN device {name}");
        match self.socket.ask(&action, RouteNetlinkMessage::GetLink(message), |answer| Some(read(answer))) {
            Ok(found) => Ok(found),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Batch {
    /// Makes a VXLAN device, down; two or fewer changes.
    pub fn add_vxlan(&mut self, spec: &VxlanSpec<'_>) -> &mut Self {
        let tunnel = &spec.tunnel;
        let mut data = vec![
            InfoVxlan::Id(tunnel.vni),
            InfoVxlan::Port(tunnel.port),
            InfoVxlan::Learning(tunnel.learning),
        ];
        data.extend(tunnel.local.map(InfoVxlan::Local));
        let mut message = LinkMessage::default();
        message.attributes = own_attributes(spec.name, Some(spec.mac), Some(spec.mtu));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(data)),
        ]));
        let action = format!("make VXLAN device {}", spec.name);
        self.push(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, action);
        self.alias_by_name(spec.name, spec.alias)
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the message and attribute enums are foreign and open")]
fn read(message: RouteNetlinkMessage) -> Option<Vxlan> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut tunnel = None;
    for attribute in &message.attributes {
        let LinkAttribute::LinkInfo(infos) = attribute else { continue };
        tunnel = infos.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(data)) => Some(read_tunnel(data)),
            _ => None,
        });
    }
    Some(Vxlan { tunnel: tunnel?, link: read_link(message) })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the attribute enum is foreign and open")]
fn read_tunnel(data: &[InfoVxlan]) -> VxlanTunnel {
    let mut tunnel = VxlanTunnel { vni: 0, port: 0, local: None, learning: false };
    for item in data {
        match item {
            InfoVxlan::Id(vni) => tunnel.vni = *vni,
            InfoVxlan::Port(port) => tunnel.port = *port,
            InfoVxlan::Local(local) => tunnel.local = Some(*local),
            InfoVxlan::Learning(learning) => tunnel.learning = *learning,
            _ => {}
        }
    }
    tunnel
}

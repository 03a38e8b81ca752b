//! Forwarding entries: behind which machine an Ethernet address of a tunnel device is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState as WireState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Batch, Netlink};
use crate::Result;
use crate::link::{Ifindex, Mac};

/// A forwarding entry of a tunnel device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbEntry {
    /// The device.
    pub link: Ifindex,
    /// The Ethernet address.
    pub mac: Mac,
    /// The machine that frames to it are sent to.
    pub destination: IpAddr,
    /// Whether it stays until deleted; otherwise it was learned and ages.
    pub permanent: bool,
}

impl Netlink {
    /// Lists the forwarding entries of a tunnel device that have a destination.
    pub fn fdb(&mut self, link: Ifindex) -> Result<Vec<FdbEntry>> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        // A strict kernel takes the link as an attribute only (`net/core/rtnetlink.c:valid_fdb_dump_strict`).
        message.attributes.push(NeighbourAttribute::IfIndex(link.0));
        let request = RouteNetlinkMessage::GetNeighbour(message);
        let found = self.socket.dump("list forwarding entries", &request, read_answer)?;
        Ok(found.into_iter().filter(|entry| entry.link == link).collect())
    }
}

impl Batch {
    /// Sends frames to `mac` to the machine `destination`, for good; replaces where they went.
    pub fn add_fdb(&mut self, link: Ifindex, mac: Mac, destination: IpAddr) -> &mut Self {
        let mut message = message_for(link, mac);
        message.header.state = WireState::Permanent;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(destination)));
        let action = format!("add forwarding entry {mac} to {destination} on link {link}");
        self.push(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE, action)
    }

    /// Forgets where frames to `mac` go.
    pub fn delete_fdb(&mut self, link: Ifindex, mac: Mac) -> &mut Self {
        let action = format!("delete forwarding entry {mac} on link {link}");
        self.push(RouteNetlinkMessage::DelNeighbour(message_for(link, mac)), 0, action)
    }
}

fn message_for(link: Ifindex, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link.0;
    // The device's own table, not that of a bridge it may be a port of.
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the message and attribute enums are foreign and open")]
fn read_answer(message: RouteNetlinkMessage) -> Option<FdbEntry> {
    let RouteNetlinkMessage::NewNeighbour(entry) = message else { return None };
    let mut mac = None;
    let mut destination = None;
    for attribute in entry.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(bytes).ok().map(Mac),
            NeighbourAttribute::Destination(address) => destination = read_destination(&address),
            _ => {}
        }
    }
    let permanent = entry.header.state == WireState::Permanent;
    Some(FdbEntry { link: Ifindex(entry.header.ifindex), mac: mac?, destination: destination?, permanent })
}

/// The family of such an entry says "bridge", so only the length tells what the destination is.
fn read_destination(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        NeighbourAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        NeighbourAddress::Other(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
            let v6 = <[u8; 16]>::try_from(bytes.as_slice()).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)));
            v4.or(v6).ok()
        }
        _ => None,
    }
}

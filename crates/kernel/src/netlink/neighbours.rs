//! Neighbours: which Ethernet address an IP address has.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState as WireState,
};

use super::{Batch, Family, Netlink};
use crate::Result;
use crate::link::{Ifindex, Mac};

/// How sure the kernel is of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NeighbourState {
    /// Stays until deleted.
    Permanent,
    /// Confirmed a short while ago.
    Reachable,
    /// Asked for, or to be asked for again before it is trusted.
    Unsure,
    /// Did not answer.
    Failed,
}

/// A neighbour as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The link it is reached by.
    pub link: Ifindex,
    /// Its address.
    pub ip: IpAddr,
    /// Its Ethernet address, if known.
    pub mac: Option<Mac>,
    /// How sure that is.
    pub state: NeighbourState,
}

impl Netlink {
    /// Lists the neighbours of one link or of all.
    pub fn neighbours(&mut self, link: Option<Ifindex>) -> Result<Vec<Neighbour>> {
        let mut message = NeighbourMessage::default();
        // A strict kernel takes the link as an attribute only (`net/core/neighbour.c:neigh_valid_dump_req`).
        message.attributes.extend(link.map(|link| NeighbourAttribute::IfIndex(link.0)));
        let found =
            self.socket.dump("list neighbours", &RouteNetlinkMessage::GetNeighbour(message), read_answer)?;
        Ok(found.into_iter().filter(|entry| link.is_none_or(|wanted| wanted == entry.link)).collect())
    }
}

impl Batch {
    /// Tells the kernel a neighbour's Ethernet address, replacing what it knew.
    ///
    /// A permanent one is never asked for on the link; another counts as confirmed now and ages.
    pub fn add_neighbour(&mut self, link: Ifindex, ip: IpAddr, mac: Mac, permanent: bool) -> &mut Self {
        let mut message = message_for(link, ip);
        message.header.state = if permanent { WireState::Permanent } else { WireState::Reachable };
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let action = format!("add neighbour {ip} at {mac} on link {link}");
        self.push(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE, action)
    }

    /// Makes the kernel forget a neighbour.
    pub fn delete_neighbour(&mut self, link: Ifindex, ip: IpAddr) -> &mut Self {
        let action = format!("delete neighbour {ip} on link {link}");
        self.push(RouteNetlinkMessage::DelNeighbour(message_for(link, ip)), 0, action)
    }
}

fn message_for(link: Ifindex, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = Family::of(ip).wire();
    message.header.ifindex = link.0;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(ip)));
    message
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the message and attribute enums are foreign and open")]
fn read_answer(message: RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(entry) = message else { return None };
    let mut ip = None;
    let mut mac = None;
    for attribute in entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(bytes).ok().map(Mac),
            _ => {}
        }
    }
    let state = match entry.header.state {
        WireState::Permanent | WireState::Noarp => NeighbourState::Permanent,
        WireState::Reachable => NeighbourState::Reachable,
        WireState::Failed => NeighbourState::Failed,
        _ => NeighbourState::Unsure,
    };
    Some(Neighbour { link: Ifindex(entry.header.ifindex), ip: ip?, mac, state })
}

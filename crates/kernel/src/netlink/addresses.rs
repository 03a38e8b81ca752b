//! Addresses of links.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};

use super::{Batch, Family, Netlink};
use crate::Result;
use crate::link::Ifindex;

/// An address of a link as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The link.
    pub link: Ifindex,
    /// The address with the length of its network's prefix.
    pub prefix: IpNetwork,
    /// Whether it is valid on this link only, as fe80::/10 is.
    pub link_local: bool,
    /// Whether duplicate detection has not ended, so that it cannot be used yet (IPv6).
    pub tentative: bool,
    /// Whether somebody else has this address (IPv6).
    pub duplicate: bool,
    /// Whether it stays until deleted; otherwise it was learned and expires.
    pub permanent: bool,
}

impl Netlink {
    /// Lists the addresses of one link or of all.
    pub fn addresses(&mut self, link: Option<Ifindex>) -> Result<Vec<Address>> {
        let mut message = AddressMessage::default();
        message.header.index = link.map_or(0, |link| link.0);
        let found =
            self.socket.dump("list addresses", &RouteNetlinkMessage::GetAddress(message), read_answer)?;
        // A kernel without strict checking does not filter.
        Ok(found.into_iter().filter(|address| link.is_none_or(|wanted| wanted == address.link)).collect())
    }
}

impl Batch {
    /// Gives a link an address; the kernel adds the route to its network.
    ///
    /// With `nodad` an IPv6 address can be used at once, without waiting a second or two for duplicate detection.
    /// IPv4 addresses get the network's broadcast address (not for /31 and /32).
    pub fn add_address(&mut self, link: Ifindex, prefix: IpNetwork, nodad: bool) -> &mut Self {
        let mut message = message_for(link, prefix);
        if let Some(broadcast) = broadcast_of(prefix) {
            message.attributes.push(AddressAttribute::Broadcast(broadcast));
        }
        if nodad && prefix.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let action = format!("add address {prefix} to link {link}");
        self.push(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL, action)
    }

    /// Takes an address from a link.
    pub fn delete_address(&mut self, link: Ifindex, prefix: IpNetwork) -> &mut Self {
        let message = message_for(link, prefix);
        self.push(
            RouteNetlinkMessage::DelAddress(message),
            0,
            format!("delete address {prefix} of link {link}"),
        )
    }
}

fn message_for(link: Ifindex, prefix: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = Family::of(prefix.ip()).wire();
    message.header.prefix_len = prefix.prefix();
    message.header.index = link.0;
    message.header.scope = scope_of(prefix.ip());
    message.attributes = vec![AddressAttribute::Local(prefix.ip()), AddressAttribute::Address(prefix.ip())];
    message
}

fn scope_of(ip: IpAddr) -> AddressScope {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match (ip.is_loopback(), link_local) {
        (true, _) => AddressScope::Host,
        (false, true) => AddressScope::Link,
        (false, false) => AddressScope::Universe,
    }
}

fn broadcast_of(prefix: IpNetwork) -> Option<Ipv4Addr> {
    match prefix {
        IpNetwork::V4(v4) if v4.prefix() < 31 && !v4.ip().is_loopback() => Some(v4.broadcast()),
        IpNetwork::V4(_) | IpNetwork::V6(_) => None,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the message enum is foreign and open")]
fn read_answer(message: RouteNetlinkMessage) -> Option<Address> {
    match message {
        RouteNetlinkMessage::NewAddress(address) => read_address(&address),
        _ => None,
    }
}

/// Prefers `IFA_LOCAL`: on a point-to-point link `IFA_ADDRESS` is the other end's.
#[expect(clippy::wildcard_enum_match_arm, reason = "the attribute enum is foreign and open")]
pub(crate) fn read_address(message: &AddressMessage) -> Option<Address> {
    let mut local = None;
    let mut remote = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => remote = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let ip = local.or(remote)?;
    Some(Address {
        link: Ifindex(message.header.index),
        prefix: IpNetwork::new(ip, message.header.prefix_len).ok()?,
        link_local: message.header.scope == AddressScope::Link,
        tentative: flags.contains(AddressFlags::Tentative),
        duplicate: flags.contains(AddressFlags::Dadfailed),
        permanent: flags.contains(AddressFlags::Permanent),
    })
}

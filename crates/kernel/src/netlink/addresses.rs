//! Addresses of links.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
#[cfg(feature = "monitor")]
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};

use super::wire::{Message, ToldAddress, ip, number};
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
        let any = libc::AF_UNSPEC as u8;
        let message = Message::new(libc::RTM_GETADDR, &header(any, 0, 0, 0, link.unwrap_or(Ifindex(0))));
        let found = self.socket.dump_raw("list addresses", &message, told)?;
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
        let nodad = nodad && prefix.is_ipv6();
        let mut message =
            message_for(libc::RTM_NEWADDR, link, prefix, if nodad { libc::IFA_F_NODAD as u8 } else { 0 });
        if let Some(broadcast) = broadcast_of(prefix) {
            message.bytes(libc::IFA_BROADCAST, &broadcast.octets());
        }
        self.push(message, NLM_F_CREATE | NLM_F_EXCL, format!("add address {prefix} to link {link}"))
    }

    /// Takes an address from a link.
    pub fn delete_address(&mut self, link: Ifindex, prefix: IpNetwork) -> &mut Self {
        let message = message_for(libc::RTM_DELADDR, link, prefix, 0);
        self.push(message, 0, format!("delete address {prefix} of link {link}"))
    }
}

/// `struct ifaddrmsg`.
fn header(family: u8, prefix: u8, flags: u8, scope: u8, link: Ifindex) -> [u8; 8] {
    let [a, b, c, d] = link.0.to_ne_bytes();
    [family, prefix, flags, scope, a, b, c, d]
}

fn message_for(kind: u16, link: Ifindex, prefix: IpNetwork, flags: u8) -> Message {
    let (ip, family) = (prefix.ip(), u8::from(Family::of(prefix.ip()).wire()));
    let mut message = Message::new(kind, &header(family, prefix.prefix(), flags, scope_of(ip), link));
    match ip {
        IpAddr::V4(v4) => message.bytes(libc::IFA_LOCAL, &v4.octets()).bytes(libc::IFA_ADDRESS, &v4.octets()),
        IpAddr::V6(v6) => message.bytes(libc::IFA_LOCAL, &v6.octets()).bytes(libc::IFA_ADDRESS, &v6.octets()),
    };
    message
}

fn scope_of(ip: IpAddr) -> u8 {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match (ip.is_loopback(), link_local) {
        (true, _) => libc::RT_SCOPE_HOST,
        (false, true) => libc::RT_SCOPE_LINK,
        (false, false) => libc::RT_SCOPE_UNIVERSE,
    }
}

fn broadcast_of(prefix: IpNetwork) -> Option<Ipv4Addr> {
    match prefix {
        IpNetwork::V4(v4) if v4.prefix() < 31 && !v4.ip().is_loopback() => Some(v4.broadcast()),
        IpNetwork::V4(_) | IpNetwork::V6(_) => None,
    }
}

/// Reads an address; prefers `IFA_LOCAL`: on a point-to-point link `IFA_ADDRESS` is the other end's.
fn told(message: (u16, &[u8])) -> Option<Address> {
    let told = ToldAddress::split(libc::RTM_NEWADDR, message)?;
    let [_, prefix, short_flags, scope, ..] = told.header;
    let (mut local, mut remote, mut flags) = (None, None, u32::from(short_flags));
    for (kind, content) in told.attributes() {
        match kind {
            libc::IFA_LOCAL => local = ip(content),
            libc::IFA_ADDRESS => remote = ip(content),
            libc::IFA_FLAGS => flags = number(content).unwrap_or(flags),
            _ => {}
        }
    }
    Some(Address {
        link: Ifindex(told.word(4)),
        prefix: IpNetwork::new(local.or(remote)?, prefix).ok()?,
        link_local: scope == libc::RT_SCOPE_LINK,
        tentative: flags & libc::IFA_F_TENTATIVE != 0,
        duplicate: flags & libc::IFA_F_DADFAILED != 0,
        permanent: flags & libc::IFA_F_PERMANENT != 0,
    })
}

/// Prefers `IFA_LOCAL`: on a point-to-point link `IFA_ADDRESS` is the other end's.
#[cfg(feature = "monitor")]
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

//! Links as the kernel tells them.

use super::super::wire::{ToldLink, number, text};
use super::{BRIDGE_PORT_HAIRPIN, IFLA_INFO_SLAVE_DATA, IFLA_INFO_SLAVE_KIND};
use crate::link::{Ifindex, Link, Mac};
use crate::nft::each_attribute;

/// Reads a link; `None` when the message is about something else.
pub(super) fn link(message: (u16, &[u8])) -> Option<Link> {
    let told = ToldLink::split(libc::RTM_NEWLINK, message)?;
    let flags = told.word(8);
    let has = |flag: i32| flags & flag as u32 != 0;
    let mut link = Link {
        index: Ifindex(told.word(4)),
        name: String::new(),
        mac: None,
        mtu: 0,
        up: has(libc::IFF_UP),
        carrier: has(IFF_LOWER_UP),
        loopback: has(libc::IFF_LOOPBACK),
        kind: None,
        master: None,
        alias: None,
        peer: None,
        peer_namespace: None,
        hairpin: None,
    };
    for (kind, content) in told.attributes() {
        match kind {
            libc::IFLA_IFNAME => link.name = text(content),
            libc::IFLA_ADDRESS => link.mac = content.try_into().ok().map(Mac),
            libc::IFLA_MTU => link.mtu = number(content).unwrap_or_default(),
            libc::IFLA_MASTER => link.master = number(content).map(Ifindex),
            libc::IFLA_IFALIAS => link.alias = Some(text(content)),
            libc::IFLA_LINK => link.peer = number(content).map(Ifindex),
            libc::IFLA_LINK_NETNSID => link.peer_namespace = content.try_into().ok().map(i32::from_ne_bytes),
            libc::IFLA_LINKINFO => kinds(&mut link, content),
            _ => {}
        }
    }
    Some(link)
}

/// `IFF_LOWER_UP` (linux/if.h).
const IFF_LOWER_UP: i32 = 1 << 16;

fn kinds(link: &mut Link, info: &[u8]) {
    let mut port_of_bridge = false;
    for (kind, content) in each_attribute(info) {
        match kind {
            libc::IFLA_INFO_KIND => link.kind = Some(text(content)),
            IFLA_INFO_SLAVE_KIND => port_of_bridge = text(content) == "bridge",
            // The kernel tells the kind first.
            IFLA_INFO_SLAVE_DATA if port_of_bridge => {
                let hairpin = each_attribute(content).find(|(kind, _)| *kind == BRIDGE_PORT_HAIRPIN);
                link.hairpin = hairpin.map(|(_, on)| on.first().is_some_and(|on| *on != 0));
            }
            _ => {}
        }
    }
}

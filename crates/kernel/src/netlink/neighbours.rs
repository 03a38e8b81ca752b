//! Neighbours: which Ethernet address an IP address has.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::wire::{Message, ToldNeighbour, ip};
use super::{Batch, Family, Netlink};
use crate::Result;
use crate::link::{Ifindex, Mac};

/// The link of a neighbour as an attribute (linux/neighbour.h).
const NDA_IFINDEX: u16 = 8;

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
        let mut message = Message::new(libc::RTM_GETNEIGH, &header(libc::AF_UNSPEC as u8, Ifindex(0), 0));
        // A strict kernel takes the link as an attribute only (`net/core/neighbour.c:neigh_valid_dump_req`).
        if let Some(link) = link {
            message.number(NDA_IFINDEX, link.0);
        }
        let found = self.socket.dump_raw("list neighbours", &message, told)?;
        Ok(found.into_iter().filter(|entry| link.is_none_or(|wanted| wanted == entry.link)).collect())
    }
}

impl Batch {
    /// Tells the kernel a neighbour's Ethernet address, replacing what it knew.
    ///
    /// A permanent one is never asked for on the link; another counts as confirmed now and ages.
    pub fn add_neighbour(&mut self, link: Ifindex, ip: IpAddr, mac: Mac, permanent: bool) -> &mut Self {
        let state = if permanent { libc::NUD_PERMANENT } else { libc::NUD_REACHABLE };
        let mut message = message_for(libc::RTM_NEWNEIGH, link, ip, state);
        message.bytes(libc::NDA_LLADDR, &mac.0);
        let action = format!("add neighbour {ip} at {mac} on link {link}");
        self.push(message, NLM_F_CREATE | NLM_F_REPLACE, action)
    }

    /// Makes the kernel forget a neighbour.
    pub fn delete_neighbour(&mut self, link: Ifindex, ip: IpAddr) -> &mut Self {
        let action = format!("delete neighbour {ip} on link {link}");
        self.push(message_for(libc::RTM_DELNEIGH, link, ip, 0), 0, action)
    }
}

/// `struct ndmsg`.
fn header(family: u8, link: Ifindex, state: u16) -> [u8; 12] {
    let ([a, b, c, d], [e, f]) = (link.0.to_ne_bytes(), state.to_ne_bytes());
    [family, 0, 0, 0, a, b, c, d, e, f, 0, 0]
}

fn message_for(kind: u16, link: Ifindex, ip: IpAddr, state: u16) -> Message {
    let mut message = Message::new(kind, &header(u8::from(Family::of(ip).wire()), link, state));
    match ip {
        IpAddr::V4(v4) => message.bytes(libc::NDA_DST, &v4.octets()),
        IpAddr::V6(v6) => message.bytes(libc::NDA_DST, &v6.octets()),
    };
    message
}

fn told(message: (u16, &[u8])) -> Option<Neighbour> {
    let told = ToldNeighbour::split(libc::RTM_NEWNEIGH, message)?;
    let (mut address, mut mac) = (None, None);
    for (kind, content) in told.attributes() {
        match kind {
            libc::NDA_DST => address = ip(content),
            libc::NDA_LLADDR => mac = content.try_into().ok().map(Mac),
            _ => {}
        }
    }
    let [_, _, _, _, _, _, _, _, low, high, ..] = told.header;
    let state = match u16::from_ne_bytes([low, high]) {
        libc::NUD_PERMANENT | libc::NUD_NOARP => NeighbourState::Permanent,
        libc::NUD_REACHABLE => NeighbourState::Reachable,
        libc::NUD_FAILED => NeighbourState::Failed,
        _ => NeighbourState::Unsure,
    };
    Some(Neighbour { link: Ifindex(told.word(4)), ip: address?, mac, state })
}

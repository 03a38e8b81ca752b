//! The bytes of rtnetlink messages (linux/rtnetlink.h): a header of its kind, then attributes.
//!
//! Written and read here and not by a library, since a program that lives for a millisecond pays for each page of code
//! and for each attribute that nobody asked for: the kernel tells a hundred of a link.

use std::net::IpAddr;

use netlink_packet_core::Emitable;
use netlink_packet_route::RouteNetlinkMessage;

use crate::link::Ifindex;
use crate::nft::each_attribute;

/// `NLA_F_NESTED`, which a few attributes need.
pub(super) const NESTED: u16 = libc::NLA_F_NESTED as u16;

/// Length of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// Length of `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;
/// Length of `struct ndmsg`.
const NEIGHBOUR_HEADER: usize = 12;

/// A message without the header that all netlink messages have.
#[derive(Debug, Clone)]
pub(super) struct Message {
    kind: u16,
    payload: Vec<u8>,
}

/// `struct ifinfomsg`, without what nobody needs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LinkHeader {
    pub(super) family: u8,
    pub(super) index: u32,
    pub(super) flags: u32,
    /// Which flags are meant.
    pub(super) change: u32,
}

impl LinkHeader {
    pub(super) fn of(link: Ifindex) -> Self {
        Self { index: link.0, ..Self::default() }
    }

    fn encoded(self) -> [u8; LINK_HEADER] {
        let mut bytes = [0; LINK_HEADER];
        let ([family, _, _, _, rest @ ..], fields) = (&mut bytes, [self.index, self.flags, self.change]);
        *family = self.family;
        for (place, field) in rest.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }
}

// === impl Message ===

impl Message {
    /// A message with the bytes of its own header.
    pub(super) fn new(kind: u16, header: &[u8]) -> Self {
        let mut payload = Vec::with_capacity(240);
        payload.extend(header);
        Self { kind, payload }
    }

    /// A message about a link.
    pub(super) fn link(kind: u16, header: LinkHeader) -> Self {
        Self::new(kind, &header.encoded())
    }

    /// A message of a type of the library.
    pub(super) fn of(kind: u16, message: &impl Emitable) -> Self {
        let mut payload = vec![0; message.buffer_len()];
        message.emit(&mut payload);
        Self { kind, payload }
    }

    pub(super) fn kind(&self) -> u16 {
        self.kind
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Adds an attribute.
    pub(super) fn bytes(&mut self, kind: u16, content: &[u8]) -> &mut Self {
        self.nest(kind, |message| message.payload.extend(content))
    }

    /// Adds a number in the machine's byte order.
    pub(super) fn number(&mut self, kind: u16, number: u32) -> &mut Self {
        self.bytes(kind, &number.to_ne_bytes())
    }

    /// Adds a text with a zero at its end.
    pub(super) fn text(&mut self, kind: u16, text: &str) -> &mut Self {
        self.nest(kind, |message| {
            message.payload.extend(text.as_bytes());
            message.payload.push(0);
        })
    }

    /// Adds an attribute whose content `inside` writes: attributes, mostly.
    pub(super) fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.payload.len();
        self.payload.extend([0, 0]);
        self.payload.extend(kind.to_ne_bytes());
        inside(self);
        // No attribute of ours comes near 64 KiB.
        let length = u16::try_from(self.payload.len() - start).unwrap_or(u16::MAX);
        if let Some(place) = self.payload.get_mut(start..start + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        self.payload.resize(self.payload.len().next_multiple_of(4), 0);
        self
    }

    /// Adds the header of a link inside of an attribute.
    pub(super) fn inner_link(&mut self, header: LinkHeader) -> &mut Self {
        self.payload.extend(header.encoded());
        self
    }
}

impl From<RouteNetlinkMessage> for Message {
    fn from(message: RouteNetlinkMessage) -> Self {
        Self::of(message.message_type(), &message)
    }
}

/// A message of the kernel, split: its own header and its attributes.
pub(super) struct Told<'a, const N: usize> {
    pub(super) header: [u8; N],
    attributes: &'a [u8],
}

pub(super) type ToldLink<'a> = Told<'a, LINK_HEADER>;
pub(super) type ToldAddress<'a> = Told<'a, ADDRESS_HEADER>;
pub(super) type ToldNeighbour<'a> = Told<'a, NEIGHBOUR_HEADER>;

impl<'a, const N: usize> Told<'a, N> {
    /// Splits a message; `None` when it is of another kind than `wanted`, or too short.
    pub(super) fn split(wanted: u16, (kind, payload): (u16, &'a [u8])) -> Option<Self> {
        let (header, attributes) = payload.split_first_chunk::<N>()?;
        (kind == wanted).then_some(Self { header: *header, attributes })
    }

    /// Type and content of each attribute, up to the first that is not whole.
    pub(super) fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        each_attribute(self.attributes)
    }

    /// The four bytes of the header from `at`, as a number.
    pub(super) fn word(&self, at: usize) -> u32 {
        number(self.header.get(at..at + 4).unwrap_or_default()).unwrap_or_default()
    }
}

/// A number in the machine's byte order.
pub(super) fn number(content: &[u8]) -> Option<u32> {
    content.try_into().ok().map(u32::from_ne_bytes)
}

/// An address of either family.
pub(super) fn ip(content: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(content).map(IpAddr::from);
    v4.or_else(|_longer| <[u8; 16]>::try_from(content).map(IpAddr::from)).ok()
}

/// The text up to its final zero.
pub(super) fn text(content: &[u8]) -> String {
    let end = content.iter().position(|byte| *byte == 0).unwrap_or(content.len());
    String::from_utf8_lossy(content.get(..end).unwrap_or_default()).into_owned()
}

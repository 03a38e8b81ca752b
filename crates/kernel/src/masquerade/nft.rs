//! The few nf_tables messages that masquerade needs (`include/uapi/linux/netfilter/nf_tables.h`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netlink_sys::{Socket, SocketAddr};

use crate::{Error, Result};

mod attributes;
mod wire;

pub(super) use attributes::find_attribute;
use attributes::{Attributes, number, text};

const NETLINK_NETFILTER: isize = libc::NETLINK_NETFILTER as isize;

const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const CREATE: u16 = libc::NLM_F_CREATE as u16;
const EXCL: u16 = libc::NLM_F_EXCL as u16;
const APPEND: u16 = libc::NLM_F_APPEND as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;
const DUMP_INTERRUPTED: u16 = 0x10;

/// The header of a netlink message and that of nfnetlink behind it.
const HEADERS: usize = 16 + 4;
/// A netlink datagram is never longer than this (`NETLINK_GOODSIZE` and the dump's own limit are below).
const RECEIVE: usize = 64 * 1024;

/// An address family's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn has(self, network: &IpNetwork) -> bool {
        (self == Self::V4) == network.is_ipv4()
    }

    pub(super) fn multicast(self) -> IpNetwork {
        match self {
            Self::V4 => IpNetwork::V4(MULTICAST_V4),
            Self::V6 => IpNetwork::V6(MULTICAST_V6),
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::V4 => libc::NFPROTO_IPV4 as u8,
            Self::V6 => libc::NFPROTO_IPV6 as u8,
        }
    }
}

const MULTICAST_V4: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::new(224, 0, 0, 0), 4) {
    Some(network) => network,
    None => unreachable!(),
};
const MULTICAST_V6: Ipv6Network =
    match Ipv6Network::new_checked(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8) {
        Some(network) => network,
        None => unreachable!(),
    };

/// A rule in the making: its expressions and its comment.
pub(super) struct Rule {
    expressions: Attributes,
    comment: String,
}

impl Rule {
    pub(super) fn new(comment: String) -> Self {
        Self { expressions: Attributes::default(), comment }
    }

    pub(super) fn source(self, network: IpNetwork) -> Self {
        let offset = if network.is_ipv4() { 12 } else { 8 };
        self.address(network, offset)
    }

    pub(super) fn destination(self, network: IpNetwork) -> Self {
        let offset = if network.is_ipv4() { 16 } else { 24 };
        self.address(network, offset)
    }

    pub(super) fn goto(self, chain: &str) -> Self {
        self.verdict(wire::NFT_GOTO, Some(chain))
    }

    pub(super) fn return_(self) -> Self {
        self.verdict(wire::NFT_RETURN, None)
    }

    pub(super) fn masquerade(mut self, flags: u32) -> Self {
        let mut data = Attributes::default();
        data.number(wire::NFTA_MASQ_FLAGS, flags);
        self.expression("masq", data);
        self
    }

    /// `payload load => reg 1; reg 1 = reg 1 & mask; cmp reg 1 == network`
    fn address(mut self, network: IpNetwork, offset: u32) -> Self {
        const REGISTER: u32 = wire::NFT_REG_1;
        let (address, mask) = (octets(network.network()), octets(network.mask()));
        let length = address.len() as u32;
        let mut load = Attributes::default();
        load.number(wire::NFTA_PAYLOAD_DREG, REGISTER);
        load.number(wire::NFTA_PAYLOAD_BASE, wire::NFT_PAYLOAD_NETWORK_HEADER);
        load.number(wire::NFTA_PAYLOAD_OFFSET, offset);
        load.number(wire::NFTA_PAYLOAD_LEN, length);
        self.expression("payload", load);
        if mask.iter().any(|byte| *byte != 0xff) {
            let mut bitwise = Attributes::default();
            bitwise.number(wire::NFTA_BITWISE_SREG, REGISTER);
            bitwise.number(wire::NFTA_BITWISE_DREG, REGISTER);
            bitwise.number(wire::NFTA_BITWISE_LEN, length);
            bitwise.nest(wire::NFTA_BITWISE_MASK, value(&mask));
            bitwise.nest(wire::NFTA_BITWISE_XOR, value(&vec![0; mask.len()]));
            self.expression("bitwise", bitwise);
        }
        let mut compare = Attributes::default();
        compare.number(wire::NFTA_CMP_SREG, REGISTER);
        compare.number(wire::NFTA_CMP_OP, wire::NFT_CMP_EQ);
        compare.nest(wire::NFTA_CMP_DATA, value(&address));
        self.expression("cmp", compare);
        self
    }

    fn verdict(mut self, code: i32, chain: Option<&str>) -> Self {
        let mut verdict = Attributes::default();
        verdict.bytes(wire::NFTA_VERDICT_CODE, &code.to_be_bytes());
        if let Some(chain) = chain {
            verdict.text(wire::NFTA_VERDICT_CHAIN, chain);
        }
        let mut data = Attributes::default();
        data.nest(wire::NFTA_DATA_VERDICT, verdict);
        let mut immediate = Attributes::default();
        immediate.number(wire::NFTA_IMMEDIATE_DREG, wire::NFT_REG_VERDICT);
        immediate.nest(wire::NFTA_IMMEDIATE_DATA, data);
        self.expression("immediate", immediate);
        self
    }

    fn expression(&mut self, name: &str, data: Attributes) {
        let mut expression = Attributes::default();
        expression.text(wire::NFTA_EXPR_NAME, name);
        expression.nest(wire::NFTA_EXPR_DATA, data);
        self.expressions.nest(wire::NFTA_LIST_ELEM, expression);
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn value(bytes: &[u8]) -> Attributes {
    let mut data = Attributes::default();
    data.bytes(wire::NFTA_DATA_VALUE, bytes);
    data
}

/// Messages that the kernel applies all or none.
pub(super) struct Batch(Vec<Vec<u8>>);

impl Batch {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add_table(&mut self, family: Family, table: &str, must_be_new: bool) {
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_TABLE_NAME, table);
        attributes.number(wire::NFTA_TABLE_FLAGS, 0);
        self.push(wire::NEW_TABLE, if must_be_new { CREATE | EXCL } else { CREATE }, family, attributes);
    }

    pub(super) fn delete_table(&mut self, family: Family, table: &str) {
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_TABLE_NAME, table);
        self.push(wire::DEL_TABLE, 0, family, attributes);
    }

    pub(super) fn add_nat_postrouting_chain(&mut self, family: Family, table: &str, chain: &str) {
        let mut hook = Attributes::default();
        hook.number(wire::NFTA_HOOK_HOOKNUM, wire::NF_INET_POST_ROUTING);
        hook.number(wire::NFTA_HOOK_PRIORITY, wire::NF_IP_PRI_NAT_SRC);
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_CHAIN_TABLE, table);
        attributes.text(wire::NFTA_CHAIN_NAME, chain);
        attributes.nest(wire::NFTA_CHAIN_HOOK, hook);
        attributes.text(wire::NFTA_CHAIN_TYPE, "nat");
        self.push(wire::NEW_CHAIN, CREATE, family, attributes);
    }

    pub(super) fn add_chain(&mut self, family: Family, table: &str, chain: &str) {
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_CHAIN_TABLE, table);
        attributes.text(wire::NFTA_CHAIN_NAME, chain);
        self.push(wire::NEW_CHAIN, CREATE, family, attributes);
    }

    pub(super) fn add_rule(&mut self, family: Family, table: &str, chain: &str, rule: Rule) {
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_RULE_TABLE, table);
        attributes.text(wire::NFTA_RULE_CHAIN, chain);
        attributes.nest(wire::NFTA_RULE_EXPRESSIONS, rule.expressions);
        // Type 0 of nft's user data is a comment, so that `nft list table` shows it.
        let length = u8::try_from(rule.comment.len() + 1).unwrap_or(u8::MAX);
        let data = [&[0, length], rule.comment.as_bytes(), &[0]].concat();
        attributes.bytes(wire::NFTA_RULE_USERDATA, &data);
        self.push(wire::NEW_RULE, CREATE | APPEND, family, attributes);
    }

    #[cfg(test)]
    pub(super) fn flush_table(&mut self, family: Family, table: &str) {
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_RULE_TABLE, table);
        self.push(wire::DEL_RULE, 0, family, attributes);
    }

    fn push(&mut self, kind: u16, flags: u16, family: Family, attributes: Attributes) {
        self.0.push(message(
            wire::SUBSYSTEM << 8 | kind,
            REQUEST | ACK | flags,
            family.number(),
            0,
            attributes.encoded(),
        ));
    }
}

/// Encodes one message; the sequence number is filled in when it is sent.
fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADERS + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADERS + attributes.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, wire::NFNETLINK_V0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

/// A socket to nf_tables. The kernel answers within `send`, so nothing here ever waits.
pub(super) struct Conversation {
    socket: Socket,
    sequence: u32,
    /// The first sequence number of the latest request: what is lower answers an earlier one that failed half-way.
    first: u32,
}

impl Conversation {
    pub(super) fn open() -> Result<Self> {
        let failed = |cause| Error::io("open a netfilter netlink socket", cause);
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        Ok(Self { socket, sequence: 0, first: 0 })
    }

    /// The flags of a table, `None` when there is no such table.
    pub(super) fn table(&mut self, family: Family, table: &str) -> Result<Option<u32>> {
        let action = "look for the masquerade table";
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_TABLE_NAME, table);
        self.send(
            &[message(
                wire::SUBSYSTEM << 8 | wire::GET_TABLE,
                REQUEST,
                family.number(),
                0,
                attributes.encoded(),
            )],
            action,
        )?;
        let mut flags = None;
        let answer = self.receive(action, |kind, content| {
            if kind == wire::SUBSYSTEM << 8 | wire::NEW_TABLE {
                flags = Some(find_attribute(content, wire::NFTA_TABLE_FLAGS).map_or(0, number));
            }
            true
        });
        match answer {
            Err(error) if error.is_not_found() => Ok(None),
            other => other.map(|()| flags),
        }
    }

    /// Chain and comment of every rule of a table, in order.
    pub(super) fn rule_comments(&mut self, family: Family, table: &str) -> Result<Vec<(String, String)>> {
        let action = "list the masquerade rules";
        let mut filter = Attributes::default();
        filter.text(wire::NFTA_RULE_TABLE, table);
        self.send(
            &[message(
                wire::SUBSYSTEM << 8 | wire::GET_RULE,
                REQUEST | DUMP,
                family.number(),
                0,
                filter.encoded(),
            )],
            action,
        )?;
        let mut found = Vec::new();
        self.receive(action, |kind, content| {
            let of_table = find_attribute(content, wire::NFTA_RULE_TABLE).map(text).as_deref() == Some(table);
            if kind == wire::SUBSYSTEM << 8 | wire::NEW_RULE && of_table {
                let chain = find_attribute(content, wire::NFTA_RULE_CHAIN).map(text).unwrap_or_default();
                let data = find_attribute(content, wire::NFTA_RULE_USERDATA).unwrap_or_default();
                found.push((chain, data.get(2..).map(text).unwrap_or_default()));
            }
            false
        })?;
        Ok(found)
    }

    /// Sends a batch as one transaction.
    pub(super) fn commit(&mut self, batch: Batch, action: &str) -> Result<()> {
        let begin = message(wire::BATCH_BEGIN, REQUEST, libc::AF_UNSPEC as u8, wire::SUBSYSTEM, &[]);
        let end = message(wire::BATCH_END, REQUEST, libc::AF_UNSPEC as u8, wire::SUBSYSTEM, &[]);
        let mut left = batch.0.len();
        let messages: Vec<_> = std::iter::once(begin).chain(batch.0).chain([end]).collect();
        self.send(&messages, action)?;
        self.receive(action, |_, _| {
            left -= 1;
            left == 0
        })
    }

    fn send(&mut self, messages: &[Vec<u8>], action: &str) -> Result<()> {
        let mut bytes = Vec::new();
        self.first = self.sequence + 1;
        for message in messages {
            self.sequence += 1;
            let start = bytes.len();
            bytes.extend(message);
            if let Some(place) = bytes.get_mut(start + 8..start + 12) {
                place.copy_from_slice(&self.sequence.to_ne_bytes());
            }
        }
        let sent = self.socket.send(&bytes, 0).map_err(|e| Error::io(action, e))?;
        if sent == bytes.len() { Ok(()) } else { Err(protocol(action, "the request was cut short")) }
    }

    /// Passes each answer (an acknowledgement has kind `NLMSG_ERROR`) to `take` until that says it was the last, or
    /// until the end of a dump.
    fn receive(&mut self, action: &str, mut take: impl FnMut(u16, &[u8]) -> bool) -> Result<()> {
        loop {
            let mut buffer = Vec::with_capacity(RECEIVE);
            match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(protocol(action, "no answer")),
                Err(e) => return Err(Error::io(action, e)),
            }
            let mut rest = buffer.as_slice();
            while let Some((header, content, next)) = split_first(rest) {
                rest = next;
                if header.sequence < self.first {
                    continue;
                }
                if header.flags & DUMP_INTERRUPTED != 0 {
                    return Err(protocol(action, "the rules changed meanwhile"));
                }
                match i32::from(header.kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => failure(content, action)?,
                    _ => {}
                }
                if take(header.kind, content.get(4..).unwrap_or_default()) {
                    return Ok(());
                }
            }
        }
    }
}

pub(super) struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// Splits the first message off: its header, what follows the header, and the messages behind it.
pub(super) fn split_first(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let flags = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
    let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    let content = bytes.get(16..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((Header { kind, flags, sequence }, content, rest))
}

fn failure(content: &[u8], action: &str) -> Result<()> {
    let code = content.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(Error::Netlink {
            action: action.to_owned(),
            index: 0,
            errno: code.saturating_neg(),
            message: None,
        }),
        None => Err(protocol(action, "an error without a number")),
    }
}

fn protocol(action: &str, detail: &str) -> Error {
    Error::Protocol { action: action.to_owned(), detail: detail.to_owned() }
}

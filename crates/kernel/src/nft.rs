//! The few nf_tables messages that masquerade and host ports need (`include/uapi/linux/netfilter/nf_tables.h`).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netlink_sys::{Socket, SocketAddr};

use crate::{Error, Result};

mod attributes;
mod rule;
mod set;
mod wire;

use attributes::{Attributes, number};
pub(crate) use attributes::{each as each_attribute, find_attribute, text};
pub(crate) use rule::Rule;
pub(crate) use set::{Element, SetSpec};

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
/// How often a dump is tried while others change the rules.
const DUMPS: usize = 20;

/// Where and when the kernel passes packets to a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hook {
    /// `NF_INET_*`.
    pub(crate) number: u32,
    /// Chains of one hook come in the order of their priorities.
    pub(crate) priority: i32,
    /// `nat` or `filter`.
    pub(crate) kind: &'static str,
}

impl Hook {
    pub(crate) const PRE_ROUTING: u32 = 0;
    pub(crate) const LOCAL_OUT: u32 = 3;
    pub(crate) const POST_ROUTING: u32 = 4;
}

/// A rule as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The chain it is in.
    pub(crate) chain: String,
    /// Its comment; empty without one.
    pub(crate) comment: String,
    /// What deletes it.
    pub(crate) handle: u64,
}

/// An address family's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn has(self, network: &IpNetwork) -> bool {
        (self == Self::V4) == network.is_ipv4()
    }

    pub(crate) fn multicast(self) -> IpNetwork {
        match self {
            Self::V4 => IpNetwork::V4(MULTICAST_V4),
            Self::V6 => IpNetwork::V6(MULTICAST_V6),
        }
    }

    /// Where the addresses are in the packet's header, and how long they are: source, destination, length.
    fn addresses(self) -> (u32, u32, u32) {
        match self {
            Self::V4 => (12, 16, 4),
            Self::V6 => (8, 24, 16),
        }
    }

    /// The register behind an address in register 1.
    fn second_register(self) -> u32 {
        match self {
            Self::V4 => wire::NFT_REG32_00 + 1,
            Self::V6 => wire::NFT_REG_2,
        }
    }

    /// Bytes of an address.
    pub(crate) fn length(self) -> usize {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
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

/// Messages that the kernel applies all or none.
pub(crate) struct Batch(Vec<Vec<u8>>);

impl Batch {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn add_table(&mut self, family: Family, table: &str, must_be_new: bool) {
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_TABLE_NAME, table);
        attributes.number(wire::NFTA_TABLE_FLAGS, 0);
        self.push(wire::NEW_TABLE, if must_be_new { CREATE | EXCL } else { CREATE }, family, attributes);
    }

    pub(crate) fn delete_table(&mut self, family: Family, table: &str) {
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_TABLE_NAME, table);
        self.push(wire::DEL_TABLE, 0, family, attributes);
    }

    /// Adds a chain that the kernel passes packets to.
    pub(crate) fn add_base_chain(&mut self, family: Family, table: &str, chain: &str, hook: Hook) {
        let Hook { number, priority, kind } = hook;
        let mut hook = Attributes::default();
        hook.number(wire::NFTA_HOOK_HOOKNUM, number);
        hook.number(wire::NFTA_HOOK_PRIORITY, u32::from_ne_bytes(priority.to_ne_bytes()));
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_CHAIN_TABLE, table);
        attributes.text(wire::NFTA_CHAIN_NAME, chain);
        attributes.nest(wire::NFTA_CHAIN_HOOK, hook);
        attributes.text(wire::NFTA_CHAIN_TYPE, kind);
        self.push(wire::NEW_CHAIN, CREATE, family, attributes);
    }

    pub(crate) fn add_chain(&mut self, family: Family, table: &str, chain: &str) {
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_CHAIN_TABLE, table);
        attributes.text(wire::NFTA_CHAIN_NAME, chain);
        self.push(wire::NEW_CHAIN, CREATE, family, attributes);
    }

    pub(crate) fn delete_chain(&mut self, family: Family, table: &str, chain: &str) {
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_CHAIN_TABLE, table);
        attributes.text(wire::NFTA_CHAIN_NAME, chain);
        self.push(wire::DEL_CHAIN, 0, family, attributes);
    }

    pub(crate) fn delete_rule(&mut self, family: Family, table: &str, chain: &str, handle: u64) {
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_RULE_TABLE, table);
        attributes.text(wire::NFTA_RULE_CHAIN, chain);
        attributes.bytes(wire::NFTA_RULE_HANDLE, &handle.to_be_bytes());
        self.push(wire::DEL_RULE, 0, family, attributes);
    }

    /// Adds a rule behind those of the chain.
    pub(crate) fn add_rule(&mut self, family: Family, table: &str, chain: &str, rule: Rule) {
        self.place_rule(family, table, chain, (rule, APPEND));
    }

    /// Adds a rule before those of the chain.
    pub(crate) fn insert_rule(&mut self, family: Family, table: &str, chain: &str, rule: Rule) {
        self.place_rule(family, table, chain, (rule, 0));
    }

    fn place_rule(&mut self, family: Family, table: &str, chain: &str, (rule, place): (Rule, u16)) {
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_RULE_TABLE, table);
        attributes.text(wire::NFTA_RULE_CHAIN, chain);
        attributes.nest(wire::NFTA_RULE_EXPRESSIONS, rule.expressions);
        attributes.bytes(wire::NFTA_RULE_USERDATA, &comment_data(&rule.comment));
        self.push(wire::NEW_RULE, CREATE | place, family, attributes);
    }

    /// Removes every rule of a table; chains and sets stay.
    pub(crate) fn flush_table(&mut self, family: Family, table: &str) {
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

/// User data of type 0, which nft shows as a comment.
fn comment_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    [&[0, length], comment.as_bytes(), &[0]].concat()
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
pub(crate) struct Conversation {
    socket: Socket,
    sequence: u32,
    /// The first sequence number of the latest request: what is lower answers an earlier one that failed half-way.
    first: u32,
}

impl Conversation {
    pub(crate) fn open() -> Result<Self> {
        let failed = |cause| Error::io("open a netfilter netlink socket", cause);
        let socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
        // Gives it an address as well (`net/netlink/af_netlink.c:netlink_connect`).
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        Ok(Self { socket, sequence: 0, first: 0 })
    }

    /// The flags of a table, `None` when there is no such table.
    pub(crate) fn table(&mut self, family: Family, table: &str) -> Result<Option<u32>> {
        let action = "look for a table";
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

    /// Every rule of a table, in order.
    pub(crate) fn rules(&mut self, family: Family, table: &str) -> Result<Vec<Found>> {
        retried(|| self.rules_once(family, table))
    }

    fn rules_once(&mut self, family: Family, table: &str) -> Result<Vec<Found>> {
        let action = "list the rules";
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
                let handle = find_attribute(content, wire::NFTA_RULE_HANDLE).and_then(|b| b.try_into().ok());
                found.push(Found {
                    chain,
                    comment: data.get(2..).map(text).unwrap_or_default(),
                    handle: handle.map(u64::from_be_bytes).unwrap_or_default(),
                });
            }
            false
        })?;
        Ok(found)
    }

    /// Removes a table of both families in one transaction, and says whether there was one.
    pub(crate) fn remove_table(&mut self, table: &str, action: &str) -> Result<bool> {
        let mut batch = Batch::new();
        for family in Family::BOTH {
            if self.table(family, table)?.is_some() {
                // Adding it first makes the deletion succeed when another process was quicker.
                batch.add_table(family, table, false);
                batch.delete_table(family, table);
            }
        }
        if batch.is_empty() {
            return Ok(false);
        }
        self.commit(batch, action).map(|()| true)
    }

    /// Sends a batch as one transaction.
    pub(crate) fn commit(&mut self, batch: Batch, action: &str) -> Result<()> {
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
        let mut interrupted = false;
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
                // The dump is read to its end all the same: until then the kernel takes no other on this socket.
                interrupted |= header.flags & DUMP_INTERRUPTED != 0;
                match i32::from(header.kind) {
                    libc::NLMSG_DONE if interrupted => return Err(changed_meanwhile(action)),
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

pub(crate) struct Header {
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
}

/// Splits the first message off: its header, what follows the header, and the messages behind it.
pub(crate) fn split_first(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
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

/// Repeats a dump that a change of the rules has interrupted.
fn retried<T>(mut dump: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..DUMPS {
        match dump() {
            Err(error) if error.errno() == Some(libc::EINTR) => {}
            done => return done,
        }
    }
    dump()
}

fn changed_meanwhile(action: &str) -> Error {
    Error::Netlink { action: action.to_owned(), index: 0, errno: libc::EINTR, message: None }
}

fn protocol(action: &str, detail: &str) -> Error {
    Error::Protocol { action: action.to_owned(), detail: detail.to_owned() }
}

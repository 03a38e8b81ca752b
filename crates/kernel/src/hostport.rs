//! Ports of the node that lead to pods: one static nftables table a family, an element a port, over netlink.
//!
//! ```text
//! table ip netd-hostport {
//!     map ports { type inet_proto . inet_service : ipv4_addr . inet_service }
//!     map addressed { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//!     set pods { type ipv4_addr . ipv4_addr }
//!     chain guard { type filter hook prerouting priority raw; iifname != "lo" ip daddr 127.0.0.0/8 drop }
//!     chain prerouting { type nat hook prerouting priority -90; fib daddr type local goto translate }
//!     chain output { type nat hook output priority -90; fib daddr type local goto translate }
//!     chain translate { dnat to ip daddr . meta l4proto . th dport map @addressed; dnat to … map @ports }
//!     chain postrouting { type nat hook postrouting priority 99; ip saddr . ip daddr @pods masquerade; … }
//! }
//! ```
//!
//! Only packets to an address of the node itself are translated, after Services (whose priority is -100). A pod that
//! comes back to itself through its port, and the node's own 127.0.0.1, get the node's address as their source; everybody
//! else keeps his own. Packets from elsewhere to 127.0.0.0/8 are dropped, since `route_localnet` may be on.
//!
//! Every element has its owner as its comment, so whoever starts with no memory finds it again. The tables are made by
//! the first port and stay. Works in the network namespace of the calling thread.

use std::net::{IpAddr, SocketAddr};

use crate::conntrack::Transport;
use crate::nft::{Batch, Conversation, Element, Family, Hook, SetSpec};
use crate::{Error, Result};

mod rules;

use rules::rules;

/// The name of both tables.
pub const TABLE: &str = "netd-hostport";

const PORTS: &str = "ports";
const ADDRESSED: &str = "addressed";
const PODS: &str = "pods";
const GUARD: &str = "guard";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const TRANSLATE: &str = "translate";
const POSTROUTING: &str = "postrouting";
/// Before connection tracking (`NF_IP_PRI_RAW`): replies to the node's own 127.0.0.1 are not translated back yet.
const PRIORITY_GUARD: i32 = -300;
const PRIORITY_DNAT: i32 = -90;
const PRIORITY_SNAT: i32 = 99;
/// How often a change is tried while others change the same elements.
const ATTEMPTS: usize = 8;

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// The protocol.
    pub transport: Transport,
    /// The one address of the node that counts; every one where `None`. Of the pod's family.
    pub host_ip: Option<IpAddr>,
    /// The port of the node.
    pub port: u16,
    /// The pod's address and port.
    pub to: SocketAddr,
}

/// Somebody else's port that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The port.
    pub port: HostPort,
    /// Whose it is.
    pub owner: String,
}

impl HostPort {
    fn family(&self) -> Family {
        if self.to.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    fn excludes(&self, other: &Self) -> bool {
        let same = |a: Option<IpAddr>, b: Option<IpAddr>| a.is_none() || b.is_none() || a == b;
        self.family() == other.family()
            && (self.transport, self.port) == (other.transport, other.port)
            && same(self.host_ip, other.host_ip)
    }

    fn map(&self) -> &'static str {
        if self.host_ip.is_some() { ADDRESSED } else { PORTS }
    }

    /// The map's element; each part is padded to four bytes.
    fn element(&self, owner: &str) -> Element {
        let port = |port: u16| [port.to_be_bytes(), [0; 2]].concat();
        let mut key = self.host_ip.map(octets).unwrap_or_default();
        key.extend([number(self.transport), 0, 0, 0]);
        key.extend(port(self.port));
        let data = [octets(self.to.ip()), port(self.to.port())].concat();
        Element { key, data, comment: owner.to_owned() }
    }

    fn read(family: Family, addressed: bool, element: &Element) -> Option<Self> {
        let split = |bytes: &[u8]| -> Option<(IpAddr, Vec<u8>)> {
            let (address, rest) = bytes.split_at_checked(family.length())?;
            Some((address_of(address)?, rest.to_vec()))
        };
        let (host_ip, key) = match addressed {
            true => split(&element.key).map(|(ip, rest)| (Some(ip), rest))?,
            false => (None, element.key.clone()),
        };
        let port = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?));
        let transport = Transport::ALL.into_iter().find(|t| Some(&number(*t)) == key.first())?;
        let (address, to) = split(&element.data)?;
        let to = SocketAddr::new(address, port(&to)?);
        Some(Self { transport, host_ip, port: port(key.get(4..)?)?, to })
    }
}

/// Makes `ports` lead to their pod, all of them or, when somebody else has one, none; `owner` is at most 250 bytes.
///
/// Ports that the owner had before are replaced.
///
/// # Errors
/// [`Error::Netlink`] when the kernel refuses, such as without nf_tables or its `fib` expression.
pub fn add(owner: &str, ports: &[HostPort]) -> Result<Result<(), Conflict>> {
    if ports.is_empty() {
        return Ok(Ok(()));
    }
    let mut conversation = Conversation::open()?;
    ensure_in(&mut conversation, ports)?;
    remove_in(&mut conversation, owner)?;
    for _ in 0..ATTEMPTS {
        if let Some(conflict) = conflict(&mut conversation, owner, ports)? {
            return Ok(Err(conflict));
        }
        let new: Vec<Lost<'_>> =
            ports.iter().map(|port| Lost { owner, port: *port, mapped: false }).collect();
        match conversation.commit(additions(&new), "add host ports") {
            Ok(()) => break,
            // Somebody was quicker; who it was is seen in the next round.
            Err(error) if error.is_exists() => {}
            Err(error) => return Err(error),
        }
    }
    // One with an address and one for all addresses have different keys: both see each other here, and at least one
    // goes back.
    match conflict(&mut conversation, owner, ports)? {
        None => Ok(Ok(())),
        Some(conflict) => remove_in(&mut conversation, owner).map(|_| Err(conflict)),
    }
}

/// Takes all ports of `owner` away and returns them; none is success.
///
/// # Errors
/// [`Error::Netlink`] when the kernel refuses.
pub fn remove(owner: &str) -> Result<Vec<HostPort>> {
    remove_in(&mut Conversation::open()?, owner)
}

/// Every port with its owner.
///
/// # Errors
/// [`Error::Netlink`] when the kernel refuses.
pub fn list() -> Result<Vec<(String, HostPort)>> {
    list_in(&mut Conversation::open()?)
}

/// Says which of these ports, with their owners, do not lead to their pod; all of them where there is no table.
///
/// # Errors
/// [`Error::Netlink`] when the kernel refuses.
pub fn missing(wanted: &[(String, HostPort)]) -> Result<Vec<(String, HostPort)>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let lost = lost_in(&mut Conversation::open()?, wanted)?;
    Ok(lost.into_iter().map(|lost| (lost.owner.to_owned(), lost.port)).collect())
}

/// A port of which an element is missing.
struct Lost<'a> {
    owner: &'a str,
    port: HostPort,
    /// Whether that of the map is there.
    mapped: bool,
}

fn lost_in<'a>(conversation: &mut Conversation, wanted: &'a [(String, HostPort)]) -> Result<Vec<Lost<'a>>> {
    let there = list_in(conversation)?;
    let mut pairs = Vec::new();
    for family in families(conversation)? {
        pairs.extend(conversation.elements(family, TABLE, PODS)?.into_iter().map(|element| element.key));
    }
    let mut lost = Vec::new();
    for one @ (owner, port) in wanted {
        let mapped = there.contains(one);
        if !mapped || !pairs.contains(&pair(port, "").key) {
            lost.push(Lost { owner, port: *port, mapped });
        }
    }
    Ok(lost)
}

/// Puts back those of these ports that do not lead to their pod, with tables and rules where those are gone as well, and
/// returns them. A port that another owner has by now stays his.
///
/// # Errors
/// [`Error::Netlink`] when the kernel refuses.
pub fn restore(wanted: &[(String, HostPort)]) -> Result<Vec<(String, HostPort)>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let mut conversation = Conversation::open()?;
    let ports: Vec<HostPort> = wanted.iter().map(|(_, port)| *port).collect();
    ensure_in(&mut conversation, &ports)?;
    let lost = lost_in(&mut conversation, wanted)?;
    if lost.is_empty() {
        return Ok(Vec::new());
    }
    let told = |lost: &Lost<'_>| (lost.owner.to_owned(), lost.port);
    // All at once; where one is another's by now, one by one.
    match conversation.commit(additions(&lost), "put host ports back") {
        Ok(()) => return Ok(lost.iter().map(told).collect()),
        Err(error) if error.is_exists() => {}
        Err(error) => return Err(error),
    }
    let mut restored = Vec::new();
    for one in &lost {
        match conversation.commit(additions(std::slice::from_ref(one)), "put a host port back") {
            Ok(()) => restored.push(told(one)),
            Err(error) if error.is_exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(restored)
}

fn additions(ports: &[Lost<'_>]) -> Batch {
    let mut batch = Batch::new();
    for Lost { owner, port, mapped } in ports {
        if !mapped {
            batch.add_element(port.family(), TABLE, port.map(), &port.element(owner));
        }
        batch.add_element(port.family(), TABLE, PODS, &pair(port, owner));
    }
    batch
}

/// Repairs the rules of the tables that there are, and says whether something was wrong. Ports of a table that somebody
/// deleted are gone.
///
/// # Errors
/// [`Error::Netlink`] when the kernel refuses.
pub fn repair() -> Result<bool> {
    let mut conversation = Conversation::open()?;
    let mut changed = false;
    for family in Family::BOTH {
        if conversation.table(family, TABLE)?.is_some() {
            changed |= ensure_family(&mut conversation, family)?;
        }
    }
    Ok(changed)
}

/// Whether the rules of the tables that there are are as they were installed.
///
/// # Errors
/// [`Error::Netlink`] when the kernel refuses.
pub fn is_intact() -> Result<bool> {
    let mut conversation = Conversation::open()?;
    let mut intact = true;
    for family in Family::BOTH {
        let flags = conversation.table(family, TABLE)?;
        intact &= is_right(&mut conversation, family, flags)?;
    }
    Ok(intact)
}

/// Removes both tables with all ports and says whether there was one.
///
/// # Errors
/// [`Error::Netlink`] when the kernel refuses.
pub fn clear() -> Result<bool> {
    Conversation::open()?.remove_table(TABLE, "remove host ports")
}

fn list_in(conversation: &mut Conversation) -> Result<Vec<(String, HostPort)>> {
    let mut all = Vec::new();
    for family in families(conversation)? {
        for map in [PORTS, ADDRESSED] {
            for element in conversation.elements(family, TABLE, map)? {
                let port = HostPort::read(family, map == ADDRESSED, &element);
                all.extend(port.map(|port| (element.comment, port)));
            }
        }
    }
    Ok(all)
}

/// The families that have a table: most nodes have none, and every DEL asks.
fn families(conversation: &mut Conversation) -> Result<Vec<Family>> {
    let mut found = Vec::new();
    for family in Family::BOTH {
        if conversation.table(family, TABLE)?.is_some() {
            found.push(family);
        }
    }
    Ok(found)
}

fn conflict(conversation: &mut Conversation, owner: &str, ports: &[HostPort]) -> Result<Option<Conflict>> {
    let others = list_in(conversation)?.into_iter().filter(|(other, _)| other != owner);
    let mut clashes = others.filter(|(_, theirs)| ports.iter().any(|port| port.excludes(theirs)));
    Ok(clashes.next().map(|(owner, port)| Conflict { port, owner }))
}

fn remove_in(conversation: &mut Conversation, owner: &str) -> Result<Vec<HostPort>> {
    for _ in 0..ATTEMPTS {
        let mut batch = Batch::new();
        let mut removed = Vec::new();
        for family in families(conversation)? {
            for set in [PORTS, ADDRESSED, PODS] {
                for element in conversation.elements(family, TABLE, set)? {
                    if element.comment == owner {
                        batch.delete_element(family, TABLE, set, &element.key);
                        removed.extend(HostPort::read(family, set == ADDRESSED, &element));
                    }
                }
            }
        }
        if batch.is_empty() {
            return Ok(removed);
        }
        match conversation.commit(batch, "remove host ports") {
            // Another call removed some of them: what is left is read again.
            Err(error) if error.is_not_found() => {}
            done => return done.map(|()| removed),
        }
    }
    Err(Error::Invalid { what: "number of attempts to remove host ports".to_owned() })
}

fn ensure_in(conversation: &mut Conversation, ports: &[HostPort]) -> Result<()> {
    for family in Family::BOTH {
        if ports.iter().any(|port| port.family() == family) {
            ensure_family(conversation, family)?;
        }
    }
    Ok(())
}

/// Installs chains, sets and rules where they are not as they should be; elements stay.
fn ensure_family(conversation: &mut Conversation, family: Family) -> Result<bool> {
    let flags = conversation.table(family, TABLE)?;
    if flags.is_some() && is_right(conversation, family, flags)? {
        return Ok(false);
    }
    let mut batch = Batch::new();
    batch.add_table(family, TABLE, false);
    let (address, length) = match family {
        Family::V4 => (TYPE_IPV4, 4),
        Family::V6 => (TYPE_IPV6, 16),
    };
    let port = (TYPE_PROTOCOL << 6 | TYPE_PORT, 8);
    let data = Some((address << 6 | TYPE_PORT, length + 4));
    let addressed = (address << 12 | port.0, length + port.1);
    batch.add_set(family, TABLE, &SetSpec { name: PORTS, key: port, data });
    batch.add_set(family, TABLE, &SetSpec { name: ADDRESSED, key: addressed, data });
    let pods = (address << 6 | address, 2 * length);
    batch.add_set(family, TABLE, &SetSpec { name: PODS, key: pods, data: None });
    let nat = |number, priority| Hook { number, priority, kind: "nat" };
    let guard = Hook { number: Hook::PRE_ROUTING, priority: PRIORITY_GUARD, kind: "filter" };
    batch.add_base_chain(family, TABLE, GUARD, guard);
    batch.add_base_chain(family, TABLE, PREROUTING, nat(Hook::PRE_ROUTING, PRIORITY_DNAT));
    batch.add_base_chain(family, TABLE, OUTPUT, nat(Hook::LOCAL_OUT, PRIORITY_DNAT));
    batch.add_chain(family, TABLE, TRANSLATE);
    batch.add_base_chain(family, TABLE, POSTROUTING, nat(Hook::POST_ROUTING, PRIORITY_SNAT));
    batch.flush_table(family, TABLE);
    for (chain, rule) in rules(family) {
        batch.add_rule(family, TABLE, chain, rule);
    }
    conversation.commit(batch, "install host port rules").map(|()| true)
}

/// Whether a family's table is awake and has its rules and no others; right as well where there is none.
fn is_right(conversation: &mut Conversation, family: Family, flags: Option<u32>) -> Result<bool> {
    let Some(flags) = flags else { return Ok(true) };
    let rules = rules(family);
    let wanted = rules.iter().map(|(chain, rule)| ((*chain).to_owned(), rule.comment().to_owned()));
    let found = conversation.rules(family, TABLE)?;
    Ok(flags == 0 && found.into_iter().map(|rule| (rule.chain, rule.comment)).eq(wanted))
}

/// nft's numbers of data types (`enum datatypes` of libnftables); those of a concatenation stand six bits apart.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;

fn pair(port: &HostPort, owner: &str) -> Element {
    let address = octets(port.to.ip());
    Element { key: [address.clone(), address].concat(), data: Vec::new(), comment: owner.to_owned() }
}

fn number(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
        Transport::Sctp => 132,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests;

//! Links: reading, making, changing.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{
    InfoBridgePort, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::wire::{LinkHeader, Message, NESTED};
use super::{Batch, Netlink};
use crate::link::{Ifindex, Link, Mac};
use crate::{Error, Result};

mod told;

/// The other end in what a veth is made from (linux/veth.h).
const VETH_INFO_PEER: u16 = 1;
/// What a link is as the port of another (linux/if_link.h).
pub(super) const IFLA_INFO_SLAVE_KIND: u16 = 4;
/// Its settings as a port.
pub(super) const IFLA_INFO_SLAVE_DATA: u16 = 5;
/// Hairpin, among the settings of a bridge port (`IFLA_BRPORT_MODE`).
pub(super) const BRIDGE_PORT_HAIRPIN: u16 = 4;
/// `RTEXT_FILTER_SKIP_STATS`: counters are summed over all processors for nobody.
const SKIP_STATS: u32 = 1 << 3;
/// The longest name of a link, in bytes without the final zero (linux/if.h).
pub(super) const NAME_MAX: usize = 15;

/// A bridge to make.
#[derive(Debug, Clone, Default)]
pub struct BridgeSpec<'a> {
    /// Its name, at most 15 bytes.
    pub name: &'a str,
    /// Its Ethernet address; without one the kernel takes the lowest of its ports', which changes with them.
    pub mac: Option<Mac>,
    /// The largest packet in bytes; 1500 by the kernel's choice.
    pub mtu: Option<u32>,
    /// The text that says whose it is.
    pub alias: Option<&'a str>,
}

/// A pair of links to make, of which one end may be in another namespace.
#[derive(Debug, Clone, Default)]
pub struct VethSpec<'a> {
    /// Name of our end, at most 15 bytes.
    pub name: &'a str,
    /// Ethernet address of our end; random by the kernel's choice.
    pub mac: Option<Mac>,
    /// The largest packet in bytes, of both ends.
    pub mtu: Option<u32>,
    /// The bridge that our end becomes a port of.
    pub master: Option<Ifindex>,
    /// The text that says whose our end is.
    pub alias: Option<&'a str>,
    /// Whether our end is switched on; the other end cannot be while it is made (`drivers/net/veth.c:veth_open`).
    pub up: bool,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Ethernet address of the other end.
    pub peer_mac: Option<Mac>,
    /// The namespace that the other end is made in; ours if `None`.
    pub peer_namespace: Option<BorrowedFd<'a>>,
}

impl Netlink {
    /// Looks a link up by its name; `None` when there is none.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        check_name(name)?;
        let mut message = Message::link(libc::RTM_GETLINK, LinkHeader::default());
        message.text(libc::IFLA_IFNAME, name).number(libc::IFLA_EXT_MASK, SKIP_STATS);
        self.one_link(&format!("look up link {name}"), &message)
    }

    /// Looks a link up by its number; `None` when there is none.
    pub fn link_by_index(&mut self, index: Ifindex) -> Result<Option<Link>> {
        let mut message = Message::link(libc::RTM_GETLINK, LinkHeader::of(index));
        message.number(libc::IFLA_EXT_MASK, SKIP_STATS);
        self.one_link(&format!("look up link {index}"), &message)
    }

    /// Lists all links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let mut message = Message::link(libc::RTM_GETLINK, LinkHeader::default());
        message.number(libc::IFLA_EXT_MASK, SKIP_STATS);
        self.socket.dump_raw("list links", &message, told::link)
    }

    /// Looks a link's number up; `None` when there is no link of that name. Waits for nobody who changes links.
    pub fn link_index(&self, name: &str) -> Result<Option<Ifindex>> {
        check_name(name)?;
        self.socket.link_index(name)
    }

    /// Looks a link's largest packet up in bytes; `None` when there is no such link. Waits for nobody who changes links.
    pub fn link_mtu(&self, index: Ifindex) -> Result<Option<u32>> {
        self.socket.link_mtu(index)
    }

    /// Makes the kernel look at once whether a link can carry packets, which it would find out within a second
    /// (`net/core/rtnetlink.c:rtnl_getlink`).
    pub fn refresh_carrier(&mut self, name: &str) -> Result<()> {
        check_name(name)?;
        let mut message = Message::link(libc::RTM_GETLINK, LinkHeader::default());
        message.text(libc::IFLA_IFNAME, name).number(libc::IFLA_EXT_MASK, SKIP_STATS);
        self.socket.poke(&format!("refresh link {name}"), &message)
    }

    /// Makes a bridge, down and without ports, and returns its number.
    ///
    /// # Errors
    /// [`Error::is_exists`] when a link has that name.
    pub fn add_bridge(&mut self, spec: &BridgeSpec<'_>) -> Result<Ifindex> {
        check_name(spec.name)?;
        self.send(Batch::new().add_bridge(spec))?;
        self.index_of(spec.name)
    }

    /// Makes a veth pair, the other end down, and returns the number of our end.
    ///
    /// # Errors
    /// [`Error::is_exists`] when a link has one of the names.
    pub fn add_veth(&mut self, spec: &VethSpec<'_>) -> Result<Ifindex> {
        self.make_veth(spec)?;
        self.index_of(spec.name)
    }

    /// Makes a veth pair as [`Self::add_veth`] for who does not need the number of our end.
    ///
    /// # Errors
    /// [`Error::is_exists`] when a link has one of the names.
    pub fn make_veth(&mut self, spec: &VethSpec<'_>) -> Result<()> {
        spec.check()?;
        self.send(Batch::new().add_veth(spec))
    }

    /// Deletes all links of a group, which takes hardly longer than one.
    ///
    /// # Errors
    /// [`Error::is_not_found`] when the group has no link.
    pub fn delete_group(&mut self, group: u32) -> Result<()> {
        self.send(Batch::new().delete_group(group))
    }

    fn index_of(&mut self, name: &str) -> Result<Ifindex> {
        self.link_index(name)?.ok_or_else(|| Error::NotFound { what: format!("link {name}") })
    }

    fn one_link(&mut self, action: &str, message: &Message) -> Result<Option<Link>> {
        match self.socket.ask_raw(action, message, |told| Ok(told::link(told))) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl VethSpec<'_> {
    /// Refuses names that no link can have.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the name.
    pub fn check(&self) -> Result<()> {
        check_name(self.name)?;
        check_name(self.peer_name)
    }
}

impl Batch {
    /// Makes a bridge; two or fewer changes.
    pub fn add_bridge(&mut self, spec: &BridgeSpec<'_>) -> &mut Self {
        let mut message = Message::link(libc::RTM_NEWLINK, LinkHeader::default());
        name_and_size(&mut message, spec.name, spec.mac, spec.mtu);
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "bridge");
        });
        self.push(message, NLM_F_CREATE | NLM_F_EXCL, format!("make bridge {}", spec.name));
        self.alias_by_name(spec.name, spec.alias)
    }

    /// Makes a veth pair; two or fewer changes.
    pub fn add_veth(&mut self, spec: &VethSpec<'_>) -> &mut Self {
        let mut message =
            Message::link(libc::RTM_NEWLINK, if spec.up { flag_up(true) } else { LinkHeader::default() });
        name_and_size(&mut message, spec.name, spec.mac, spec.mtu);
        if let Some(master) = spec.master {
            message.number(libc::IFLA_MASTER, master.0);
        }
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    peer.inner_link(LinkHeader::default());
                    name_and_size(peer, spec.peer_name, spec.peer_mac, spec.mtu);
                    if let Some(namespace) = spec.peer_namespace {
                        peer.bytes(libc::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
                    }
                });
            });
        });
        let action = format!("make veth {} with other end {}", spec.name, spec.peer_name);
        self.push(message, NLM_F_CREATE | NLM_F_EXCL, action);
        self.alias_by_name(spec.name, spec.alias)
    }

    /// Switches a link on.
    pub fn set_up(&mut self, link: Ifindex) -> &mut Self {
        self.set_flag_up(link, true)
    }

    /// Makes a link take frames for whomever, or only its own.
    pub fn set_promiscuous(&mut self, link: Ifindex, on: bool) -> &mut Self {
        let flag = libc::IFF_PROMISC as u32;
        let header = LinkHeader { change: flag, flags: if on { flag } else { 0 }, ..LinkHeader::of(link) };
        let message = Message::link(libc::RTM_SETLINK, header);
        self.push(message, 0, format!("set promiscuous mode {on} of link {link}"))
    }

    /// Switches a link off.
    pub fn set_down(&mut self, link: Ifindex) -> &mut Self {
        self.set_flag_up(link, false)
    }

    /// Makes a link a port of a bridge, or of none.
    pub fn set_master(&mut self, link: Ifindex, master: Option<Ifindex>) -> &mut Self {
        let index = master.map_or(0, |master| master.0);
        let action = format!("make link {link} a port of {index}");
        self.set(link, action, |message| message.number(libc::IFLA_MASTER, index))
    }

    /// Sets the largest packet in bytes.
    pub fn set_mtu(&mut self, link: Ifindex, mtu: u32) -> &mut Self {
        let action = format!("set MTU {mtu} of link {link}");
        self.set(link, action, |message| message.number(libc::IFLA_MTU, mtu))
    }

    /// Sets the Ethernet address.
    pub fn set_mac(&mut self, link: Ifindex, mac: Mac) -> &mut Self {
        let action = format!("set MAC {mac} of link {link}");
        self.set(link, action, |message| message.bytes(libc::IFLA_ADDRESS, &mac.0))
    }

    /// Sets the text that says whose a link is, at most 255 bytes.
    pub fn set_alias(&mut self, link: Ifindex, alias: &str) -> &mut Self {
        let action = format!("set alias of link {link}");
        self.set(link, action, |message| message.bytes(libc::IFLA_IFALIAS, alias.as_bytes()))
    }

    /// Moves a link to another namespace under a new name.
    pub fn move_to(&mut self, link: Ifindex, namespace: BorrowedFd<'_>, new_name: &str) -> &mut Self {
        let action = format!("move link {link} to another namespace as {new_name}");
        let descriptor = namespace.as_raw_fd().to_ne_bytes();
        self.set(link, action, |message| {
            message.bytes(libc::IFLA_NET_NS_FD, &descriptor).text(libc::IFLA_IFNAME, new_name)
        })
    }

    /// Deletes a link.
    pub fn delete_link(&mut self, link: Ifindex) -> &mut Self {
        let message = Message::link(libc::RTM_DELLINK, LinkHeader::of(link));
        self.push(message, 0, format!("delete link {link}"))
    }

    /// Switches a link off, puts it into a group and writes its alias, in one change.
    pub fn put_aside(&mut self, link: Ifindex, group: u32, alias: &str) -> &mut Self {
        let header = LinkHeader { index: link.0, ..flag_up(false) };
        let mut message = Message::link(libc::RTM_SETLINK, header);
        message.number(libc::IFLA_GROUP, group).bytes(libc::IFLA_IFALIAS, alias.as_bytes());
        self.push(message, 0, format!("put link {link} aside"))
    }

    /// Deletes all links of a group, which takes hardly longer than one; none is an error as for a missing link.
    pub fn delete_group(&mut self, group: u32) -> &mut Self {
        let mut message = Message::link(libc::RTM_DELLINK, LinkHeader::default());
        message.number(libc::IFLA_GROUP, group);
        self.push(message, 0, format!("delete the links of group {group:#x}"))
    }

    /// Writes the alias of a bridge port and whether frames may leave by it when they came in by it, in one change.
    pub fn configure_port(&mut self, name: &str, alias: &str, hairpin: bool) -> &mut Self {
        let mut message = Message::link(libc::RTM_NEWLINK, LinkHeader::default());
        message.text(libc::IFLA_IFNAME, name).nest(libc::IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, |port| {
                port.bytes(BRIDGE_PORT_HAIRPIN, &[u8::from(hairpin)]);
            });
        });
        message.bytes(libc::IFLA_IFALIAS, alias.as_bytes());
        self.push(message, 0, format!("set alias and hairpin of port {name}"))
    }

    /// Lets frames leave, or not, by the bridge port they came in by.
    pub fn set_hairpin(&mut self, port: Ifindex, on: bool) -> &mut Self {
        let header = LinkHeader { family: libc::AF_BRIDGE as u8, ..LinkHeader::of(port) };
        let mut message = Message::link(libc::RTM_SETLINK, header);
        message.nest(libc::IFLA_PROTINFO | NESTED, |info| {
            info.bytes(BRIDGE_PORT_HAIRPIN, &[u8::from(on)]);
        });
        self.push(message, 0, format!("set hairpin {on} of bridge port {port}"))
    }

    fn set_flag_up(&mut self, link: Ifindex, up: bool) -> &mut Self {
        let message = Message::link(libc::RTM_SETLINK, LinkHeader { index: link.0, ..flag_up(up) });
        let action = format!("set link {link} {}", if up { "up" } else { "down" });
        self.push(message, 0, action)
    }

    fn set(
        &mut self,
        link: Ifindex,
        action: String,
        attributes: impl FnOnce(&mut Message) -> &mut Message,
    ) -> &mut Self {
        let mut message = Message::link(libc::RTM_SETLINK, LinkHeader::of(link));
        attributes(&mut message);
        self.push(message, 0, action)
    }

    /// The kernel takes no alias when a link is made (`net/core/rtnetlink.c:rtnl_create_link`).
    pub(super) fn alias_by_name(&mut self, name: &str, alias: Option<&str>) -> &mut Self {
        let Some(alias) = alias else { return self };
        let mut message = Message::link(libc::RTM_SETLINK, LinkHeader::default());
        message.text(libc::IFLA_IFNAME, name).bytes(libc::IFLA_IFALIAS, alias.as_bytes());
        self.push(message, 0, format!("set alias of link {name}"))
    }
}

/// The header that switches a link on or off.
pub(super) fn flag_up(up: bool) -> LinkHeader {
    let flag = libc::IFF_UP as u32;
    LinkHeader { change: flag, flags: if up { flag } else { 0 }, ..LinkHeader::default() }
}

pub(super) fn name_and_size(message: &mut Message, name: &str, mac: Option<Mac>, mtu: Option<u32>) {
    message.text(libc::IFLA_IFNAME, name);
    if let Some(mac) = mac {
        message.bytes(libc::IFLA_ADDRESS, &mac.0);
    }
    if let Some(mtu) = mtu {
        message.number(libc::IFLA_MTU, mtu);
    }
}

pub(super) fn own_attributes(name: &str, mac: Option<Mac>, mtu: Option<u32>) -> Vec<LinkAttribute> {
    let mut attributes = vec![LinkAttribute::IfName(name.to_owned())];
    attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    attributes.extend(mtu.map(LinkAttribute::Mtu));
    attributes
}

/// Refuses what the kernel refuses as well (`net/core/dev.c:dev_valid_name`), with a better message.
pub(super) fn check_name(name: &str) -> Result<()> {
    let bad = name.is_empty()
        || name.len() > NAME_MAX
        || matches!(name, "." | "..")
        || name.bytes().any(|byte| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace());
    if bad { Err(Error::Invalid { what: format!("link name {name:?}") }) } else { Ok(()) }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the attribute enum is foreign and open")]
pub(crate) fn read_link(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: Ifindex(message.header.index),
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        kind: None,
        master: None,
        alias: None,
        peer: None,
        peer_namespace: None,
        hairpin: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = <[u8; 6]>::try_from(bytes).ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.master = Some(Ifindex(index)),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Link(index) => link.peer = Some(Ifindex(index)),
            LinkAttribute::LinkNetNsId(id) => link.peer_namespace = Some(id),
            LinkAttribute::LinkInfo(infos) => read_kind(&mut link, infos),
            _ => {}
        }
    }
    link
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the attribute enum is foreign and open")]
fn read_kind(link: &mut Link, infos: Vec<LinkInfo>) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
            LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                link.hairpin = port.iter().find_map(|item| match item {
                    InfoBridgePort::HairpinMode(on) => Some(*on),
                    _ => None,
                });
            }
            _ => {}
        }
    }
}

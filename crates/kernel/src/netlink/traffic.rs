//! Traffic control: how fast a link sends, and what happens to what it receives (linux/pkt_sched.h, linux/pkt_cls.h).
//!
//! All of it belongs to its link and goes with it.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage};

use super::links::{check_name, flag_up, name_and_size};
use super::wire::Message;
use super::{Batch, Netlink};
use crate::Result;
use crate::classic::Instruction;
use crate::link::Ifindex;

mod bucket;
mod read;

pub use bucket::{Bucket, TokenBucket};
pub use read::IngressFilter;

const TCA_OPTIONS: u16 = 2;
const TCA_BPF_OPS_LEN: u16 = 4;
pub(super) const TCA_BPF_OPS: u16 = 5;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_MIRRED_PARMS: u16 = 2;
/// Marks an attribute that has attributes in it (linux/netlink.h).
const NLA_F_NESTED: u16 = 1 << 15;

/// The program's result is the verdict itself.
const ACT_DIRECT: u32 = 1;
/// `TC_ACT_STOLEN`: the packet goes another way.
const ACT_STOLEN: u32 = 4;
/// `TCA_EGRESS_REDIR`: it leaves by another link.
const EGRESS_REDIRECT: u32 = 1;
/// The filter is asked for packets of every protocol (`ETH_P_ALL`), in network byte order.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// What a program of [`Batch::add_ingress_program`] decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// The next filter decides (`TC_ACT_UNSPEC`).
    Next = u32::MAX,
    /// The packet is dropped (`TC_ACT_SHOT`).
    Drop = 2,
}

/// The handle of the queueing discipline for what a link receives; a link has one.
const CLSACT: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// Where its filters for received packets are.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };

impl Netlink {
    /// Makes an intermediate link (`ifb`), up, which sends what is redirected to it back to where it came from, and returns
    /// its number.
    ///
    /// # Errors
    /// [`crate::Error::is_exists`] when a link has that name.
    pub fn add_ifb(&mut self, name: &str, mtu: u32, alias: &str) -> Result<Ifindex> {
        check_name(name)?;
        self.send(Batch::new().add_ifb(name, mtu))?;
        let found = self.link(name)?.map(|link| link.index);
        let index = found.ok_or_else(|| crate::Error::NotFound { what: format!("link {name}") })?;
        // Not in the same batch: where the name is another's, the kernel would do the second change all the same.
        self.set_alias(index, alias)?;
        Ok(index)
    }
}

impl Batch {
    fn add_ifb(&mut self, name: &str, mtu: u32) -> &mut Self {
        let mut message = Message::link(libc::RTM_NEWLINK, flag_up(true));
        name_and_size(&mut message, name, None, Some(mtu));
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "ifb");
        });
        self.push(message, NLM_F_CREATE | NLM_F_EXCL, format!("make ifb {name}"))
    }

    /// Lets a link send no faster than this.
    ///
    /// The kernel refuses a second one with `EEXIST`.
    pub fn add_token_bucket(&mut self, link: Ifindex, bucket: &TokenBucket) -> &mut Self {
        let handle = TcHandle { major: 1, minor: 0 };
        let options = bucket.options();
        let action = format!("limit link {link} to {} bytes a second", bucket.rate);
        self.push_traffic(link, (handle, TcHandle::ROOT, 0), ("tbf", options), action)
    }

    /// Makes a place for filters of what a link receives; `EEXIST` when there is one.
    pub fn add_clsact(&mut self, link: Ifindex) -> &mut Self {
        let header = header(link, (CLSACT, TcHandle::CLSACT, 0));
        let kind = TcAttribute::Kind("clsact".to_owned());
        let message = Message::of(libc::RTM_NEWQDISC, &TcMessage::from_parts(header, vec![kind]));
        let action = format!("make a place for filters of link {link}");
        self.push(message, NLM_F_CREATE | NLM_F_EXCL, action)
    }

    /// Lets a program decide what becomes of the frames that a link receives, in the words of [`Verdict`]; it sees them from
    /// the Ethernet header on. The filter with the lowest `priority` (from 1) is asked first.
    ///
    /// Needs [`Self::add_clsact`] and `cls_bpf` in the kernel.
    pub fn add_ingress_program(
        &mut self,
        link: Ifindex,
        priority: u16,
        program: &[Instruction],
    ) -> &mut Self {
        let count = u16::try_from(program.len()).unwrap_or(u16::MAX);
        let code: Vec<u8> = program.iter().flat_map(|instruction| instruction.to_bytes()).collect();
        let mut options = Vec::new();
        attribute(&mut options, TCA_BPF_OPS_LEN, &count.to_ne_bytes());
        attribute(&mut options, TCA_BPF_OPS, &code);
        attribute(&mut options, TCA_BPF_FLAGS, &ACT_DIRECT.to_ne_bytes());
        let action = format!("filter what link {link} receives");
        self.push_filter(link, priority, ("bpf", options), action)
    }

    /// Sends all that a link receives out by another one; see [`Self::add_ingress_program`] for `priority`.
    ///
    /// Needs [`Self::add_clsact`], and `cls_u32` and `act_mirred` in the kernel.
    pub fn add_ingress_redirect(&mut self, link: Ifindex, priority: u16, to: Ifindex) -> &mut Self {
        // struct tc_mirred: index, capabilities, verdict, two counts, what is done, the other link.
        let redirection = [0, 0, ACT_STOLEN, 0, 0, EGRESS_REDIRECT, to.0];
        let redirection: Vec<u8> = redirection.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut parameters = Vec::new();
        attribute(&mut parameters, TCA_MIRRED_PARMS, &redirection);
        let mut mirred = Vec::new();
        attribute(&mut mirred, TCA_ACT_KIND, b"mirred\0");
        attribute(&mut mirred, TCA_OPTIONS | NLA_F_NESTED, &parameters);
        let mut actions = Vec::new();
        attribute(&mut actions, 1 | NLA_F_NESTED, &mirred);
        let mut options = Vec::new();
        attribute(&mut options, TCA_U32_CLASSID, &0x0001_0001_u32.to_ne_bytes());
        // struct tc_u32_sel with one key: the last comparison (TC_U32_TERMINAL), of no bits.
        let mut selector = [0; 32];
        selector[0] = 1;
        selector[2] = 1;
        attribute(&mut options, TCA_U32_SEL, &selector);
        attribute(&mut options, TCA_U32_ACT | NLA_F_NESTED, &actions);
        let action = format!("redirect what link {link} receives to link {to}");
        self.push_filter(link, priority, ("u32", options), action)
    }

    fn push_filter(
        &mut self,
        link: Ifindex,
        priority: u16,
        (kind, options): (&str, Vec<u8>),
        action: String,
    ) -> &mut Self {
        let info = u32::from(priority) << 16 | u32::from(ALL_PROTOCOLS);
        let message = message(link, (TcHandle::UNSPEC, INGRESS, info), (kind, options));
        self.push(Message::of(libc::RTM_NEWTFILTER, &message), NLM_F_CREATE | NLM_F_EXCL, action)
    }

    fn push_traffic(
        &mut self,
        link: Ifindex,
        place: (TcHandle, TcHandle, u32),
        what: (&str, Vec<u8>),
        action: String,
    ) -> &mut Self {
        let message = message(link, place, what);
        self.push(Message::of(libc::RTM_NEWQDISC, &message), NLM_F_CREATE | NLM_F_EXCL, action)
    }
}

fn message(link: Ifindex, place: (TcHandle, TcHandle, u32), (kind, options): (&str, Vec<u8>)) -> TcMessage {
    let attributes = vec![
        TcAttribute::Kind(kind.to_owned()),
        TcAttribute::Other(DefaultNla::new(TCA_OPTIONS | NLA_F_NESTED, options)),
    ];
    TcMessage::from_parts(header(link, place), attributes)
}

/// `place` is the handle, the parent and the information that depends on what it is.
fn header(link: Ifindex, (handle, parent, info): (TcHandle, TcHandle, u32)) -> TcHeader {
    // The kernel's numbers of links are positive 32 bit integers.
    let index = i32::try_from(link.0).unwrap_or(i32::MAX);
    TcHeader { index, handle, parent, info, ..TcHeader::default() }
}

/// Appends one attribute (`struct nlattr`), padded to four bytes.
pub(super) fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests;

//! What a link has of traffic control.

use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcAttribute, TcFilterBpfOption,
    TcFilterU32Option, TcMessage, TcMirrorActionType, TcOption,
};

use netlink_packet_core::{Nla, Parseable};
use netlink_packet_route::tc::TcHandle;

use super::{Bucket, INGRESS, TCA_BPF_OPS, header};
use crate::Result;
use crate::classic::Instruction;
use crate::link::Ifindex;
use crate::netlink::Netlink;
use crate::netlink::wire::Message;

/// A filter of what a link receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IngressFilter {
    /// A program; see [`crate::netlink::Batch::add_ingress_program`].
    Program {
        /// The lower, the earlier it is asked.
        priority: u16,
        /// Its code.
        code: Vec<Instruction>,
    },
    /// Everything leaves by another link.
    Redirect {
        /// The lower, the earlier it is asked.
        priority: u16,
        /// The other link.
        to: Ifindex,
    },
    /// Something else.
    Other {
        /// The lower, the earlier it is asked.
        priority: u16,
        /// The kernel's word for it.
        kind: String,
    },
}

impl Netlink {
    /// Returns the limit of what a link sends, where it has one.
    pub fn token_bucket(&mut self, link: Ifindex) -> Result<Option<Bucket>> {
        let message = Message::of(libc::RTM_GETQDISC, &TcMessage::default());
        // The kernel tells those of all links, whichever is asked for.
        let found =
            self.socket.dump_raw("list queueing disciplines", &message, |answer| root(answer, link))?;
        Ok(found.into_iter().next())
    }

    /// Lists the filters of what a link receives, those first that are asked first.
    pub fn ingress_filters(&mut self, link: Ifindex) -> Result<Vec<IngressFilter>> {
        let message = TcMessage::from_parts(header(link, (TcHandle::UNSPEC, INGRESS, 0)), Vec::new());
        let action = format!("list filters of what link {link} receives");
        self.socket.dump_raw(&action, &Message::of(libc::RTM_GETTFILTER, &message), filter)
    }
}

fn message_of(wanted: u16, (kind, payload): (u16, &[u8])) -> Option<TcMessage> {
    if kind != wanted {
        return None;
    }
    // One exotic entry must not hide all others.
    TcMessage::parse(payload)
        .inspect_err(|error| tracing::warn!(%error, "left out an entry of traffic control"))
        .ok()
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the message and attribute enums are foreign and open")]
fn root(told: (u16, &[u8]), link: Ifindex) -> Option<Bucket> {
    let message = message_of(libc::RTM_NEWQDISC, told)?;
    if u32::try_from(message.header.index) != Ok(link.0)
        || message.header.parent != TcHandle::ROOT
        || kind(&message) != Some("tbf")
    {
        return None;
    }
    options(&message)?.iter().find_map(|option| match option {
        TcOption::Other(all) => {
            let mut bytes = vec![0; all.value_len()];
            all.emit_value(&mut bytes);
            Bucket::read(&bytes)
        }
        _ => None,
    })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the message and attribute enums are foreign and open")]
fn filter(told: (u16, &[u8])) -> Option<IngressFilter> {
    let message = message_of(libc::RTM_NEWTFILTER, told)?;
    let priority = (message.header.info >> 16) as u16;
    let kind = kind(&message)?;
    // The classifier is told besides its filters, without a handle.
    if message.header.handle == TcHandle::UNSPEC {
        return None;
    }
    let options = options(&message).unwrap_or_default();
    let code = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::Other(code)) if code.kind() == TCA_BPF_OPS => {
            let mut bytes = vec![0; code.value_len()];
            code.emit_value(&mut bytes);
            Some(
                bytes
                    .chunks_exact(Instruction::LENGTH)
                    .filter_map(|b| Some(Instruction::from_bytes(b.try_into().ok()?)))
                    .collect(),
            )
        }
        _ => None,
    });
    if let Some(code) = code {
        return Some(IngressFilter::Program { priority, code });
    }
    let target = options.iter().find_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => actions.iter().find_map(redirection),
        _ => None,
    });
    match target {
        Some(to) => Some(IngressFilter::Redirect { priority, to }),
        // A hash table of u32 is none either: it has no options of a filter.
        None if kind == "u32" => None,
        None => Some(IngressFilter::Other { priority, kind: kind.to_owned() }),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the attribute enums are foreign and open")]
fn redirection(action: &TcAction) -> Option<Ifindex> {
    let options = action.attributes.iter().find_map(|attribute| match attribute {
        TcActionAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    options.iter().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))
            if mirror.eaction == TcMirrorActionType::EgressRedir =>
        {
            Some(Ifindex(mirror.ifindex))
        }
        _ => None,
    })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the attribute enum is foreign and open")]
fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the attribute enum is foreign and open")]
fn options(message: &TcMessage) -> Option<&[TcOption]> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options.as_slice()),
        _ => None,
    })
}

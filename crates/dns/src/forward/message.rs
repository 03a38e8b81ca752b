//! Messages to and from upstreams.

use domain::base::rdata::ComposeRecordData;
use domain::base::{Message, ParsedName, ParsedRecord};
use domain::rdata::AllRecordData;

use crate::answer::Completion;
use crate::wire::{
    CLASS_IN, Data, HEADER_LEN, MAX_UDP, Name, Record, Request, flag2, header_rcode, rcode, read_u16, rtype,
};

/// The request as it goes out: with its own id, and an EDNS size that avoids fragments.
pub(super) fn outgoing(request: &Request<'_>, id: u16) -> Vec<u8> {
    let mut message = request.message.to_vec();
    set_id(&mut message, id);
    if let Some(edns) = request.edns {
        let size = u16::try_from(request.udp_limit()).unwrap_or(edns.size);
        if let Some(bytes) = message.get_mut(edns.size_offset..edns.size_offset + 2) {
            bytes.copy_from_slice(&size.to_be_bytes());
        }
    }
    message
}

/// A query of netd's own, with EDNS.
pub(super) fn query(name: &Name, qtype: u16) -> Vec<u8> {
    let mut message = vec![0, 0, flag2::RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    message.extend_from_slice(name.as_wire());
    message.extend_from_slice(&qtype.to_be_bytes());
    message.extend_from_slice(&CLASS_IN.to_be_bytes());
    message.push(0);
    message.extend_from_slice(&rtype::OPT.to_be_bytes());
    message.extend_from_slice(&u16::try_from(MAX_UDP).unwrap_or(u16::MAX).to_be_bytes());
    message.extend_from_slice(&[0; 6]);
    message
}

pub(super) fn set_id(message: &mut [u8], id: u16) {
    if let Some(bytes) = message.get_mut(..2) {
        bytes.copy_from_slice(&id.to_be_bytes());
    }
}

/// True for a reply with the id and the question of `message`.
///
/// Letter case of the question is not compared. An error reply may leave the question out, as old servers
/// do with requests they do not understand.
pub(super) fn is_reply_to(reply: &[u8], message: &[u8], question: &[u8]) -> bool {
    if reply.len() < HEADER_LEN || reply.get(..2) != message.get(..2) {
        return false;
    }
    let flags = reply.get(2).copied().unwrap_or(0);
    if flags & flag2::RESPONSE == 0 || flags & flag2::OPCODE != 0 {
        return false;
    }
    match read_u16(reply, 4) {
        Some(0) => header_rcode(reply) != rcode::NOERROR,
        Some(1) => {
            let echoed = reply.get(HEADER_LEN..HEADER_LEN + question.len());
            echoed.is_some_and(|echoed| same_question(echoed, question))
        }
        _ => false,
    }
}

/// Compares names without regard to case, type and class exactly.
fn same_question(echoed: &[u8], question: &[u8]) -> bool {
    let Some(split) = question.len().checked_sub(4) else { return false };
    let (Some((name, kind)), Some((wanted, wanted_kind))) =
        (echoed.split_at_checked(split), question.split_at_checked(split))
    else {
        return false;
    };
    kind == wanted_kind && name.eq_ignore_ascii_case(wanted)
}

/// The records of a reply that complete an alias: aliases, the asked type, and the SOA of a negative answer.
pub(super) fn completion(reply: &[u8], qtype: u16) -> Option<Completion> {
    let message = Message::from_octets(reply).ok()?;
    let mut completion = Completion { code: header_rcode(reply), ..Completion::default() };
    for record in message.answer().ok()? {
        let record = record.ok()?;
        let kind = record.rtype().to_int();
        if kind == rtype::CNAME || kind == qtype {
            completion.answer.push(flat(&record)?);
        }
    }
    for record in message.authority().ok()? {
        let record = record.ok()?;
        if record.rtype().to_int() == rtype::SOA {
            completion.authority.push(flat(&record)?);
        }
    }
    if completion.answer.iter().any(|r| r.data.kind() == qtype) {
        completion.authority.clear();
    }
    Some(completion)
}

/// A record without compression.
fn flat<'r>(record: &ParsedRecord<'r, &'r [u8]>) -> Option<Record> {
    let typed = record.to_record::<AllRecordData<&[u8], ParsedName<&[u8]>>>().ok()??;
    let mut bytes = Vec::new();
    typed.data().compose_rdata(&mut bytes).ok()?;
    let owner = record.owner();
    let labels: Vec<&[u8]> = owner.iter().map(|label| label.as_slice()).filter(|l| !l.is_empty()).collect();
    Some(Record {
        owner: Name::from_labels(labels).ok()?,
        ttl: record.ttl().as_secs(),
        data: Data::Raw { kind: record.rtype().to_int(), bytes },
    })
}

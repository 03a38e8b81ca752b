//! Requests as they come off the network; nothing in them is trusted.

use crate::wire::{CLASS_IN, HEADER_LEN, MAX_UDP, MIN_UDP, Name, Section, flag2, rcode, read_u16, rtype};

/// The one question of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question<'m> {
    /// The name, lower case.
    pub name: Name,
    /// Name, type and class as they came, to be echoed byte for byte (0x20).
    pub bytes: &'m [u8],
    /// Query type.
    pub qtype: u16,
    /// Query class.
    pub qclass: u16,
}

/// The EDNS record of a request (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// UDP payload size that the client can take.
    pub size: u16,
    /// EDNS version.
    pub version: u8,
    /// The client wants DNSSEC records.
    pub dnssec_ok: bool,
    /// Offset in the request of the record's class, which holds the size.
    pub size_offset: usize,
    /// The record carries options, such as a cookie.
    pub has_options: bool,
}

/// A well-formed standard query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'m> {
    /// Message id.
    pub id: u16,
    /// Header bytes 2 and 3.
    pub flags: [u8; 2],
    /// The question.
    pub question: Question<'m>,
    /// EDNS, if the client speaks it.
    pub edns: Option<Edns>,
    /// The message without what trails behind its last record.
    pub message: &'m [u8],
}

/// Why a packet is not answered from the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reject<'m> {
    /// No reply at all: not a request, or too short to hold an id.
    Drop,
    /// A reply with this code and without records.
    Reply {
        /// Message id to echo.
        id: u16,
        /// Header bytes 2 and 3 of the request.
        flags: [u8; 2],
        /// Response code.
        code: u16,
        /// The question, where it could be read.
        question: Option<Question<'m>>,
        /// EDNS of the request, where it could be read.
        edns: Option<Edns>,
    },
}

impl<'m> Request<'m> {
    /// Parses a packet.
    ///
    /// # Errors
    /// Whatever is not one standard query with at most one OPT record, with the reply that is due.
    pub fn parse(packet: &'m [u8]) -> Result<Self, Reject<'m>> {
        let (id, flags) = header(packet).ok_or(Reject::Drop)?;
        if flags[0] & flag2::RESPONSE != 0 {
            return Err(Reject::Drop);
        }
        let reject = |code, question, edns| Reject::Reply { id, flags, code, question, edns };
        if flags[0] & flag2::OPCODE != 0 {
            return Err(reject(rcode::NOTIMP, None, None));
        }
        if read_u16(packet, 4) != Some(1) {
            return Err(reject(rcode::FORMERR, None, None));
        }
        let Some((question, behind)) = read_question(packet) else {
            return Err(reject(rcode::FORMERR, None, None));
        };
        let Some((edns, end)) = read_records(packet, behind) else {
            return Err(reject(rcode::FORMERR, Some(question), None));
        };
        if edns.is_some_and(|e| e.version != 0) {
            return Err(reject(rcode::BADVERS, Some(question), edns));
        }
        if question.qtype == rtype::OPT {
            return Err(reject(rcode::FORMERR, Some(question), edns));
        }
        let transfer = matches!(question.qtype, rtype::AXFR | rtype::IXFR);
        if question.qclass != CLASS_IN || transfer {
            return Err(reject(rcode::REFUSED, Some(question), edns));
        }
        Ok(Self { id, flags, question, edns, message: packet.get(..end).unwrap_or(packet) })
    }

    /// The largest UDP reply that the client takes and netd sends, in bytes.
    pub fn udp_limit(&self) -> usize {
        udp_limit(self.edns)
    }
}

/// The largest UDP reply for a client with this EDNS record, in bytes.
pub(crate) fn udp_limit(edns: Option<Edns>) -> usize {
    edns.map_or(MIN_UDP, |e| usize::from(e.size).clamp(MIN_UDP, MAX_UDP))
}

fn header(packet: &[u8]) -> Option<(u16, [u8; 2])> {
    if packet.len() < HEADER_LEN {
        return None;
    }
    Some((read_u16(packet, 0)?, [*packet.get(2)?, *packet.get(3)?]))
}

fn read_question(packet: &[u8]) -> Option<(Question<'_>, usize)> {
    let (name, behind) = Name::read(packet, HEADER_LEN).ok()?;
    let qtype = read_u16(packet, behind)?;
    let qclass = read_u16(packet, behind + 2)?;
    let end = behind + 4;
    Some((Question { name, bytes: packet.get(HEADER_LEN..end)?, qtype, qclass }, end))
}

/// Steps over the records behind the question; `None` when they are malformed.
fn read_records(packet: &[u8], start: usize) -> Option<(Option<Edns>, usize)> {
    let before_additional = u32::from(read_u16(packet, 6)?) + u32::from(read_u16(packet, 8)?);
    let total = before_additional + u32::from(read_u16(packet, 10)?);
    let mut edns = None;
    let mut at = start;
    for index in 0..total {
        let root = packet.get(at) == Some(&0);
        let fixed = skip_name(packet, at)?;
        let kind = read_u16(packet, fixed)?;
        if kind == rtype::OPT {
            if edns.is_some() || !root || index < before_additional {
                return None;
            }
            edns = Some(read_edns(packet, fixed)?);
        }
        let length = usize::from(read_u16(packet, fixed + 8)?);
        at = fixed + 10 + length;
        if at > packet.len() {
            return None;
        }
    }
    Some((edns, at))
}

fn read_edns(packet: &[u8], fixed: usize) -> Option<Edns> {
    Some(Edns {
        size: read_u16(packet, fixed + 2)?,
        version: *packet.get(fixed + 5)?,
        dnssec_ok: packet.get(fixed + 6)? & 0x80 != 0,
        size_offset: fixed + 2,
        has_options: read_u16(packet, fixed + 8)? != 0,
    })
}

/// The offset behind a possibly compressed name; pointers are not followed.
fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*packet.get(at)?);
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + length,
            0xc0..=0xff => return packet.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

/// Where a record of a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordPlace<'m> {
    /// Section.
    pub(crate) section: Section,
    /// Record type.
    pub(crate) kind: u16,
    /// Time to live in seconds.
    pub(crate) ttl: u32,
    /// Offset of the time to live.
    pub(crate) ttl_offset: usize,
    /// Record data as it stands, names in it perhaps compressed.
    pub(crate) data: &'m [u8],
}

/// The records of a message with one question; `None` when it is malformed.
pub(crate) fn record_places(message: &[u8]) -> Option<Vec<RecordPlace<'_>>> {
    if read_u16(message, 4)? != 1 {
        return None;
    }
    let mut at = skip_name(message, HEADER_LEN)? + 4;
    let mut places = Vec::new();
    for (count_at, section) in [(6, Section::Answer), (8, Section::Authority), (10, Section::Additional)] {
        for _ in 0..read_u16(message, count_at)? {
            let fixed = skip_name(message, at)?;
            let ttl_offset = fixed + 4;
            let ttl = message.get(ttl_offset..ttl_offset + 4)?;
            let length = usize::from(read_u16(message, fixed + 8)?);
            at = fixed + 10 + length;
            places.push(RecordPlace {
                section,
                kind: read_u16(message, fixed)?,
                ttl: u32::from_be_bytes(ttl.try_into().ok()?),
                ttl_offset,
                data: message.get(fixed + 10..at)?,
            });
        }
    }
    Some(places)
}

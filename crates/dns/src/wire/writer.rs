//! Replies: records written one by one, never past a limit, names compressed.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::wire::{CLASS_IN, Edns, HEADER_LEN, MAX_UDP, Name, flag2, flag3, read_u16, rtype};

/// Length of the OPT record of a reply in bytes.
const OPT_LEN: usize = 11;
/// How many places of names are remembered for compression; more would make large replies quadratic.
const MAX_PLACES: usize = 48;

/// What a record holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// IPv4 address.
    A(Ipv4Addr),
    /// IPv6 address.
    Aaaa(Ipv6Addr),
    /// Alias.
    Cname(Name),
    /// Pointer.
    Ptr(Name),
    /// Name server.
    Ns(Name),
    /// Service location (RFC 2782); its target is never compressed.
    Srv {
        /// Lower is tried first.
        priority: u16,
        /// Share among equal priorities.
        weight: u16,
        /// Port.
        port: u16,
        /// Host.
        target: Name,
    },
    /// One string of at most 255 bytes.
    Txt(&'static str),
    /// The minimal answer to ANY (RFC 8482).
    MinimalAny,
    /// Start of authority.
    Soa {
        /// Primary name server.
        primary: Name,
        /// Mailbox of the person responsible.
        mailbox: Name,
        /// Serial number.
        serial: u32,
        /// How long a negative answer may be cached, in seconds.
        minimum: u32,
    },
    /// Record data of an upstream's answer, free of compression.
    Raw {
        /// Record type.
        kind: u16,
        /// The data.
        bytes: Vec<u8>,
    },
}

impl Data {
    /// The record type.
    pub const fn kind(&self) -> u16 {
        match self {
            Self::A(_) => rtype::A,
            Self::Aaaa(_) => rtype::AAAA,
            Self::Cname(_) => rtype::CNAME,
            Self::Ptr(_) => rtype::PTR,
            Self::Ns(_) => rtype::NS,
            Self::Srv { .. } => rtype::SRV,
            Self::Txt(_) => rtype::TXT,
            Self::MinimalAny => rtype::HINFO,
            Self::Soa { .. } => rtype::SOA,
            Self::Raw { kind, .. } => *kind,
        }
    }
}

/// A resource record of class IN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Owner name.
    pub owner: Name,
    /// Time to live in seconds.
    pub ttl: u32,
    /// Data.
    pub data: Data,
}

/// A section of a message that holds records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The answer.
    Answer,
    /// SOA of negative answers.
    Authority,
    /// Addresses of names in the answer.
    Additional,
}

/// Builds one reply in a buffer.
#[derive(Debug)]
pub struct Writer<'o> {
    out: &'o mut Vec<u8>,
    limit: usize,
    edns: Option<Edns>,
    code: u16,
    counts: [u16; 3],
    places: Vec<usize>,
}

impl<'o> Writer<'o> {
    /// Starts a reply in `out`, which is cleared.
    ///
    /// `question` is echoed as it is; `limit` bounds the whole message in bytes.
    pub fn new(out: &'o mut Vec<u8>, id: u16, request_flags: [u8; 2], question: &[u8], limit: usize) -> Self {
        out.clear();
        out.extend_from_slice(&id.to_be_bytes());
        out.push(flag2::RESPONSE | request_flags[0] & (flag2::OPCODE | flag2::RECURSION_DESIRED));
        out.push(request_flags[1] & flag3::CHECKING_DISABLED);
        out.extend_from_slice(&u16::from(!question.is_empty()).to_be_bytes());
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(question);
        let mut writer = Self { out, limit, edns: None, code: 0, counts: [0; 3], places: Vec::new() };
        if !question.is_empty() {
            writer.remember_labels(HEADER_LEN);
        }
        writer
    }

    /// Answers with an EDNS record, because the request had one; its space is set aside.
    pub fn with_edns(mut self, edns: Option<Edns>) -> Self {
        if edns.is_some() {
            self.limit = self.limit.saturating_sub(OPT_LEN);
        }
        self.edns = edns;
        self
    }

    /// Marks the reply as the zone's own word.
    pub fn authoritative(&mut self) {
        self.set_flag(2, flag2::AUTHORITATIVE);
    }

    /// Says that this server resolves other names too.
    pub fn recursion_available(&mut self) {
        self.set_flag(3, flag3::RECURSION_AVAILABLE);
    }

    /// Says that the reply is not complete: the client comes again over TCP.
    pub fn truncated(&mut self) {
        self.set_flag(2, flag2::TRUNCATED);
    }

    /// Sets the response code; codes above 15 need EDNS.
    pub fn code(&mut self, code: u16) {
        self.code = code;
    }

    /// Adds a record; false, and nothing written, when it does not fit.
    pub fn record(&mut self, section: Section, record: &Record) -> bool {
        let start = self.out.len();
        let places = self.places.len();
        self.name(&record.owner);
        self.out.extend_from_slice(&record.data.kind().to_be_bytes());
        self.out.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.out.extend_from_slice(&record.ttl.to_be_bytes());
        let length_at = self.out.len();
        self.out.extend_from_slice(&[0; 2]);
        self.data(&record.data);
        let length = u16::try_from(self.out.len() - length_at - 2);
        let count = &mut self.counts[section as usize];
        match (length, count.checked_add(1)) {
            (Ok(length), Some(more)) if self.out.len() <= self.limit => {
                *count = more;
                put_u16(self.out, length_at, length);
                true
            }
            _ => {
                self.out.truncate(start);
                self.places.truncate(places);
                false
            }
        }
    }

    /// Completes the header and the EDNS record.
    pub fn finish(self) {
        for (index, count) in self.counts.iter().enumerate() {
            put_u16(self.out, 6 + 2 * index, *count);
        }
        let low = u8::try_from(self.code & u16::from(flag3::RCODE)).unwrap_or(0);
        if let Some(byte) = self.out.get_mut(3) {
            *byte |= low;
        }
        let Some(edns) = self.edns else { return };
        let high = u8::try_from(self.code >> 4).unwrap_or(0);
        self.out.push(0);
        self.out.extend_from_slice(&rtype::OPT.to_be_bytes());
        self.out.extend_from_slice(&u16::try_from(MAX_UDP).unwrap_or(u16::MAX).to_be_bytes());
        self.out.extend_from_slice(&[high, 0, if edns.dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
        let additional = self.counts[Section::Additional as usize].saturating_add(1);
        put_u16(self.out, 10, additional);
    }

    fn set_flag(&mut self, at: usize, bit: u8) {
        if let Some(byte) = self.out.get_mut(at) {
            *byte |= bit;
        }
    }

    fn data(&mut self, data: &Data) {
        match data {
            Data::A(address) => self.out.extend_from_slice(&address.octets()),
            Data::Aaaa(address) => self.out.extend_from_slice(&address.octets()),
            Data::Cname(name) | Data::Ptr(name) | Data::Ns(name) => self.name(name),
            Data::Srv { priority, weight, port, target } => {
                for number in [priority, weight, port] {
                    self.out.extend_from_slice(&number.to_be_bytes());
                }
                self.out.extend_from_slice(target.as_wire());
            }
            Data::Txt(text) => self.string(text),
            Data::MinimalAny => {
                self.string("RFC8482");
                self.string("");
            }
            Data::Soa { primary, mailbox, serial, minimum } => {
                self.name(primary);
                self.name(mailbox);
                for number in [*serial, 7200, 1800, 86400, *minimum] {
                    self.out.extend_from_slice(&number.to_be_bytes());
                }
            }
            Data::Raw { bytes, .. } => self.out.extend_from_slice(bytes),
        }
    }

    fn string(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let bytes = bytes.get(..255).unwrap_or(bytes);
        self.out.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
        self.out.extend_from_slice(bytes);
    }

    /// Writes a name, as a pointer from the first suffix on that stands in the message already.
    fn name(&mut self, name: &Name) {
        let start = self.out.len();
        let mut rest = name.as_wire();
        while let Some((length, behind)) = rest.split_first() {
            if *length == 0 {
                break;
            }
            if let Some(place) = self.places.iter().find(|p| suffix_stands_at(self.out, **p, rest)) {
                let pointer = 0xc000 | u16::try_from(*place).unwrap_or(0);
                self.out.extend_from_slice(&pointer.to_be_bytes());
                self.remember_labels(start);
                return;
            }
            let Some((label, next)) = behind.split_at_checked(usize::from(*length)) else { break };
            self.out.push(*length);
            self.out.extend_from_slice(label);
            rest = next;
        }
        self.out.push(0);
        self.remember_labels(start);
    }

    /// Remembers where the labels of the name written at `start` stand, up to its end or pointer.
    fn remember_labels(&mut self, start: usize) {
        let mut at = start;
        while let Some(length @ 1..=63) = self.out.get(at) {
            if self.places.len() >= MAX_PLACES || at >= 0x3fff {
                return;
            }
            self.places.push(at);
            at += 1 + usize::from(*length);
        }
    }
}

/// True when the (possibly compressed) name at `at` of `message` equals the uncompressed `suffix`.
fn suffix_stands_at(message: &[u8], mut at: usize, mut suffix: &[u8]) -> bool {
    loop {
        let Some(length) = message.get(at) else { return false };
        if length & 0xc0 == 0xc0 {
            // Own pointers only point backwards, so this ends.
            match read_u16(message, at) {
                Some(pointer) if usize::from(pointer & 0x3fff) < at => at = usize::from(pointer & 0x3fff),
                _ => return false,
            }
            continue;
        }
        let size = 1 + usize::from(*length);
        let (Some(ours), Some((wanted, rest))) = (message.get(at..at + size), suffix.split_at_checked(size))
        else {
            return false;
        };
        if !ours.eq_ignore_ascii_case(wanted) {
            return false;
        }
        if *length == 0 {
            return true;
        }
        at += size;
        suffix = rest;
    }
}

fn put_u16(out: &mut [u8], at: usize, value: u16) {
    if let Some(pair) = out.get_mut(at..at + 2) {
        pair.copy_from_slice(&value.to_be_bytes());
    }
}

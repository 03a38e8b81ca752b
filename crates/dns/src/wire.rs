//! The DNS message format: names, requests in, replies out (RFC 1035 section 4, RFC 6891).
//!
//! Hand-written because the hot path is small and must echo the question's bytes as they came; the tests
//! compare it with the `domain` crate's parser.

mod name;
mod request;
mod writer;

pub use name::{Name, NameError};
pub use request::{Edns, Question, Reject, Request};
pub(crate) use request::{RecordPlace, record_places, udp_limit};
pub use writer::{Data, Record, Section, Writer};

/// Record types and query types by number (IANA).
pub mod rtype {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Name server.
    pub const NS: u16 = 2;
    /// Alias.
    pub const CNAME: u16 = 5;
    /// Start of authority.
    pub const SOA: u16 = 6;
    /// Pointer.
    pub const PTR: u16 = 12;
    /// Host information; what a reply to ANY carries (RFC 8482).
    pub const HINFO: u16 = 13;
    /// Mail exchange.
    pub const MX: u16 = 15;
    /// Text.
    pub const TXT: u16 = 16;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// Service location (RFC 2782).
    pub const SRV: u16 = 33;
    /// Naming authority pointer.
    pub const NAPTR: u16 = 35;
    /// EDNS pseudo record (RFC 6891).
    pub const OPT: u16 = 41;
    /// Delegation signer.
    pub const DS: u16 = 43;
    /// HTTPS service binding (RFC 9460).
    pub const HTTPS: u16 = 65;
    /// Incremental zone transfer.
    pub const IXFR: u16 = 251;
    /// Zone transfer.
    pub const AXFR: u16 = 252;
    /// Any type.
    pub const ANY: u16 = 255;
}

/// Response codes by number (IANA).
pub mod rcode {
    /// No error.
    pub const NOERROR: u16 = 0;
    /// The request cannot be understood.
    pub const FORMERR: u16 = 1;
    /// The server cannot answer now.
    pub const SERVFAIL: u16 = 2;
    /// The name does not exist.
    pub const NXDOMAIN: u16 = 3;
    /// The kind of request is not supported.
    pub const NOTIMP: u16 = 4;
    /// The server will not answer.
    pub const REFUSED: u16 = 5;
    /// EDNS version not supported.
    pub const BADVERS: u16 = 16;

    /// The name of a code as CoreDNS writes it in metrics.
    pub const fn name(code: u16) -> &'static str {
        match code {
            NOERROR => "NOERROR",
            FORMERR => "FORMERR",
            SERVFAIL => "SERVFAIL",
            NXDOMAIN => "NXDOMAIN",
            NOTIMP => "NOTIMP",
            REFUSED => "REFUSED",
            BADVERS => "BADVERS",
            _ => "OTHER",
        }
    }
}

/// The class IN.
pub const CLASS_IN: u16 = 1;
/// Length of a message header in bytes.
pub const HEADER_LEN: usize = 12;
/// The largest UDP reply sent, in bytes: what passes without fragments almost anywhere.
pub const MAX_UDP: usize = 1232;
/// The largest UDP reply to a request without EDNS, in bytes (RFC 1035 section 4.2.1).
pub const MIN_UDP: usize = 512;

/// Bits of header byte 2.
pub(crate) mod flag2 {
    pub(crate) const RESPONSE: u8 = 0x80;
    pub(crate) const OPCODE: u8 = 0x78;
    pub(crate) const AUTHORITATIVE: u8 = 0x04;
    pub(crate) const TRUNCATED: u8 = 0x02;
    pub(crate) const RECURSION_DESIRED: u8 = 0x01;
}

/// Bits of header byte 3.
pub(crate) mod flag3 {
    pub(crate) const RECURSION_AVAILABLE: u8 = 0x80;
    pub(crate) const CHECKING_DISABLED: u8 = 0x10;
    pub(crate) const RCODE: u8 = 0x0f;
}

/// Reads a big-endian u16 at `at`.
pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(pair.try_into().ok()?))
}

/// The response code of a reply without regard to EDNS; SERVFAIL for bytes that are no message.
pub fn header_rcode(message: &[u8]) -> u16 {
    message.get(3).map_or(rcode::SERVFAIL, |b| u16::from(b & flag3::RCODE))
}

/// True when a message has the TC bit.
pub fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|b| b & flag2::TRUNCATED != 0)
}

#[cfg(test)]
mod tests;

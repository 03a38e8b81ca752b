//! One request packet into one reply packet: pure, and without a panic on any input.

use std::net::{IpAddr, SocketAddr};

use crate::wire::{
    Edns, HEADER_LEN, Question, Record, Reject, Request, Section, Writer, flag3, header_rcode, rcode,
    udp_limit,
};
use crate::wire::{MIN_UDP, Name};
use crate::zone::{Reply, Resolution, View};

/// The largest TCP message in bytes.
const MAX_TCP: usize = 65_535;

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A length-prefixed message in a stream.
    Tcp,
}

impl Transport {
    /// `udp` or `tcp`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// A request packet and what is known of its way here.
#[derive(Clone, Copy, Debug)]
pub struct Query<'q> {
    /// The bytes of the packet, without a length prefix.
    pub packet: &'q [u8],
    /// How it came.
    pub transport: Transport,
    /// True when names of other zones can be forwarded.
    pub recursion: bool,
    /// False when the access list keeps the client out: it gets REFUSED.
    pub allowed: bool,
    /// Decides the order of equal records.
    pub seed: u64,
}

/// What is to be done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The reply is in the buffer.
    Reply,
    /// An upstream has to be asked; the buffer is empty.
    Forward,
    /// The buffer has a reply, which the records of this name, from an upstream, complete.
    ///
    /// See [`complete`].
    Chase(Name),
    /// No reply.
    Drop,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What is to be done.
    pub disposition: Disposition,
    /// Type that was asked for, where the question could be read.
    pub qtype: Option<u16>,
    /// Response code of the reply in the buffer; NOERROR when there is none.
    pub code: u16,
}

/// Records from an upstream that complete the answer for an alias.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// The upstream's response code.
    pub code: u16,
    /// Aliases and addresses, in the upstream's order.
    pub answer: Vec<Record>,
    /// The SOA of a negative answer.
    pub authority: Vec<Record>,
}

/// Answers one request into `out`, which is cleared.
pub fn answer(view: &View, query: &Query<'_>, out: &mut Vec<u8>) -> Outcome {
    respond(view, query, None, out)
}

/// Answers a request again, with what an upstream said about the alias' target.
pub fn complete(view: &View, query: &Query<'_>, completion: Completion, out: &mut Vec<u8>) -> Outcome {
    respond(view, query, Some(completion), out)
}

/// Writes a reply without records and with this code, for a request that an upstream should have answered.
pub fn fail(query: &Query<'_>, code: u16, out: &mut Vec<u8>) -> Outcome {
    out.clear();
    match Request::parse(query.packet) {
        Ok(request) => {
            let head = Head::of_request(&request);
            head.reply(query, &Reply { code, ..Reply::default() }, false, out);
            replied(Some(request.question.qtype), code)
        }
        Err(reject) => rejected(query, &reject, out),
    }
}

fn respond(view: &View, query: &Query<'_>, completion: Option<Completion>, out: &mut Vec<u8>) -> Outcome {
    out.clear();
    let request = match Request::parse(query.packet) {
        Ok(request) => request,
        Err(reject) => return rejected(query, &reject, out),
    };
    let qtype = request.question.qtype;
    let head = Head::of_request(&request);
    if !query.allowed {
        return head.plain(query, rcode::REFUSED, out);
    }
    let mut reply = match view.resolve(&request.question.name, qtype, query.seed) {
        Resolution::Ours(reply) => reply,
        Resolution::Unsynced => return head.plain(query, rcode::SERVFAIL, out),
        Resolution::Elsewhere if query.recursion => {
            return Outcome { disposition: Disposition::Forward, qtype: Some(qtype), code: rcode::NOERROR };
        }
        Resolution::Elsewhere => return head.plain(query, rcode::REFUSED, out),
    };
    let chase = reply.chase.take();
    if let Some(completion) = completion {
        reply.code = completion.code;
        reply.answer.extend(completion.answer);
        reply.authority.extend(completion.authority);
        head.reply(query, &reply, true, out);
        return replied(Some(qtype), reply.code);
    }
    head.reply(query, &reply, true, out);
    match chase {
        Some(target) if query.recursion => {
            Outcome { disposition: Disposition::Chase(target), qtype: Some(qtype), code: reply.code }
        }
        _ => replied(Some(qtype), reply.code),
    }
}

const fn replied(qtype: Option<u16>, code: u16) -> Outcome {
    Outcome { disposition: Disposition::Reply, qtype, code }
}

fn rejected(query: &Query<'_>, reject: &Reject<'_>, out: &mut Vec<u8>) -> Outcome {
    match reject {
        Reject::Drop => Outcome { disposition: Disposition::Drop, qtype: None, code: rcode::NOERROR },
        Reject::Reply { id, flags, code, question, edns } => {
            let head = Head { id: *id, flags: *flags, question: question.as_ref(), edns: *edns };
            head.plain(query, *code, out)
        }
    }
}

/// What of a request is repeated in its reply.
struct Head<'r> {
    id: u16,
    flags: [u8; 2],
    question: Option<&'r Question<'r>>,
    edns: Option<Edns>,
}

impl<'r> Head<'r> {
    const fn of_request(request: &'r Request<'r>) -> Self {
        Self { id: request.id, flags: request.flags, question: Some(&request.question), edns: request.edns }
    }

    /// A reply with a code and no records.
    fn plain(&self, query: &Query<'_>, code: u16, out: &mut Vec<u8>) -> Outcome {
        self.reply(query, &Reply { code, ..Reply::default() }, false, out);
        replied(self.question.map(|q| q.qtype), code)
    }

    fn reply(&self, query: &Query<'_>, reply: &Reply, authoritative: bool, out: &mut Vec<u8>) {
        let limit = match query.transport {
            Transport::Udp => udp_limit(self.edns),
            Transport::Tcp => MAX_TCP,
        };
        let question = self.question.map_or(&[][..], |q| q.bytes);
        let mut writer = Writer::new(out, self.id, self.flags, question, limit).with_edns(self.edns);
        writer.code(reply.code);
        if authoritative {
            writer.authoritative();
        }
        if query.recursion {
            writer.recursion_available();
        }
        let required = reply.answer.iter().map(|r| (Section::Answer, r));
        let mut required = required.chain(reply.authority.iter().map(|r| (Section::Authority, r)));
        let complete = required.all(|(section, record)| writer.record(section, record));
        if !complete && query.transport == Transport::Udp {
            writer.truncated();
        }
        if complete {
            // Addresses of targets are a courtesy: what does not fit is left out without TC.
            let fits = |record: &Record| writer.record(Section::Additional, record);
            let _all = reply.additional.iter().all(fits);
        }
        writer.finish();
    }
}

/// Fits an upstream's reply to the client: its id and question bytes, and its size limit.
///
/// A reply that is too large for the client loses its records and gains TC. False when `upstream` is no
/// reply to the request.
pub fn relay(query: &Query<'_>, upstream: &[u8], out: &mut Vec<u8>) -> bool {
    out.clear();
    let Ok(request) = Request::parse(query.packet) else { return false };
    if upstream.len() < HEADER_LEN {
        return false;
    }
    let limit = match query.transport {
        Transport::Udp => request.udp_limit(),
        Transport::Tcp => MAX_TCP,
    };
    if upstream.len() > limit {
        let mut writer = Writer::new(out, request.id, request.flags, request.question.bytes, MIN_UDP)
            .with_edns(request.edns);
        writer.code(header_rcode(upstream));
        writer.recursion_available();
        writer.truncated();
        writer.finish();
        return true;
    }
    out.extend_from_slice(upstream);
    let question_end = HEADER_LEN + request.question.bytes.len();
    if let Some(id) = out.get_mut(..2) {
        id.copy_from_slice(&request.id.to_be_bytes());
    }
    if let Some(byte) = out.get_mut(3) {
        *byte |= flag3::RECURSION_AVAILABLE;
    }
    let echoed = out.get_mut(HEADER_LEN..question_end);
    if let Some(echoed) = echoed.filter(|bytes| bytes.eq_ignore_ascii_case(request.question.bytes)) {
        echoed.copy_from_slice(request.question.bytes);
    }
    true
}

/// True when the access list lets `client` in; an empty list lets everyone in.
pub(crate) fn is_allowed(allow: &[ipnetwork::IpNetwork], client: SocketAddr) -> bool {
    let address: IpAddr = client.ip().to_canonical();
    allow.is_empty() || allow.iter().any(|prefix| prefix.contains(address))
}

#[cfg(test)]
pub(crate) mod tests;

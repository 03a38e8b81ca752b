//! The bytes on the socket: sequence numbers, acknowledgements, dumps.

use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    ParseableParametrized,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket as RawSocket, SocketAddr};

use super::batch::Request;
use super::wire::Message;
use crate::link::Ifindex;
use crate::{Error, Result};

mod link_ioctl;

/// Dumps come in messages of at most 32 KiB (`net/netlink/af_netlink.c:netlink_dump`).
const BUFFER: usize = 64 * 1024;
/// Changes in one system call: their acknowledgements must fit the default receive buffer of 208 KiB.
const CHUNK: usize = 64;
/// How often a dump is asked for again when the table changed while it was read.
const DUMP_ATTEMPTS: usize = 16;
/// How often an answer that the kernel had no memory for is asked for again.
const EAGAIN_ATTEMPTS: usize = 8;

/// Length of `struct nlmsghdr`.
const NETLINK_HEADER_LEN: usize = 16;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A netlink socket with its sequence counter.
pub(super) struct Socket {
    raw: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// One netlink message of an answer, not yet understood.
struct Part<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// What a dump ended with.
enum Dump<T> {
    Complete(Vec<T>),
    Interrupted,
}

impl Socket {
    pub(super) fn open() -> Result<Self> {
        let failed = |e| Error::io("open an rtnetlink socket", e);
        let raw = RawSocket::new(NETLINK_ROUTE).map_err(failed)?;
        // Gives it an address as well (`net/netlink/af_netlink.c:netlink_connect`).
        raw.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        // Better errors and filtered dumps; a kernel without them (before 4.20) works as well.
        for option in [raw.set_ext_ack(true), raw.set_cap_ack(true), raw.set_netlink_get_strict_chk(true)] {
            if let Err(error) = option {
                tracing::debug!(%error, "this kernel lacks a netlink option");
            }
        }
        Ok(Self { raw, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends changes and waits until all are done; the first refusal is the error.
    ///
    /// The kernel does them in their order, the next also when one is refused, and tells of refusals unasked
    /// (`net/netlink/af_netlink.c:netlink_rcv_skb`): only the last one is to be acknowledged.
    pub(super) fn change(&mut self, requests: &[Request]) -> Result<()> {
        let mut first_error = None;
        for (number, chunk) in requests.chunks(CHUNK).enumerate() {
            let refused = self.change_chunk(chunk, number * CHUNK)?;
            first_error = first_error.or(refused);
        }
        first_error.map_or(Ok(()), Err)
    }

    fn change_chunk(&mut self, chunk: &[Request], offset: usize) -> Result<Option<Error>> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(chunk.len() * 128);
        let last = chunk.len().saturating_sub(1);
        for (place, request) in chunk.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let acknowledge = if place == last { NLM_F_ACK } else { 0 };
            let flags = request.flags | NLM_F_REQUEST | acknowledge;
            append(&mut bytes, &request.message, flags, self.sequence);
        }
        let action = || chunk.first().map(|request| request.action.clone()).unwrap_or_default();
        self.transmit(&bytes, &action)?;
        let mut open = true;
        let mut refused: Option<(usize, Error)> = None;
        while open {
            let received = self.receive(&action)?;
            for part in parts(self.buffer.get(..received).unwrap_or_default()) {
                let place = part.sequence.wrapping_sub(first) as usize;
                let Some(request) = chunk.get(place).filter(|_| part.kind == NLMSG_ERROR) else { continue };
                open &= place != last;
                if let Some((errno, message)) = refusal(&part)
                    && refused.as_ref().is_none_or(|(earlier, _)| place < *earlier)
                {
                    let action = request.action.clone();
                    refused = Some((place, Error::Netlink { action, index: offset + place, errno, message }));
                }
            }
        }
        Ok(refused.map(|(_, error)| error))
    }

    /// Asks for one object: the first message of the answer, read by `read`.
    pub(super) fn ask<T>(
        &mut self,
        action: &str,
        message: RouteNetlinkMessage,
        read: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<T> {
        self.ask_raw(action, &message.into(), |(kind, payload)| Ok(read(decode(action, kind, payload)?)))
    }

    /// As [`Self::ask`] for who reads the bytes: the kind of the message and what follows its netlink header.
    pub(super) fn ask_raw<T>(
        &mut self,
        action: &str,
        message: &Message,
        read: impl Fn((u16, &[u8])) -> Result<Option<T>>,
    ) -> Result<T> {
        for _ in 0..EAGAIN_ATTEMPTS {
            match self.ask_once(action, message, &read) {
                Err(error) if error.errno() == Some(libc::EAGAIN) => {}
                other => return other,
            }
        }
        self.ask_once(action, message, &read)
    }

    fn ask_once<T>(
        &mut self,
        action: &str,
        message: &Message,
        read: &impl Fn((u16, &[u8])) -> Result<Option<T>>,
    ) -> Result<T> {
        let sequence = self.request(action, message, NLM_F_REQUEST)?;
        loop {
            let received = self.receive(&|| action.to_owned())?;
            for part in parts(self.buffer.get(..received).unwrap_or_default()) {
                if part.sequence != sequence || part.kind == NLMSG_NOOP {
                    continue;
                }
                if part.kind == NLMSG_ERROR {
                    let Some((errno, message)) = refusal(&part) else {
                        return Err(protocol(action, "an acknowledgement without an answer"));
                    };
                    return Err(Error::Netlink { action: action.to_owned(), index: 0, errno, message });
                }
                let answer = read((part.kind, part.payload))?;
                return answer.ok_or_else(|| protocol(action, "an answer to something else"));
            }
        }
    }

    /// Asks for something whose answer nobody reads: the kernel has done it when this returns.
    pub(super) fn poke(&mut self, action: &str, message: &Message) -> Result<()> {
        self.request(action, message, NLM_F_REQUEST).map(drop)
    }

    /// Asks for a whole table; what `read` refuses is left out.
    pub(super) fn dump<T>(
        &mut self,
        action: &str,
        message: &RouteNetlinkMessage,
        read: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>> {
        self.dump_raw(action, &message.clone().into(), |(kind, payload)| {
            match decode(action, kind, payload) {
                Ok(message) => read(message),
                // One exotic entry must not hide all others.
                Err(error) => {
                    tracing::warn!(%error, "left out an entry of a netlink table");
                    None
                }
            }
        })
    }

    /// As [`Self::dump`] for who reads the bytes.
    ///
    /// A dump that was not consistent because the table changed meanwhile (`NLM_F_DUMP_INTR`) is thrown away and asked
    /// for again.
    pub(super) fn dump_raw<T>(
        &mut self,
        action: &str,
        message: &Message,
        read: impl Fn((u16, &[u8])) -> Option<T>,
    ) -> Result<Vec<T>> {
        for attempt in 0..DUMP_ATTEMPTS {
            match self.dump_once(action, message, &read)? {
                Dump::Complete(found) => return Ok(found),
                Dump::Interrupted => tracing::debug!(action, attempt, "the table changed while it was read"),
            }
        }
        let message = Some(format!("the table changed during each of {DUMP_ATTEMPTS} reads"));
        Err(Error::Netlink { action: action.to_owned(), index: 0, errno: libc::EINTR, message })
    }

    fn dump_once<T>(
        &mut self,
        action: &str,
        message: &Message,
        read: &impl Fn((u16, &[u8])) -> Option<T>,
    ) -> Result<Dump<T>> {
        let sequence = self.request(action, message, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut found = Vec::new();
        let mut interrupted = false;
        loop {
            let received = self.receive(&|| action.to_owned())?;
            for part in parts(self.buffer.get(..received).unwrap_or_default()) {
                if part.sequence != sequence || part.kind == NLMSG_NOOP {
                    continue;
                }
                interrupted |= part.flags & NLM_F_DUMP_INTR != 0;
                if part.kind == NLMSG_DONE || part.kind == NLMSG_ERROR {
                    return match refusal(&part) {
                        Some((libc::EINTR | libc::EAGAIN, _)) => Ok(Dump::Interrupted),
                        Some((errno, message)) => {
                            Err(Error::Netlink { action: action.to_owned(), index: 0, errno, message })
                        }
                        None if interrupted => Ok(Dump::Interrupted),
                        None => Ok(Dump::Complete(found)),
                    };
                }
                found.extend(read((part.kind, part.payload)));
            }
        }
    }

    fn request(&mut self, action: &str, message: &Message, flags: u16) -> Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        append(&mut bytes, message, flags, self.sequence);
        self.transmit(&bytes, &|| action.to_owned())?;
        Ok(self.sequence)
    }

    /// The number of a link.
    pub(super) fn link_index(&self, name: &str) -> Result<Option<Ifindex>> {
        Ok(link_ioctl::index_of(self.raw.as_raw_fd(), name)?.map(Ifindex))
    }

    /// The largest packet of a link in bytes.
    pub(super) fn link_mtu(&self, index: Ifindex) -> Result<Option<u32>> {
        link_ioctl::mtu_of(self.raw.as_raw_fd(), index.0)
    }

    fn transmit(&self, bytes: &[u8], action: &dyn Fn() -> String) -> Result<()> {
        loop {
            match self.raw.send(bytes, 0) {
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(sent) => {
                    return Err(protocol(&action(), &format!("{sent} of {} bytes sent", bytes.len())));
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(action(), e)),
            }
        }
    }

    /// Receives one datagram into the buffer and returns its length.
    fn receive(&mut self, action: &dyn Fn() -> String) -> Result<usize> {
        loop {
            let mut space = self.buffer.as_mut_slice();
            match self.raw.recv(&mut space, libc::MSG_TRUNC) {
                Ok(length) if length <= BUFFER => return Ok(length),
                Ok(length) => return Err(protocol(&action(), &format!("a datagram of {length} bytes"))),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(action(), e)),
            }
        }
    }
}

fn protocol(action: &str, detail: &str) -> Error {
    Error::Protocol { action: action.to_owned(), detail: detail.to_owned() }
}

/// Appends one message with its header to a buffer that is to be sent.
fn append(bytes: &mut Vec<u8>, message: &Message, flags: u16, sequence: u32) {
    let length = NETLINK_HEADER_LEN + message.payload().len();
    // No message of ours comes near 4 GiB.
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(message.kind().to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The kernel fills in whose it is.
    bytes.extend([0; 4]);
    bytes.extend(message.payload());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Splits a datagram into its messages; what is cut short is left out.
fn parts(mut bytes: &[u8]) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<NETLINK_HEADER_LEN>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let part = Part {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload: bytes.get(NETLINK_HEADER_LEN..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(part)
    })
}

fn decode(action: &str, kind: u16, payload: &[u8]) -> Result<RouteNetlinkMessage> {
    RouteNetlinkMessage::parse_with_param(payload, kind).map_err(|e| protocol(action, &e.to_string()))
}

/// Reads the error number and the kernel's words from `NLMSG_ERROR` or `NLMSG_DONE`; `None` is success.
fn refusal(part: &Part<'_>) -> Option<(i32, Option<String>)> {
    let code: [u8; 4] = part.payload.get(..4)?.try_into().ok()?;
    let errno = i32::from_ne_bytes(code).checked_neg().filter(|errno| *errno > 0)?;
    Some((errno, extended_text(part)))
}

/// Finds `NLMSGERR_ATTR_MSG` behind the request's header, or behind the whole request where that was not cut off.
fn extended_text(part: &Part<'_>) -> Option<String> {
    if part.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let mut rest = part.payload.get(4..)?;
    if part.kind == NLMSG_ERROR {
        let length: [u8; 4] = rest.get(..4)?.try_into().ok()?;
        let capped = part.flags & NLM_F_CAPPED != 0;
        let skip = if capped { NETLINK_HEADER_LEN } else { u32::from_ne_bytes(length) as usize };
        rest = rest.get(skip.next_multiple_of(4)..)?;
    }
    while let [l0, l1, t0, t1, tail @ ..] = rest {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let value = tail.get(..length.checked_sub(4)?)?;
        if u16::from_ne_bytes([*t0, *t1]) & NLA_TYPE_MASK == NLMSGERR_ATTR_MSG {
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_part(payload: &[u8], flags: u16) -> Option<(i32, Option<String>)> {
        refusal(&Part { kind: NLMSG_ERROR, flags, sequence: 1, payload })
    }

    #[test]
    fn an_extended_text_is_found_behind_a_capped_header() {
        let mut payload = (-22_i32).to_ne_bytes().to_vec();
        payload.extend([0; NETLINK_HEADER_LEN]);
        payload.extend([6, 0, 7, 0, 9, 9, 0, 0]);
        payload.extend([8, 0, 1, 0]);
        payload.extend(b"why\0");
        assert_eq!(error_part(&payload, NLM_F_CAPPED | NLM_F_ACK_TLVS), Some((22, Some("why".to_owned()))));
        assert_eq!(error_part(&payload, NLM_F_CAPPED), Some((22, None)));
    }

    #[test]
    fn cut_short_answers_are_no_panic() {
        let whole = [255, 255, 255, 255, 40, 0, 0, 0, 1, 2, 3];
        for length in 0..whole.len() {
            error_part(&whole[..length], NLM_F_ACK_TLVS);
            assert_eq!(parts(&whole[..length]).count(), 0);
        }
        let zero = [0; 20];
        assert_eq!(parts(&zero).count(), 0);
    }

    #[test]
    fn an_acknowledgement_is_no_refusal() {
        assert_eq!(error_part(&[0; 20], 0), None);
    }
}

//! Connection tracking: reading the flows of a protocol, forgetting single ones.
//!
//! A flow's address translation is decided by its first packet and kept in its entry, so rules that change
//! afterwards do not matter to it (`net/netfilter/nf_nat_core.c:nf_nat_inet_fn`). Who takes an endpoint away
//! has to delete the entries that lead to it.

use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla,
};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Status, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

use crate::netlink::Family;
use crate::{Error, Result};

/// Dumps come in messages of at most 32 KiB (`net/netlink/af_netlink.c:netlink_dump`).
const BUFFER: usize = 64 * 1024;

/// The protocols whose flows are told apart by ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    fn number(self) -> Protocol {
        match self {
            Self::Tcp => Protocol::Tcp,
            Self::Udp => Protocol::Udp,
            Self::Sctp => Protocol::Sctp,
        }
    }
}

/// An entry of the connection tracking table, in its default zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackedFlow {
    /// Its protocol.
    pub transport: Transport,
    /// Who sent the first packet.
    pub client: SocketAddr,
    /// Where the first packet was sent to, before any translation.
    pub destination: SocketAddr,
    /// Who answers: where the first packet went, after translation.
    pub answers: SocketAddr,
    /// Whether an answer was seen.
    pub answered: bool,
}

/// One conversation with the kernel's connection tracking, in the network namespace of the thread that opened
/// it.
pub struct Conntrack {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Conntrack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conntrack").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Conntrack {
    /// Opens a conversation.
    pub fn open() -> Result<Self> {
        let failed = |e| Error::io("open a netfilter socket", e);
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&NetlinkAddr::new(0, 0)).map_err(failed)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Reads the flows of a family that `keep` accepts; reads the whole table.
    ///
    /// Entries that come and go meanwhile may be missed or told twice.
    pub fn flows(&mut self, family: Family, keep: impl Fn(&TrackedFlow) -> bool) -> Result<Vec<TrackedFlow>> {
        self.dump(family, Vec::new(), keep)
    }

    /// Reads the flows of a family that `keep` accepts and that nobody has answered yet.
    ///
    /// The kernel walks the whole table but hands out only those, since 5.15
    /// (`net/netfilter/nf_conntrack_netlink.c:ctnetlink_filter_match`); an older one hands out all, which are
    /// left out here.
    pub fn unanswered(
        &mut self,
        family: Family,
        keep: impl Fn(&TrackedFlow) -> bool,
    ) -> Result<Vec<TrackedFlow>> {
        const CTA_STATUS_MASK: u16 = 26;
        let mask = DefaultNla::new(CTA_STATUS_MASK, Status::SeenReply.bits().to_be_bytes().to_vec());
        let filter = vec![ConntrackAttribute::CtaStatus(Status::empty()), ConntrackAttribute::Other(mask)];
        let keep = |flow: &TrackedFlow| !flow.answered && keep(flow);
        match self.dump(family, filter, keep) {
            // A kernel that knows the one attribute and not the other.
            Err(Error::Netlink { errno: libc::EINVAL, .. }) => self.dump(family, Vec::new(), keep),
            result => result,
        }
    }

    fn dump(
        &mut self,
        family: Family,
        filter: Vec<ConntrackAttribute>,
        keep: impl Fn(&TrackedFlow) -> bool,
    ) -> Result<Vec<TrackedFlow>> {
        let action = "read the connection tracking table";
        self.send(action, family, ConntrackMessage::Get(filter), NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut found = Vec::new();
        loop {
            for message in self.receive(action)? {
                match message {
                    Answer::Entry(attributes) => found.extend(tracked(&attributes).filter(&keep)),
                    Answer::End(0) => return Ok(found),
                    Answer::End(errno) => return Err(refused(action, errno)),
                }
            }
        }
    }

    /// Deletes a flow's entry and says whether there was one; the next packet is a first one again.
    pub fn forget(&mut self, flow: &TrackedFlow) -> Result<bool> {
        let action = format!("forget the flow of {} to {}", flow.client, flow.destination);
        let key = vec![ConntrackAttribute::CtaTupleOrig(original(flow))];
        let family = Family::of(flow.client.ip());
        self.send(&action, family, ConntrackMessage::Delete(key), NLM_F_REQUEST | NLM_F_ACK)?;
        loop {
            for message in self.receive(&action)? {
                match message {
                    Answer::End(0) => return Ok(true),
                    Answer::End(libc::ENOENT) => return Ok(false),
                    Answer::End(errno) => return Err(refused(&action, errno)),
                    Answer::Entry(_) => {}
                }
            }
        }
    }

    fn send(&mut self, action: &str, family: Family, message: ConntrackMessage, flags: u16) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let family = match family {
            Family::V4 => NetfilterProtoFamily::IPv4,
            Family::V6 => NetfilterProtoFamily::IPv6,
        };
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        loop {
            match self.socket.send(&bytes, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(action, e)),
            }
        }
    }

    /// Receives one datagram: the answers in it to the last request.
    fn receive(&mut self, action: &str) -> Result<Vec<Answer>> {
        let length = loop {
            let mut space = self.buffer.as_mut_slice();
            match self.socket.recv(&mut space, 0) {
                Ok(length) => break length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(action, e)),
            }
        };
        let mut bytes = self.buffer.get(..length).unwrap_or_default();
        let mut answers = Vec::new();
        while !bytes.is_empty() {
            let packet = NetlinkMessage::<NetfilterMessage>::deserialize(bytes)
                .map_err(|e| Error::Protocol { action: action.to_owned(), detail: e.to_string() })?;
            let length = (packet.header.length as usize).next_multiple_of(4);
            bytes = bytes.get(length.max(4)..).unwrap_or_default();
            if packet.header.sequence_number == self.sequence {
                answers.extend(answer(packet.payload));
            }
        }
        Ok(answers)
    }
}

/// One message of the kernel.
enum Answer {
    Entry(Vec<ConntrackAttribute>),
    /// The end of the dump or the acknowledgement: 0 or an error number.
    End(i32),
}

fn answer(payload: NetlinkPayload<NetfilterMessage>) -> Option<Answer> {
    if let NetlinkPayload::Done(done) = &payload {
        return Some(Answer::End(done.code.saturating_neg()));
    }
    if let NetlinkPayload::Error(error) = &payload {
        return Some(Answer::End(error.raw_code().saturating_neg()));
    }
    let NetlinkPayload::InnerMessage(message) = payload else { return None };
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(entry)) = message.inner else { return None };
    Some(Answer::Entry(entry))
}

fn refused(action: &str, errno: i32) -> Error {
    Error::Netlink { action: action.to_owned(), index: 0, errno, message: None }
}

/// Reads an entry; `None` for a protocol without ports and for another zone than the default one.
fn tracked(entry: &[ConntrackAttribute]) -> Option<TrackedFlow> {
    const CTA_ZONE: u16 = 18;
    if entry.iter().any(|attribute| attribute.kind() == CTA_ZONE) {
        return None;
    }
    let (transport, client, destination) = entry.iter().find_map(|attribute| {
        if let ConntrackAttribute::CtaTupleOrig(tuple) = attribute { read_tuple(tuple) } else { None }
    })?;
    let (_, answers, _) = entry.iter().find_map(|attribute| {
        if let ConntrackAttribute::CtaTupleReply(tuple) = attribute { read_tuple(tuple) } else { None }
    })?;
    let answered = entry.iter().any(|attribute| {
        matches!(attribute, ConntrackAttribute::CtaStatus(status) if status.contains(Status::SeenReply))
    });
    Some(TrackedFlow { transport, client, destination, answers, answered })
}

/// Protocol, source and destination.
fn read_tuple(tuple: &[Tuple]) -> Option<(Transport, SocketAddr, SocketAddr)> {
    let addresses =
        tuple.iter().find_map(|part| if let Tuple::Ip(addresses) = part { Some(addresses) } else { None })?;
    let ports =
        tuple.iter().find_map(|part| if let Tuple::Proto(ports) = part { Some(ports) } else { None })?;
    let (mut source, mut destination) = (None, None);
    for address in addresses {
        if let IPTuple::SourceAddress(address) = address {
            source = Some(*address);
        } else if let IPTuple::DestinationAddress(address) = address {
            destination = Some(*address);
        }
    }
    let (mut transport, mut from, mut to) = (None, None, None);
    for port in ports {
        if let ProtoTuple::Protocol(protocol) = port {
            transport = Transport::ALL.into_iter().find(|known| known.number() == *protocol);
        } else if let ProtoTuple::SourcePort(port) = port {
            from = Some(*port);
        } else if let ProtoTuple::DestinationPort(port) = port {
            to = Some(*port);
        }
    }
    Some((transport?, SocketAddr::new(source?, from?), SocketAddr::new(destination?, to?)))
}

/// What the kernel knows an entry by.
fn original(flow: &TrackedFlow) -> Vec<Tuple> {
    vec![
        Tuple::Ip(vec![
            IPTuple::SourceAddress(flow.client.ip()),
            IPTuple::DestinationAddress(flow.destination.ip()),
        ]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(flow.transport.number()),
            ProtoTuple::SourcePort(flow.client.port()),
            ProtoTuple::DestinationPort(flow.destination.port()),
        ]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> TrackedFlow {
        TrackedFlow {
            transport: Transport::Udp,
            client: "172.16.1.2:40000".parse().unwrap(),
            destination: "10.96.0.20:80".parse().unwrap(),
            answers: "172.16.2.3:8080".parse().unwrap(),
            answered: true,
        }
    }

    #[test]
    fn an_entry_is_read_as_its_two_directions() {
        let flow = flow();
        let back = TrackedFlow { client: flow.answers, destination: flow.client, ..flow };
        let entry = [
            ConntrackAttribute::CtaTupleOrig(original(&flow)),
            ConntrackAttribute::CtaTupleReply(original(&back)),
            ConntrackAttribute::CtaStatus(Status::SeenReply | Status::DstNat),
        ];
        assert_eq!(tracked(&entry), Some(flow));
        assert_eq!(tracked(&entry[..1]), None, "half an entry");
        assert_eq!(tracked(&[]), None);
    }

    #[test]
    fn a_flow_that_is_not_there_is_forgotten_already() {
        let mut conntrack = Conntrack::open().unwrap();
        let strange = TrackedFlow { client: "192.0.2.1:9".parse().unwrap(), ..flow() };
        assert!(!conntrack.forget(&strange).unwrap());
    }
}

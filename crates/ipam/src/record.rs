//! A lease as bytes in a chain of blocks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use netd_kernel::conntrack::Transport;

use crate::address::Number;
use crate::lease::{Lease, Owner, Pod, PortMapping};
use crate::store::{Id, Kind, PAYLOAD, Store};
use crate::{Error, Result};

/// Bytes of a lease at most: with the most addresses, a change still fits into the journal.
const LONGEST: usize = 16 * 1024;
/// Addresses of a lease at most.
const ADDRESSES: usize = 16;
/// Bytes of a container id at most.
pub(crate) const CONTAINER_MAX: usize = 1024;
/// Where the content begins in a block, behind the number of the next block and, in the first, the length.
const CONTENT: usize = 8;

/// A lease with what only the file needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) lease: Lease,
    /// Uptime of the machine when it began; zero where that is not known.
    pub(crate) taken: Duration,
    /// Place in the order of leases.
    pub(crate) order: u64,
    /// The numbers of its addresses, in their order.
    pub(crate) numbers: Vec<Number>,
}

/// Refuses what has no room in a file.
pub(crate) fn check(lease: &Lease) -> Result<()> {
    let too_long = |what, length: usize, limit: usize| {
        if length > limit {
            Err(Error::TooLong { what, length: length as u64, limit: limit as u64 })
        } else {
            Ok(())
        }
    };
    too_long("the container id", lease.owner.container.len(), CONTAINER_MAX)?;
    too_long("the list of addresses", lease.addresses.len(), ADDRESSES)?;
    let numbers = vec![0; lease.addresses.len()];
    let record = Record { lease: lease.clone(), taken: Duration::ZERO, order: 0, numbers };
    too_long("the lease (names and ports together)", encode(&record).len(), LONGEST)
}

/// Writes a new lease, and returns its first block.
pub(crate) fn write(store: &mut Store, record: &Record) -> Result<Id> {
    let bytes = encode(record);
    let first = store.allocate(Kind::Lease)?;
    let mut id = first;
    let mut chunks = bytes.chunks(PAYLOAD - CONTENT).peekable();
    while let Some(chunk) = chunks.next() {
        let kind = if id == first { Kind::Lease } else { Kind::Rest };
        let next = if chunks.peek().is_some() { store.allocate(Kind::Rest)? } else { 0 };
        let block = store.block_mut(id, kind)?;
        block.put_u32(0, next);
        block.put_u32(4, if id == first { u32::try_from(bytes.len()).unwrap_or(u32::MAX) } else { 0 });
        block.put(CONTENT, chunk);
        id = next;
    }
    Ok(first)
}

/// Reads the lease that begins with block `id`.
pub(crate) fn read(store: &mut Store, id: Id) -> Result<Record> {
    let (bytes, _) = chain(store, id)?;
    decode(&bytes).ok_or_else(|| store.damaged(format!("the lease at block {id} is unreadable")))
}

/// How many blocks the lease has that begins with block `id`.
pub(crate) fn blocks(store: &mut Store, id: Id) -> Result<u32> {
    Ok(chain(store, id)?.1.len() as u32)
}

/// Gives the blocks of a lease back.
pub(crate) fn free(store: &mut Store, id: Id) -> Result<()> {
    let (_, blocks) = chain(store, id)?;
    blocks.into_iter().try_for_each(|id| store.free(id))
}

fn chain(store: &mut Store, first: Id) -> Result<(Vec<u8>, Vec<Id>)> {
    let length = store.block(first, Kind::Lease)?.u32(4) as usize;
    if length > LONGEST {
        return Err(store.damaged(format!("the lease at block {first} has {length} bytes")));
    }
    let (mut bytes, mut blocks) = (Vec::with_capacity(length), Vec::new());
    let (mut id, mut kind) = (first, Kind::Lease);
    while bytes.len() < length {
        let block = store.block(id, kind)?;
        bytes.extend_from_slice(block.bytes(CONTENT, (length - bytes.len()).min(PAYLOAD - CONTENT)));
        let next = block.u32(0);
        blocks.push(id);
        (id, kind) = (next, Kind::Rest);
    }
    Ok((bytes, blocks))
}

fn encode(record: &Record) -> Vec<u8> {
    let Record { lease, taken, order, numbers } = record;
    let mut bytes = Vec::with_capacity(PAYLOAD);
    bytes.extend_from_slice(&u64::try_from(taken.as_millis()).unwrap_or(u64::MAX).to_le_bytes());
    bytes.extend_from_slice(&order.to_le_bytes());
    let mut text = |text: &str| {
        // Longer ones were refused by their sum.
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    };
    text(&lease.owner.container);
    text(&lease.owner.interface);
    let none = Pod::default();
    let pod = lease.pod.as_ref().unwrap_or(&none);
    text(&pod.namespace);
    text(&pod.name);
    text(&pod.uid);
    text(lease.bridge.as_deref().unwrap_or_default());
    let flags = u8::from(lease.pod.is_some()) | u8::from(lease.bridge.is_some()) << 1;
    bytes.push(flags);
    bytes.push(u8::try_from(lease.addresses.len()).unwrap_or(u8::MAX));
    for (address, number) in lease.addresses.iter().zip(numbers) {
        bytes.extend_from_slice(&number.to_le_bytes());
        put_address(&mut bytes, Some(*address));
    }
    let count = u16::try_from(lease.ports.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&count.to_le_bytes());
    for port in &lease.ports {
        bytes.push(match port.transport {
            Transport::Tcp => 0,
            Transport::Udp => 1,
            Transport::Sctp => 2,
        });
        bytes.extend_from_slice(&port.host_port.to_le_bytes());
        bytes.extend_from_slice(&port.container_port.to_le_bytes());
        put_address(&mut bytes, port.host_ip);
    }
    bytes
}

fn put_address(bytes: &mut Vec<u8>, address: Option<IpAddr>) {
    match address {
        None => bytes.push(0),
        Some(IpAddr::V4(address)) => {
            bytes.push(4);
            bytes.extend_from_slice(&address.octets());
        }
        Some(IpAddr::V6(address)) => {
            bytes.push(6);
            bytes.extend_from_slice(&address.octets());
        }
    }
}

fn decode(bytes: &[u8]) -> Option<Record> {
    let mut reader = Reader(bytes);
    let taken = Duration::from_millis(u64::from_le_bytes(reader.array()?));
    let order = u64::from_le_bytes(reader.array()?);
    let owner = Owner { container: reader.text()?, interface: reader.text()? };
    let pod = Pod { namespace: reader.text()?, name: reader.text()?, uid: reader.text()? };
    let bridge = reader.text()?;
    let [flags, count] = reader.array()?;
    let (mut addresses, mut numbers) = (Vec::new(), Vec::new());
    for _ in 0..count {
        numbers.push(u32::from_le_bytes(reader.array()?));
        addresses.push(reader.address()??);
    }
    let mut ports = Vec::new();
    for _ in 0..u16::from_le_bytes(reader.array()?) {
        let [transport] = reader.array()?;
        ports.push(PortMapping {
            transport: Transport::ALL.get(usize::from(transport)).copied()?,
            host_port: u16::from_le_bytes(reader.array()?),
            container_port: u16::from_le_bytes(reader.array()?),
            host_ip: reader.address()?,
        });
    }
    if addresses.is_empty() || !reader.0.is_empty() {
        return None;
    }
    let pod = (flags & 1 != 0).then_some(pod);
    let bridge = (flags & 2 != 0).then_some(bridge);
    Some(Record { lease: Lease { owner, pod, addresses, ports, bridge }, taken, order, numbers })
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(std::str::from_utf8(bytes).ok()?.to_owned())
    }

    /// `None` within where there is none.
    fn address(&mut self) -> Option<Option<IpAddr>> {
        let [family] = self.array()?;
        Some(match family {
            0 => None,
            4 => Some(IpAddr::V4(Ipv4Addr::from(self.array::<4>()?))),
            6 => Some(IpAddr::V6(Ipv6Addr::from(self.array::<16>()?))),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let owner = Owner { container: "c".repeat(64), interface: "eth0".into() };
        let pod = Some(Pod { namespace: "default".into(), name: "web".into(), uid: String::new() });
        let port =
            |transport, host_ip| PortMapping { transport, host_port: 80, container_port: 8080, host_ip };
        let ports = vec![
            port(Transport::Tcp, None),
            port(Transport::Sctp, Some("fd00::9".parse().unwrap())),
            port(Transport::Udp, Some("0.0.0.0".parse().unwrap())),
        ];
        let addresses = vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let lease = Lease { owner, pod, addresses, ports, bridge: Some("netd0".into()) };
        Record { lease, taken: Duration::from_millis(1234), order: 77, numbers: vec![4, 9] }
    }

    #[test]
    fn a_lease_is_read_as_it_was_written_and_no_part_of_it_is_one() {
        let bytes = encode(&record());
        assert_eq!(decode(&bytes), Some(record()));
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end]), None, "cut at {end}");
        }
        let bare =
            Record { lease: Lease { pod: None, bridge: None, ports: vec![], ..record().lease }, ..record() };
        assert_eq!(decode(&encode(&bare)), Some(bare));
    }

    #[test]
    fn what_has_no_room_is_refused_by_name() {
        let mut long = record().lease;
        long.owner.container = "c".repeat(CONTAINER_MAX + 1);
        let error = check(&long).unwrap_err().to_string();
        assert!(error.contains("container id") && error.contains("1024"), "{error}");
        let mut long = record().lease;
        long.pod = Some(Pod { name: "p".repeat(LONGEST), ..Pod::default() });
        assert!(matches!(check(&long), Err(Error::TooLong { .. })));
        assert!(check(&record().lease).is_ok());
    }
}

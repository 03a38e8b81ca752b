//! The bytes of a ledger.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use memchr::memchr;
use serde::{Deserialize, Serialize};

use super::distinct;
use crate::book::Book;
use crate::lease::{Lease, Owner, Pod};
use crate::record::{self, Kind};

/// The format written, and the latest that is read.
pub(super) const FORMAT: u32 = 1;
/// Bytes of the second line: 20 digits, a space, 8 digits, a newline.
const COMMITTED: usize = 30;
/// The length of a short record in bytes, to make room for all leases at once.
const SHORT: usize = 120;

/// Why a file is not the ledger to go on with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// Written before a reboot: nothing in it counts.
    OtherBoot,
    /// Written by a later netd.
    Newer(u32),
    /// Not what was written.
    Torn(String),
}

/// What a file says.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) book: Book,
    /// Bytes of the whole records.
    pub(super) length: usize,
    pub(super) records: usize,
    /// Whether an unfinished record follows them.
    pub(super) torn_tail: bool,
}

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    format: u32,
    #[serde(borrow)]
    network: Cow<'a, str>,
    #[serde(borrow)]
    boot: Cow<'a, str>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Op {
    Take,
    Free,
}

#[derive(Serialize, Deserialize)]
struct Record<'a> {
    op: Op,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    id: Cow<'a, str>,
    #[serde(borrow, default, rename = "if", skip_serializing_if = "str::is_empty")]
    interface: Cow<'a, str>,
    ips: Vec<IpAddr>,
    #[serde(borrow, default, rename = "ns", skip_serializing_if = "str::is_empty")]
    namespace: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    pod: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    uid: Cow<'a, str>,
    /// Uptime in milliseconds.
    at: u64,
}

/// The first line.
pub(super) fn header(network: &str, boot: &str) -> String {
    line(&Header { format: FORMAT, network: network.into(), boot: boot.into() })
}

/// The second line.
pub(super) fn committed(length: u64) -> String {
    let digits = format!("{length:020}");
    format!("{digits} {:08x}\n", crc32(digits.as_bytes()))
}

/// The record of a lease begun.
pub(super) fn take(lease: &Lease, at: Duration) -> String {
    let pod = lease.pod.as_ref();
    line(&Record {
        op: Op::Take,
        id: lease.owner.container.as_str().into(),
        interface: lease.owner.interface.as_str().into(),
        ips: lease.addresses.clone(),
        namespace: pod.map(|p| p.namespace.as_str()).unwrap_or_default().into(),
        pod: pod.map(|p| p.name.as_str()).unwrap_or_default().into(),
        uid: pod.map(|p| p.uid.as_str()).unwrap_or_default().into(),
        at: millis(at),
    })
}

/// The record of a lease ended.
pub(super) fn free(addresses: &[IpAddr], at: Duration) -> String {
    let none = Cow::Borrowed("");
    line(&Record {
        op: Op::Free,
        id: none.clone(),
        interface: none.clone(),
        ips: addresses.to_vec(),
        namespace: none.clone(),
        pod: none.clone(),
        uid: none,
        at: millis(at),
    })
}

/// A whole file that says what `book` holds: the releases in their order, then the leases.
pub(super) fn render(network: &str, boot: &str, book: &Book) -> Vec<u8> {
    let mut body = String::new();
    for (address, freed) in book.freed() {
        body.push_str(&free(&[address], freed.at));
    }
    for (lease, taken) in book.leases_since() {
        body.push_str(&take(lease, taken));
    }
    let first = header(network, boot);
    let length = first.len() + COMMITTED + body.len();
    [first, committed(length as u64), body].concat().into_bytes()
}

/// Reads a file; `boot` is the present boot's id.
pub(super) fn replay(bytes: Vec<u8>, network: &str, boot: &str) -> Result<Replay, Damage> {
    let source = Arc::new(bytes);
    let bytes = source.as_slice();
    let torn = |what: &str| Damage::Torn(what.to_owned());
    let (first, rest) = split_line(bytes).ok_or_else(|| torn("no header"))?;
    let header = checked(first).ok_or_else(|| torn("the header's checksum is wrong"))?;
    let header: Header<'_> =
        serde_json::from_slice(header).map_err(|e| Damage::Torn(format!("the header: {e}")))?;
    if header.format > FORMAT {
        return Err(Damage::Newer(header.format));
    }
    if boot != header.boot {
        return Err(Damage::OtherBoot);
    }
    if header.network != network {
        return Err(Damage::Torn(format!("it belongs to network {}", header.network)));
    }
    let (second, body) = split_line(rest).ok_or_else(|| torn("no length"))?;
    let committed = committed_length(second).ok_or_else(|| torn("the length's checksum is wrong"))?;
    if bytes.len() < committed {
        return Err(Damage::Torn(format!("{} bytes are left of {committed}", bytes.len())));
    }
    replay_records(&source, bytes.len() - body.len(), committed)
}

fn replay_records(source: &Arc<Vec<u8>>, start: usize, committed: usize) -> Result<Replay, Damage> {
    let mut body = source.get(start..).unwrap_or_default();
    let book = Book::reading(Arc::clone(source), body.len() / SHORT);
    let mut replay = Replay { book, length: start, records: 0, torn_tail: false };
    let mut addresses = Vec::new();
    while !body.is_empty() {
        let line = split_line(body).and_then(|(line, rest)| Some((checked(line)?, line.len() + 1, rest)));
        let entered = line.and_then(|(content, used, rest)| {
            let start = replay.length + CHECKSUM;
            let entered = enter(&mut replay.book, content, start, &mut addresses)?;
            Some((entered, used, rest))
        });
        let Some((entered, used, rest)) = entered else {
            if replay.length < committed {
                return Err(Damage::Torn(format!("the record at byte {} is damaged", replay.length)));
            }
            replay.torn_tail = true;
            return Ok(replay);
        };
        entered.map_err(|what| Damage::Torn(format!("the record at byte {}: {what}", replay.length)))?;
        replay.length += used;
        replay.records += 1;
        body = rest;
    }
    Ok(replay)
}

/// Enters the record `content`, which begins at byte `start` of the file; `None` when it is no record.
fn enter(
    book: &mut Book,
    content: &[u8],
    start: usize,
    addresses: &mut Vec<IpAddr>,
) -> Option<Result<(), &'static str>> {
    let text = u32::try_from(start).ok().zip(u32::try_from(start + content.len()).ok());
    let quick = text.and_then(|(start, end)| {
        let record = record::parse(std::str::from_utf8(content).ok()?)?;
        record::read_addresses(record.addresses, addresses)?;
        Some((record, start..end))
    });
    let Some((record, text)) = quick else {
        return serde_json::from_slice(content).ok().map(|record| apply(book, record));
    };
    if !distinct(addresses) {
        return Some(Err(NOT_DISTINCT));
    }
    let at = Duration::from_millis(record.at);
    Some(match record.kind {
        Kind::Take => taken(book.take_text(text, addresses, at)),
        Kind::Free => {
            end(book, addresses, at);
            Ok(())
        }
    })
}

const NOT_DISTINCT: &str = "no address, or one twice";

fn taken(entered: bool) -> Result<(), &'static str> {
    if entered { Ok(()) } else { Err("an address that is in use is taken again") }
}

fn end(book: &mut Book, addresses: &[IpAddr], at: Duration) {
    for address in addresses {
        // A compacted file remembers releases without their leases; a lease ends with its first address.
        if !book.end(*address, at) && !book.is_freed(*address) {
            book.remember(*address, at);
        }
    }
}

/// Enters a record that was not written by this version.
fn apply(book: &mut Book, record: Record<'_>) -> Result<(), &'static str> {
    if !distinct(&record.ips) {
        return Err(NOT_DISTINCT);
    }
    let at = Duration::from_millis(record.at);
    match record.op {
        Op::Take => {
            let owner = Owner { container: record.id.into_owned(), interface: record.interface.into_owned() };
            let pod = (!record.pod.is_empty()).then(|| Pod {
                namespace: record.namespace.into_owned(),
                name: record.pod.into_owned(),
                uid: record.uid.into_owned(),
            });
            taken(book.take_at(Lease { owner, pod, addresses: record.ips }, at))
        }
        Op::Free => {
            end(book, &record.ips, at);
            Ok(())
        }
    }
}

fn line<T: Serialize>(value: &T) -> String {
    // Strings, numbers and addresses always serialise.
    let json = serde_json::to_string(value).unwrap_or_default();
    format!("{:08x} {json}\n", crc32(json.as_bytes()))
}

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr(b'\n', bytes)?;
    let (line, rest) = bytes.split_at(end);
    Some((line, rest.get(1..)?))
}

/// Bytes before the content of a line: the checksum and a space.
const CHECKSUM: usize = 9;

/// The content of a line, if its checksum is right.
fn checked(line: &[u8]) -> Option<&[u8]> {
    let (sum, content) = (line.get(..8)?, line.get(CHECKSUM..)?);
    let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    (line.get(8) == Some(&b' ') && sum == crc32(content)).then_some(content)
}

fn committed_length(line: &[u8]) -> Option<usize> {
    let line = std::str::from_utf8(line).ok().filter(|line| line.len() == COMMITTED - 1)?;
    let (digits, sum) = line.split_once(' ')?;
    let matches = u32::from_str_radix(sum, 16) == Ok(crc32(digits.as_bytes()));
    matches.then(|| digits.parse().ok()).flatten()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// CRC-32 as in IEEE 802.3 (reflected, polynomial 0xEDB88320): every call reads the whole ledger, so by the
/// processor's own instruction where it has one.
fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_checksum_is_crc32() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        let bitwise = |bytes: &[u8]| {
            let shift = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 };
            !bytes.iter().fold(!0_u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), shift))
        };
        let bytes: Vec<u8> = (0..100_u8).map(|n| n.wrapping_mul(37)).collect();
        for end in 0..bytes.len() {
            assert_eq!(crc32(&bytes[..end]), bitwise(&bytes[..end]), "of {end} bytes");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// The quick reader and the general one understand every record we write alike, whatever the names are.
        #[test]
        fn both_readers_say_the_same(
            names in proptest::array::uniform5("[a-z0-9./:_-]{0,70}|\\PC{0,12}|[\"\\\\\n\u{0}]{1,2}"),
            addresses in proptest::collection::hash_set(any::<IpAddr>(), 1..4),
            at in 0..u64::from(u32::MAX),
        ) {
            let [container, interface, namespace, name, uid] = names;
            let pod = (!name.is_empty()).then_some(Pod { namespace, name, uid });
            let lease = Lease { owner: Owner { container, interface }, pod, addresses: addresses.into_iter().collect() };
            let escaped = format!("{lease:?}").contains('\\');
            let at = Duration::from_millis(at);
            let written = [take(&lease, at), free(&lease.addresses, at)];
            let content = checked(written[0].trim_end_matches('\n').as_bytes()).unwrap();
            prop_assert!(escaped || record::parse(std::str::from_utf8(content).unwrap()).is_some());

            let mut general = Book::default();
            apply(&mut general, serde_json::from_slice(content).unwrap()).unwrap();
            let mut quick = Book::reading(Arc::new(written.concat().into_bytes()), 1);
            enter(&mut quick, content, CHECKSUM, &mut Vec::new()).unwrap().unwrap();
            prop_assert_eq!(quick.lease_of(&lease.owner), Some(&lease));
            prop_assert!(quick.leases_since().eq(general.leases_since()));

            let ended = checked(written[1].trim_end_matches('\n').as_bytes()).unwrap();
            apply(&mut general, serde_json::from_slice(ended).unwrap()).unwrap();
            enter(&mut quick, ended, written[0].len() + CHECKSUM, &mut Vec::new()).unwrap().unwrap();
            prop_assert_eq!(quick.leases().count(), 0);
            prop_assert_eq!(quick.freed(), general.freed());
        }
    }

    #[test]
    fn the_second_line_has_a_fixed_length() {
        assert_eq!(committed(0).len(), COMMITTED);
        assert_eq!(committed(u64::MAX).len(), COMMITTED);
        assert_eq!(committed_length(committed(298).trim_end().as_bytes()), Some(298));
        assert_eq!(committed_length(b"00000000000000000298 00000000"), None);
    }
}

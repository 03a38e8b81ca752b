//! The bytes of a ledger.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::distinct;
use crate::book::Book;
use crate::lease::{Lease, Owner, Pod};

/// The format written, and the latest that is read.
pub(super) const FORMAT: u32 = 1;
/// Bytes of the second line: 20 digits, a space, 8 digits, a newline.
const COMMITTED: usize = 30;

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
    for lease in book.leases() {
        body.push_str(&take(lease, Duration::ZERO));
    }
    let first = header(network, boot);
    let length = first.len() + COMMITTED + body.len();
    [first, committed(length as u64), body].concat().into_bytes()
}

/// Reads a file; `boot` is the present boot's id.
pub(super) fn replay(bytes: &[u8], network: &str, boot: &str) -> Result<Replay, Damage> {
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
    replay_records(body, bytes.len() - body.len(), committed)
}

fn replay_records(mut body: &[u8], start: usize, committed: usize) -> Result<Replay, Damage> {
    let mut replay = Replay { book: Book::default(), length: start, records: 0, torn_tail: false };
    while !body.is_empty() {
        let record = split_line(body).and_then(|(line, rest)| {
            let record = serde_json::from_slice(checked(line)?).ok()?;
            Some((record, rest, line.len() + 1))
        });
        let Some((record, rest, used)) = record else {
            if replay.length < committed {
                return Err(Damage::Torn(format!("the record at byte {} is damaged", replay.length)));
            }
            replay.torn_tail = true;
            return Ok(replay);
        };
        apply(&mut replay.book, record)
            .map_err(|what| Damage::Torn(format!("the record at byte {}: {what}", replay.length)))?;
        replay.length += used;
        replay.records += 1;
        body = rest;
    }
    Ok(replay)
}

fn apply(book: &mut Book, record: Record<'_>) -> Result<(), &'static str> {
    if !distinct(&record.ips) {
        return Err("no address, or one twice");
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
            let taken = book.take(Lease { owner, pod, addresses: record.ips });
            if taken { Ok(()) } else { Err("an address that is in use is taken again") }
        }
        Op::Free => {
            for address in record.ips {
                // A compacted file remembers releases without their leases; a lease ends with its first address.
                if book.free(address, at).is_none() && !book.is_freed(address) {
                    book.remember(address, at);
                }
            }
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
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = bytes.split_at(end);
    Some((line, rest.get(1..)?))
}

/// The content of a line, if its checksum is right.
fn checked(line: &[u8]) -> Option<&[u8]> {
    let (sum, content) = (line.get(..8)?, line.get(9..)?);
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

/// CRC-32 as in IEEE 802.3 (reflected, polynomial 0xEDB88320), eight bytes a step ("slicing-by-8"): every call reads the
/// whole ledger.
fn crc32(bytes: &[u8]) -> u32 {
    let [one, two, three, four, five, six, seven, eight] = &TABLES;
    let at = |table: &[u32; 256], byte: u8| table[usize::from(byte)];
    let (steps, rest) = bytes.as_chunks::<8>();
    let crc = steps.iter().fold(!0_u32, |crc, [a, b, c, d, e, f, g, h]| {
        let [w, x, y, z] = crc.to_le_bytes();
        let old = at(eight, a ^ w) ^ at(seven, b ^ x) ^ at(six, c ^ y) ^ at(five, d ^ z);
        old ^ at(four, *e) ^ at(three, *f) ^ at(two, *g) ^ at(one, *h)
    });
    !rest.iter().fold(crc, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ at(one, low ^ byte)
    })
}

/// Table n says what a byte does to the sum when n more bytes follow it in its step.
const TABLES: [[u32; 256]; 8] = crc_tables();

const fn crc_tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte: u32 = 0;
    while byte < 256 {
        let mut crc = byte;
        let mut table = 0;
        while table < 8 {
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
                bit += 1;
            }
            tables[table][byte as usize] = crc;
            table += 1;
        }
        byte += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn the_second_line_has_a_fixed_length() {
        assert_eq!(committed(0).len(), COMMITTED);
        assert_eq!(committed(u64::MAX).len(), COMMITTED);
        assert_eq!(committed_length(committed(298).trim_end().as_bytes()), Some(298));
        assert_eq!(committed_length(b"00000000000000000298 00000000"), None);
    }
}

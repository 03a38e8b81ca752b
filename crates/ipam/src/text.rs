//! Format 1, a log of text, which netd wrote before format 2: read once, when a node gets this netd while pods run.
//!
//! Lines, each a CRC-32 in hexadecimal, a blank and content: a header, how many bytes are known to be written, and then
//! a record for each lease begun or ended. A record that is not whole counts only as far as the second line goes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;

use crate::book::{Kept, Released, Snapshot};
use crate::lease::{Lease, Owner, Pod};
use crate::store::Unfit;

/// The format read here.
const FORMAT: u32 = 1;
/// Bytes of the second line: 20 digits, a blank, 8 digits.
const COMMITTED: usize = 29;

#[derive(Deserialize)]
struct Header {
    format: u32,
    network: String,
    boot: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Op {
    Take,
    Free,
}

#[derive(Deserialize)]
struct Record {
    op: Op,
    #[serde(default)]
    id: String,
    #[serde(default, rename = "if")]
    interface: String,
    ips: Vec<IpAddr>,
    #[serde(default, rename = "ns")]
    namespace: String,
    #[serde(default)]
    pod: String,
    #[serde(default)]
    uid: String,
    /// Uptime in milliseconds.
    at: u64,
}

#[derive(Default)]
struct Replay {
    leases: Vec<Option<Kept>>,
    holders: HashMap<IpAddr, usize>,
    released: HashMap<IpAddr, (usize, Duration)>,
}

/// Reads a file of format 1; `boot` is the present boot's id.
pub(crate) fn replay(bytes: &[u8], network: &str, boot: &str) -> Result<Snapshot, Unfit> {
    let torn = |what: &str| Unfit::Damaged(what.to_owned());
    let (first, rest) = split_line(bytes).ok_or_else(|| torn("it has no header"))?;
    let header = checked(first).ok_or_else(|| torn("the header's checksum is wrong"))?;
    let header: Header =
        serde_json::from_slice(header).map_err(|e| Unfit::Damaged(format!("the header: {e}")))?;
    if header.format > FORMAT {
        return Err(Unfit::Newer(header.format));
    }
    if header.boot != boot {
        return Err(Unfit::OtherBoot);
    }
    if header.network != network {
        return Err(Unfit::Damaged(format!("it belongs to network {}", header.network)));
    }
    let (second, body) = split_line(rest).ok_or_else(|| torn("it has no length"))?;
    let committed = committed(second).ok_or_else(|| torn("the length's checksum is wrong"))?;
    if bytes.len() < committed {
        return Err(Unfit::Damaged(format!("{} bytes are left of {committed}", bytes.len())));
    }
    let (mut replay, mut body) = (Replay::default(), body);
    while !body.is_empty() {
        let at = bytes.len() - body.len();
        let record = split_line(body).and_then(|(line, rest)| Some((checked(line)?, rest)));
        let record = record.and_then(|(text, rest)| Some((serde_json::from_slice(text).ok()?, rest)));
        let Some((record, rest)) = record else {
            // A record that is not whole belongs to a call that has not answered.
            return if at < committed {
                Err(Unfit::Damaged(format!("the record at byte {at} is damaged")))
            } else {
                Ok(replay.into())
            };
        };
        if !replay.apply(record) {
            return Err(Unfit::Damaged(format!("the record at byte {at} cannot be")));
        }
        body = rest;
    }
    Ok(replay.into())
}

impl Replay {
    /// Does a record; `false` when it takes an address that is in use.
    fn apply(&mut self, record: Record) -> bool {
        let at = Duration::from_millis(record.at);
        match record.op {
            Op::Take => {
                for address in &record.ips {
                    if self.holders.insert(*address, self.leases.len()).is_some() {
                        return false;
                    }
                    self.released.remove(address);
                }
                let pod = (!record.pod.is_empty()).then_some(Pod {
                    namespace: record.namespace,
                    name: record.pod,
                    uid: record.uid,
                });
                let owner = Owner { container: record.id, interface: record.interface };
                let lease = Lease { owner, pod, addresses: record.ips, ..Lease::default() };
                self.leases.push(Some(Kept { lease, taken: at }));
            }
            Op::Free => {
                for address in record.ips {
                    let slot = self.holders.get(&address).copied();
                    let ended = slot.and_then(|slot| self.leases.get_mut(slot)).and_then(Option::take);
                    // A rewritten file remembers releases without their leases.
                    for address in ended.map_or_else(|| vec![address], |ended| ended.lease.addresses) {
                        self.holders.remove(&address);
                        let order = self.released.len();
                        self.released.entry(address).or_insert((order, at));
                    }
                }
            }
        }
        true
    }
}

impl From<Replay> for Snapshot {
    fn from(replay: Replay) -> Self {
        let mut released: Vec<_> = replay.released.into_iter().collect();
        released.sort_by_key(|(_, (order, at))| (*at, *order));
        Self {
            leases: replay.leases.into_iter().flatten().collect(),
            released: released.into_iter().map(|(address, (_, at))| Released { address, at }).collect(),
        }
    }
}

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}

/// The content of a line, if its checksum is right.
fn checked(line: &[u8]) -> Option<&[u8]> {
    let (sum, content) = (line.get(..8)?, line.get(9..)?);
    let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    (line.get(8) == Some(&b' ') && sum == crc32fast::hash(content)).then_some(content)
}

fn committed(line: &[u8]) -> Option<usize> {
    let line = std::str::from_utf8(line).ok().filter(|line| line.len() == COMMITTED)?;
    let (digits, sum) = line.split_once(' ')?;
    let matches = u32::from_str_radix(sum, 16) == Ok(crc32fast::hash(digits.as_bytes()));
    matches.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn line(content: &str) -> String {
        format!("{:08x} {content}\n", crc32fast::hash(content.as_bytes()))
    }

    /// A file of format 1 as netd 0.1 wrote it.
    pub(crate) fn file(network: &str, boot: &str, records: &[&str]) -> Vec<u8> {
        let header = line(&format!(r#"{{"format":1,"network":"{network}","boot":"{boot}"}}"#));
        let body: String = records.iter().map(|record| line(record)).collect();
        let digits = format!("{:020}", header.len() + COMMITTED + 1 + body.len());
        let second = format!("{digits} {:08x}\n", crc32fast::hash(digits.as_bytes()));
        [header, second, body].concat().into_bytes()
    }

    const RECORDS: [&str; 4] = [
        r#"{"op":"free","ips":["10.0.0.9"],"at":3}"#,
        r#"{"op":"take","id":"c1","if":"eth0","ips":["10.0.0.2","fd00::2"],"ns":"n","pod":"p","uid":"u","at":5}"#,
        r#"{"op":"take","id":"c2","if":"eth0","ips":["10.0.0.3"],"at":6}"#,
        r#"{"op":"free","ips":["10.0.0.3"],"at":7}"#,
    ];

    #[test]
    fn leases_and_releases_are_read() {
        let snapshot = replay(&file("pods", "b", &RECORDS), "pods", "b").unwrap();
        assert_eq!(snapshot.leases.len(), 1);
        assert_eq!(snapshot.leases[0].lease.pod.as_ref().unwrap().to_string(), "n/p");
        assert_eq!(snapshot.leases[0].taken, Duration::from_millis(5));
        let released: Vec<String> = snapshot.released.iter().map(|r| r.address.to_string()).collect();
        assert_eq!(released, ["10.0.0.9", "10.0.0.3"]);
    }

    #[test]
    fn damage_is_told_from_a_record_that_was_not_finished() {
        let whole = file("pods", "b", &RECORDS);
        for end in 0..whole.len() {
            assert!(matches!(replay(&whole[..end], "pods", "b"), Err(Unfit::Damaged(_))), "cut at {end}");
        }
        let torn = [whole.clone(), b"1f6a0c9d {\"op\":\"ta".to_vec()].concat();
        assert_eq!(replay(&torn, "pods", "b").unwrap().leases.len(), 1);
        assert_eq!(replay(&whole, "pods", "c"), Err(Unfit::OtherBoot));
        let twice = file("pods", "b", &[RECORDS[1], RECORDS[1]]);
        assert!(matches!(replay(&twice, "pods", "b"), Err(Unfit::Damaged(_))));
    }
}

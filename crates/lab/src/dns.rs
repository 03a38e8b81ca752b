//! DNS questions and answers (RFC 1035), by hand: the server under test must not check itself.

use std::fmt::Write as _;
use std::io::{self, Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use netd_kernel::clock::Deadline;
use serde::{Deserialize, Serialize};

/// Record types by name (RFC 1035 section 3.2.2, RFC 3596, RFC 2782).
const KINDS: [(&str, u16); 10] = [
    ("A", 1),
    ("NS", 2),
    ("CNAME", 5),
    ("SOA", 6),
    ("PTR", 12),
    ("TXT", 16),
    ("AAAA", 28),
    ("SRV", 33),
    ("OPT", 41),
    ("ANY", 255),
];
/// Response codes by number (RFC 1035 section 4.1.1).
const RCODES: [&str; 6] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
/// How many compression pointers a name may have; more is a loop.
const POINTERS_MAX: usize = 64;

/// A question to a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lookup {
    /// Whom to ask.
    pub server: SocketAddr,
    /// The name, always absolute; the dot at its end may be left out.
    pub name: String,
    /// The record type: A, AAAA, SRV, PTR, CNAME, SOA, NS, TXT or ANY.
    pub kind: String,
    /// Whether to ask over TCP.
    pub tcp: bool,
    /// How long the answer may take.
    pub timeout: Duration,
}

impl Lookup {
    /// Returns a question over UDP with two seconds for the answer.
    pub fn new(server: SocketAddr, name: impl Into<String>, kind: impl Into<String>) -> Self {
        Self { server, name: name.into(), kind: kind.into(), tcp: false, timeout: Duration::from_secs(2) }
    }
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupAnswer {
    /// The response code's name, such as `NXDOMAIN`.
    pub rcode: String,
    /// Whether the server says that it knows by itself.
    pub authoritative: bool,
    /// Whether the answer was cut to fit.
    pub truncated: bool,
    /// Whether the server says that it asks others.
    pub recursion_available: bool,
    /// The answers, in the server's order.
    pub answers: Vec<DnsRecord>,
    /// The authority section: with a negative answer, the SOA.
    pub authority: Vec<DnsRecord>,
    /// What the server thought useful.
    pub additional: Vec<DnsRecord>,
}

impl LookupAnswer {
    /// The addresses among the answers.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let kinds = ["A", "AAAA"];
        let found = self.answers.iter().filter(|record| kinds.contains(&record.kind.as_str()));
        found.filter_map(|record| record.data.parse().ok()).collect()
    }
}

/// A record as people write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRecord {
    /// The name, in small letters, with the dot at its end.
    pub name: String,
    /// The type's name, or `TYPE` and its number.
    pub kind: String,
    /// How many seconds it may be kept.
    pub ttl: u32,
    /// The content: an address, a name, `PRIORITY WEIGHT PORT NAME`, the seven fields of a SOA.
    pub data: String,
}

/// Asks a server in the calling thread's network namespace.
///
/// # Errors
/// When nothing came in time, or what came is not an answer to the question.
pub fn lookup(question: &Lookup) -> io::Result<LookupAnswer> {
    let id = std::process::id() as u16 ^ netd_id();
    let request = write_request(id, &question.name, kind_number(&question.kind)?)?;
    let response = if question.tcp { ask_tcp(question, &request)? } else { ask_udp(question, &request, id)? };
    Message(&response).read(id, &request)
}

/// A number that differs from question to question.
fn netd_id() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn kind_number(name: &str) -> io::Result<u16> {
    let upper = name.to_ascii_uppercase();
    let known = KINDS.iter().find(|(known, _)| *known == upper).map(|(_, number)| *number);
    known.ok_or_else(|| bad(format!("unknown record type {name:?}")))
}

fn write_request(id: u16, name: &str, kind: u16) -> io::Result<Vec<u8>> {
    let mut bytes = id.to_be_bytes().to_vec();
    // Recursion desired; one question.
    bytes.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.').filter(|_| name != ".") {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length));
        bytes.push(length.ok_or_else(|| bad(format!("invalid name {name:?}")))?);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    Ok(bytes)
}

fn ask_udp(question: &Lookup, request: &[u8], id: u16) -> io::Result<Vec<u8>> {
    let any = match question.server.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(question.server)?;
    socket.send(request)?;
    let deadline = Deadline::after(question.timeout);
    let mut buffer = vec![0; 65535];
    loop {
        let left = deadline.left();
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = match socket.recv(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if buffer.get(..2) == Some(&id.to_be_bytes()) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

/// Over TCP a message has its length before it (RFC 1035 section 4.2.2).
fn ask_tcp(question: &Lookup, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&question.server, question.timeout)?;
    stream.set_read_timeout(Some(question.timeout))?;
    let length = u16::try_from(request.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), request].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut response = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut response)?;
    Ok(response)
}

/// A response being read; no position in it is believed.
struct Message<'a>(&'a [u8]);

impl Message<'_> {
    fn read(&self, id: u16, request: &[u8]) -> io::Result<LookupAnswer> {
        let flags = self.u16(2)?;
        if self.u16(0)? != id || flags & 0x8000 == 0 {
            return Err(bad("not an answer to this question"));
        }
        let mut at = 12;
        for _ in 0..self.u16(4)? {
            let (name, after) = self.name(at)?;
            let (asked, _) = Message(request).name(12)?;
            if !name.eq_ignore_ascii_case(&asked) {
                return Err(bad(format!("an answer to the question {name}")));
            }
            at = after + 4;
        }
        let mut sections = [Vec::new(), Vec::new(), Vec::new()];
        for (section, count) in sections.iter_mut().zip([6, 8, 10]) {
            for _ in 0..self.u16(count)? {
                let (record, after) = self.record(at)?;
                section.push(record);
                at = after;
            }
        }
        let [answers, authority, additional] = sections;
        let code = usize::from(flags & 0xf);
        Ok(LookupAnswer {
            rcode: RCODES.get(code).map_or_else(|| format!("RCODE{code}"), |name| (*name).to_owned()),
            authoritative: flags & 0x0400 != 0,
            truncated: flags & 0x0200 != 0,
            recursion_available: flags & 0x0080 != 0,
            answers,
            authority,
            additional,
        })
    }

    fn bytes(&self, at: usize, length: usize) -> io::Result<&[u8]> {
        let end = at.checked_add(length);
        end.and_then(|end| self.0.get(at..end)).ok_or_else(|| bad("the answer is cut short"))
    }

    fn u16(&self, at: usize) -> io::Result<u16> {
        self.bytes(at, 2)?.try_into().map(u16::from_be_bytes).map_err(io::Error::other)
    }

    fn u32(&self, at: usize) -> io::Result<u32> {
        self.bytes(at, 4)?.try_into().map(u32::from_be_bytes).map_err(io::Error::other)
    }

    /// Reads a name, compressed or not, and tells where it ended.
    fn name(&self, start: usize) -> io::Result<(String, usize)> {
        let mut name = String::new();
        let mut at = start;
        let mut end = None;
        for _ in 0..=POINTERS_MAX + 127 {
            let length = usize::from(*self.bytes(at, 1)?.first().unwrap_or(&0));
            match length {
                0 => {
                    let name = if name.is_empty() { ".".to_owned() } else { name };
                    return Ok((name, end.unwrap_or(at + 1)));
                }
                1..=63 => {
                    let label = String::from_utf8_lossy(self.bytes(at + 1, length)?).to_ascii_lowercase();
                    name.push_str(&label);
                    name.push('.');
                    at += 1 + length;
                }
                0xc0.. => {
                    end = end.or(Some(at + 2));
                    at = usize::from(self.u16(at)? & 0x3fff);
                }
                64..=0xbf => return Err(bad("an unknown kind of label")),
            }
        }
        Err(bad("a name without an end"))
    }

    fn record(&self, start: usize) -> io::Result<(DnsRecord, usize)> {
        let (name, at) = self.name(start)?;
        let number = self.u16(at)?;
        let ttl = self.u32(at + 4)?;
        let length = usize::from(self.u16(at + 8)?);
        let data_at = at + 10;
        let data = self.data(number, data_at, length)?;
        let known = KINDS.iter().find(|(_, known)| *known == number);
        let kind = known.map_or_else(|| format!("TYPE{number}"), |(known, _)| (*known).to_owned());
        Ok((DnsRecord { name, kind, ttl, data }, data_at + length))
    }

    /// Writes a record's content as people do.
    fn data(&self, kind: u16, at: usize, length: usize) -> io::Result<String> {
        let bytes = self.bytes(at, length)?;
        Ok(match kind {
            1 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).map_err(io::Error::other)?).to_string(),
            28 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).map_err(io::Error::other)?).to_string(),
            2 | 5 | 12 => self.name(at)?.0,
            33 => {
                let (target, _) = self.name(at + 6)?;
                format!("{} {} {} {target}", self.u16(at)?, self.u16(at + 2)?, self.u16(at + 4)?)
            }
            6 => self.soa(at)?,
            16 => text(bytes),
            _ => bytes.iter().fold(String::new(), |mut all, byte| {
                let _ = write!(all, "{byte:02x}");
                all
            }),
        })
    }

    fn soa(&self, at: usize) -> io::Result<String> {
        let (server, at) = self.name(at)?;
        let (person, at) = self.name(at)?;
        let mut all = format!("{server} {person}");
        for field in 0..5 {
            let _ = write!(all, " {}", self.u32(at + 4 * field)?);
        }
        Ok(all)
    }
}

/// The strings of a TXT record, each in quotes.
fn text(mut bytes: &[u8]) -> String {
    let mut strings = Vec::new();
    while let Some((length, rest)) = bytes.split_first() {
        let length = usize::from(*length).min(rest.len());
        let (string, after) = rest.split_at(length);
        strings.push(format!("{:?}", String::from_utf8_lossy(string)));
        bytes = after;
    }
    strings.join(" ")
}

#[cfg(test)]
mod tests;

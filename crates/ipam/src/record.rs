//! A ledger's record read in place: the text that this crate writes, without a general JSON reader.
//!
//! Every call of the plugin reads the whole ledger, and of nearly all records it needs no more than the addresses. So
//! [`parse`] points into the text, and what it does not know as its own writing (escapes, another order of the keys,
//! keys of a later version) is left to `serde_json`. The test beside the writer holds the two readers equal.

use std::net::IpAddr;

use memchr::memchr;

use crate::lease::{Lease, Owner, Pod};

/// Whether a lease begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A lease begins.
    Take,
    /// A lease ends.
    Free,
}

/// A record, pointing into its text. A key that is not there is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    pub(crate) container: &'a str,
    pub(crate) interface: &'a str,
    /// The addresses in quotes, separated by commas; see [`read_addresses`].
    pub(crate) addresses: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) pod: &'a str,
    pub(crate) uid: &'a str,
    /// Uptime in milliseconds.
    pub(crate) at: u64,
}

impl Record<'_> {
    /// The lease that begins with this record.
    pub(crate) fn lease(&self) -> Lease {
        let owner = Owner { container: self.container.to_owned(), interface: self.interface.to_owned() };
        let pod = (!self.pod.is_empty()).then(|| Pod {
            namespace: self.namespace.to_owned(),
            name: self.pod.to_owned(),
            uid: self.uid.to_owned(),
        });
        let mut addresses = Vec::new();
        // `parse` is followed by `read_addresses` before a record is believed.
        let _ = read_addresses(self.addresses, &mut addresses);
        Lease { owner, pod, addresses }
    }
}

/// Reads a record that is written as this crate writes; `None` says nothing of it.
pub(crate) fn parse(text: &str) -> Option<Record<'_>> {
    if memchr(b'\\', text.as_bytes()).is_some() {
        return None;
    }
    let (kind, mut rest) = match text.strip_prefix(TAKE) {
        Some(rest) => (Kind::Take, rest),
        None => (Kind::Free, text.strip_prefix(FREE)?),
    };
    let container = string(&mut rest, ID)?;
    let interface = string(&mut rest, INTERFACE)?;
    rest = rest.strip_prefix(ADDRESSES)?;
    let (addresses, after) = rest.split_at_checked(memchr(b']', rest.as_bytes())?)?;
    rest = after.strip_prefix(']')?;
    let namespace = string(&mut rest, ",\"ns\":\"")?;
    let pod = string(&mut rest, ",\"pod\":\"")?;
    let uid = string(&mut rest, ",\"uid\":\"")?;
    let at = rest.strip_prefix(",\"at\":")?.strip_suffix('}')?;
    let at = at.bytes().all(|byte| byte.is_ascii_digit()).then(|| at.parse().ok())??;
    Some(Record { kind, container, interface, addresses, namespace, pod, uid, at })
}

const TAKE: &str = "{\"op\":\"take\"";
const FREE: &str = "{\"op\":\"free\"";
const ID: &str = ",\"id\":\"";
const INTERFACE: &str = ",\"if\":\"";
const ADDRESSES: &str = ",\"ips\":[";

/// How the record begins that says that `owner` has a lease: so one is found without reading the others.
pub(crate) fn beginning(owner: &Owner) -> String {
    let mut text = TAKE.to_owned();
    for (key, value) in [(ID, &owner.container), (INTERFACE, &owner.interface)] {
        if !value.is_empty() {
            text.extend([key, value, "\""]);
        }
    }
    text.push_str(ADDRESSES);
    text
}

/// The string behind `key`, empty where the key is not there; `None` where it has no end.
fn string<'a>(rest: &mut &'a str, key: &str) -> Option<&'a str> {
    let Some(behind) = rest.strip_prefix(key) else { return Some("") };
    let (value, after) = behind.split_at_checked(memchr(b'"', behind.as_bytes())?)?;
    *rest = after.get(1..)?;
    Some(value)
}

/// Reads a record's addresses into `into`, replacing what was there; `None` when one of them is none.
pub(crate) fn read_addresses(text: &str, into: &mut Vec<IpAddr>) -> Option<()> {
    into.clear();
    if text.is_empty() {
        return Some(());
    }
    for quoted in text.split(',') {
        into.push(quoted.strip_prefix('"')?.strip_suffix('"')?.parse().ok()?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_our_writing_is_left_to_the_other_reader() {
        let good = r#"{"op":"take","id":"c","if":"eth0","ips":["10.0.0.2","fd00::2"],"ns":"n","pod":"p","uid":"u","at":7}"#;
        let record = parse(good).unwrap();
        assert_eq!((record.kind, record.at), (Kind::Take, 7));
        assert_eq!(record.lease().pod.unwrap().to_string(), "n/p");
        assert_eq!(record.lease().addresses.len(), 2);
        for end in 0..good.len() {
            assert_eq!(parse(&good[..end]), None, "cut at {end}");
        }
        for other in [
            good.replace("\"c\"", "\"\\u0063\""),
            good.replace(",\"at\":7", ",\"at\":7,\"more\":1"),
            good.replace("\"at\":7", "\"at\":+7"),
            good.replace("\"at\":7", "\"at\": 7"),
            good.replace("take", "keep"),
        ] {
            assert_eq!(parse(&other), None, "{other}");
        }
        let mut addresses = Vec::new();
        for bad in ["10.0.0.2", "\"10.0.0.2\",", "\"10.0.0.256\"", "\"\""] {
            assert_eq!(read_addresses(bad, &mut addresses), None, "{bad}");
        }
    }
}

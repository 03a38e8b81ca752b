//! Wire types to model objects, with full validation; pure.
//!
//! The rule for a bad field: a Service's or a Node's spec is all or nothing, since half a Service can mean
//! something else than its author wrote (a lost source range opens a load balancer). What controllers fill in
//! (load balancer addresses, node addresses, a slice's endpoints and ports) loses only the bad entry. Each is
//! named by a [`Problem`], and a refused object counts as absent.

pub(crate) mod address;
mod endpoints;
mod node;
mod service;
mod slice;

use std::collections::HashSet;
use std::num::NonZeroU16;
use std::sync::Arc;

use netd_model::{ObjectName, Problem, Protocol};

pub(crate) use endpoints::endpoints;
pub(crate) use node::{namespace, node};
pub(crate) use service::service;
pub(crate) use slice::slice;

use crate::wire::{Body, Meta, Unreadable};

/// More problems of one object than this are only counted.
const MAX_PROBLEMS: usize = 8;
/// Strings kept for sharing before the interner starts anew.
const MAX_INTERNED: usize = 65_536;

/// The outcome for one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decoded<T> {
    /// Which object it was; `namespace` is empty for Nodes and Namespaces.
    pub(crate) key: ObjectName,
    /// The valid object; `None` when it was refused or is of no interest.
    pub(crate) object: Option<T>,
    /// What is wrong with it.
    pub(crate) problems: Vec<Problem>,
}

/// Shares equal strings (node names, zones, namespaces) between objects.
#[derive(Debug, Default)]
pub(crate) struct Interner(HashSet<Arc<str>>);

/// Why a value was refused: what is wrong and what to do.
pub(crate) type Refusal = String;

/// Collects the problems of one object.
#[derive(Debug)]
pub(crate) struct Report {
    kind: &'static str,
    object: String,
    problems: Vec<Problem>,
    more: usize,
}

/// An object whose JSON does not have the kind's shape.
pub(crate) fn unreadable<B: Body, T>(unreadable: &Unreadable) -> Decoded<T> {
    let key = key_of(&unreadable.meta);
    let mut report = Report::new(B::KIND, &key);
    report.add(format!("{}; correct the field's type", unreadable.error));
    Decoded { key, object: None, problems: report.finish() }
}

/// The key of an object by its metadata, whether valid or not.
pub(crate) fn key_of(meta: &Meta) -> ObjectName {
    ObjectName::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// The validated name of a namespaced object.
fn object_name(meta: &Meta, strings: &mut Interner) -> Result<ObjectName, Refusal> {
    let name = checked_name("metadata.name", meta.name.as_deref())?;
    let namespace = checked_name("metadata.namespace", meta.namespace.as_deref())?;
    Ok(ObjectName { namespace: strings.intern(namespace), name: name.into() })
}

/// A name that is safe in DNS, in file names and in comments of kernel rules (RFC 1123 subdomain).
fn checked_name<'a>(field: &str, name: Option<&'a str>) -> Result<&'a str, Refusal> {
    let name = name.filter(|n| !n.is_empty()).ok_or_else(|| format!("{field} is missing; set it"))?;
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = |c: char| edge(c) || c == '-' || c == '.';
    if name.len() <= 253 && name.starts_with(edge) && name.ends_with(edge) && name.chars().all(inner) {
        Ok(name)
    } else {
        Err(format!("{field} {name:?} is not a DNS name; use a-z, 0-9, '-' and '.'"))
    }
}

/// A single DNS label in lower case.
fn is_label(label: &str) -> bool {
    label.len() <= 63 && !label.contains('.') && checked_name("", Some(label)).is_ok()
}

/// A port name; empty for none.
fn checked_port_name(field: &str, name: Option<&str>, strings: &mut Interner) -> Result<Arc<str>, Refusal> {
    let name = name.unwrap_or_default();
    if name.is_empty() || is_label(&name.to_ascii_lowercase()) {
        Ok(strings.intern(name))
    } else {
        Err(format!("{field} {name:?} is not a port name; use up to 63 of a-z, 0-9 and '-'"))
    }
}

/// A protocol, TCP when absent.
fn checked_protocol(field: &str, protocol: Option<&str>) -> Result<Protocol, Refusal> {
    match protocol {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{field} {other:?} is unknown; use TCP, UDP or SCTP")),
    }
}

/// A port number in 1 to 65535.
fn checked_port(field: &str, port: i64) -> Result<NonZeroU16, Refusal> {
    u16::try_from(port)
        .ok()
        .and_then(NonZeroU16::new)
        .ok_or_else(|| format!("{field} {port} is out of range; use 1 to 65535"))
}

/// A port number where absent and 0 mean none.
fn checked_optional_port(field: &str, port: Option<i64>) -> Result<Option<NonZeroU16>, Refusal> {
    match port {
        None | Some(0) => Ok(None),
        Some(port) => checked_port(field, port).map(Some),
    }
}

// === impl Interner ===

impl Interner {
    /// The shared copy of a string.
    pub(crate) fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.0.get(text) {
            return Arc::clone(shared);
        }
        if self.0.len() >= MAX_INTERNED {
            self.0.clear();
        }
        let shared: Arc<str> = text.into();
        self.0.insert(Arc::clone(&shared));
        shared
    }

    /// The shared copy of an optional string; empty is none.
    fn intern_some(&mut self, text: Option<&str>) -> Option<Arc<str>> {
        text.filter(|t| !t.is_empty()).map(|t| self.intern(t))
    }
}

// === impl Report ===

impl Report {
    pub(crate) fn new(kind: &'static str, key: &ObjectName) -> Self {
        let object = match (&*key.namespace, &*key.name) {
            ("", name) => name.to_owned(),
            (namespace, name) => format!("{namespace}/{name}"),
        };
        Self { kind, object, problems: Vec::new(), more: 0 }
    }

    pub(crate) fn add(&mut self, message: Refusal) {
        if self.problems.len() >= MAX_PROBLEMS {
            self.more += 1;
            return;
        }
        let problem = Problem { kind: self.kind.to_owned(), object: self.object.clone(), message };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// The value, or a problem and nothing.
    fn accept<T>(&mut self, value: Result<T, Refusal>) -> Option<T> {
        value.map_err(|refusal| self.add(refusal)).ok()
    }

    pub(crate) fn finish(mut self) -> Vec<Problem> {
        if self.more > 0 {
            let message = format!("and {} more problems of this object", self.more);
            self.problems.push(Problem { kind: self.kind.to_owned(), object: self.object, message });
        }
        self.problems
    }
}

#[cfg(test)]
mod tests;

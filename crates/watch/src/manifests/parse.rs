//! A file to its documents, and a document to an object.

use std::fs;
use std::path::Path;

use netd_model::{ObjectName, Problem};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::debug;

use crate::decode::{self, Decoded, Interner};
use crate::index::Entry;
use crate::wire::endpoints::{EndpointSlice, Endpoints};
use crate::wire::node::{Namespace, Node};
use crate::wire::service::Service;
use crate::wire::{Body, Meta};

/// The largest file that is read.
const MAX_FILE: u64 = 16 << 20;
/// Namespace of objects that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// What a document was.
#[derive(Clone, Debug)]
pub(super) enum Document {
    /// An object, valid or refused.
    Object {
        /// File and document number.
        place: String,
        /// The object.
        entry: Box<Entry>,
    },
    /// Not an object at all.
    Problem(Problem),
}

/// Reads all documents of a file; never fails, a bad document is a problem named `file#number`.
pub(super) fn read_file(name: &str, path: &Path) -> Vec<Document> {
    let text = match read_text(path) {
        Ok(text) => text,
        Err(why) => return vec![problem(name, why)],
    };
    let mut documents = Vec::new();
    let mut strings = Interner::default();
    for (index, (line, text)) in split(&text).into_iter().enumerate() {
        let place = format!("{name}#{}", index + 1);
        match parse(name, text) {
            Ok(Value::Null) => {}
            Ok(value) => read_value(&place, value, &mut strings, &mut documents),
            Err(error) => {
                documents.push(problem(&place, format!("the document that begins in line {line}: {error}")));
            }
        }
    }
    documents
}

fn problem(place: &str, message: String) -> Document {
    Document::Problem(Problem { kind: "Manifest".to_owned(), object: place.to_owned(), message })
}

fn read_text(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    if fs::metadata(path).map_err(cannot)?.len() > MAX_FILE {
        return Err(format!("is larger than {} MiB; split it", MAX_FILE >> 20));
    }
    fs::read_to_string(path).map_err(cannot)
}

fn parse(name: &str, text: &str) -> Result<Value, String> {
    if Path::new(name).extension().is_some_and(|extension| extension == "json") {
        return serde_json::from_str(text).map_err(|error| error.to_string());
    }
    serde_saphyr::from_str(text).map_err(|error| error.without_snippet().to_string())
}

/// Splits at the markers `---` and `...`, which YAML allows in the first column of a line for nothing else, so
/// that one broken document leaves the others readable. Returns each document's first line and its text;
/// documents without content are left out.
pub(super) fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let next = offset + line.len();
        let end = line.trim_end();
        let explicit = line.starts_with("--- ") || line.starts_with("---\t");
        if end == "---" || end == "..." || explicit {
            documents.push((start_line, text.get(start..offset).unwrap_or_default()));
            // Content may follow the marker on its line.
            start = if explicit { offset + 3 } else { next };
            start_line = if explicit { index + 1 } else { index + 2 };
        }
        offset = next;
    }
    documents.push((start_line, text.get(start..).unwrap_or_default()));
    documents.retain(|(_, text)| has_content(text));
    documents
}

fn has_content(text: &str) -> bool {
    text.lines().map(str::trim_start).any(|line| !line.is_empty() && !line.starts_with(['#', '%']))
}

/// Reads an object, or the items of a `List`.
fn read_value(place: &str, value: Value, strings: &mut Interner, documents: &mut Vec<Document>) {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if kind.is_empty() || version.is_empty() {
        documents.push(problem(place, "apiVersion or kind is missing; set both".to_owned()));
        return;
    }
    if kind.ends_with("List") && value.get("items").is_some() {
        let items = match value.get("items") {
            Some(Value::Array(items)) => items.as_slice(),
            Some(_) | None => &[],
        };
        for (index, item) in items.iter().enumerate() {
            let item = item_of_list(&version, &kind, item);
            read_value(&format!("{place} items[{index}]"), item, strings, documents);
        }
        return;
    }
    let entry = match (version.as_str(), kind.as_str()) {
        ("v1", "Service") => {
            object::<Service, _>(value, strings, |wire, strings| service(&wire, strings).into())
        }
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            object::<EndpointSlice, _>(value, strings, |wire, strings| {
                let wire = slice(wire);
                Entry::from(decode::slice(&wire, strings)).triggered_by(&wire.metadata)
            })
        }
        ("v1", "Endpoints") => object::<Endpoints, _>(value, strings, |wire, strings| {
            let mut entry = Entry::from(decode::endpoints(&wire, strings)).triggered_by(&wire.metadata);
            // A slice of the same name is another object.
            entry.key = ObjectName::new(entry.key.namespace, format!("endpoints:{}", entry.key.name));
            entry
        }),
        ("v1", "Node") => {
            object::<Node, _>(value, strings, |wire, strings| decode::node(&wire, strings).into())
        }
        ("v1", "Namespace") => {
            object::<Namespace, _>(value, strings, |wire, strings| decode::namespace(&wire, strings).into())
        }
        (version, "EndpointSlice") if version.starts_with("discovery.k8s.io/") => {
            documents.push(problem(place, format!("EndpointSlice of {version}; use discovery.k8s.io/v1")));
            return;
        }
        _ => {
            debug!(document = place, kind, "skipped a kind of no use");
            return;
        }
    };
    match entry {
        Ok(mut entry) => {
            for problem in &mut entry.problems {
                problem.message = format!("{} (in {place})", problem.message);
            }
            documents.push(Document::Object { place: place.to_owned(), entry: Box::new(entry) });
        }
        Err(error) => documents.push(problem(place, format!("{kind}: {error}; correct the field's type"))),
    }
}

/// Items of a typed list (`ServiceList`) may leave out what the list says.
fn item_of_list(version: &str, kind: &str, item: &Value) -> Value {
    let mut item = item.clone();
    if let (Some(fields), Some(kind)) = (item.as_object_mut(), kind.strip_suffix("List"))
        && !kind.is_empty()
    {
        fields.entry("apiVersion").or_insert_with(|| version.into());
        fields.entry("kind").or_insert_with(|| kind.into());
    }
    item
}

fn object<B, F>(value: Value, strings: &mut Interner, decode: F) -> Result<Entry, String>
where
    B: Body + DeserializeOwned + Defaulted,
    F: FnOnce(B, &mut Interner) -> Entry,
{
    let mut wire: B = serde_path_to_error::deserialize(value).map_err(|error| error.to_string())?;
    wire.set_defaults();
    Ok(decode(wire, strings))
}

/// The API server gives a Service its address; here the author must.
fn service(wire: &Service, strings: &mut Interner) -> Decoded<netd_model::Service> {
    let mut decoded = decode::service(wire, strings);
    let spec = &wire.spec;
    let addressed = spec.cluster_ip.as_deref().is_some_and(|ip| !ip.is_empty())
        || !spec.cluster_ips.is_empty()
        || spec.service_type.as_deref() == Some("ExternalName");
    if decoded.object.is_some() && !addressed {
        decoded.object = None;
        decoded.problems.push(Problem {
            kind: Service::KIND.to_owned(),
            object: decoded.key.to_string(),
            message: "spec.clusterIP is missing, and no server allocates it; set an address or None"
                .to_owned(),
        });
    }
    decoded
}

fn slice(mut wire: EndpointSlice) -> EndpointSlice {
    for port in &mut wire.ports {
        port.name.get_or_insert_default();
    }
    wire
}

/// A kind to which the API server would add defaults that the decoder does not know.
trait Defaulted {
    fn set_defaults(&mut self);
}

fn set_namespace(meta: &mut Meta) {
    if meta.namespace.as_deref().unwrap_or_default().is_empty() {
        meta.namespace = Some(DEFAULT_NAMESPACE.to_owned());
    }
}

impl Defaulted for Service {
    fn set_defaults(&mut self) {
        set_namespace(&mut self.metadata);
    }
}

impl Defaulted for EndpointSlice {
    fn set_defaults(&mut self) {
        set_namespace(&mut self.metadata);
    }
}

impl Defaulted for Endpoints {
    fn set_defaults(&mut self) {
        set_namespace(&mut self.metadata);
    }
}

impl Defaulted for Node {
    fn set_defaults(&mut self) {
        self.metadata.namespace = None;
    }
}

impl Defaulted for Namespace {
    fn set_defaults(&mut self) {
        self.metadata.namespace = None;
    }
}

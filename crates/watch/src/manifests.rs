//! A directory of ordinary Kubernetes YAML, re-read on change.

mod parse;
mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use netd_model::{ObjectName, Problem, Protocol};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::error::Error;
use crate::index::task::Message;
use crate::index::{Entry, Kind, Object};
use crate::source::ManifestsConfig;
use parse::{Document, read_file};
use scan::{Files, scan};

/// The directory and what was read from it.
#[derive(Debug)]
pub(crate) struct Directory {
    config: ManifestsConfig,
    reader: Reader,
    first: Contents,
}

/// Everything in the directory.
type Contents = (Vec<Entry>, Vec<Problem>);

/// Remembers what each file held, so that only changed files are parsed again.
#[derive(Debug, Default)]
struct Reader {
    dir: PathBuf,
    /// The last look.
    seen: Files,
    /// The look that the contents were read at.
    applied: Files,
    parsed: BTreeMap<String, Vec<Document>>,
    /// What Services held at the last reading: whoever comes later does not take it from them.
    held: Allocated,
}

// === impl Directory ===

impl Directory {
    /// Reads the directory for the first time.
    pub(crate) async fn open(config: ManifestsConfig) -> Result<Self, Error> {
        let mut reader = Reader { dir: config.dir.clone(), ..Reader::default() };
        let opened = spawn_blocking(move || {
            let files = scan(&reader.dir)?;
            reader.seen = files.clone();
            let first = reader.read(files);
            Ok((reader, first))
        });
        let (reader, first) = opened
            .await
            .map_err(Error::Task)?
            .map_err(|source| Error::ManifestsDir { path: config.dir.clone(), source })?;
        Ok(Self { config, reader, first })
    }

    /// Sends the contents now and after each change, until the receiver is gone.
    pub(crate) async fn follow(self, to: mpsc::Sender<Message>) {
        let Self { config, mut reader, first: (entries, documents) } = self;
        let mut messages = vec![Message::Replace(entries, documents), Message::Contact(None, None)];
        let mut readable = true;
        let mut ticks = interval(config.poll);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            for message in messages.drain(..) {
                if to.send(message).await.is_err() {
                    return;
                }
            }
            ticks.tick().await;
            let looked = spawn_blocking(move || {
                let looked = reader.look();
                (reader, looked)
            });
            let Ok((returned, looked)) = looked.await else { return };
            reader = returned;
            let failed = looked.as_ref().err().map(|error| describe(&config.dir, error));
            if readable != failed.is_none() {
                readable = failed.is_none();
                messages.push(Message::Contact(None, failed));
            }
            if let Ok(Some((entries, documents))) = looked {
                messages.push(Message::Replace(entries, documents));
            }
        }
    }
}

fn describe(dir: &Path, error: &io::Error) -> String {
    format!("read directory {}: {error}", dir.display())
}

// === impl Reader ===

impl Reader {
    /// The contents, when they changed and two looks agree.
    fn look(&mut self) -> io::Result<Option<Contents>> {
        let files = scan(&self.dir)?;
        if files != self.seen {
            self.seen = files;
            return Ok(None);
        }
        if files == self.applied {
            return Ok(None);
        }
        Ok(Some(self.read(files)))
    }

    /// Parses what changed and puts everything together.
    fn read(&mut self, files: Files) -> Contents {
        self.parsed.retain(|name, _| files.contains_key(name));
        for (name, file) in &files {
            let unchanged = self.applied.get(name) == Some(file) && self.parsed.contains_key(name);
            if !unchanged {
                debug!(file = name, "reading");
                self.parsed.insert(name.clone(), read_file(name, &self.dir.join(name)));
            }
        }
        self.applied = files;
        self.contents()
    }

    /// The first of two documents about the same object counts.
    fn contents(&mut self) -> Contents {
        let mut entries: Vec<Entry> = Vec::new();
        let mut problems = Vec::new();
        let mut first: BTreeMap<(Kind, ObjectName), &str> = BTreeMap::new();
        let mut admitted: Vec<(Entry, &str)> = Vec::new();
        for document in self.parsed.values().flatten() {
            match document {
                Document::Problem(problem) => problems.push(problem.clone()),
                Document::Object { place, entry } => {
                    let key = (entry.kind, entry.key.clone());
                    if let Some(other) = first.get(&key) {
                        let message = format!(
                            "{} {} is already in {other}, which counts; remove one",
                            entry.kind, entry.key
                        );
                        problems.push(Problem {
                            kind: "Manifest".to_owned(),
                            object: place.clone(),
                            message,
                        });
                    } else {
                        first.insert(key, place);
                        admitted.push((Entry::clone(entry), place));
                    }
                }
            }
        }
        // Holders first, as they would be on a server; among the others the order of the files decides.
        admitted.sort_by_key(|(entry, _)| !self.held.holds(entry));
        let mut allocated = Allocated::default();
        entries.extend(admitted.into_iter().map(|(entry, place)| allocated.admit(entry, place)));
        self.held = allocated;
        let distinct: BTreeSet<Problem> = problems.into_iter().collect();
        (entries, distinct.into_iter().collect())
    }
}

/// What an API server gives out once: it would refuse a Service that asks for it again, and the planner relies
/// on that.
#[derive(Debug, Default)]
struct Allocated {
    addresses: BTreeMap<IpAddr, ObjectName>,
    node_ports: BTreeMap<(Protocol, NonZeroU16), ObjectName>,
}

impl Allocated {
    /// Whether the entry is a Service that has one of its cluster addresses already.
    fn holds(&self, entry: &Entry) -> bool {
        let Some(Object::Service(service)) = &entry.object else { return false };
        service.cluster_ips.iter().any(|ip| self.addresses.get(ip) == Some(&entry.key))
    }

    /// The entry, refused when it asks for what another Service has.
    fn admit(&mut self, mut entry: Entry, place: &str) -> Entry {
        let Some(Object::Service(service)) = &entry.object else { return entry };
        let health = service.health_check_node_port.map(|port| (Protocol::Tcp, port));
        let named = service.ports.iter().filter_map(|port| Some((port.protocol, port.node_port?)));
        let node_ports: Vec<(Protocol, NonZeroU16)> = named.chain(health).collect();
        let address = service.cluster_ips.iter().find_map(|ip| {
            self.addresses.get(ip).map(|other| format!("spec.clusterIPs {ip} belongs to {other}"))
        });
        let taken = address.or_else(|| {
            node_ports.iter().find_map(|(protocol, port)| {
                let other = self.node_ports.get(&(*protocol, *port))?;
                Some(format!("node port {port}/{} belongs to {other}", protocol.lower()))
            })
        });
        if let Some(taken) = taken {
            entry.problems.push(Problem {
                kind: Kind::Service.to_string(),
                object: entry.key.to_string(),
                message: format!("{taken}; choose another (in {place})"),
            });
            entry.object = None;
            return entry;
        }
        self.addresses.extend(service.cluster_ips.iter().map(|ip| (*ip, entry.key.clone())));
        self.node_ports.extend(node_ports.into_iter().map(|port| (port, entry.key.clone())));
        entry
    }
}

#[cfg(test)]
mod tests;

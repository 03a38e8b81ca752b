//! A directory of ordinary Kubernetes YAML, re-read on change.

mod parse;
mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use netd_model::{ObjectName, Problem};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::error::Error;
use crate::index::task::Message;
use crate::index::{Entry, Kind};
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
    fn contents(&self) -> Contents {
        let mut entries: Vec<Entry> = Vec::new();
        let mut problems = Vec::new();
        let mut first: BTreeMap<(Kind, ObjectName), &str> = BTreeMap::new();
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
                        entries.push(Entry::clone(entry));
                    }
                }
            }
        }
        let distinct: BTreeSet<Problem> = problems.into_iter().collect();
        (entries, distinct.into_iter().collect())
    }
}

#[cfg(test)]
mod tests;

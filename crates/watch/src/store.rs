//! The last snapshot on disk, so that a start while the API server is down still serves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use netd_model::{EndpointSlice, Node, ObjectName, Service, Shared, Snapshot};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::index::task::stopped;
use crate::update::Subscriber;

/// Format of the file; any other is ignored.
const VERSION: u32 = 1;
/// Shortest time between two saves.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// A save may take this share of the time at most.
const DUTY: u32 = 20;

/// What the file holds. Lists, since JSON has no maps with keys of two parts.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
    nodes: Vec<Arc<Node>>,
    namespaces: BTreeSet<Arc<str>>,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Reads the snapshot without blocking the runtime; `None` when there is none that can be used.
pub(crate) async fn load_off_thread(path: PathBuf) -> Option<Snapshot> {
    spawn_blocking(move || load(&path)).await.ok().flatten()
}

/// Reads the snapshot; a missing file is silent, a corrupt or foreign one is a warning.
fn load(path: &Path) -> Option<Snapshot> {
    match try_load(path) {
        Ok(snapshot) => {
            info!(path = %path.display(), services = snapshot.services.len(), "loaded the stored state");
            Some(snapshot)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!(path = %path.display(), %error, "the stored state cannot be used and is ignored");
            None
        }
    }
}

fn try_load(path: &Path) -> io::Result<Snapshot> {
    let bytes = {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut BufReader::new(File::open(path)?), &mut bytes)?;
        bytes
    };
    let Version { version } = serde_json::from_slice(&bytes)?;
    if version != VERSION {
        return Err(io::Error::other(format!("its format is {version}, this netd reads {VERSION}")));
    }
    let stored: Stored = serde_json::from_slice(&bytes)?;
    let mut slices: BTreeMap<ObjectName, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in stored.slices {
        slices.entry(slice.service.clone()).or_default().push(slice);
    }
    for list in slices.values_mut() {
        list.sort_by(|a, b| a.name.cmp(&b.name));
    }
    Ok(Snapshot {
        generation: 0,
        stale: true,
        services: stored.services.into_iter().map(|s| (s.name.clone(), s)).collect(),
        slices: slices.into_iter().collect(),
        nodes: stored.nodes.into_iter().map(|n| (Arc::clone(&n.name), n)).collect(),
        namespaces: stored.namespaces.into(),
        problems: Shared::default(),
    })
}

/// Saves every snapshot that is not stale, or the newest of those that arrive during a save; ends with the
/// source or with `shutdown`, after a last save.
pub(crate) async fn save_all(path: PathBuf, mut subscriber: Subscriber, mut shutdown: watch::Receiver<bool>) {
    let mut stop = false;
    while !stop {
        let update = tokio::select! {
            biased;
            update = subscriber.next() => update,
            () = stopped(&mut shutdown) => return,
        };
        let Some(update) = update else { return };
        if update.snapshot.stale {
            continue;
        }
        let pause = save_logged(&path, update.snapshot).await.max(MIN_INTERVAL);
        tokio::select! {
            () = sleep(pause) => {}
            () = stopped(&mut shutdown) => stop = true,
        }
    }
    if let Some(snapshot) = subscriber.latest().filter(|snapshot| !snapshot.stale) {
        save_logged(&path, snapshot).await;
    }
}

/// Saves, and says how long to leave the disk alone.
async fn save_logged(path: &Path, snapshot: Arc<Snapshot>) -> Duration {
    let started = Instant::now();
    let target = path.to_owned();
    match spawn_blocking(move || save(&target, &snapshot)).await {
        Ok(Ok(())) => debug!(path = %path.display(), "stored the state"),
        Ok(Err(error)) => warn!(path = %path.display(), %error, "the state cannot be stored"),
        Err(error) => warn!(path = %path.display(), %error, "storing the state was cut short"),
    }
    started.elapsed() * DUTY
}

/// Replaces the file in one step: a reader and a crash see the old or the new one.
fn save(path: &Path, snapshot: &Snapshot) -> io::Result<()> {
    let stored = Stored {
        version: VERSION,
        services: snapshot.services.values().cloned().collect(),
        slices: snapshot.slices.values().flatten().cloned().collect(),
        nodes: snapshot.nodes.values().cloned().collect(),
        namespaces: BTreeSet::clone(&snapshot.namespaces),
    };
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(directory)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = directory.join(name);
    let mut writer = BufWriter::new(File::create(&temporary)?);
    serde_json::to_writer(&mut writer, &stored)?;
    writer.flush()?;
    writer.get_ref().sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corrupt_foreign_or_missing_file_is_no_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert!(load(&path).is_none());
        for text in ["", "{", "{\"version\":2}", "{\"version\":1}", "[]", "\u{0}\u{0}"] {
            fs::write(&path, text).unwrap();
            assert!(load(&path).is_none(), "{text:?}");
        }
    }
}

//! Where objects come from, and the tasks that bring them in.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::error::Error;
use crate::index::task::{IndexTask, QUEUE, stopped};
use crate::update::Publisher;
use crate::{api, manifests, store};

/// How long the last save may take when the source ends.
const SAVE_PATIENCE: Duration = Duration::from_secs(3);

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A Kubernetes API server.
    Api(ApiConfig),
    /// A directory of YAML.
    Manifests(ManifestsConfig),
}

/// How to reach the API server.
///
/// The base is `kubeconfig`, else the pod's service account; `server`, `token_file` and `ca_file` override its
/// parts. On a node whose Service proxy is netd itself, `server` must be an address that needs no Service.
#[derive(Clone, Debug, Default)]
pub struct ApiConfig {
    /// URL, as `https://10.0.0.1:6443`.
    pub server: Option<String>,
    /// Kubeconfig file; its current context is used.
    pub kubeconfig: Option<PathBuf>,
    /// File with a bearer token; read again when it rotates.
    pub token_file: Option<PathBuf>,
    /// PEM file with the certificate authorities of the server; read again when it rotates.
    pub ca_file: Option<PathBuf>,
}

/// Which directory to read, and how often to look for changes.
///
/// Files ending in `.yaml`, `.yml` or `.json` directly in the directory are read, in the order of their names;
/// sub-directories and names that begin with a dot are not. Symbolic links are followed, so a mounted ConfigMap
/// works. `List`s are flattened, kinds that netd has no use for are skipped. What the API server would default
/// is defaulted; what controllers would add is not: EndpointSlices must be written.
///
/// A document that cannot be read, and an object that is refused, is named in the snapshot's problems and counts
/// as absent, even when an earlier version of it was good: the state is a function of the files alone.
#[derive(Clone, Debug)]
pub struct ManifestsConfig {
    /// The directory.
    pub dir: PathBuf,
    /// Time between looks. A change counts once two looks in a row agree, so that no half-written file is read.
    pub poll: Duration,
}

/// How changes are handed on.
#[derive(Clone, Debug)]
pub struct Options {
    /// File that keeps the last snapshot of an API source for the next start; `None` keeps none.
    pub store: Option<PathBuf>,
    /// Snapshots say `stale` after this long without contact.
    pub stale_after: Duration,
    /// A snapshot is published after this long without a change,
    pub quiet: Duration,
    /// but at the latest this long after the first one.
    pub max_delay: Duration,
}

impl ManifestsConfig {
    /// Reads `dir` ten times a second.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), poll: Duration::from_millis(100) }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            store: None,
            stale_after: Duration::from_secs(10),
            quiet: Duration::from_millis(10),
            max_delay: Duration::from_millis(50),
        }
    }
}

impl Source {
    /// How messages and status name the source.
    fn describe(&self) -> String {
        match self {
            Self::Api(ApiConfig { server: Some(server), .. }) => format!("api {server}"),
            Self::Api(ApiConfig { kubeconfig: Some(path), .. }) => format!("api by {}", path.display()),
            Self::Api(_) => "api of this cluster".to_owned(),
            Self::Manifests(config) => format!("manifests {}", config.dir.display()),
        }
    }
}

/// Brings objects from the source to the publisher until `shutdown` turns true or its sender is gone.
///
/// Nothing is published before every kind has been listed once, except a stored snapshot (see
/// [`Options::store`]) when two seconds pass without that; it is marked stale.
///
/// # Errors
///
/// Only for what a human must put right, such as an unreadable kubeconfig or a missing directory. A source that
/// cannot be reached is retried for ever and shown in [`SourceStatus`](crate::SourceStatus).
pub async fn run(
    source: Source,
    options: Options,
    publisher: Publisher,
    shutdown: watch::Receiver<bool>,
) -> Result<(), Error> {
    let (sender, inbox) = mpsc::channel(QUEUE);
    let mut tasks: JoinSet<Result<&'static str, Error>> = JoinSet::new();
    let name = source.describe();
    let (stored, saver) = match (&source, &options.store) {
        (Source::Api(_), Some(path)) => {
            let saver = store::save_all(path.clone(), publisher.subscribe(), shutdown.clone());
            (store::load_off_thread(path.clone()).await, Some(tokio::spawn(saver)))
        }
        (Source::Api(_) | Source::Manifests(_), _) => (None, None),
    };
    match source {
        Source::Api(config) => {
            // The first look at the configuration is made here, so that a wrong one ends the start at once.
            let config = api::Connection::prepare(config).await?;
            tasks.spawn(async move { api::follow(config, sender).await.map(|()| "API watch") });
        }
        Source::Manifests(config) => {
            let directory = manifests::Directory::open(config).await?;
            tasks.spawn(async move {
                directory.follow(sender).await;
                Ok("manifests reader")
            });
        }
    }
    let index = IndexTask::new(name, inbox, publisher, options, stored);
    let until = shutdown.clone();
    tasks.spawn(async move {
        index.run(until).await;
        Ok("index")
    });
    let ended = supervise(tasks, shutdown).await;
    if let Some(saver) = saver {
        // A save that hangs or fails has been logged by the saver; the end must not wait for it.
        let _ = timeout(SAVE_PATIENCE, saver).await;
    }
    ended
}

/// Ends with the first task that ends, or in peace with `shutdown`.
async fn supervise(
    mut tasks: JoinSet<Result<&'static str, Error>>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), Error> {
    let ended = tokio::select! {
        biased;
        () = stopped(&mut shutdown) => None,
        ended = tasks.join_next() => ended,
    };
    match ended {
        None => Ok(()),
        // The index ends by itself on shutdown, and may be first.
        Some(_) if *shutdown.borrow() || shutdown.has_changed().is_err() => Ok(()),
        Some(Ok(Ok(task))) => Err(Error::TaskEnded { task }),
        Some(Ok(Err(error))) => Err(error),
        Some(Err(join)) => Err(Error::Task(join)),
    }
}

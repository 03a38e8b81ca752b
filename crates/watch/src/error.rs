//! What ends a source: only what a human must put right.

use std::path::PathBuf;

/// A source that cannot start, or that lost one of its tasks.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be used.
    #[error("read kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// netd runs outside a pod and no API server was named.
    #[error("find the API server: not in a cluster; set a server, a kubeconfig or a manifests directory")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// The server's address is not a URL.
    #[error("parse API server URL {url}: write it as https://HOST:PORT")]
    ServerUrl {
        /// What was given.
        url: String,
        /// Why it is not a URL.
        #[source]
        source: http::uri::InvalidUri,
    },
    /// The URL has no scheme or host.
    #[error("use API server URL {url}: write it as https://HOST:PORT")]
    ServerUrlParts {
        /// What was given.
        url: String,
    },
    /// A file that the configuration names cannot be read.
    #[error("read {what} {path}")]
    File {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The credentials or certificates make no client.
    #[error("set up the API client")]
    Client(#[source] Box<kube::Error>),
    /// The API server did not take an Event.
    #[error("write an Event")]
    Event(#[source] Box<kube::Error>),
    /// The API server did not answer in time.
    #[error("write an Event: no answer in 10 seconds")]
    EventTimeout,
    /// The manifests directory cannot be read.
    #[error("read manifests directory {path}")]
    ManifestsDir {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A task ended that runs as long as the source.
    #[error("run {task}: it ended unexpectedly")]
    TaskEnded {
        /// Which one.
        task: &'static str,
    },
    /// A task panicked or was aborted.
    #[error("run a task of the source")]
    Task(#[source] tokio::task::JoinError),
}

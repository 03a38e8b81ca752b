//! The client and its configuration.

use std::path::Path;
use std::time::Duration;

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

use crate::error::Error;
use crate::source::ApiConfig;

/// TCP and TLS set-up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest error text that is shown.
const MAX_ERROR: usize = 400;

/// How long a silent server is believed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// The server ends a watch after this long, in seconds; kube's watcher waits five more.
    pub(crate) watch_seconds: u32,
    /// A connection without a byte for this long is dead; longer than a watch, or every quiet one would be.
    pub(crate) read: Duration,
    /// A streaming list that makes no progress for this long is given up for a plain list.
    pub(crate) streaming: Duration,
    /// Time between looks for EndpointSlices while there are only Endpoints.
    pub(crate) discovery: Duration,
}

/// A configuration that a client can be made of.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    source: ApiConfig,
    config: Config,
    timeouts: Timeouts,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            watch_seconds: 45,
            read: Duration::from_secs(55),
            streaming: Duration::from_secs(10),
            discovery: Duration::from_secs(60),
        }
    }
}

// === impl Connection ===

impl Connection {
    /// Reads the configuration; does not talk to the server.
    pub(crate) async fn prepare(source: ApiConfig) -> Result<Self, Error> {
        let timeouts = Timeouts::default();
        let mut config = base(&source).await?;
        if let Some(path) = &source.token_file {
            readable("token", path)?;
            config.auth_info.token = None;
            config.auth_info.token_file = Some(path.display().to_string());
        }
        if let Some(path) = &source.ca_file {
            readable("certificate authorities", path)?;
            config.root_cert = None;
            config.root_cert_file = Some(path.clone());
        }
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(timeouts.read);
        // Otherwise the idle time of a pooled connection would count against the next answer on it.
        config.reset_reader_on_write = true;
        // Retries are this crate's, so that each failure is seen.
        config.default_retry = false;
        let connection = Self { source, config, timeouts };
        // Certificates and keys that cannot be used are found here.
        connection.client()?;
        Ok(connection)
    }

    /// Reads the configuration again.
    pub(crate) async fn renewed(&self) -> Result<Self, Error> {
        let timeouts = self.timeouts;
        Self::prepare(self.source.clone()).await.map(|renewed| Self { timeouts, ..renewed })
    }

    /// A client.
    pub(crate) fn client(&self) -> Result<Client, Error> {
        Client::try_from(self.config.clone()).map_err(|error| Error::Client(Box::new(error)))
    }

    pub(crate) fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    #[cfg(test)]
    pub(crate) fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.config.read_timeout = Some(timeouts.read);
        self.timeouts = timeouts;
        self
    }
}

/// The kubeconfig's, else the pod's, else a bare configuration.
async fn base(source: &ApiConfig) -> Result<Config, Error> {
    let server = source.server.as_deref().map(parse_server).transpose()?;
    if let Some(path) = &source.kubeconfig {
        let wrong = |error| Error::Kubeconfig { path: path.clone(), source: Box::new(error) };
        let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
        let mut config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(wrong)?;
        config.cluster_url = server.unwrap_or(config.cluster_url);
        return Ok(config);
    }
    match (server, Config::incluster()) {
        (None, Ok(config)) => Ok(config),
        (None, Err(error)) => Err(Error::InCluster(Box::new(error))),
        (Some(server), Ok(config)) => {
            let mut config = config;
            config.cluster_url = server;
            Ok(config)
        }
        (Some(server), Err(_)) => Ok(Config::new(server)),
    }
}

fn parse_server(url: &str) -> Result<http::Uri, Error> {
    let uri: http::Uri = url.parse().map_err(|source| Error::ServerUrl { url: url.to_owned(), source })?;
    let known = matches!(uri.scheme_str(), Some("https" | "http"));
    if known && uri.host().is_some_and(|host| !host.is_empty()) {
        Ok(uri)
    } else {
        Err(Error::ServerUrlParts { url: url.to_owned() })
    }
}

fn readable(what: &'static str, path: &Path) -> Result<(), Error> {
    std::fs::File::open(path).map(drop).map_err(|source| Error::File { what, path: path.to_owned(), source })
}

/// An error and its causes in one line, without repetition.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    if text.len() > MAX_ERROR {
        let end = (0..=MAX_ERROR).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

//! The client that the command line uses.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::state::{ServiceList, VersionDoc};
use crate::{Error, ServiceState, StateDoc};

/// How long the daemon has for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The HTTP status that says that a part is not ready.
const UNAVAILABLE: u16 = 503;

/// Asks a daemon; each question is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// Checks that a daemon listens on the socket.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Forbidden`], [`Error::Timeout`].
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        let client = Self { path: path.to_owned() };
        client.open().await?;
        Ok(client)
    }

    /// The whole state.
    ///
    /// # Errors
    /// As [`Client::connect`], and what the conversation can end with.
    pub async fn state(&self) -> Result<StateDoc, Error> {
        self.document("/v1/state").await
    }

    /// Services as they are programmed.
    ///
    /// # Errors
    /// As [`Client::state`].
    pub async fn services(&self) -> Result<Vec<ServiceState>, Error> {
        Ok(self.document::<ServiceList>("/v1/services").await?.items)
    }

    /// Version of the daemon.
    ///
    /// # Errors
    /// As [`Client::state`].
    pub async fn version(&self) -> Result<String, Error> {
        Ok(self.document::<VersionDoc>("/version").await?.version)
    }

    /// True when every part that is switched on is ready.
    ///
    /// # Errors
    /// As [`Client::state`].
    pub async fn healthy(&self) -> Result<bool, Error> {
        match self.ask("/healthz").await {
            Ok(_) => Ok(true),
            Err(Error::Status { status: UNAVAILABLE, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn document<D: DeserializeOwned>(&self, request: &'static str) -> Result<D, Error> {
        let body = self.ask(request).await?;
        serde_json::from_slice(&body).map_err(|source| Error::Document { request, source })
    }

    async fn ask(&self, request: &'static str) -> Result<Bytes, Error> {
        let exchange = self.exchange(request);
        timeout(TIMEOUT, exchange).await.map_err(|_elapsed| Error::Timeout { path: self.path.clone() })?
    }

    async fn exchange(&self, request: &'static str) -> Result<Bytes, Error> {
        let broken = |source| Error::Exchange { path: self.path.clone(), request, source };
        let stream = self.open().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut get = Request::new(Empty::<Bytes>::new());
        *get.uri_mut() = hyper::Uri::from_static(request);
        get.headers_mut().insert(hyper::header::HOST, hyper::header::HeaderValue::from_static("netd"));
        let answer = async {
            let response = sender.send_request(get).await?;
            let status = response.status();
            Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        // The connection has to be driven while the answer is read.
        let (status, body) = tokio::select! {
            answered = answer => answered.map_err(broken)?,
            ended = drive(connection) => return Err(broken(ended)),
        };
        if status.is_success() {
            return Ok(body);
        }
        Err(Error::Status { path: self.path.clone(), request, status: status.as_u16() })
    }

    async fn open(&self) -> Result<UnixStream, Error> {
        let path = self.path.clone();
        let connected = timeout(TIMEOUT, UnixStream::connect(&self.path)).await;
        match connected {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) if source.kind() == io::ErrorKind::PermissionDenied => {
                Err(Error::Forbidden { path, source })
            }
            Ok(Err(source)) => Err(Error::Unreachable { path, source }),
            Err(_elapsed) => Err(Error::Timeout { path }),
        }
    }
}

/// Drives a connection for its answers; resolves only when it fails.
async fn drive<C>(connection: C) -> hyper::Error
where
    C: Future<Output = hyper::Result<()>>,
{
    match connection.await {
        Err(error) => error,
        // An orderly end: the answer is or will be there.
        Ok(()) => std::future::pending().await,
    }
}

//! The server: HTTP/1 over a unix socket that only its owner and root may use.

mod socket;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, warn};

use crate::state::{ServiceList, VersionDoc};
use crate::{API_VERSION, Error, StateDoc};
use socket::Socket;

/// Gives the current state; called for each request, so it must be quick and must not block.
pub trait StateSource: Send + Sync + 'static {
    /// The state now.
    fn state(&self) -> StateDoc;
}

impl<F: Fn() -> StateDoc + Send + Sync + 'static> StateSource for F {
    fn state(&self) -> StateDoc {
        self()
    }
}

/// A bound state API.
#[derive(Debug)]
pub struct AdminServer {
    listener: UnixListener,
    socket: Socket,
}

impl AdminServer {
    /// Binds the socket with mode 0600, making its directory with mode 0700 where it is missing; within a
    /// tokio runtime.
    ///
    /// A socket that a dead process left is replaced.
    ///
    /// # Errors
    /// [`Error::Running`] when a live process listens there, [`Error::NotASocket`], [`Error::Socket`].
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let (listener, socket) = socket::bind(path)?;
        let convert = |source| Error::Socket { action: "watch the socket", path: path.to_owned(), source };
        let listener = UnixListener::from_std(listener).map_err(convert)?;
        Ok(Self { listener, socket })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Answers until `shutdown` resolves; removes the socket at the end.
    ///
    /// # Errors
    /// [`Error::Serve`].
    pub async fn serve(
        self,
        source: Arc<dyn StateSource>,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), Error> {
        let path: PathBuf = self.path().to_owned();
        let router = Router::new()
            .route("/v1/state", get(state))
            .route("/v1/services", get(services))
            .route("/healthz", get(healthz))
            .route("/version", get(version))
            .with_state(source);
        let listener = OwnerOnly { listener: self.listener, uid: self.socket.uid() };
        // A client that keeps its connection open must not hold up the end.
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let graceful = async move {
            shutdown.await;
            drop(stop);
        };
        let served = axum::serve(listener, router).with_graceful_shutdown(graceful);
        let result = tokio::select! {
            result = async { served.await } => result,
            () = grace(stopped) => Ok(()),
        };
        result.map_err(|source| Error::Serve { path, source })
    }
}

/// How long open requests have after the shutdown.
const GRACE: std::time::Duration = std::time::Duration::from_millis(500);

async fn grace(stopped: tokio::sync::oneshot::Receiver<()>) {
    // The sender is only ever dropped, which is the signal.
    let _dropped = stopped.await;
    tokio::time::sleep(GRACE).await;
}

/// Accepts connections of root and of the daemon's own user.
struct OwnerOnly {
    listener: UnixListener,
    uid: u32,
}

impl axum::serve::Listener for OwnerOnly {
    type Io = UnixStream;
    type Addr = ();

    async fn accept(&mut self) -> (UnixStream, ()) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if peer.uid() == 0 || peer.uid() == self.uid => return (stream, ()),
                    Ok(peer) => warn!(uid = peer.uid(), pid = ?peer.pid(), "state api refused a user"),
                    Err(failure) => debug!(%failure, "state api client without credentials"),
                },
                Err(failure) => {
                    debug!(%failure, "state api accept failed");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

async fn state(State(source): State<Arc<dyn StateSource>>) -> Json<StateDoc> {
    Json(source.state())
}

async fn services(State(source): State<Arc<dyn StateSource>>) -> Json<ServiceList> {
    let items = source.state().services;
    Json(ServiceList { api_version: API_VERSION.to_owned(), kind: "ServiceList".to_owned(), items })
}

async fn healthz(State(source): State<Arc<dyn StateSource>>) -> (StatusCode, String) {
    let state = source.state();
    let failed = state.failed_parts();
    if failed.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", failed.join(", ")))
    }
}

async fn version(State(source): State<Arc<dyn StateSource>>) -> Json<VersionDoc> {
    Json(VersionDoc { api_version: API_VERSION.to_owned(), version: source.state().version })
}

#[cfg(test)]
mod tests;
